"""Recording: whatever changes a node marks its bitmaps, and a node without bitmaps is what it was."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.nodes import BUILDERS, Bench
from tests.support.turns import turns
from tests.support.vhdx_disks import Chain
from vblk.errors import GraphError, OptionError, StorageError
from vblk.extent import Kind
from vblk.formats.vhdx.create import NewVhdx
from vblk.graph.dirty_bitmap import UNITS_MAX, DirtyBitmap
from vblk.graph.edge import WRITING
from vblk.graph.handle import Handle
from vblk.graph.kernel_copy import Means
from vblk.graph.node import Buffer, Node, Span
from vblk.graph.plane import Mover
from vblk.graph.recording import add_bitmap, find_bitmap, put_bitmap, remove_bitmap
from vblk.graph.registry import Graph
from vblk.protocols.memory import MemoryNode
from vblk.testing import FaultPlan, FaultyNode, PassingNode

KINDS = ("memory", "file", "file-none", "raw", "raw-probed", "vhdx", "qcow2-overlay", "luks", "copy-on-read")
UNIT = 4096


def dirty(bitmap: DirtyBitmap) -> list[tuple[int, int]]:
    return [(start, length) for start, length, is_dirty in bitmap.ranges(0, bitmap.size) if is_dirty]


def with_node(
    build: Callable[[Graph], Awaitable[Node]], scenario: Callable[[Graph, Handle], Awaitable[None]]
) -> None:
    async def main() -> None:
        async with Graph() as graph:
            node = await build(graph)
            await scenario(graph, graph.hold(node, "the test", WRITING))

    asyncio.run(main())


async def _memory(graph: Graph) -> Node:
    node = MemoryNode("memory", size=1 << 20)
    graph.add(node)
    return node


async def _vhdx(graph: Graph) -> Node:
    chain = Chain()
    await chain.add(NewVhdx(size=4 << 20, block_size=1 << 20))
    return (await chain.open(graph)).node


async def _place(handle: Handle) -> None:
    async with handle.node.place(5 * UNIT, 100) as spans:
        for span in spans:
            assert span.leaf is not None
            await span.leaf.write(span.leaf_offset, bytes(span.length))


CHANGES: dict[str, Callable[[Handle], Awaitable[object]]] = {
    "write": lambda handle: handle.write(5 * UNIT + 1, b"x" * UNIT),
    "write-through": lambda handle: handle.write(5 * UNIT + 1, b"x" * UNIT, fua=True),
    "zero": lambda handle: handle.write_zeroes(5 * UNIT + 1, UNIT),
    "discard": lambda handle: handle.discard(5 * UNIT + 1, UNIT),
    "place": _place,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_change_of_every_kind_of_node_is_marked_and_nothing_else(kind: str, tmp_path: Path) -> None:
    async def build(graph: Graph) -> Node:
        if kind == "vhdx":
            return await _vhdx(graph)
        return (await BUILDERS[kind](Bench(graph, tmp_path))).node

    async def scenario(graph: Graph, handle: Handle) -> None:
        before = type(handle.node)
        bitmap = await add_bitmap(graph, handle.node, "b", granularity=UNIT)
        await handle.read(0, handle.size)
        await handle.allocation(0, handle.size)
        await handle.flush()
        assert not bitmap.count
        for name, change in CHANGES.items():
            bitmap.clear()
            await change(handle)
            expected = [(5 * UNIT, UNIT if name == "place" else 2 * UNIT)]
            assert dirty(bitmap) == expected, name
        assert isinstance(handle.node, before)
        bitmap.clear()
        remove_bitmap(handle.node, "b")
        assert type(handle.node) is before
        await handle.write(0, b"x")
        assert not bitmap.count

    with_node(build, scenario)


class AtOnce(MemoryNode):
    """Writes without waiting, and says that it wrote all if that is one byte."""

    def try_write(self, offset: int, data: Buffer) -> bool:
        self._store(offset, memoryview(data))
        return len(data) == 1


def test_a_write_at_once_is_marked_at_once_also_where_it_could_not_write_all() -> None:
    async def build(graph: Graph) -> Node:
        node = AtOnce("memory", size=1 << 20)
        graph.add(node)
        return node

    async def scenario(graph: Graph, handle: Handle) -> None:
        bitmap = await add_bitmap(graph, handle.node, "b", granularity=UNIT)
        assert handle.try_write(0, b"x")
        assert dirty(bitmap) == [(0, UNIT)]
        assert not handle.try_write(2 * UNIT, b"xx")
        assert dirty(bitmap) == [(0, UNIT), (2 * UNIT, UNIT)]

    with_node(build, scenario)


def test_bitmaps_follow_the_size_of_their_node() -> None:
    async def scenario(graph: Graph, handle: Handle) -> None:
        bitmap = await add_bitmap(graph, handle.node, "b", granularity=UNIT)
        await handle.resize((1 << 20) + 5)
        assert dirty(bitmap) == [(1 << 20, 5)]
        await handle.resize(1 << 19)
        assert bitmap.size == 1 << 19

    with_node(_memory, scenario)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_bitmaps_follow_a_file_that_grows_by_writes(kind: str, tmp_path: Path) -> None:
    async def build(graph: Graph) -> Node:
        return (await BUILDERS[kind](Bench(graph, tmp_path))).node

    async def scenario(graph: Graph, handle: Handle) -> None:
        node = handle.node
        bitmap = await add_bitmap(graph, node, "b", granularity=512)
        before = node.size
        await node.write(before + 512, b"x")
        assert bitmap.size == node.size
        assert dirty(bitmap) == [(before, 513)]

    with_node(build, scenario)


def test_a_node_does_not_grow_to_where_its_bitmap_would_take_all_memory() -> None:
    async def scenario(graph: Graph, handle: Handle) -> None:
        bitmap = await add_bitmap(graph, handle.node, "b", granularity=512)
        far = 512 * UNITS_MAX
        for change in (
            handle.resize(far + 1),
            handle.node.write(far, b"x"),
            handle.node.write_zeroes(far, 1),
        ):
            with pytest.raises(OptionError, match="granularity of 512 bytes is too small"):
                await change
        with pytest.raises(OptionError, match="granularity of 512 bytes is too small"):
            handle.node.try_write(far, b"x")
        assert handle.size == bitmap.size == 1 << 20
        assert not bitmap.count

    with_node(_memory, scenario)


def test_what_the_kernel_copies_to_where_a_format_has_placed_it_is_marked(tmp_path: Path) -> None:
    class Format(PassingNode):
        """Places everything one unit further on in its file."""

        @asynccontextmanager
        async def place(self, offset: int, length: int) -> AsyncGenerator[list[Span], None]:
            yield [Span(Kind.DATA, offset, length, self.file, offset + UNIT)]

    async def scenario(graph: Graph) -> None:
        bench = Bench(graph, tmp_path)
        files = [
            await bench.open({"driver": "file", "filename": bench.file(b"x" * 16 * UNIT, name)})
            for name in "ab"
        ]
        bitmap = await add_bitmap(graph, files[1], "b", granularity=UNIT)
        mover = Mover(graph.engine)
        await mover.move(Span(Kind.DATA, 0, UNIT, files[0], 0), Format("format", files[1]), 2 * UNIT)
        assert Means.MEMORY not in mover.moved.by_means
        assert dirty(bitmap) == [(3 * UNIT, UNIT)]

    async def main() -> None:
        async with Graph() as graph:
            await scenario(graph)

    asyncio.run(main())


async def _faulty(graph: Graph) -> Node:
    node = FaultyNode("faulty", await _memory(graph), FaultPlan())
    node.put_over(graph)
    return node


@pytest.mark.parametrize("how", ["fails", "cancelled"])
def test_a_change_that_fails_or_is_cancelled_is_marked(how: str) -> None:
    async def scenario(graph: Graph, handle: Handle) -> None:
        faulty = handle.node
        assert isinstance(faulty, FaultyNode)
        bitmap = await add_bitmap(graph, faulty, "b", granularity=UNIT)
        for change in CHANGES.values():
            if change is _place:
                continue
            bitmap.clear()
            if how == "fails":
                faulty.plan = FaultPlan(fail_at=1)
                with pytest.raises(StorageError):
                    await change(handle)
            else:
                faulty.plan = plan = FaultPlan(stop_at=1)
                task = asyncio.ensure_future(change(handle))
                await plan.stopped.wait()
                bitmap.clear()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert dirty(bitmap) == [(5 * UNIT, 2 * UNIT)]

    with_node(_faulty, scenario)


def test_a_bitmap_begins_when_the_writes_in_flight_have_ended() -> None:
    async def scenario(graph: Graph, handle: Handle) -> None:
        faulty = handle.node
        assert isinstance(faulty, FaultyNode)
        faulty.plan = plan = FaultPlan(stop_at=1)
        write = asyncio.create_task(handle.write(0, b"x"))
        await plan.stopped.wait()
        adding = asyncio.create_task(add_bitmap(graph, faulty, "b"))
        await turns()
        assert not adding.done()
        plan.go_on.set()
        bitmap = await adding
        await write
        assert not bitmap.count, "it was over before the bitmap began"

    with_node(_faulty, scenario)


def test_several_bitmaps_are_marked_each_as_it_is() -> None:
    async def scenario(graph: Graph, handle: Handle) -> None:
        node = handle.node
        coarse = await add_bitmap(graph, node, "coarse")
        fine = await add_bitmap(graph, node, "fine", granularity=512)
        off = await add_bitmap(graph, node, "off", enabled=False)
        await handle.write(70_000, b"x")
        assert [each.count for each in (coarse, fine, off)] == [65536, 512, 0]
        with pytest.raises(GraphError, match="Bitmap already exists: fine"):
            await add_bitmap(graph, node, "fine")
        assert find_bitmap(node, "fine") is fine
        fine.busy = True
        with pytest.raises(GraphError, match="currently in use"):
            remove_bitmap(node, "fine")
        remove_bitmap(node, "coarse")
        with pytest.raises(GraphError, match="Dirty bitmap 'coarse' not found"):
            find_bitmap(node, "coarse")
        await handle.write(0, b"x")
        assert [each.count for each in (coarse, fine)] == [65536, 1024]
        put_bitmap(node, coarse)
        await handle.write(0, b"x")
        assert coarse.count == 2 * 65536

    with_node(_memory, scenario)


def test_a_change_outlives_the_bitmap_that_it_began_with() -> None:
    async def scenario(graph: Graph, handle: Handle) -> None:
        faulty = handle.node
        assert isinstance(faulty, FaultyNode)
        await add_bitmap(graph, faulty, "b")
        faulty.plan = plan = FaultPlan(stop_at=1)
        write = asyncio.create_task(handle.write(0, b"x"))
        await plan.stopped.wait()
        bitmap = remove_bitmap(faulty, "b")
        bitmap.clear()
        plan.go_on.set()
        await write
        assert await handle.read(0, 1) == b"x"
        assert not bitmap.count

    with_node(_faulty, scenario)
