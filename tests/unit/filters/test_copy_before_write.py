"""copy-before-write keeps the old bytes, snapshot-access shows them, and writers go on."""

import asyncio
import errno
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.manual_clock import ManualClock
from vblk.errors import BlockError, GraphError, NodeBusy, OptionError, PermissionConflict, StorageError
from vblk.filters.copy_before_write import CopyBeforeWriteNode
from vblk.filters.passing import PassingNode
from vblk.graph.edge import READING, WRITING
from vblk.graph.handle import Handle
from vblk.graph.node import Node
from vblk.graph.recording import add_bitmap
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.opening import open_node
from vblk.options import from_mapping
from vblk.protocols.memory import MemoryNode
from vblk.units import KIB, MIB

SIZE = 2 * MIB + 512
UNIT = 64 * KIB


class Door(PassingNode):
    """A node whose writes wait while it is shut, or fail while it is broken."""

    def __init__(self, name: str, file: Node) -> None:
        super().__init__(name, file)
        self.open = asyncio.Event()
        self.open.set()
        self.reached = asyncio.Event()
        self.broken = False
        self.writes = 0

    async def before(self, operation: str, offset: int, length: int) -> None:
        if operation not in ("write", "write-zeroes"):
            return
        self.writes += 1
        self.reached.set()
        await self.open.wait()
        if self.broken:
            raise StorageError(errno.ENOSPC, "no room", filename=self.filename)


class Lab:
    """A guest on a disk whose old bytes go through a door into a target."""

    def __init__(self, graph: Graph, guest: Handle, door: Door) -> None:
        self.graph = graph
        self.guest = guest
        self.disk = guest.node
        self.door = door
        self.old = b""

    async def keep(self, **options: Any) -> CopyBeforeWriteNode:
        """Put the filter under the guest, and remember the disk as it is."""
        self.old = await self.guest.read(0, SIZE)
        wanted = {
            "driver": "copy-before-write",
            "node-name": "cbw",
            "file": "disk",
            "target": "door",
            **options,
        }
        node = await open_node(self.graph, from_mapping(wanted), Request(read_only=False))
        self.graph.keep(node)
        await self.graph.insert_filter(self.disk, node)
        assert isinstance(node, CopyBeforeWriteNode)
        return node

    async def access(self) -> Handle:
        """Return a reader of the disk as it was."""
        wanted = {"driver": "snapshot-access", "node-name": "access", "file": "cbw"}
        node = await open_node(self.graph, from_mapping(wanted), Request(read_only=False))
        return self.graph.hold(node, "reader", READING)


@asynccontextmanager
async def lab() -> AsyncGenerator[Lab]:
    async with Graph() as graph:
        disk = MemoryNode("disk", size=SIZE, data=random.Random(1).randbytes(SIZE), read_only=False)
        store = MemoryNode("store", size=SIZE, data=b"", read_only=False)
        graph.add(disk)
        graph.add(store)
        door = Door("door", store)
        door.put_over(graph)
        for node in (disk, door):
            graph.keep(node)
        yield Lab(graph, graph.hold(disk, "guest", WRITING), door)


def test_the_disk_as_it_was_is_read_whatever_is_written() -> None:
    async def scenario() -> None:
        async with lab() as room:
            cbw = await room.keep()
            reader = await room.access()
            dice = random.Random(2)
            now = bytearray(room.old)
            ended = False

            async def write() -> None:
                while not ended:
                    offset = dice.randrange(0, SIZE - 9000)
                    length = dice.choice((1, 512, 9000))
                    kind = dice.randrange(3)
                    data = dice.randbytes(length) if kind else bytes(length)
                    if kind:
                        await room.guest.write(offset, data)
                    else:
                        await room.guest.write_zeroes(offset, length)
                    now[offset : offset + length] = data
                    await asyncio.sleep(0)

            async def read() -> None:
                for _ in range(150):
                    offset = dice.randrange(0, SIZE)
                    length = dice.randrange(1, min(SIZE - offset, 200 * KIB) + 1)
                    assert await reader.read(offset, length) == room.old[offset : offset + length]
                    await asyncio.sleep(0)

            writers = [asyncio.ensure_future(write()) for _ in range(2)]
            await asyncio.gather(read(), read())
            ended = True
            await asyncio.gather(*writers)
            assert await reader.read(0, SIZE) == room.old
            assert cbw.copier.copied > 0
            covered = sum(span.length for span in await reader.allocation(0, SIZE))
            assert covered == SIZE

    asyncio.run(scenario())


def test_a_range_is_copied_once() -> None:
    async def scenario() -> None:
        async with lab() as room:
            await room.keep()
            await room.guest.write(0, b"a")
            await room.guest.write(UNIT - 1, b"b")
            assert room.door.writes == 1
            await room.guest.discard(UNIT, UNIT)
            assert room.door.writes == 2

    asyncio.run(scenario())


