"""The shell of every format: lookups that miss, pins, backings, and the inline path."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack
from itertools import pairwise
from typing import Any

import pytest

from tests.support.turns import until
from vblk.errors import CorruptImage, GraphError
from vblk.extent import Extent, Kind, Missing
from vblk.graph.edge import Role
from vblk.graph.edges import DEPTH_MAX
from vblk.graph.mapper import INLINE_MAX, LOOKUP_ROUNDS_MAX, Mapper
from vblk.graph.node import Node, Preallocation, Span, coalesce
from vblk.graph.registry import Graph
from vblk.protocols.memory import MemoryNode
from vblk.testing import ReluctantNode
from vblk.units import FileOffset, GuestOffset

UNIT = 512


class Patchwork(Mapper):
    """A format whose map is a list: for each unit a file offset, 0 for zeros, None for absent."""

    driver = "patchwork"

    def __init__(
        self, name: str, file: Node, places: Sequence[int | None], *, rounds: int = 0, tail: int = 0
    ) -> None:
        super().__init__(name, name, read_only=True, file=file)
        self.places = places
        self.rounds = rounds
        self.tail = tail
        self.loads: list[Missing] = []
        self.pinned = 0
        self.pinned_at_lookup: list[int] = []

    @property
    def size(self) -> int:
        return len(self.places) * UNIT + self.tail

    def lookup(self, offset: int, length: int) -> Sequence[Extent] | Missing:
        if len(self.loads) < self.rounds:
            return Missing([(FileOffset(0), 4096)])
        self.pinned_at_lookup.append(self.pinned)
        extents: list[Extent] = []
        end = offset + length
        while offset < end:
            index, within = divmod(offset, UNIT)
            count = min(UNIT - within, end - offset)
            place = self.places[index]
            kind = Kind.ABSENT if place is None else Kind.DATA if place else Kind.ZERO
            at = FileOffset(place + within) if place else None
            extents.append(Extent(kind, GuestOffset(offset), count, at))
            offset += count
        return extents

    def locate(self, offset: int, length: int) -> int | None:
        return None

    async def load(self, missing: Missing, pins: ExitStack) -> None:
        await asyncio.sleep(0)
        self.loads.append(missing)
        self.pinned += 1
        pins.callback(self._unpin)

    def _unpin(self) -> None:
        self.pinned -= 1

    def place(self, offset: int, length: int) -> AbstractAsyncContextManager[list[Span]]:
        raise AssertionError

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        raise AssertionError

    async def discard(self, offset: int, length: int) -> None:
        raise AssertionError

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        raise AssertionError

    async def reopen(self, *, read_only: bool) -> None:
        raise AssertionError

    def info(self) -> dict[str, Any]:
        return {}

    async def close(self) -> None:
        self.loads.clear()


BYTES = bytes(range(1, 256)) * 64


def patchwork(graph: Graph, name: str, places: Sequence[int | None], **own: Any) -> Patchwork:
    file: Node = MemoryNode(f"{name}-file", size=len(BYTES), data=BYTES, read_only=True)
    graph.add(file)
    if "seed" in own:
        file = ReluctantNode(f"{name}-slow", file, own.pop("seed"))
        file.put_over(graph)
    node = Patchwork(name, file, places, **own)
    graph.add(node)
    graph.attach(node, Role.FILE, file)
    return node


def over(graph: Graph, top: Patchwork, backing: Node) -> None:
    graph.attach(top, Role.BACKING, backing)


def with_graph(scenario: Callable[[Graph], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Graph() as graph:
            await scenario(graph)

    asyncio.run(main())


def at(place: int) -> bytes:
    return BYTES[place : place + UNIT]


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_a_fragmented_range_is_read_in_order(seed: int | None) -> None:
    async def scenario(graph: Graph) -> None:
        own = {} if seed is None else {"seed": seed}
        node = patchwork(graph, "top", [5000, 0, 100, 9000, None, 612, 700], **own)
        wanted = at(5000) + bytes(UNIT) + at(100) + at(9000) + bytes(UNIT) + at(612) + at(700)
        assert await node.read(0, node.size) == wanted
        assert await node.read(500, 1200) == wanted[500:1700]
        handle = graph.hold(node, "the test")
        assert await handle.read(3, 3000) == wanted[3:3003]

    with_graph(scenario)


def test_the_inline_path_gives_the_same_bytes_and_never_more_than_its_limit() -> None:
    async def scenario(graph: Graph) -> None:
        base = patchwork(graph, "base", [4000, 0])
        top = patchwork(graph, "top", [1000, None, None, None, 0])
        over(graph, top, base)
        wanted = at(1000) + bytes(4 * UNIT)
        assert top.try_read(0, top.size) == wanted
        assert await top.read(0, top.size) == wanted
        large = patchwork(graph, "large", [1000] * (INLINE_MAX // UNIT + 1))
        assert large.try_read(0, large.size) is None
        assert large.try_read(0, INLINE_MAX) is not None

    with_graph(scenario)


def test_the_inline_path_does_not_load_tables() -> None:
    async def scenario(graph: Graph) -> None:
        node = patchwork(graph, "top", [1000], rounds=1)
        assert node.try_read(0, 10) is None
        assert node.loads == []

    with_graph(scenario)


def test_what_is_loaded_stays_pinned_until_the_lookup_has_succeeded() -> None:
    async def scenario(graph: Graph) -> None:
        node = patchwork(graph, "top", [1000], rounds=3)
        assert await node.read(0, UNIT) == at(1000)
        assert node.pinned_at_lookup == [3]
        assert node.pinned == 0

    with_graph(scenario)


def test_a_lookup_that_never_ends_is_given_up() -> None:
    async def scenario(graph: Graph) -> None:
        node = patchwork(graph, "top", [1000], rounds=10**6)
        with pytest.raises(CorruptImage, match="never end"):
            await node.read(0, 1)
        assert len(node.loads) == LOOKUP_ROUNDS_MAX
        assert node.pinned == 0

    with_graph(scenario)


def test_a_cancelled_load_gives_its_pins_back() -> None:
    async def scenario(graph: Graph) -> None:
        node = patchwork(graph, "top", [1000], rounds=5)
        task = asyncio.create_task(node.read(0, 1))
        await until(lambda: len(node.loads) == 2)
        task.cancel()
        await asyncio.wait([task])
        assert node.pinned == 0

    with_graph(scenario)


def test_a_backing_that_is_shorter_is_continued_with_zeros() -> None:
    async def scenario(graph: Graph) -> None:
        base = patchwork(graph, "base", [4000, 5000])
        top = patchwork(graph, "top", [None] * 4)
        over(graph, top, base)
        assert await top.read(0, top.size) == at(4000) + at(5000) + bytes(2 * UNIT)
        assert await top.read(UNIT, 2 * UNIT) == at(5000) + bytes(UNIT)
        spans = coalesce(await top.resolve(0, top.size))
        assert [(span.kind, span.depth, span.present) for span in spans] == [
            (Kind.DATA, 1, True),
            (Kind.DATA, 1, True),
            (Kind.ZERO, 0, True),
        ]

    with_graph(scenario)


def test_a_backing_that_is_longer_is_cut() -> None:
    async def scenario(graph: Graph) -> None:
        base = patchwork(graph, "base", [4000, 5000, 6000])
        top = patchwork(graph, "top", [None])
        over(graph, top, base)
        assert await top.read(0, top.size) == at(4000)

    with_graph(scenario)


def test_what_no_image_has_is_zero_and_said_not_to_be_present() -> None:
    async def scenario(graph: Graph) -> None:
        base = patchwork(graph, "base", [None, 0])
        top = patchwork(graph, "top", [None, None])
        over(graph, top, base)
        spans = await top.resolve(0, top.size)
        assert [(span.kind, span.depth, span.present) for span in spans] == [
            (Kind.ZERO, 1, False),
            (Kind.ZERO, 1, True),
        ]

    with_graph(scenario)


@pytest.mark.parametrize("above", [0, 1])
def test_what_an_unopened_parent_holds_is_an_error_and_not_zeros(above: int) -> None:
    async def scenario(graph: Graph) -> None:
        node = patchwork(graph, "child", [1000, None])
        node.backing_left_closed = True
        if above:
            top = patchwork(graph, "top", [None, None])
            over(graph, top, node)
            node = top
        assert await node.read(0, UNIT) == at(1000)
        assert node.try_read(UNIT, 1) is None
        for request in (node.read(UNIT, 1), node.resolve(0, 2 * UNIT), node.allocation(UNIT, 1)):
            with pytest.raises(GraphError, match="parent image, which was not opened"):
                await request

    with_graph(scenario)


def test_the_deepest_chain_can_be_read() -> None:
    async def scenario(graph: Graph) -> None:
        nodes = [patchwork(graph, f"n{number}", [None]) for number in range(DEPTH_MAX)]
        nodes[-1].places = [1000]
        for top, backing in pairwise(nodes):
            over(graph, top, backing)
        assert nodes[0].try_read(0, UNIT) == at(1000)
        assert await nodes[0].read(0, UNIT) == at(1000)
        [span] = await nodes[0].allocation(0, UNIT)
        assert span.depth == DEPTH_MAX - 1

    with_graph(scenario)
