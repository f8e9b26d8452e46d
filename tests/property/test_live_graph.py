"""Any surgery, in any order, under running requests, on a disk that is a bytearray to its users.

Each step starts some requests and one change of the graph together. Neighbours
dawdle and refuse to answer at once, each by a die of its own. Whatever the change
does, each request ends as if it had been alone, no bitmap misses a write, and the
graph is of one mind.
"""

import asyncio
import itertools
from collections.abc import Coroutine
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.support.manual_clock import EagerClock
from tests.support.qcow2_disks import new_image
from vblk.errors import GraphError, ReadOnly
from vblk.filters.copy_on_read import CopyOnReadNode
from vblk.graph.dirty_bitmap import DirtyBitmap
from vblk.graph.edge import WRITING, Role
from vblk.graph.edges import reachable
from vblk.graph.handle import Handle
from vblk.graph.node import Filter, Node
from vblk.graph.recording import add_bitmap, remove_bitmap
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.opening import open_node
from vblk.options import from_mapping
from vblk.protocols.memory import MemoryNode
from vblk.runtime.throttling import ThrottleGroup, ThrottleLimits
from vblk.testing import ReluctantNode, hold_everything_free

KIB = 1 << 10
SLOTS = 12
SLOT = 8 * KIB
SIZE = SLOTS * SLOT
FILTERS: dict[str, dict[str, Any]] = {
    "throttle": {"throttle-group": "group"},
    "delay": {"read-latency-ns": 1000, "write-latency-ns": 1000},
    "blkdebug": {"align": 512},
    "copy-on-read": {},
    "reluctant": {},
}
DEPTH_MAX = 8

_requests = st.lists(
    st.tuples(
        st.sampled_from(["read", "read_into", "write", "write", "zero", "flush", "allocation"]),
        st.integers(0, SLOTS - 1),
        st.integers(0, 700),
        st.booleans(),
    ),
    max_size=8,
)
_which = st.integers(0, 100)
_cancel = st.one_of(st.none(), st.integers(0, 40))


def refused_where_reads_write(node: Node) -> AbstractContextManager[object]:
    """Expect that a node cannot become read-only, when it copies on reads or stands on one that does."""
    below: Node | None = node
    while below is not None:
        if isinstance(below, CopyOnReadNode):
            return pytest.raises(GraphError, match="copy-on-read")
        below = below.below
    return nullcontext()


