"""Writing sessions: which identities change when, what is left behind, what is refused."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.support.vhdx_disks import Chain, KeptMemory, MemoryFile
from vblk.codec.guid import ZERO_GUID
from vblk.drivers.vhdx import VhdxNode, load_writable, read_up_to
from vblk.errors import (
    BlockError,
    CorruptImage,
    Misaligned,
    NodeFailed,
    NoSpace,
    OutOfRange,
    ReadOnly,
    StorageError,
    Unsupported,
)
from vblk.formats.vhdx import VhdxImage, load_image
from vblk.formats.vhdx.create import NewVhdx
from vblk.graph.node import Buffer, Preallocation
from vblk.graph.registry import Graph
from vblk.protocols.memory import MemoryNode
from vblk.units import GIB, KIB, MIB, TIB

NEW = NewVhdx(size=16 * MIB, block_size=MIB)


async def made(**own: Any) -> Chain:
    chain = Chain()
    await chain.add(replace(NEW, **own))
    return chain


async def look(file: MemoryFile) -> VhdxImage:
    leaf = MemoryNode("look", size=len(file.content), data=file.content)
    return await load_image(lambda at, size: read_up_to(leaf, at, size), leaf.size, filename="look")


class Failing(KeptMemory):
    """A file whose writes, flushes or growth fail when they are told to."""

    failure: BlockError | None = None
    which = ""

    def fail(self, which: str) -> None:
        if self.failure is not None and which in self.which:
            raise self.failure

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        self.fail("log" if MIB <= offset < 2 * MIB else "data" if offset >= 4 * MIB else "header")
        await super().write(offset, data, fua=fua)

    async def flush(self) -> None:
        self.fail("flush")

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        self.fail("resize")
        await super().resize(size)


async def failing() -> tuple[Failing, VhdxNode, MemoryFile]:
    file = (await made()).files[0]
    leaf = Failing("leaf", file, read_only=False)
    node = VhdxNode("disk", "disk", file=leaf, image=await load_writable(leaf, "disk"))
    await node.start_writing()
    return leaf, node, file


class Willing(KeptMemory):
    """A file that is also written at once."""

    def try_write(self, offset: int, data: Buffer) -> bool:
        self._store(offset, memoryview(data))
        return True


def test_only_a_present_block_that_nobody_changes_is_written_at_once() -> None:
    async def scenario() -> None:
        leaf = Willing("leaf", (await made()).files[0], read_only=False)
        node = VhdxNode("disk", "disk", file=leaf, image=await load_writable(leaf, "disk"))
        await node.start_writing()
        assert not node.try_write(0, b"too soon")
        await node.write(0, b"x" * 4096)
        await node.write(4 * MIB, b"x" * 4096)
        assert node.try_write(4096, b"y" * 4096)
        assert not node.try_write(MIB, b"absent")
        assert not node.try_write(MIB - 1, b"across")
        async with node.writer.place(2 * MIB, 4096):
            assert not node.try_write(2 * MIB, b"being allocated")
            assert node.try_write(4 * MIB, b"another")
        assert node.try_write(2 * MIB, b"z" * 4096)
        discard = asyncio.create_task(node.discard(4 * MIB, MIB))
        while not discard.done():
            node.try_write(4 * MIB, b"lost, or there before")
            await asyncio.sleep(0)
        await node.flush()
        assert not node.try_write(4 * MIB, b"gone")
        assert await node.read(4 * MIB, 4096) == bytes(4096)
        assert await node.read(4096, 4096) == b"y" * 4096
        assert await node.read(2 * MIB, 4096) == b"z" * 4096
        await node.close()

    asyncio.run(scenario())


def test_opening_for_writing_changes_nothing() -> None:
    async def scenario() -> None:
        chain = await made()
        before = chain.files[0].content
        async with Graph() as graph:
            handle = await chain.open(graph)
            await handle.flush()
            assert await handle.read(0, 4096) == bytes(4096)
        assert chain.files[0].content == before

    asyncio.run(scenario())


def test_the_first_write_changes_all_identities_once_and_closing_none() -> None:
    async def scenario() -> None:
        chain = await made()
        before = await look(chain.files[0])
        async with Graph() as graph:
            handle = await chain.open(graph)
            node = handle.node
            assert isinstance(node, VhdxNode)
            await handle.write(0, b"first")
            first = node.image.header
            await handle.write(5 * MIB, b"second")
            await handle.flush()
            assert node.image.header == first
            assert first.log_guid != ZERO_GUID
            assert first.file_write_guid != before.file_write_guid
            assert first.data_write_guid != before.data_write_guid
            assert first.sequence_number == before.sequence_number + 2
        after = await look(chain.files[0])
        assert after.findings == []
        assert after.log_guid == ZERO_GUID
        assert (after.file_write_guid, after.data_write_guid) == (
            first.file_write_guid,
            first.data_write_guid,
        )

    asyncio.run(scenario())


def test_a_replay_changes_the_files_identity_and_not_the_disks() -> None:
    async def scenario() -> None:
        chain = await made()
        async with Graph() as graph:
            handle = await chain.open(graph)
            await handle.write(3 * MIB, b"kept")
            await handle.flush()
            leaf = handle.node.children["file"].node
            left = MemoryFile(await leaf.read(0, leaf.size))
        dirty = await look(left)
        assert dirty.dirty_log is not None
        opened = Chain([left])
        async with Graph() as graph:
            handle = await opened.open(graph)
            assert await handle.read(3 * MIB, 4) == b"kept"
        clean = await look(left)
        assert clean.dirty_log is None
        assert clean.file_write_guid != dirty.file_write_guid
        assert clean.data_write_guid == dirty.data_write_guid

    asyncio.run(scenario())


def test_a_closed_file_is_as_long_as_what_it_holds() -> None:
    async def scenario() -> None:
        chain = await made()
        length = len(chain.files[0].content)
        for written, released in ((3, 0), (0, 2), (0, 1)):
            async with Graph() as graph:
                handle = await chain.open(graph)
                for block in range(written):
                    await handle.write(block * MIB, b"x")
                if released:
                    await handle.write_zeroes(released * MIB, MIB, unmap=True)
                length += (written - bool(released)) * MIB
            assert len(chain.files[0].content) == length
        assert (await chain.check()).findings == []

    asyncio.run(scenario())


def test_many_flushes_go_round_the_log_many_times() -> None:
    async def scenario() -> None:
        chain = await made(size=GIB)
        async with Graph() as graph:
            handle = await chain.open(graph)
            for number in range(600):
                await handle.write(number * MIB, number.to_bytes(4, "little"))
                await handle.flush()
            leaf = handle.node.children["file"].node
            left = Chain([MemoryFile(await leaf.read(0, leaf.size))])
        for each in (chain, left):
            async with Graph() as graph:
                handle = await each.open(graph)
                for number in range(600):
                    assert await handle.read(number * MIB, 4) == number.to_bytes(4, "little")

    asyncio.run(scenario())


def test_a_damaged_image_is_not_written_and_not_replayed() -> None:
    async def scenario() -> None:
        chain = await made()
        async with Graph() as graph:
            handle = await chain.open(graph)
            await handle.write(0, b"a")
            await handle.write(MIB, b"b")
        file = chain.files[0]
        bat = (await look(file)).regions.bat.file_offset
        content = bytearray(file.content)
        content[bat + 8 : bat + 16] = content[bat : bat + 8]
        file.content = bytes(content)
        with pytest.raises(CorruptImage, match="must not be written"):
            async with Graph() as graph:
                await chain.open(graph)
        assert file.content == bytes(content)

    asyncio.run(scenario())


def test_an_image_for_reading_refuses_every_change() -> None:
    async def scenario() -> None:
        chain = await made()
        async with Graph() as graph:
            node = (await chain.open(graph, read_only=True)).node
            with pytest.raises(ReadOnly):
                await node.write(0, b"x")
            with pytest.raises(ReadOnly):
                await node.write_zeroes(0, 512)
            with pytest.raises(ReadOnly):
                await node.discard(0, 512)
            with pytest.raises(ReadOnly):
                await node.resize(MIB)
            with pytest.raises(ReadOnly):
                node.place(0, 512)

    asyncio.run(scenario())


def test_a_full_medium_fails_the_write_and_nothing_else() -> None:
    async def scenario() -> None:
        leaf, node, file = await failing()
        await node.write(0, b"before")
        await node.flush()
        leaf.failure, leaf.which = NoSpace("full"), "data resize"
        with pytest.raises(NoSpace):
            await node.write(5 * MIB, b"x" * (2 * MIB))
        leaf.failure = None
        assert await node.read(5 * MIB, 4096) == bytes(4096)
        await node.write(7 * MIB, b"after")
        assert await node.read(7 * MIB + 5, 64 * KIB) == bytes(64 * KIB)
        await node.close()
        await leaf.close()
        assert (await Chain([file]).check()).findings == []

    asyncio.run(scenario())


def test_a_log_without_room_fails_the_flush_and_the_next_may_succeed() -> None:
    async def scenario() -> None:
        leaf, node, file = await failing()
        await node.write(0, b"before")
        leaf.failure, leaf.which = NoSpace("full"), "log"
        with pytest.raises(NoSpace):
            await node.flush()
        leaf.failure = None
        await node.flush()
        await node.close()
        await leaf.close()
        async with Graph() as graph:
            assert await (await Chain([file]).open(graph)).read(0, 6) == b"before"

    asyncio.run(scenario())


@pytest.mark.parametrize("which", ["flush", "log"])
def test_a_failed_flush_poisons_and_leaves_the_log(which: str) -> None:
    async def scenario() -> None:
        leaf, node, file = await failing()
        await node.write(0, b"before")
        await node.flush()
        await node.write(MIB, b"lost")
        leaf.failure, leaf.which = StorageError(5), which
        with pytest.raises(NodeFailed):
            await node.flush()
        leaf.failure = None
        with pytest.raises(NodeFailed):
            await node.write(2 * MIB, b"x")
        with pytest.raises(NodeFailed):
            await node.flush()
        with pytest.raises(NodeFailed):
            await node.close()
        await leaf.close()
        assert (await look(file)).dirty_log is not None
        async with Graph() as graph:
            assert await (await Chain([file]).open(graph)).read(0, 6) == b"before"

    asyncio.run(scenario())


@pytest.mark.parametrize(("size", "error"), [(0, OutOfRange), (65 * TIB, OutOfRange), (MIB + 1, Misaligned)])
def test_sizes_that_no_disk_has_are_refused(size: int, error: type[BlockError]) -> None:
    async def scenario() -> None:
        chain = await made()
        async with Graph() as graph:
            handle = await chain.open(graph)
            with pytest.raises(error):
                await handle.node.resize(size)
            with pytest.raises(Unsupported):
                await handle.resize(GIB, preallocation=Preallocation.FULL)
            assert handle.size == 16 * MIB

    asyncio.run(scenario())


@pytest.mark.parametrize("fixed", [False, True])
def test_a_block_table_that_is_too_small_moves(fixed: bool) -> None:
    async def scenario() -> None:
        chain = await made(fixed=fixed)
        size = 1 * GIB if fixed else 400 * GIB
        async with Graph() as graph:
            handle = await chain.open(graph)
            await handle.write(15 * MIB, b"old end")
            await handle.resize(size)
            await handle.write(size - 4096, b"new end")
            assert await handle.read(16 * MIB, MIB) == bytes(MIB)
        image = await look(chain.files[0])
        assert image.regions.bat.length == (MIB if fixed else 4 * MIB)
        report = await chain.check()
        assert report.findings == []
        assert report.allocated_blocks == (1024 if fixed else 2)
        async with Graph() as graph:
            handle = await chain.open(graph, read_only=True)
            assert await handle.read(15 * MIB, 7) == b"old end"
            assert await handle.read(size - 4096, 7) == b"new end"

    asyncio.run(scenario())


def test_a_disk_that_grows_again_does_not_show_what_it_had_cut_off() -> None:
    async def scenario() -> None:
        chain = await made()
        async with Graph() as graph:
            handle = await chain.open(graph)
            await handle.write(0, b"\xaa" * (16 * MIB))
            await handle.resize(5 * MIB + 4 * KIB)
            await handle.resize(16 * MIB)
            expected = b"\xaa" * (5 * MIB + 4 * KIB)
            assert await handle.read(0, 16 * MIB) == expected.ljust(16 * MIB, b"\0")
        assert (await chain.check()).states["FULLY_PRESENT"] == 6

    asyncio.run(scenario())
