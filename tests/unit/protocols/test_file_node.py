"""A file node equals its file in every cache mode, and says what went wrong."""

import asyncio
import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.local_files import open_local, with_engine, with_file
from vblk.aio.file_calls import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from vblk.aio.file_calls import fallocate as real_fallocate
from vblk.aio.threads import ThreadEngine
from vblk.errors import NodeFailed, NoSpace, ReadOnly, StorageError, Unsupported
from vblk.extent import Kind
from vblk.graph.node import Preallocation
from vblk.protocols import data_runs, file_space
from vblk.protocols.cache_mode import CACHE_MODES
from vblk.protocols.file_node import FileNode
from vblk.units import KIB, MIB

MODES = sorted(CACHE_MODES)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk.raw"


def refuse(number: int) -> Callable[..., int]:
    def call(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("cache", MODES)
@pytest.mark.parametrize("size", [1_000_000, 1 << 20])
def test_any_sequence_equals_a_model(path: Path, cache: str, size: int) -> None:
    chance = random.Random(size)
    model = bytearray(chance.randbytes(size))
    path.write_bytes(model)

    async def scenario(node: FileNode) -> None:
        for _ in range(150):
            offset = chance.randrange(size)
            length = min(chance.choice([0, 1, 511, 512, 4096, 70_000, 900_000]), size - offset)
            match chance.randrange(5):
                case 0:
                    data = chance.randbytes(length)
                    await node.write(offset, data, fua=chance.random() < 0.1)
                    model[offset : offset + length] = data
                case 1 if length:
                    await node.write_zeroes(offset, length, unmap=chance.random() < 0.5)
                    model[offset : offset + length] = bytes(length)
                case 2:
                    buffer = bytearray(length)
                    await node.read_into(offset, memoryview(buffer))
                    assert buffer == model[offset : offset + length]
                case 3:
                    assert node.try_read(offset, length) in (None, bytes(model[offset : offset + length]))
                case _:
                    assert await node.read(offset, length) == model[offset : offset + length]
        await node.flush()
        assert node.size == size

    with_file(path, scenario, cache=cache)
    assert path.read_bytes() == model


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_many_writes_at_once_all_arrive(path: Path, cache: str) -> None:
    path.write_bytes(bytes(100_000))

    async def scenario(node: FileNode) -> None:
        await asyncio.gather(*(node.write(n * 100, bytes([n % 251]) * 100) for n in range(1000)))

    with_file(path, scenario, cache=cache)
    assert path.read_bytes() == b"".join(bytes([n % 251]) * 100 for n in range(1000))


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_the_rest_of_the_last_sector_is_zeros_and_beyond_is_an_error(path: Path, cache: str) -> None:
    path.write_bytes(b"x" * 1000)

    async def scenario(node: FileNode) -> None:
        assert node.size == 1000
        assert await node.read(990, 34) == b"x" * 10 + bytes(24)
        buffer = bytearray(b"y" * 24)
        await node.read_into(1000, memoryview(buffer))
        assert buffer == bytes(24)
        with pytest.raises(StorageError, match="the file ends at"):
            await node.read(5000, 512)

    with_file(path, scenario, read_only=True, cache=cache)


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_a_file_that_was_cut_off_under_us_is_an_error_and_not_zeros(path: Path, cache: str) -> None:
    path.write_bytes(b"x" * 65536)

    async def scenario(node: FileNode) -> None:
        os.truncate(path, 4096)
        with pytest.raises(StorageError) as caught:
            await node.read(0, 8192)
        assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))

    with_file(path, scenario, cache=cache)


