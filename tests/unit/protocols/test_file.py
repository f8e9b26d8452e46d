"""Opening and creating files: what is refused and in which words, and nothing left behind."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cancellation import cancel_after
from tests.support.local_files import Driver, open_local, with_engine
from vblk.aio.threads import ThreadEngine
from vblk.errors import NoSpace, OptionError, StorageError
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.opening import open_node
from vblk.options import Size, from_mapping
from vblk.protocols.file import CreateOptions, Options, create_file, driver_for, open_file
from vblk.protocols.file_node import FileNode
from vblk.protocols.host_device import HostDeviceNode
from vblk.protocols.image_lock import ImageLocked
from vblk.units import MIB

Opener = Callable[..., int]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(4096))
    return path


def refusal(name: Path | str, *, driver: Driver, read_only: bool) -> StorageError:
    """Return the error of an open that must fail, and see that it leaves nothing open."""
    errors: list[StorageError] = []

    async def scenario(engine: ThreadEngine) -> None:
        await engine.run(lambda: None)
        before = os.listdir("/proc/self/fd")
        with pytest.raises(StorageError) as caught:
            await open_local(engine, name, driver=driver, read_only=read_only, locking="off")
        assert os.listdir("/proc/self/fd") == before
        errors.append(caught.value)

    with_engine(scenario)
    return errors[0]


def test_the_file_driver_takes_regular_files_only(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in (folder, "/dev/null"):
        error = refusal(name, driver="file", read_only=True)
        assert error.message == f"'file' driver requires '{name}' to be a regular file"
    assert refusal("/dev/null", driver="file", read_only=False).message == (
        "'file' driver requires '/dev/null' to be a regular file"
    )


@pytest.mark.parametrize("driver", ["host_device", "host_cdrom"])
def test_the_device_drivers_take_devices_only(tmp_path: Path, path: Path, driver: Driver) -> None:
    for name in (tmp_path, path):
        assert refusal(name, driver=driver, read_only=True).message == (
            f"'{driver}' driver requires '{name}' to be either a character or block device"
        )


@pytest.mark.parametrize("driver", ["file", "host_device", "host_cdrom"])
def test_a_folder_for_writing_is_a_directory(tmp_path: Path, driver: Driver) -> None:
    error = refusal(tmp_path, driver=driver, read_only=False)
    assert error.message == f"Could not open '{tmp_path}': Is a directory"
    assert error.errno == errno.EISDIR


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "to be a regular file" in refusal(pipe, driver="file", read_only=True).message


def test_a_name_that_leads_nowhere_is_said_so(tmp_path: Path) -> None:
    name = tmp_path / "absent"
    error = refusal(name, driver="file", read_only=True)
    assert error.message == f"Could not open '{name}': No such file or directory"
    assert (error.errno, error.filename) == (errno.ENOENT, str(name))


@pytest.mark.parametrize("name", ["nul\0inside", "x" * 5000])
def test_a_name_that_cannot_be_one_is_an_error_like_any_other(name: str) -> None:
    assert "Could not open" in refusal(name, driver="file", read_only=True).message


@pytest.mark.parametrize("driver", ["host_device", "host_cdrom"])
def test_a_character_device_opens_as_a_host_device(driver: Driver) -> None:
    async def scenario(engine: ThreadEngine) -> None:
        for read_only in (True, False):
            node = await open_local(engine, "/dev/null", driver=driver, read_only=read_only, locking="off")
            assert isinstance(node, HostDeviceNode)
            assert node.driver == driver
            assert node.size == 0
            await node.flush()
            await node.close()

    with_engine(scenario)


def test_the_driver_that_fits_is_found(tmp_path: Path, path: Path) -> None:
    assert driver_for("/dev/null") == "host_device"
    for name in (path, tmp_path, tmp_path / "absent", "nul\0"):
        assert driver_for(str(name)) == "file"


def read_only_file_system(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    real = os.open

    def refuse_writing(name: str, flags: int, mode: int = 0o777) -> int:
        if name == str(path) and flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(name, flags, mode)

    monkeypatch.setattr(os, "open", refuse_writing)


def test_auto_read_only_falls_back_to_reading(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_only_file_system(monkeypatch, path)

    async def scenario(engine: ThreadEngine) -> None:
        with pytest.raises(StorageError, match="Read-only file system"):
            await open_local(engine, path)
        node = await open_local(engine, path, auto_read_only=True)
        assert node.read_only
        await node.close()

    with_engine(scenario)


def test_an_auto_read_only_node_holds_a_readers_locks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_only_file_system(monkeypatch, path)

    async def scenario(engine: ThreadEngine) -> None:
        node = await open_file(engine, Options(str(path)), name="n", read_only=False, auto_read_only=True)
        assert node._lock is not None
        assert node._lock.held_bytes == {100, 201, 203}
        await node.close()

    with_engine(scenario)


def test_the_default_locks_are_those_of_a_format_over_the_file(path: Path) -> None:
    async def scenario(engine: ThreadEngine) -> None:
        reader = await open_file(engine, Options(str(path)), name="n", read_only=True)
        assert reader._lock is not None
        assert reader._lock.held_bytes == {100, 201, 203}
        with pytest.raises(ImageLocked) as caught:
            await open_file(engine, Options(str(path)), name="n", read_only=False)
        assert caught.value.message.startswith('Failed to get "write" lock\n')
        await reader.close()
        writer = await open_file(engine, Options(str(path)), name="n", read_only=False)
        assert writer._lock is not None
        assert writer._lock.held_bytes == {100, 101, 103, 201, 203}
        await writer.close()

    with_engine(scenario)


def test_force_share_is_for_reading_only(path: Path) -> None:
    async def scenario(engine: ThreadEngine) -> None:
        with pytest.raises(OptionError, match="force-share=on can only be used with read-only images"):
            await open_file(engine, Options(str(path)), name="n", read_only=False, force_share=True)

    with_engine(scenario)


def test_a_file_system_without_direct_access_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse_direct(name: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(name, flags, mode)

    monkeypatch.setattr(os, "open", refuse_direct)

    async def scenario(engine: ThreadEngine) -> None:
        with pytest.raises(StorageError, match="the file system does not support O_DIRECT"):
            await open_local(engine, path, cache="none")

    with_engine(scenario)


@pytest.mark.parametrize("alignment", [512, 4096, 65536])
def test_what_direct_access_must_be_aligned_to_is_found_by_trying(
    path: Path, monkeypatch: pytest.MonkeyPatch, alignment: int
) -> None:
    real = os.preadv

    def demanding(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if offset % alignment or len(buffers[0]) % alignment:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", demanding)

    async def scenario(engine: ThreadEngine) -> None:
        node = await open_local(engine, path, cache="none", read_only=True)
        assert node.alignment == alignment
        await node.close()

    with_engine(scenario)


def test_a_demand_that_nothing_meets_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "preadv", refuse)

    async def scenario(engine: ThreadEngine) -> None:
        with pytest.raises(StorageError, match="O_DIRECT alignment"):
            await open_local(engine, path, cache="none", read_only=True)

    with_engine(scenario)


def test_cancelling_an_open_leaves_nothing_open_and_nothing_locked(path: Path) -> None:
    async def scenario(engine: ThreadEngine) -> None:
        await engine.run(lambda: None)
        before = os.listdir("/proc/self/fd")
        for turns in range(30):
            opened: list[FileNode] = []

            async def attempt(opened: list[FileNode] = opened) -> None:
                opened.append(await open_file(engine, Options(str(path)), name="n", read_only=False))

            await cancel_after(attempt(), turns)
            for node in opened:
                await node.close()
            assert os.listdir("/proc/self/fd") == before

    with_engine(scenario)


def test_a_site_opens_every_local_driver(path: Path) -> None:
    async def scenario(engine: ThreadEngine) -> None:
        graph = Graph(engine)
        for mapping, size in (
            ({"driver": "file", "filename": str(path), "locking": "off"}, 4096),
            ({"driver": "file", "filename": str(path), "cache": {"direct": True}}, 4096),
            ({"driver": "memory", "size": "1M"}, MIB),
            ({"driver": "null-co", "size": 12345, "latency-ns": 5, "read-zeroes": "on"}, 12345),
            ({"driver": "host_device", "filename": "/dev/null", "locking": "off"}, 0),
        ):
            node = await open_node(graph, from_mapping(mapping), Request())
            assert (node.driver, node.size) == (mapping["driver"], size)
        for wrong in ({"locking": "perhaps"}, {"aio": "io_uring"}, {"flavour": "x"}):
            with pytest.raises(OptionError):
                await open_node(
                    graph, from_mapping({"driver": "file", "filename": str(path), **wrong}), Request()
                )
        for name in list(graph.nodes()):
            await graph.discard_unused(name)

    with_engine(scenario)


def test_a_new_file_has_its_size_and_its_first_block_alone(tmp_path: Path) -> None:
    path = tmp_path / "new.raw"

    async def scenario(engine: ThreadEngine) -> None:
        await create_file(engine, str(path), CreateOptions(size=Size(10 * MIB), nocow=True))

    with_engine(scenario)
    assert (path.stat().st_size, path.stat().st_blocks * 512) == (10 * MIB, 4096)


def test_creating_over_a_file_empties_it(path: Path) -> None:
    path.write_bytes(b"x" * MIB)

    async def scenario(engine: ThreadEngine) -> None:
        await create_file(engine, str(path), CreateOptions(size=Size(1000), preallocation="full"))

    with_engine(scenario)
    assert path.read_bytes() == bytes(1000)


def test_creating_over_a_file_in_use_is_refused_and_leaves_it(path: Path) -> None:
    path.write_bytes(b"x" * 512)

    async def scenario(engine: ThreadEngine) -> None:
        node = await open_file(engine, Options(str(path)), name="n", read_only=True)
        with pytest.raises(ImageLocked, match='Failed to get "write" lock'):
            await create_file(engine, str(path), CreateOptions(size=Size(0)))
        await node.close()

    with_engine(scenario)
    assert path.read_bytes() == b"x" * 512


@pytest.mark.parametrize("name", ["absent/new.raw", ".", "nul\0"])
def test_what_cannot_be_created_is_said_so(tmp_path: Path, name: str) -> None:
    async def scenario(engine: ThreadEngine) -> None:
        with pytest.raises(StorageError, match="Could not create"):
            await create_file(engine, f"{tmp_path}/{name}", CreateOptions(size=Size(0)))

    with_engine(scenario)


def test_a_device_is_not_created_but_measured() -> None:
    async def scenario(engine: ThreadEngine) -> None:
        await create_file(engine, "/dev/null", CreateOptions(size=Size(0)))
        with pytest.raises(NoSpace, match="smaller than the image"):
            await create_file(engine, "/dev/null", CreateOptions(size=Size(512)))

    with_engine(scenario)
