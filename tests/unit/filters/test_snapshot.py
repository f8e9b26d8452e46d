"""The temporary overlay: the image below never changes, and nothing is left behind."""

import asyncio
import os
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from vblk.errors import OutOfRange, ReadOnly, StorageError, Unsupported
from vblk.extent import Kind
from vblk.filters import snapshot
from vblk.filters.snapshot import SnapshotNode
from vblk.graph.node import Preallocation
from vblk.graph.registry import Graph
from vblk.protocols.memory import MemoryNode
from vblk.units import KIB, OFFSET_MAX

SIZE = 256 * KIB


@asynccontextmanager
async def opened(*, read_only: bool = False) -> AsyncGenerator[tuple[SnapshotNode, MemoryNode], None]:
    async with Graph() as graph:
        base = MemoryNode("base", size=SIZE, data=random.Random(1).randbytes(SIZE), read_only=True)
        graph.add(base)
        yield await snapshot.put_over(graph, base, read_only=read_only), base


def test_random_requests_read_as_a_copy_of_the_disk_would() -> None:
    async def scenario() -> None:
        dice = random.Random(7)
        async with opened() as (node, base):
            below = await base.read(0, SIZE)
            model = bytearray(below)
            for _ in range(300):
                offset = dice.randrange(SIZE)
                length = dice.randrange(min(9000, SIZE - offset) + 1)
                match dice.randrange(4):
                    case 0:
                        data = dice.randbytes(length)
                        await node.write(offset, data)
                        model[offset : offset + length] = data
                    case 1:
                        await node.write_zeroes(offset, length)
                        model[offset : offset + length] = bytes(length)
                    case 2:
                        await node.discard(offset, length)
                        model[offset : offset + length] = bytes(length)
                    case _:
                        assert await node.read(offset, length) == model[offset : offset + length]
                        quick = node.try_read(offset, length)
                        assert quick is None or quick == model[offset : offset + length]
            assert await node.read(0, SIZE) == model
            assert await base.read(0, SIZE) == below

    asyncio.run(scenario())


def test_what_was_written_is_depth_zero_and_the_rest_one_deeper() -> None:
    async def scenario() -> None:
        async with opened() as (node, base):
            await node.write(0, b"x" * 512)
            await node.write_zeroes(512, 512)
            spans = await node.resolve(0, 4096)
            assert [(span.kind, span.guest_offset, span.depth) for span in spans] == [
                (Kind.DATA, 0, 0),
                (Kind.ZERO, 512, 0),
                (Kind.DATA, 1024, 1),
            ]
            assert spans[0].leaf is node
            assert spans[2].leaf is base

    asyncio.run(scenario())


def test_a_shorter_disk_that_grows_again_has_zeros_at_its_end() -> None:
    async def scenario() -> None:
        async with opened() as (node, _):
            await node.resize(1000)
            await node.resize(SIZE + 1000)
            assert node.size == SIZE + 1000
            assert await node.read(1000, SIZE) == bytes(SIZE)
            assert (await node.allocation(SIZE, 1000))[-1].kind is Kind.ZERO
            await node.write(SIZE + 10, b"end")
            assert await node.read(SIZE + 8, 6) == b"\0\0end\0"

    asyncio.run(scenario())


def test_sizes_that_cannot_be_are_refused() -> None:
    async def scenario() -> None:
        async with opened() as (node, _):
            with pytest.raises(OutOfRange):
                await node.resize(OFFSET_MAX + 1)
            with pytest.raises(Unsupported):
                await node.resize(SIZE, preallocation=Preallocation.FULL)

    asyncio.run(scenario())


def test_a_read_only_overlay_takes_no_writes_until_it_is_reopened() -> None:
    async def scenario() -> None:
        async with opened(read_only=True) as (node, base):
            with pytest.raises(ReadOnly):
                await node.write(0, b"x")
            await node.reopen(read_only=False)
            await node.write(0, b"x")
            assert base.read_only

    asyncio.run(scenario())


def test_the_temporary_file_has_no_name_and_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    async def scenario() -> None:
        async with opened() as (node, _):
            await node.write(0, b"x" * 4096)
            assert os.listdir(tmp_path) == []
            fd = node._fd
            os.fstat(fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        await node.close()

    asyncio.run(scenario())


def test_a_folder_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nonexistent")

    async def scenario() -> None:
        with pytest.raises(StorageError):
            async with opened():
                pass

    asyncio.run(scenario())


def test_zeroed_space_goes_back_to_the_file_system() -> None:
    async def scenario() -> None:
        async with opened() as (node, _):
            await node.write(0, b"x" * SIZE)
            before = os.fstat(node._fd).st_blocks
            await node.write_zeroes(0, SIZE)
            assert os.fstat(node._fd).st_blocks < before

    asyncio.run(scenario())