def test_growth_by_others_is_seen_at_the_next_reopen(path: Path) -> None:
    path.write_bytes(bytes(1024))

    async def scenario(node: FileNode) -> None:
        os.truncate(path, 4096)
        assert node.size == 1024
        await node.reopen(read_only=False)
        assert node.size == 4096

    with_file(path, scenario)


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_writes_past_the_end_grow_the_file(path: Path, cache: str) -> None:
    path.write_bytes(b"a" * 1000)

    async def scenario(node: FileNode) -> None:
        await node.write(1000, b"b" * 24)
        assert node.size == 1024
        await node.write_zeroes(1024, 1024, unmap=True)
        assert node.size == 2048
        node.written(2048, 512)
        assert node.size == 2560

    with_file(path, scenario, cache=cache)
    assert path.read_bytes() == b"a" * 1000 + b"b" * 24 + bytes(1024)


def test_reopen_keeps_the_descriptor_and_changes_the_access(path: Path) -> None:
    path.write_bytes(bytes(1024))

    async def scenario(node: FileNode) -> None:
        before = node.descriptor()
        with pytest.raises(ReadOnly):
            await node.write(0, b"x")
        await node.reopen(read_only=False)
        await node.write(0, b"x")
        await node.reopen(read_only=True)
        assert node.descriptor() == before
        with pytest.raises(ReadOnly):
            await node.write(0, b"y")
        assert await node.read(0, 2) == b"x\0"

    with_file(path, scenario, read_only=True)


def test_reopen_finds_the_same_file_under_a_name_that_is_gone(path: Path) -> None:
    path.write_bytes(b"mine" + bytes(508))

    def replace() -> None:
        path.unlink()
        path.write_bytes(b"other" + bytes(507))

    async def scenario(node: FileNode) -> None:
        replace()
        await node.reopen(read_only=False)
        assert await node.read(0, 4) == b"mine"

    with_file(path, scenario, read_only=True)


def test_a_reopen_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(bytes(512))

    async def scenario(node: FileNode) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse(errno.EROFS))
            with pytest.raises(StorageError) as caught:
                await node.reopen(read_only=False)
        assert caught.value.errno == errno.EROFS
        assert node.read_only
        assert await node.read(0, 512) == bytes(512)

    with_file(path, scenario, read_only=True)


def test_whole_pages_are_written_at_once_and_the_rest_by_a_worker(path: Path) -> None:
    path.write_bytes(bytes(8192))

    async def scenario(node: FileNode) -> None:
        wrote = [node.try_write(8192 + 4096 * number, bytes([number + 1]) * 4096) for number in range(3)]
        assert wrote[-1], "only the first may be needed to find out what the file system can do"
        assert node.size == 8192 + 3 * 4096
        assert await node.read(16384, 4096) == b"\3" * 4096
        assert not node.try_write(100, b"x" * 300_000)

    with_file(path, scenario)


@pytest.mark.parametrize("cache", ["none", "writethrough", "directsync"])
def test_what_has_to_reach_the_medium_is_not_written_at_once(path: Path, cache: str) -> None:
    path.write_bytes(bytes(8192))

    async def scenario(node: FileNode) -> None:
        assert [node.try_write(0, b"x" * 4096) for _ in range(3)] == [False] * 3
        await node.write(0, b"y" * 4096)
        assert await node.read(0, 4096) == b"y" * 4096

    with_file(path, scenario, cache=cache)


def test_writing_at_once_is_refused_where_writing_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(bytes(8192))

    async def read_only(node: FileNode) -> None:
        with pytest.raises(ReadOnly):
            node.try_write(0, bytes(4096))
        await node.reopen(read_only=False)
        assert any(node.try_write(0, bytes(4096)) for _ in range(2))
        await node.reopen(read_only=True)
        with pytest.raises(ReadOnly):
            node.try_write(0, bytes(4096))

    async def poisoned(node: FileNode) -> None:
        await node.write(0, b"x")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", refuse(errno.EIO))
            with pytest.raises(NodeFailed):
                await node.flush()
        with pytest.raises(NodeFailed):
            node.try_write(0, bytes(4096))

    with_file(path, read_only, read_only=True)
    with_file(path, poisoned)