class LiveGraph(RuleBasedStateMachine):
    """Two users of one disk, whose graph changes under them."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.names = itertools.count()
        self.content = bytearray(SIZE)
        self.bitmaps: dict[DirtyBitmap, Node] = {}
        self.run(self._begin())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def name(self, kind: str) -> str:
        return f"{kind}{next(self.names)}"

    async def _begin(self) -> None:
        self.graph = Graph()
        self.graph.clock = EagerClock()
        limits = ThrottleLimits(bps_total=100 * KIB, iops_write=50)
        self.graph.objects.add("group", ThrottleGroup(self.graph.clock, limits))
        node = await self._open({"driver": "raw", "file": self._storage(b"", SIZE).name})
        self.handles = [self.graph.hold(node, f"guest {number}", WRITING) for number in range(2)]

    def _storage(self, data: bytes, size: int) -> Node:
        memory = MemoryNode(self.name("memory"), size=size, data=data)
        self.graph.add(memory)
        node = ReluctantNode(self.name("below"), memory, next(self.names))
        node.put_over(self.graph)
        return node

    async def _open(self, mapping: dict[str, Any]) -> Node:
        name = self.name("node")
        return await open_node(
            self.graph, from_mapping({**mapping, "node-name": name}), Request(read_only=False)
        )

    def path(self) -> list[Node]:
        """Return the nodes that every request passes, down to the image that is written."""
        path = [self.handles[0].node]
        while isinstance(path[-1], Filter) and (below := path[-1].child(Role.FILTERED)) is not None:
            path.append(below)
        return path

    def pick(self, which: int) -> Node:
        path = self.path()
        return path[which % len(path)]

    # Requests beside a change

    async def _beside(
        self, requests: list[tuple[str, int, int, bool]], change: Coroutine[Any, Any, Any], cancel: int | None
    ) -> None:
        before = set(self.path())
        changed = {slot for kind, slot, _, _ in requests if kind in ("write", "zero")}
        tasks: list[asyncio.Task[Any]] = []
        written: list[tuple[int, int]] = []
        used: set[int] = set()
        for kind, slot, shift, second in requests:
            handle = self.handles[second]
            offset, length = slot * SLOT + shift, SLOT - 700
            if kind in ("write", "zero"):
                if slot in used:
                    continue
                used.add(slot)
                tasks.append(asyncio.create_task(self._write(handle, kind, offset, length)))
                written.append((offset, length))
            elif slot not in changed:
                tasks.append(asyncio.create_task(self._read(handle, kind, offset, length)))
            else:  # it may read old or new bytes, and copy them
                tasks.append(asyncio.create_task(handle.read(offset, length)))
        surgery = asyncio.create_task(change)
        if cancel is not None:
            for _ in range(cancel):
                await asyncio.sleep(0)
            surgery.cancel()
        await asyncio.gather(*tasks)
        await asyncio.wait([surgery])
        if not surgery.cancelled():
            surgery.result()
        steady = before & set(self.path())
        for bitmap, node in self.bitmaps.items():
            if node in steady:
                for offset, length in written:
                    assert all(dirty for _, _, dirty in bitmap.ranges(offset, length)), "a mark is lost"

    async def _write(self, handle: Handle, kind: str, offset: int, length: int) -> None:
        if kind == "zero":
            await handle.write_zeroes(offset, length)
            data = bytes(length)
        else:
            data = bytes([next(self.names) % 255 + 1]) * length
            await handle.write(offset, data)
        self.content[offset : offset + length] = data

    async def _read(self, handle: Handle, kind: str, offset: int, length: int) -> None:
        expected = self.content[offset : offset + length]
        if kind == "read":
            assert await handle.read(offset, length) == expected
        elif kind == "read_into":
            buffer = bytearray(length)
            await handle.read_into(offset, memoryview(buffer))
            assert buffer == expected
        elif kind == "allocation":
            spans = await handle.allocation(offset, length)
            assert sum(span.length for span in spans) == length
        else:
            await handle.flush()

    # Changes

    @precondition(lambda self: len(reachable(self.handles[0].node)) < 30)
    @rule(requests=_requests, which=_which, cancel=_cancel)
    def snapshot(self, requests: list[Any], which: int, cancel: int | None) -> None:
        async def main() -> None:
            image = await new_image(SIZE, cluster_size=4 * KIB)
            file = self._storage(image, len(image))
            overlay = await self._open({"driver": "qcow2", "file": file.name, "backing": None})
            node = self.pick(which)
            await self._beside(requests, self._overlaid(node, overlay), cancel)
            await self.graph.discard_unused(overlay)

        self.run(main())

    async def _overlaid(self, node: Node, overlay: Node) -> None:
        with refused_where_reads_write(node):
            await self.graph.put_overlay(node, overlay)

    @precondition(lambda self: len(self.path()) < DEPTH_MAX)
    @rule(requests=_requests, which=_which, cancel=_cancel, kind=st.sampled_from(sorted(FILTERS)))
    def insert(self, requests: list[Any], which: int, cancel: int | None, kind: str) -> None:
        async def main() -> None:
            node = self.pick(which)
            if kind == "reluctant":
                filter: Node = ReluctantNode(self.name("slow"), node, next(self.names))
                assert isinstance(filter, ReluctantNode)
                filter.put_over(self.graph)
            else:
                child = "image" if kind == "blkdebug" else "file"
                filter = await self._open({"driver": kind, child: node.name, **FILTERS[kind]})
            await self._beside(requests, self.graph.insert_filter(node, filter), cancel)
            await self.graph.discard_unused(filter)

        self.run(main())

    @precondition(lambda self: len(self.path()) > 1)
    @rule(requests=_requests, which=_which, cancel=_cancel)
    def remove(self, requests: list[Any], which: int, cancel: int | None) -> None:
        filters = self.path()[:-1]
        filter = filters[which % len(filters)]
        self.bitmaps = {bitmap: node for bitmap, node in self.bitmaps.items() if node is not filter}
        self.run(self._beside(requests, self.graph.remove_filter(filter), cancel))

    @rule(which=_which)
    def replace(self, which: int) -> None:
        """Go on with a copy of the disk, in place of all that stands below a node."""

        async def main() -> None:
            copy = await self._open({"driver": "raw", "file": self._storage(bytes(self.content), SIZE).name})
            await self.graph.replace(self.pick(which), copy)

        self.run(main())
        alive = set(self.graph.nodes())
        self.bitmaps = {bitmap: node for bitmap, node in self.bitmaps.items() if node in alive}

    @rule(requests=_requests, which=_which, cancel=_cancel)
    def reopen(self, requests: list[Any], which: int, cancel: int | None) -> None:
        """End writing and begin again, while others read."""
        reads = [request for request in requests if request[0] not in ("write", "zero")]

        async def main() -> None:
            node = self.handles[0].node
            await self._beside(reads, self._read_only(node), cancel)
            if node.read_only:
                for handle in self.handles:
                    try:
                        await handle.write(0, b"refused")
                    except ReadOnly:
                        continue
                    raise AssertionError("written to a read-only node")
                await self._beside(reads, self.graph.reopen(node, read_only=False), None)
            assert not node.read_only

        self.run(main())

    async def _read_only(self, node: Node) -> None:
        with refused_where_reads_write(node):
            await self.graph.reopen(node, read_only=True)

    @rule(requests=_requests, which=_which, cancel=_cancel, granularity=st.sampled_from([512, 4096, 65536]))
    def record(self, requests: list[Any], which: int, cancel: int | None, granularity: int) -> None:
        async def main() -> None:
            node, name = self.pick(which), self.name("bitmap")
            await self._beside(requests, add_bitmap(self.graph, node, name, granularity=granularity), cancel)
            if name in node.bitmaps:
                self.bitmaps[node.bitmaps[name]] = node

        self.run(main())

    @precondition(lambda self: self.bitmaps)
    @rule(which=_which)
    def forget(self, which: int) -> None:
        bitmap = list(self.bitmaps)[which % len(self.bitmaps)]
        remove_bitmap(self.bitmaps.pop(bitmap), bitmap.name)

    # What is always true

    @invariant()
    def the_graph_is_of_one_mind(self) -> None:
        hold_everything_free(self.graph)
        nodes = list(self.graph.nodes())
        for node in nodes:
            for edge in self.graph.users(node):
                assert edge.node is node
                if edge.parent is not None:
                    assert edge.parent.children[edge.name] is edge
                    assert edge.parent in nodes
            for edge in node.children.values():
                assert edge in self.graph.users(edge.node)
        wanted = {each for handle in self.handles for each in reachable(handle.node)}
        assert wanted == set(nodes), "nobody uses a node that is there"
        assert len({handle.node for handle in self.handles}) == 1

    @invariant()
    def the_disk_holds_what_was_written(self) -> None:
        for handle in self.handles:
            assert self.run(handle.read(0, SIZE)) == self.content

    def teardown(self) -> None:
        self.run(self.graph.close())
        self.runner.close()


TestLiveGraph = LiveGraph.TestCase
TestLiveGraph.settings = settings(max_examples=25, stateful_step_count=14, deadline=None)