def test_reads_and_writes_elsewhere_do_not_wait_for_a_copy() -> None:
    async def scenario() -> None:
        async with lab() as room:
            await room.keep()
            await room.guest.write(UNIT, b"kept")
            room.door.open.clear()
            room.door.reached.clear()
            waiting = asyncio.ensure_future(room.guest.write(0, b"new"))
            await room.door.reached.wait()
            assert await room.guest.read(0, 3) == room.old[:3]
            await room.guest.write(UNIT + 5, b"there already")
            assert not waiting.done()
            room.door.open.set()
            await waiting
            assert await room.guest.read(0, 3) == b"new"

    asyncio.run(scenario())


def test_a_change_waits_for_the_read_of_what_it_changes() -> None:
    async def scenario() -> None:
        async with lab() as room:
            cbw = await room.keep()
            async with cbw.reading_old(100, 10):
                waiting = asyncio.ensure_future(room.guest.write(0, b"new"))
                for _ in range(10):
                    await asyncio.sleep(0)
                assert not waiting.done()
            await waiting

    asyncio.run(scenario())


def test_a_write_fails_when_its_old_bytes_cannot_be_kept() -> None:
    async def scenario() -> None:
        async with lab() as room:
            await room.keep()
            reader = await room.access()
            room.door.broken = True
            with pytest.raises(StorageError):
                await room.guest.write(0, b"new")
            assert await room.guest.read(0, SIZE) == await reader.read(0, SIZE) == room.old
            room.door.broken = False
            await room.guest.write(0, b"new")
            assert await reader.read(0, SIZE) == room.old

    asyncio.run(scenario())


def test_a_snapshot_breaks_rather_than_a_write_if_that_is_asked_for() -> None:
    async def scenario() -> None:
        async with lab() as room:
            await room.keep(**{"on-cbw-error": "break-snapshot"})
            reader = await room.access()
            room.door.broken = True
            await room.guest.write(0, b"new")
            assert await room.guest.read(0, 3) == b"new"
            with pytest.raises(StorageError, match="the snapshot is broken") as caught:
                await reader.read(MIB, 512)
            assert caught.value.errno == errno.EACCES

    asyncio.run(scenario())


def test_a_copy_that_takes_too_long_counts_as_failed() -> None:
    async def scenario() -> None:
        async with lab() as room:
            clock = ManualClock()
            room.graph.clock = clock
            await room.keep(**{"cbw-timeout": 5})
            room.door.open.clear()
            writing = asyncio.ensure_future(room.guest.write(0, b"new"))
            await room.door.reached.wait()
            clock.advance(6)
            with pytest.raises(StorageError) as caught:
                await writing
            assert caught.value.errno == errno.ETIMEDOUT
            room.door.open.set()
            assert await room.guest.read(0, SIZE) == room.old

    asyncio.run(scenario())


def test_only_what_a_bitmap_marks_is_kept() -> None:
    async def scenario() -> None:
        async with lab() as room:
            bitmap = await add_bitmap(room.graph, room.disk, "b", granularity=UNIT)
            bitmap.set(0, UNIT)
            await room.keep(**{"bitmap.node": "disk", "bitmap.name": "b"})
            reader = await room.access()
            await room.guest.write(0, b"x" * 512)
            await room.guest.write(UNIT, b"x" * 512)
            assert room.door.writes == 1
            assert await reader.read(0, UNIT) == room.old[:UNIT]
            with pytest.raises(StorageError, match="not kept"):
                await reader.read(UNIT - 1, 2)

    asyncio.run(scenario())


def test_the_filter_stays_while_a_reader_needs_it_and_then_goes() -> None:
    async def scenario() -> None:
        async with lab() as room:
            cbw = await room.keep()
            reader = await room.access()
            with pytest.raises(NodeBusy):
                await room.graph.remove_filter(cbw)
            await room.graph.release(reader)
            await room.graph.remove_filter(cbw)
            await room.graph.let_go(cbw)
            assert room.guest.node is room.disk
            await room.guest.write(0, b"not kept any more")
            assert room.door.writes == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("refused", "options"),
    [
        (OptionError, {"cbw-timeout": -1}),
        (OptionError, {"on-cbw-error": "nothing"}),
        (GraphError, {"bitmap.node": "disk", "bitmap.name": "none"}),
        (GraphError, {"target": "disk"}),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    refused: type[BlockError], options: dict[str, Any]
) -> None:
    async def scenario() -> None:
        async with lab() as room:
            with pytest.raises(refused):
                await room.keep(**options)
            assert [node.name for node in room.graph.nodes()] == ["disk", "store", "door"]
            await room.guest.write(0, b"as ever")

    asyncio.run(scenario())


def test_nobody_writes_past_the_filter_and_nobody_resizes_the_disk() -> None:
    async def scenario() -> None:
        async with lab() as room:
            await room.keep()
            with pytest.raises(PermissionConflict):
                room.graph.hold(room.disk, "intruder", WRITING)
            with pytest.raises(BlockError, match="cannot be resized"):
                await room.guest.resize(SIZE * 2)

    asyncio.run(scenario())