def test_direct_nodes_lend_no_descriptor_and_read_nothing_inline(path: Path) -> None:
    path.write_bytes(bytes(8192))

    async def scenario(node: FileNode) -> None:
        assert node.descriptor() is None
        assert node.try_read(0, 4096) is None
        assert node.alignment >= 512

    with_file(path, scenario, cache="none")


def test_holes_are_told_from_data(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(4 * MIB)
        file.seek(MIB)
        file.write(b"x" * MIB)

    async def scenario(node: FileNode) -> None:
        spans = await node.allocation(0, 4 * MIB)
        assert [(s.kind, s.guest_offset, s.length) for s in spans] == [
            (Kind.ZERO, 0, MIB),
            (Kind.DATA, MIB, MIB),
            (Kind.ZERO, 2 * MIB, 2 * MIB),
        ]
        assert all(span.leaf is node and span.leaf_offset == span.guest_offset for span in spans)
        part = await node.allocation(MIB + 512, 1024)
        assert [(s.kind, s.guest_offset, s.length) for s in part] == [(Kind.DATA, MIB + 512, 1024)]
        assert await node.allocated_bytes() == MIB

    with_file(path, scenario, read_only=True)


def test_what_is_past_the_end_is_a_hole(path: Path) -> None:
    path.write_bytes(b"x" * 1000)

    async def scenario(node: FileNode) -> None:
        spans = await node.allocation(0, 1024)
        assert [(s.kind, s.guest_offset, s.length) for s in spans] == [
            (Kind.DATA, 0, 1000),
            (Kind.ZERO, 1000, 24),
        ]

    with_file(path, scenario, read_only=True)


def test_more_holes_than_one_call_finds_are_all_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_runs, "RUNS_MAX", 4)
    with path.open("wb") as file:
        for index in range(16):
            file.seek(index * 128 * KIB)
            file.write(b"x" * 64 * KIB)
        file.truncate(16 * 128 * KIB)

    async def scenario(node: FileNode) -> None:
        spans = await node.allocation(0, 16 * 128 * KIB)
        assert [s.kind for s in spans] == [Kind.DATA, Kind.ZERO] * 16
        assert all(s.length == 64 * KIB for s in spans)

    with_file(path, scenario, read_only=True)


