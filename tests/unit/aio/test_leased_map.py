"""The mapping that small reads come from, and the lease that makes it safe."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vblk.aio import leased_map
from vblk.aio.inline import InlineReader
from vblk.aio.leased_map import LeasedMap

SIZE = 1 << 20
CONTENT = os.urandom(SIZE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that fits no page and that nobody writes."""
    file = tmp_path / "disk"
    file.write_bytes(CONTENT + b"tail")
    return file


@pytest.fixture
def mapped(path: Path) -> LeasedMap:
    fd = os.open(path, os.O_RDONLY)
    member = leased_map.take(fd)
    os.close(fd)  # the mapping has a descriptor of its own
    assert member is not None
    return member


def test_cached_pages_are_read_from_the_mapping(mapped: LeasedMap) -> None:
    assert mapped.read(4096, 4096) == CONTENT[4096:8192]
    assert mapped.read(4097, 100) == CONTENT[4097:4197]
    assert mapped.read(8191, 2) == CONTENT[8191:8193]
    mapped.close()


def test_pages_that_left_the_cache_are_not_touched(mapped: LeasedMap, path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    mapped.refresh()
    assert mapped.read(4096, 4096) is None
    assert mapped.read(SIZE - 1, 2) is None
    mapped.close()


def test_the_end_of_the_file_is_never_passed(mapped: LeasedMap) -> None:
    assert mapped.read(SIZE, 4) == b"tail"
    assert mapped.read(SIZE, 5) is None
    assert mapped.read(SIZE + 4096, 1) is None
    mapped.close()


@pytest.mark.parametrize("change", ["open(p, 'r+b').close()", "import os; os.truncate(p, 0)"])
def test_who_wants_to_change_the_file_waits_until_the_mapping_is_closed(
    mapped: LeasedMap, path: Path, change: str
) -> None:
    code = f"import sys; p = sys.argv[1]; {change}"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=40)
    assert mapped.closed
    assert mapped.read(0, 4096) is None


def test_the_same_thread_may_open_the_file_for_writing(mapped: LeasedMap, path: Path) -> None:
    path.write_bytes(b"short")
    assert mapped.closed


def test_no_lease_is_had_on_a_file_that_somebody_writes(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    with path.open("r+b"):
        assert leased_map.take(fd) is None
    os.close(fd)


def test_a_file_too_small_to_be_worth_it_is_not_mapped(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x" * 4096)
    fd = os.open(tmp_path / "small", os.O_RDONLY)
    assert leased_map.take(fd) is None
    os.close(fd)


def test_closing_twice_and_on_several_threads_is_harmless(mapped: LeasedMap) -> None:
    threads = [threading.Thread(target=mapped.close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mapped.closed


def test_a_busy_reader_maps_and_reads_the_same_bytes(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    reader = InlineReader(fd, may_map=True)
    if not reader.supported or reader.try_read(0, 1) is None:
        pytest.fail("the file system of the temporary folder has no RWF_NOWAIT")
    for number in range(5000):
        offset = number * 4096 % SIZE
        assert reader.try_read(offset, 4096) == CONTENT[offset : offset + 4096]
    assert reader.read_mapped is not None
    assert reader.read_mapped(SIZE - 4096, 4096) == CONTENT[-4096:]
    path.write_bytes(b"")
    assert reader.read_mapped(SIZE - 4096, 4096) is None
    assert reader.try_read(0, 4096) is None
    reader.close()
    os.close(fd)
