"""The public disk, and the file object over it."""

import asyncio
import errno
import io
import os
import threading
import zipfile
from pathlib import Path

import pytest

import vblk
from tests.support.nodes import content_of, loop_device
from tests.support.vhdx.chain import Chain
from vblk.disk import DiskFile
from vblk.extent import Kind

MIB = 1 << 20
SIZE = 3 * MIB


@pytest.fixture
def content() -> bytes:
    return content_of(SIZE)


@pytest.fixture
def image(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(content)
    return path


def test_a_disk_is_read_written_and_described(image: Path, content: bytes) -> None:
    async def main() -> None:
        async with vblk.open(image, format="raw", read_only=False) as disk:
            assert (disk.size, disk.format, disk.read_only) == (SIZE, "raw", False)
            assert await disk.read(5, 1000) == content[5:1005]
            await disk.write(MIB, b"written", fua=True)
            await disk.write_zeroes(2 * MIB, 4096, unmap=True)
            await disk.discard(0, 512)
            await disk.flush()
            assert await disk.read(MIB, 7) == b"written"
            extents = await disk.extents()
            assert sum(extent.length for extent in extents) == SIZE
            [hole] = await disk.extents(2 * MIB, 4096)
            assert hole.kind is Kind.ZERO
            assert disk.info()["virtual-size"] == SIZE
            await disk.resize(SIZE + 512)
            assert disk.size == SIZE + 512

    asyncio.run(main())


def test_a_disk_can_be_awaited_and_closed_twice(image: Path) -> None:
    async def main() -> None:
        disk = await vblk.open(str(image))
        await disk.close()
        await disk.close()
        with pytest.raises(vblk.GraphError):
            await disk.read(0, 1)

    asyncio.run(main())


def test_a_chain_is_told_from_the_top(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.base([(0, MIB)])
    chain.child([(512, 512)])

    async def main() -> None:
        async with vblk.open(chain.top.path) as disk:
            assert [node.filename for node in disk.chain()] == [
                str(level.path) for level in reversed(chain.levels)
            ]
        with pytest.raises(vblk.OpenDenied):
            await vblk.open(chain.top.path, deny_implicit=True)

    asyncio.run(main())


def test_reading_through_the_file_follows_its_position(image: Path, content: bytes) -> None:
    with vblk.open_file(image) as file:
        assert file.readable()
        assert file.seekable()
        assert not file.writable()
        assert file.read(10) == content[:10]
        assert file.tell() == 10
        assert file.seek(-5, os.SEEK_END) == SIZE - 5
        assert file.read(100) == content[-5:]
        assert file.read(100) == b""
        assert file.seek(SIZE + 1000) == SIZE + 1000
        assert file.read(1) == b""
        file.seek(MIB)
        assert file.seek(-MIB + 3, os.SEEK_CUR) == 3
        buffer = bytearray(70_000)
        assert file.readinto(buffer) == 70_000
        assert buffer == content[3 : 3 + 70_000]
        file.seek(0)
        assert file.readall() == content


def test_impossible_positions_are_value_errors(image: Path) -> None:
    with vblk.open_file(image) as file:
        for arguments in ((-1,), (-SIZE - 1, os.SEEK_END), (0, 7)):
            with pytest.raises(ValueError, match=r"invalid whence|negative seek"):
                file.seek(*arguments)
        assert file.tell() == 0


def test_a_buffered_reader_reads_the_whole_disk(image: Path, content: bytes) -> None:
    with io.BufferedReader(vblk.open_file(image), 7777) as reader:
        assert reader.read(3) == content[:3]
        assert reader.peek(1)[:1] == content[3:4]
        assert b"".join(iter(lambda: reader.read(100_000), b"")) == content[3:]


def test_an_archive_can_be_read_from_a_disk(tmp_path: Path) -> None:
    path = tmp_path / "disk.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("letter.txt", "dear reader " * 1000)
        archive.writestr("data.bin", content_of(200_000))
    padding = -path.stat().st_size % 512
    with path.open("ab") as file:  # a comment fills the last sector
        file.seek(-2, os.SEEK_END)
        file.truncate(path.stat().st_size - 2)
        file.write(padding.to_bytes(2, "little") + bytes(padding))
    with vblk.open_file(path, format="raw") as disk, zipfile.ZipFile(disk) as archive:
        assert archive.testzip() is None
        assert archive.read("data.bin") == content_of(200_000)


def test_writing_through_the_file_stays_within_the_disk(image: Path, content: bytes) -> None:
    with vblk.open_file(image, format="raw", read_only=False) as file:
        assert file.writable()
        file.seek(100)
        assert file.write(b"hello") == 5
        assert file.tell() == 105
        file.seek(SIZE - 3)
        assert file.write(b"abcdef") == 3
        with pytest.raises(OSError, match="ends at") as caught:
            file.write(b"def")
        assert caught.value.errno == errno.ENOSPC
        assert file.write(b"") == 0
        file.flush()
    found = image.read_bytes()
    assert (found[100:105], found[-3:], len(found)) == (b"hello", b"abc", SIZE)


def test_a_buffered_writer_that_meets_the_end_stops_with_an_error(image: Path) -> None:
    raw = vblk.open_file(image, format="raw", read_only=False)
    writer = io.BufferedWriter(raw, 1024)
    raw.seek(SIZE - 512)
    with pytest.raises(OSError, match="ends at"):
        writer.write(b"x" * 4096)
    writer.detach()
    raw.close()


def test_block_errors_arrive_as_os_errors_with_their_number(image: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        vblk.open_file(tmp_path / "gone")
    assert missing.value.errno == errno.ENOENT
    assert isinstance(missing.value.__cause__, vblk.StorageError)
    with vblk.open_file(image) as file, pytest.raises(OSError, match="read-only") as refused:
        file.write(b"x")
    assert refused.value.errno == errno.EACCES
    with pytest.raises(OSError, match=r"VHDX|vhdx") as wrong:
        vblk.open_file(image, format="vhdx")
    assert wrong.value.errno == errno.EINVAL


def test_closing_twice_is_closing_once_and_nothing_works_afterwards(image: Path) -> None:
    file = vblk.open_file(image)
    file.close()
    file.close()
    assert file.closed
    assert not file.writable()
    for use in (lambda: file.read(1), lambda: file.seek(0), lambda: file.write(b""), lambda: file.disk):
        with pytest.raises(ValueError, match="closed file"):
            use()


def test_a_file_that_did_not_open_leaves_nothing_behind(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(OSError, match="No such file"):
            DiskFile(tmp_path / "gone")
    assert len(os.listdir("/proc/self/fd")) == before


def test_where_an_event_loop_runs_the_file_is_refused_and_stays_good(image: Path, content: bytes) -> None:
    file = vblk.open_file(image, format="raw", read_only=False)

    async def main() -> None:
        with pytest.raises(vblk.OptionError, match=r"use vblk\.open"):
            vblk.open_file(image)
        with pytest.raises(vblk.OptionError):
            DiskFile(image)
        for use in (file.flush, file.close, lambda: file.write(b"x")):
            with pytest.raises(vblk.OptionError):
                use()
        assert await asyncio.to_thread(file.read, 10) == content[:10]

    asyncio.run(main())
    file.seek(0)
    assert file.read(10) == content[:10]
    file.close()


def test_the_threads_own_event_loop_is_left_alone(image: Path) -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        with vblk.open_file(image) as file:
            file.read(1)
        assert asyncio.get_event_loop() is loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def test_any_thread_may_use_the_file(image: Path, content: bytes) -> None:
    pieces: list[bytes] = []

    def use() -> None:
        while piece := file.read(10_000):
            pieces.append(piece)

    with vblk.open_file(image) as file:
        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(pieces) == sorted(content[at : at + 10_000] for at in range(0, SIZE, 10_000))


def test_what_is_not_in_memory_is_read_by_the_loop(image: Path, content: bytes) -> None:
    with vblk.open_file(image, cache="none") as file:
        file.seek(1)
        assert file.read(5000) == content[1:5001]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes loop devices")
def test_a_block_device_is_a_disk_too(image: Path, content: bytes) -> None:
    with loop_device(image) as device, vblk.open_file(device) as file:
        assert file.readall() == content
