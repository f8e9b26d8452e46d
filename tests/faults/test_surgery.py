"""Surgery meets trouble at each of its operations: the graph is the old one or the new one, whole.

Whatever happens: the error is typed, requests that run beside it end as they would
have, nothing stays in flight or held, and the same change succeeds afterwards.
"""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.support.qcow2_disks import new_image
from vblk.errors import BlockError
from vblk.graph.edge import WRITING
from vblk.graph.handle import Handle
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.graph.reopening import NodeChange
from vblk.graph.site import Request
from vblk.opening import open_node
from vblk.options import from_mapping
from vblk.protocols.memory import MemoryNode
from vblk.testing import (
    FaultPlan,
    FaultyNode,
    PassingNode,
    each_cancellation,
    each_failure,
    hold_everything_free,
)

SIZE = 64 << 10
WAIT_MAX = 60
MODES = ("once", "forever", "cancelled")


class Scene:
    """A raw disk with a guest, an overlay beside it, and a filter on it; storage follows a plan."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.storage: list[FaultyNode] = []

    async def build(self) -> None:
        image = await new_image(SIZE, cluster_size=4096)
        self.node = await self._open("raw", "node", self._faulty("base", bytes(SIZE)))
        self.overlay = await self._open("qcow2", "overlay", self._faulty("top", image))
        self.spare = await self._open("raw", "spare", self._faulty("third", bytes(SIZE)))
        self.filter = PassingNode("filter", self.node)
        self.filter.put_over(self.graph)
        for each in (self.node, self.overlay, self.spare, self.filter):
            self.graph.keep(each)
        self.handle = self.graph.hold(self.node, "the guest", WRITING)
        await self.handle.write(0, b"before")

    def _faulty(self, name: str, data: bytes) -> str:
        memory = MemoryNode(f"{name}-memory", size=len(data), data=data)
        self.graph.add(memory)
        faulty = FaultyNode(name, memory, FaultPlan())
        faulty.put_over(self.graph)
        self.storage.append(faulty)
        return name

    async def _open(self, driver: str, name: str, file: str) -> Node:
        mapping: dict[str, str | None] = {"driver": driver, "node-name": name, "file": file}
        if driver == "qcow2":
            mapping["backing"] = None
        return await open_node(self.graph, from_mapping(mapping), Request(read_only=False))

    def follow(self, plan: FaultPlan) -> None:
        for faulty in self.storage:
            faulty.plan = plan

    def shape(self) -> object:
        edges = {
            (node.name, name): (edge.node.name, edge.permissions, edge.shared)
            for node in self.graph.nodes()
            for name, edge in node.children.items()
        }
        access = {node.name: node.read_only for node in self.graph.nodes()}
        return edges, access, self.handle.node.name, self.handle.edge.permissions


async def _insert(scene: Scene) -> None:
    await scene.graph.insert_filter(scene.node, scene.filter)


async def _snapshot(scene: Scene) -> None:
    await scene.graph.put_overlay(scene.node, scene.overlay)


async def _change(scene: Scene) -> None:
    changes = [NodeChange(scene.overlay, False, {"backing": scene.spare}), NodeChange(scene.spare, True)]
    await scene.graph.change(changes)


async def _nothing(scene: Scene) -> None:
    """Leave everything as it is."""


async def _take_off(scene: Scene) -> None:
    await scene.graph.take_off_overlay(scene.overlay, read_only=False)


async def _remove(scene: Scene) -> None:
    await scene.graph.remove_filter(scene.filter)


Step = Callable[[Scene], Awaitable[None]]
CHANGES: dict[str, tuple[Step, Step, int]] = {
    "insert": (_nothing, _insert, 2),
    "remove": (_insert, _remove, 2),
    "snapshot": (_nothing, _snapshot, 3),
    "take-off": (_snapshot, _take_off, 1),
    "change": (_nothing, _change, 1),
}
"""What comes before, the change, and how many operations of it meet trouble at least."""


async def _beside(handle: Handle) -> None:
    """Read what nobody changes, as often as it goes; storage may fail these reads."""
    for _ in range(5):
        try:
            assert (await handle.read(0, 6)) == b"before"
        except BlockError:
            await asyncio.sleep(0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CHANGES)
def test_trouble_in_surgery_leaves_the_old_graph_or_the_new_one(name: str, mode: str) -> None:
    prepare, change, least = CHANGES[name]

    async def new_shape() -> object:
        async with Graph() as graph:
            scene = Scene(graph)
            await scene.build()
            await prepare(scene)
            await change(scene)
            return scene.shape()

    after = asyncio.run(new_shape())

    async def scenario(plan: FaultPlan) -> None:
        async with Graph() as graph:
            scene = Scene(graph)
            await scene.build()
            await prepare(scene)
            before = scene.shape()
            reads = asyncio.create_task(_beside(scene.handle))
            scene.follow(plan)
            surgery = asyncio.create_task(_as_coroutine(change, scene))
            plan.watch(surgery)
            await asyncio.wait([surgery, reads], timeout=WAIT_MAX)
            assert surgery.done(), "the surgery is stuck"
            assert reads.done(), "a request is stuck"
            reads.result()
            plan.disarm()
            hold_everything_free(graph)
            if surgery.cancelled():
                assert scene.shape() in (before, after)
            elif (error := surgery.exception()) is not None:
                assert isinstance(error, BlockError), repr(error)
                assert scene.shape() == before
            else:
                assert scene.shape() == after
            if scene.shape() == before:
                await change(scene)
            assert scene.shape() == after
            assert await scene.handle.read(0, 6) == b"before"
            await scene.handle.write(100, b"after")
            await scene.handle.flush()

    if mode == "cancelled":
        met = asyncio.run(each_cancellation(scenario))
    else:
        met = asyncio.run(each_failure(scenario, forever=mode == "forever"))
    assert met >= least


async def _as_coroutine(change: Step, scene: Scene) -> None:
    await change(scene)