def test_a_file_system_without_holes_has_data_everywhere(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(bytes(4096))
    real = os.lseek
    tries: list[int] = []

    def seek(fd: int, offset: int, whence: int) -> int:
        if whence in (os.SEEK_DATA, os.SEEK_HOLE):
            tries.append(whence)
            raise OSError(errno.EINVAL, "no such whence")
        return real(fd, offset, whence)

    monkeypatch.setattr(os, "lseek", seek)

    async def scenario(node: FileNode) -> None:
        for _ in range(2):
            spans = await node.allocation(0, 4096)
            assert [(s.kind, s.length) for s in spans] == [(Kind.DATA, 4096)]
        assert len(tries) <= 2  # remembered

    with_file(path, scenario, read_only=True)


def test_unmapped_zeros_and_discards_give_space_back(path: Path) -> None:
    path.write_bytes(b"x" * 4 * MIB)

    async def scenario(node: FileNode) -> None:
        await node.write_zeroes(0, MIB, unmap=True)
        await node.discard(MIB, MIB)
        assert await node.allocated_bytes() == 2 * MIB
        await node.write_zeroes(0, MIB)
        assert await node.read(0, 2 * MIB) == bytes(2 * MIB)
        assert node.size == 4 * MIB
        await node.discard(3 * MIB, 100 * MIB)
        assert node.size == 4 * MIB

    with_file(path, scenario)


def test_without_discard_space_is_kept(path: Path) -> None:
    path.write_bytes(b"x" * MIB)

    async def scenario(node: FileNode) -> None:
        await node.discard(0, MIB)
        assert await node.read(0, MIB) == b"x" * MIB
        await node.write_zeroes(0, MIB, unmap=True)
        assert await node.allocated_bytes() == MIB

    with_file(path, scenario, discard=False)


@pytest.mark.parametrize("cache", ["writeback", "none"])
@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_cannot_zero_gets_zeros_written(
    path: Path, monkeypatch: pytest.MonkeyPatch, cache: str, number: int
) -> None:
    path.write_bytes(b"x" * 3 * MIB)
    monkeypatch.setattr(file_space, "fallocate", refuse(number))

    async def scenario(node: FileNode) -> None:
        await node.write_zeroes(100, 2 * MIB, unmap=True)
        await node.discard(2 * MIB + 100, 5000)
        with pytest.raises(Unsupported):
            await node.write_zeroes(0, MIB, no_fallback=True)

    with_file(path, scenario, cache=cache)
    assert path.read_bytes() == b"x" * 100 + bytes(2 * MIB) + b"x" * (MIB - 100)


def test_a_file_system_that_punches_but_cannot_zero_punches_and_fills(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"x" * MIB)
    modes: list[int] = []

    def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
        modes.append(mode)
        if mode == ZERO_RANGE:
            raise OSError(errno.EOPNOTSUPP, "no")
        real_fallocate(fd, mode, offset, length)

    monkeypatch.setattr(file_space, "fallocate", fallocate)

    async def scenario(node: FileNode) -> None:
        await node.write_zeroes(0, MIB)
        assert modes == [ZERO_RANGE, PUNCH_HOLE | KEEP_SIZE, 0]
        assert await node.allocated_bytes() == MIB
        assert await node.read(0, MIB) == bytes(MIB)

    with_file(path, scenario)


def test_a_failed_flush_poisons_the_node(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(bytes(4096))

    async def scenario(node: FileNode) -> None:
        await node.write(0, b"x")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", refuse(errno.EIO))
            with pytest.raises(NodeFailed) as caught:
                await node.flush()
        assert isinstance(caught.value.__cause__, StorageError)
        assert node.try_read(0, 512) is None
        for request in (
            node.read(0, 512),
            node.read_into(0, memoryview(bytearray(1))),
            node.write(0, b"y"),
            node.write_zeroes(0, 512),
            node.discard(0, 512),
            node.resize(512),
            node.flush(),
        ):
            with pytest.raises(NodeFailed):
                await request

    with_file(path, scenario)


def count_flushes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    flushes: list[int] = []
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        flushes.append(fd)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    return flushes


@pytest.mark.parametrize(
    ("cache", "fua_flushes", "zero_flushes", "explicit"),
    [
        ("writeback", 1, 0, 1),
        ("none", 1, 0, 1),
        ("writethrough", 0, 1, 1),
        ("directsync", 0, 1, 1),
        ("unsafe", 0, 0, 0),
    ],
)
def test_each_mode_flushes_exactly_when_it_must(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cache: str,
    fua_flushes: int,
    zero_flushes: int,
    explicit: int,
) -> None:
    path.write_bytes(bytes(65536))
    flushes = count_flushes(monkeypatch)

    async def scenario(node: FileNode) -> None:
        await node.write(0, bytes(4096))
        assert len(flushes) == 0
        await node.write(0, bytes(4096), fua=True)
        assert len(flushes) == fua_flushes
        flushes.clear()
        await node.write_zeroes(0, 4096)
        assert len(flushes) == zero_flushes
        flushes.clear()
        await node.flush()
        assert len(flushes) == explicit

    with_file(path, scenario, cache=cache)


def test_write_through_descriptors_are_synchronous(path: Path) -> None:
    path.write_bytes(bytes(512))

    async def scenario(node: FileNode) -> None:
        import fcntl

        fd = node.descriptor()
        assert fd is not None
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DSYNC

    with_file(path, scenario, cache="writethrough")


def test_close_flushes_what_was_written_and_only_then(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(bytes(512))
    flushes = count_flushes(monkeypatch)

    async def nothing(node: FileNode) -> None:
        await node.read(0, 1)

    async def write(node: FileNode) -> None:
        await node.write(0, b"x")

    with_file(path, nothing)
    assert flushes == []
    with_file(path, write)
    assert len(flushes) == 1


def test_close_is_idempotent_and_leaves_no_descriptor(path: Path) -> None:
    path.write_bytes(bytes(512))

    async def scenario(engine: ThreadEngine) -> None:
        await engine.run(lambda: None)
        before = os.listdir("/proc/self/fd")
        node = await open_local(engine, path)
        await node.write(0, b"x")
        await node.close()
        await node.close()
        assert node.try_read(0, 1) is None
        assert os.listdir("/proc/self/fd") == before

    with_engine(scenario)


def test_close_after_a_failed_flush_still_releases(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(bytes(512))

    async def scenario(engine: ThreadEngine) -> None:
        await engine.run(lambda: None)
        before = os.listdir("/proc/self/fd")
        node = await open_local(engine, path)
        await node.write(0, b"x")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", refuse(errno.EIO))
            with pytest.raises(NodeFailed):
                await node.close()
        assert os.listdir("/proc/self/fd") == before

    with_engine(scenario)


@pytest.mark.parametrize("preallocation", [Preallocation.OFF, Preallocation.FALLOC, Preallocation.FULL])
@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_resize_grows_with_zeros_and_takes_the_space_it_was_asked_to(
    path: Path, preallocation: Preallocation, cache: str
) -> None:
    path.write_bytes(b"x" * 4096)

    async def scenario(node: FileNode) -> None:
        await node.resize(3 * MIB, preallocation=preallocation)
        assert node.size == 3 * MIB
        taken = await node.allocated_bytes()
        assert taken is not None
        assert (taken >= 3 * MIB) == (preallocation is not Preallocation.OFF)
        assert await node.read(0, 3 * MIB) == b"x" * 4096 + bytes(3 * MIB - 4096)
        await node.resize(100)
        assert node.size == 100

    with_file(path, scenario, cache=cache)
    assert path.read_bytes() == b"x" * 100


def test_a_preallocation_that_fails_is_taken_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"x" * 4096)

    async def scenario(node: FileNode) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", refuse(errno.ENOSPC))
            with pytest.raises(NoSpace) as caught:
                await node.resize(MIB, preallocation=Preallocation.FALLOC)
            assert caught.value.message == "Could not preallocate new data: No space left on device"
            patch.setattr(os, "pwrite", refuse(errno.ENOSPC))
            with pytest.raises(NoSpace) as caught:
                await node.resize(MIB, preallocation=Preallocation.FULL)
            assert caught.value.message == "Could not write zeros for preallocation: No space left on device"
        assert node.size == os.stat(path).st_size == 4096

    with_file(path, scenario)


def test_impossible_preallocations_are_refused(path: Path) -> None:
    path.write_bytes(bytes(4096))

    async def scenario(node: FileNode) -> None:
        with pytest.raises(Unsupported, match="Unsupported preallocation mode: metadata"):
            await node.resize(8192, preallocation=Preallocation.METADATA)
        with pytest.raises(Unsupported, match="Cannot use preallocation for shrinking files"):
            await node.resize(512, preallocation=Preallocation.FULL)
        assert node.size == 4096

    with_file(path, scenario)


def test_errors_of_requests_name_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(bytes(4096))

    async def scenario(node: FileNode) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", refuse(errno.ENOSPC))
            with pytest.raises(NoSpace) as full:
                await node.write(512, b"x")
            patch.setattr(os, "pread", refuse(errno.EIO))
            with pytest.raises(StorageError) as broken:
                await node.read(512, 100)
        assert (full.value.filename, full.value.operation, full.value.offset) == (str(path), "write", 512)
        assert (broken.value.filename, broken.value.length) == (str(path), 100)

    with_file(path, scenario)
