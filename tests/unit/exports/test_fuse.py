"""An export over FUSE, asked by the kernel itself: who may do what, and how it ends."""

import asyncio
import errno
import os
import stat
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.mounts import mounted_below, needs_fuse, nothing_stays_mounted
from tests.support.nodes import content_of
from vblk.errors import GraphError, OptionError, ReadOnly, StorageError
from vblk.exports.export import Export
from vblk.exports.fuse import FuseExport
from vblk.exports.fuse.export import WORKERS
from vblk.graph.edge import READING, WRITING
from vblk.graph.registry import Graph
from vblk.graph.statistics import Operation
from vblk.opening import open_image
from vblk.options import from_mapping
from vblk.protocols.memory import MemoryNode
from vblk.wire.fuse import Opcode

pytestmark = needs_fuse

SIZE = 1 << 20


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A file to mount something on."""
    path = tmp_path / "mountpoint"
    path.touch()
    (tmp_path / "disk.raw").write_bytes(content_of(SIZE))
    with nothing_stays_mounted(tmp_path):
        yield path


@asynccontextmanager
async def exported(
    place: Path,
    *,
    writable: bool = False,
    growable: bool = False,
    name: str | None = None,
    helper: bool = False,
    disk: Path | None = None,
) -> AsyncGenerator[FuseExport]:
    """Show the file beside `place`, or `disk`, there."""
    file = {"driver": "file", "filename": str(disk or place.parent / "disk.raw")}
    async with Graph() as graph:
        image = from_mapping({"driver": "raw", "file": file})
        handle = await open_image(graph, image, read_only=not writable)
        export = FuseExport(
            "e",
            graph,
            handle,
            mountpoint=str(place),
            writable=writable,
            growable=growable,
            name=name,
            helper=helper,
        )
        try:
            await export.start()
            yield export
        finally:
            await export.stop()


def run(
    place: Path,
    scenario: Callable[[FuseExport], Awaitable[None]],
    *,
    writable: bool = False,
    growable: bool = False,
) -> None:
    async def main() -> None:
        async with exported(place, writable=writable, growable=growable) as export:
            await scenario(export)
        assert mounted_below(place.parent) == []

    asyncio.run(main())


def number(call: Callable[[], object]) -> int:
    """Return the errno with which a call fails, 0 if it does not."""
    try:
        call()
    except OSError as error:
        return error.errno or -1
    return 0


def write(path: Path, offset: int, data: bytes) -> int:
    fd = os.open(path, os.O_WRONLY)
    try:
        return os.pwrite(fd, data, offset)
    finally:
        os.close(fd)


def test_the_disk_covers_the_file_until_the_export_ends(place: Path) -> None:
    async def scenario(export: FuseExport) -> None:
        assert await asyncio.to_thread(place.read_bytes) == content_of(SIZE)
        status = await asyncio.to_thread(place.stat)
        assert (status.st_size, stat.S_IMODE(status.st_mode), status.st_uid) == (SIZE, 0o400, os.getuid())
        assert status.st_blocks * 512 == SIZE
        reads = export.statistics.counters[Operation.READ]
        assert reads.bytes == SIZE
        assert reads.operations >= 1

    run(place, scenario)
    assert place.read_bytes() == b""


def test_the_helper_mounts_and_unmounts_too(place: Path) -> None:
    async def main() -> None:
        async with exported(place, helper=True):
            assert await asyncio.to_thread(place.read_bytes) == content_of(SIZE)
        assert mounted_below(place.parent) == []

    asyncio.run(main())


def test_a_folder_shows_one_file_and_nothing_can_be_made_in_it(place: Path) -> None:
    folder = place.parent / "folder"
    folder.mkdir()

    async def main() -> None:
        async with exported(folder, name="disk", writable=True):
            assert await asyncio.to_thread(os.listdir, folder) == ["disk"]
            assert await asyncio.to_thread((folder / "disk").read_bytes) == content_of(SIZE)
            for call in (
                lambda: (folder / "other").touch(),
                lambda: (folder / "other").mkdir(),
                lambda: (folder / "disk").unlink(),
                lambda: (folder / "disk").rename(folder / "other"),
            ):
                assert await asyncio.to_thread(number, call) == errno.EROFS
            assert await asyncio.to_thread(number, lambda: (folder / "other").stat()) == errno.ENOENT
            assert (await asyncio.to_thread(os.statvfs, folder)).f_blocks == SIZE // 512

    asyncio.run(main())


def test_a_disk_for_reading_only_is_not_opened_for_writing_and_cannot_get_permission(place: Path) -> None:
    async def scenario(export: FuseExport) -> None:
        assert await asyncio.to_thread(number, lambda: write(place, 0, b"x")) == errno.EACCES
        assert await asyncio.to_thread(number, lambda: os.truncate(place, 0)) == errno.EACCES
        assert await asyncio.to_thread(number, lambda: place.chmod(0o600)) == errno.EROFS
        assert await asyncio.to_thread(number, lambda: place.chmod(0o500)) == 0
        assert stat.S_IMODE((await asyncio.to_thread(place.stat)).st_mode) == 0o500

    run(place, scenario)


def test_what_was_written_and_synchronised_is_in_the_image(place: Path) -> None:
    def change() -> None:
        with open(place, "r+b", buffering=0) as file:
            file.seek(5000)
            file.write(b"w" * 100_000)
            os.fsync(file.fileno())

    async def scenario(export: FuseExport) -> None:
        await asyncio.to_thread(change)
        assert export.statistics.counters[Operation.WRITE].bytes == 100_000
        assert export.statistics.counters[Operation.FLUSH].operations >= 1
        for options, offset, length in ((["-p"], 4096, 8192), (["-z"], 40_000, 1000)):
            words = ["fallocate", *options, "-o", str(offset), "-l", str(length), str(place)]
            await asyncio.to_thread(subprocess.run, words, check=True)

    run(place, scenario, writable=True)
    expected = bytearray(content_of(SIZE))
    expected[5000:105_000] = b"w" * 100_000
    expected[4096:12288] = bytes(8192)
    expected[40_000:41_000] = bytes(1000)
    assert (place.parent / "disk.raw").read_bytes() == expected


def test_the_end_moves_by_truncating_and_by_writing_beyond_it_where_that_was_allowed(
    place: Path,
) -> None:
    async def fixed(export: FuseExport) -> None:
        assert await asyncio.to_thread(number, lambda: write(place, SIZE, b"x")) == errno.EIO
        await asyncio.to_thread(os.truncate, place, SIZE + 512)
        assert (await asyncio.to_thread(place.stat)).st_size == SIZE + 512
        await asyncio.to_thread(os.truncate, place, SIZE)

    async def growable(export: FuseExport) -> None:
        assert await asyncio.to_thread(write, place, SIZE + 512, b"x" * 512) == 512
        assert (await asyncio.to_thread(place.stat)).st_size == SIZE + 1024
        words = ["fallocate", "-o", str(SIZE + 1024), "-l", "512", str(place)]
        await asyncio.to_thread(subprocess.run, words, check=True)

    run(place, fixed, writable=True)
    assert (place.parent / "disk.raw").read_bytes() == content_of(SIZE)
    run(place, growable, writable=True, growable=True)
    assert (place.parent / "disk.raw").read_bytes() == content_of(SIZE) + bytes(512) + b"x" * 512 + bytes(512)


async def under_way(export: FuseExport, wanted: Opcode) -> None:
    """Wait until a request of that kind has begun that cannot be answered now."""
    while all(opcode != wanted for opcode, _ in export._running.values()):  # noqa: ASYNC110
        await asyncio.sleep(0)


async def quiet(export: FuseExport) -> None:
    while export.statistics.in_flight:  # noqa: ASYNC110
        await asyncio.sleep(0)


def test_a_reader_that_is_killed_while_storage_hangs_dies_at_once(place: Path) -> None:
    async def scenario(export: FuseExport) -> None:
        async with export.graph.drained(export.handle.node):
            reader = await asyncio.to_thread(subprocess.Popen, ["dd", f"if={place}", "of=/dev/null"])
            await under_way(export, Opcode.READ)
            reader.kill()
            assert await asyncio.to_thread(reader.wait) == -9
        await quiet(export)
        assert await asyncio.to_thread(place.read_bytes) == content_of(SIZE)

    run(place, scenario)


def test_a_request_of_a_process_that_is_killed_is_given_up(place: Path) -> None:
    async def scenario(export: FuseExport) -> None:
        seek = f"import os; os.lseek(os.open({str(place)!r}, os.O_RDONLY), 0, os.SEEK_DATA)"
        async with export.graph.drained(export.handle.node):
            process = await asyncio.to_thread(subprocess.Popen, [sys.executable, "-c", seek])
            await under_way(export, Opcode.LSEEK)
            process.kill()
            assert await asyncio.to_thread(process.wait) == -9
            await quiet(export)
        assert await asyncio.to_thread(place.read_bytes) == content_of(SIZE)

    run(place, scenario)


def test_what_fails_below_fails_for_whoever_asked_and_for_nobody_else(place: Path) -> None:
    faulty = {
        "driver": "blkdebug",
        "image": {"driver": "file", "filename": str(place.parent / "disk.raw")},
        "inject-error": [{"event": "read_aio", "errno": errno.EREMOTEIO, "sector": 8, "once": False}],
    }

    def pread(offset: int) -> bytes:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECT)
        try:
            return os.pread(fd, 512, offset)
        finally:
            os.close(fd)

    async def main() -> None:
        async with Graph() as graph:
            handle = await open_image(graph, from_mapping({"driver": "raw", "file": faulty}))
            export = FuseExport("e", graph, handle, mountpoint=str(place))
            await export.start()
            try:
                assert await asyncio.to_thread(number, lambda: pread(8 * 512)) == errno.EREMOTEIO
                assert await asyncio.to_thread(pread, 0) == content_of(SIZE)[:512]
                assert export.statistics.counters[Operation.READ].failed == 1
            finally:
                await export.stop()

    asyncio.run(main())


@pytest.mark.parametrize("inline", [False, True], ids=["waiting", "inline"])
def test_a_defect_of_ours_is_an_error_for_whoever_asked_and_nobody_waits(place: Path, inline: bool) -> None:
    class Broken(MemoryNode):
        def try_read(self, offset: int, length: int) -> bytes | None:
            if inline:
                raise RuntimeError("broken")
            return None

        async def read_into(self, offset: int, buffer: memoryview) -> None:
            raise RuntimeError("broken")

    async def main() -> None:
        async with Graph() as graph:
            graph.add(node := Broken("disk", size=SIZE))
            handle = graph.hold(node, "the export", READING)
            export = FuseExport("e", graph, handle, mountpoint=str(place))
            told: list[str] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, about: told.append(about["message"]))
            await export.start()
            try:
                for count in range(1, WORKERS + 2):
                    assert await asyncio.to_thread(number, place.read_bytes) == errno.EIO
                    assert len(told) >= count
                assert set(told) == {"FUSE export 'e': internal error"}
                assert export.statistics.in_flight == 0
            finally:
                await export.stop()

    asyncio.run(main())


def test_more_requests_than_there_is_room_for_are_answered_all(place: Path) -> None:
    def read(at: int) -> bytes:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECT)
        try:
            (data,) = (os.pread(fd, 4096, at),)
            return data
        finally:
            os.close(fd)

    async def scenario(export: FuseExport) -> None:
        from concurrent.futures import ThreadPoolExecutor

        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(100) as pool:
            async with export.graph.drained(export.handle.node):
                reads = [loop.run_in_executor(pool, read, at * 4096) for at in range(100)]
                while export.statistics.in_flight < 64:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            answers = await asyncio.gather(*reads)
        assert b"".join(answers) == content_of(SIZE)[: 100 * 4096]

    run(place, scenario)


def test_a_file_in_use_is_unmounted_all_the_same_and_whoever_has_it_open_gets_errors(place: Path) -> None:
    async def main() -> None:
        async with exported(place) as export:
            fd = await asyncio.to_thread(os.open, place, os.O_RDONLY)
            try:
                assert export.users == 1
                await export.stop()
                assert export.was_busy
                assert mounted_below(place.parent) == []
                assert await asyncio.to_thread(number, lambda: os.pread(fd, 512, 0)) in (
                    errno.ENOTCONN,
                    errno.ECONNABORTED,
                    errno.EIO,
                )
            finally:
                assert await asyncio.to_thread(number, lambda: os.close(fd)) == errno.ENOTCONN

    asyncio.run(main())


def test_an_export_that_somebody_else_unmounts_ends(place: Path) -> None:
    async def main() -> None:
        ended: asyncio.Future[Export] = asyncio.get_running_loop().create_future()
        async with exported(place) as export:
            export.on_end = ended.set_result
            await asyncio.to_thread(subprocess.run, ["umount", str(place)], check=True)
            assert await ended is export
            assert export.handle.closed

    asyncio.run(main())


def test_an_export_that_is_cut_off_ends_while_storage_hangs(place: Path) -> None:
    async def main() -> None:
        async with exported(place) as export, export.graph.drained(export.handle.node):
            reader = await asyncio.to_thread(
                subprocess.Popen, ["dd", f"if={place}", "of=/dev/null"], stderr=-3
            )
            await under_way(export, Opcode.READ)
            stopping = asyncio.create_task(export.stop(hard=True))
            assert await asyncio.to_thread(reader.wait) == 1
        await stopping
        assert mounted_below(place.parent) == []

    asyncio.run(main())


def test_places_that_cannot_be_mounted_on_are_refused_in_qemus_words(place: Path) -> None:
    async def refused(where: Path, kind: type[Exception], text: str, name: str | None = None) -> None:
        with pytest.raises(kind, match=text):
            async with exported(where, name=name, disk=place.parent / "disk.raw"):
                pass

    async def main() -> None:
        await refused(place.parent / "none", StorageError, "Failed to stat '.*none': No such file or dir")
        await refused(place.parent, OptionError, "' is not a regular file")
        await refused(place, OptionError, "' is not a directory", name="disk")
        async with exported(place):
            await refused(place, GraphError, "There already is a FUSE export on '")

    asyncio.run(main())


def test_an_image_for_reading_only_is_not_exported_for_writing(place: Path) -> None:
    async def main() -> None:
        async with Graph() as graph:
            handle = await open_image(graph, str(place.parent / "disk.raw"), format="raw")
            with pytest.raises(ReadOnly):
                FuseExport("e", graph, handle, mountpoint=str(place), writable=True)
            assert handle.edge.permissions == READING != WRITING

    asyncio.run(main())
