"""Changing nodes in use by new options: access and children, all of it or nothing."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.support.qcow2_disks import new_image
from tests.support.turns import turns
from vblk.errors import Cycle, GraphError, PermissionConflict, ReadOnly, StorageError
from vblk.graph.edge import READING, WRITING
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.graph.reopening import NodeChange
from vblk.graph.site import Request
from vblk.opening import open_node
from vblk.options import from_mapping
from vblk.protocols.memory import MemoryNode
from vblk.testing import FaultPlan, FaultyNode, PassingNode, hold_everything_free

SIZE = 64 << 10


def with_graph(scenario: Callable[[Graph], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Graph() as graph:
            await scenario(graph)
            hold_everything_free(graph)

    asyncio.run(main())


def memory(graph: Graph, name: str, *, data: bytes = b"", read_only: bool = False) -> MemoryNode:
    node = MemoryNode(name, size=SIZE, data=data, read_only=read_only)
    graph.add(node)
    graph.keep(node)
    return node


async def new_overlay(graph: Graph, name: str = "overlay", *, backing: str | None = None) -> Node:
    image = await new_image(SIZE, cluster_size=4096)
    graph.add(MemoryNode(f"{name}-file", size=len(image), data=image))
    mapping = {"driver": "qcow2", "node-name": name, "file": f"{name}-file", "backing": backing}
    node = await open_node(graph, from_mapping(mapping), Request(read_only=False))
    graph.keep(node)
    return node


def test_a_backing_image_comes_is_exchanged_and_goes_under_a_handle() -> None:
    async def scenario(graph: Graph) -> None:
        first, second = memory(graph, "first", data=b"first"), memory(graph, "second", data=b"second")
        overlay = await new_overlay(graph)
        handle = graph.hold(overlay, "the guest", WRITING)
        await handle.write(8192, b"own")
        shows = [(first, b"first\0"), (second, b"second"), (None, bytes(6)), (first, b"first\0")]
        for backing, shown in shows:
            await graph.change([NodeChange(overlay, False, {"backing": backing})])
            assert await handle.read(0, 6) == shown
            assert await handle.read(8192, 3) == b"own"
            assert len(graph.users(first)) == (backing is first)
            assert len(graph.users(second)) == (backing is second)

    with_graph(scenario)


def test_changes_that_belong_together_are_all_made_or_none() -> None:
    async def scenario(graph: Graph) -> None:
        base = memory(graph, "base", data=b"base")
        one, two = await new_overlay(graph, "one"), await new_overlay(graph, "two")
        fixed = memory(graph, "fixed")
        graph.hold(fixed, "a writer", WRITING)
        handle = graph.hold(one, "the guest", WRITING)
        with pytest.raises(PermissionConflict, match=r"'two'.*a writer"):
            await graph.change(
                [NodeChange(one, False, {"backing": base}), NodeChange(two, False, {"backing": fixed})]
            )
        assert not graph.users(base)
        assert await handle.read(0, 4) == bytes(4)
        await graph.change(
            [NodeChange(one, False, {"backing": two}), NodeChange(two, True, {"backing": base})]
        )
        assert await handle.read(0, 4) == b"base"
        assert two.read_only
        with pytest.raises(Cycle):
            await graph.change([NodeChange(two, True, {"backing": one})])

    with_graph(scenario)


def test_who_only_reads_goes_on_only_reading_when_the_node_becomes_writable() -> None:
    async def scenario(graph: Graph) -> None:
        node = memory(graph, "node", read_only=True)
        handle = graph.hold(node, "an export", READING)
        await graph.change([NodeChange(node, False)])
        assert not node.read_only
        with pytest.raises(ReadOnly, match="an export holds this image for reading only"):
            await handle.write(0, b"x")
        writer = graph.hold(node, "a writer", WRITING)
        with pytest.raises(PermissionConflict, match="cannot become read-only: a writer writes to it"):
            await graph.change([NodeChange(node, True)])
        await writer.write(0, b"x")

    with_graph(scenario)


def test_the_file_of_a_format_is_exchanged_for_a_filter_on_it_and_for_nothing_else() -> None:
    async def scenario(graph: Graph) -> None:
        overlay = await new_overlay(graph)
        handle = graph.hold(overlay, "the guest", WRITING)
        await handle.write(0, b"own")
        file = graph.find("overlay-file")
        filter = PassingNode("filter", file)
        filter.put_over(graph)
        await graph.change([NodeChange(overlay, False, {"file": filter})])
        assert graph.users(file)[0].parent is filter
        await handle.write(5000, b"more")
        assert await handle.read(0, 3) == b"own"
        with pytest.raises(GraphError, match=r"can be replaced by a filter on it.*'other' is another"):
            await graph.change([NodeChange(overlay, False, {"file": memory(graph, "other")})])
        await graph.change([NodeChange(overlay, False, {"file": file})])
        assert await handle.read(5000, 4) == b"more"
        raw = await open_node(
            graph, from_mapping({"driver": "raw", "file": "other"}), Request(read_only=False)
        )
        another = graph.hold(raw, "another", WRITING)
        await graph.change([NodeChange(raw, False, {"file": memory(graph, "third", data=b"third")})])
        assert await another.read(0, 5) == b"third"

    with_graph(scenario)


def test_children_that_cannot_come_or_go_are_refused() -> None:
    async def scenario(graph: Graph) -> None:
        node = memory(graph, "node")
        raw = await open_node(
            graph, from_mapping({"driver": "raw", "node-name": "r", "file": "node"}), Request(read_only=False)
        )
        graph.keep(raw)
        with pytest.raises(GraphError, match="'r' does not support a child 'backing'"):
            await graph.change([NodeChange(raw, False, {"backing": memory(graph, "base")})])
        with pytest.raises(GraphError, match="'r' cannot be without its child 'file'"):
            await graph.change([NodeChange(raw, False, {"file": None})])
        assert raw.children["file"].node is node

    with_graph(scenario)


@pytest.mark.parametrize("begins", [True, False])
def test_a_change_that_fails_half_way_is_taken_back(begins: bool) -> None:
    async def scenario(graph: Graph) -> None:
        plan = FaultPlan(fail_at=1, only=frozenset(("reopen",)))
        bottom = memory(graph, "bottom", read_only=begins)
        faulty = FaultyNode("faulty", bottom, plan)
        faulty.put_over(graph)
        graph.keep(faulty)
        base = memory(graph, "base", data=b"base")
        overlay = await new_overlay(graph)
        handle = graph.hold(overlay, "the guest", WRITING)
        with pytest.raises(StorageError, match="fails by plan"):
            await graph.change(
                [NodeChange(overlay, False, {"backing": base}), NodeChange(faulty, not begins)]
            )
        assert "backing" not in overlay.children
        assert not graph.users(base)
        assert faulty.read_only is begins
        assert await handle.read(0, 4) == bytes(4)
        await graph.change([NodeChange(overlay, False, {"backing": base}), NodeChange(faulty, not begins)])
        assert await handle.read(0, 4) == b"base"
        assert faulty.read_only is not begins

    with_graph(scenario)


def test_a_drain_holds_the_users_of_an_image_that_comes_to_stand_on_its_node() -> None:
    async def scenario(graph: Graph) -> None:
        base, overlay = memory(graph, "base", data=b"base"), await new_overlay(graph)
        handle = graph.hold(overlay, "the guest", WRITING)
        async with graph.drained(base):
            await graph.change([NodeChange(overlay, False, {"backing": base})])
            read = asyncio.create_task(handle.read(0, 4))
            await turns()
            assert not read.done()
        assert await read == b"base"

    with_graph(scenario)


def test_what_nobody_uses_any_more_is_closed_unless_it_is_kept() -> None:
    async def scenario(graph: Graph) -> None:
        base = memory(graph, "base")
        overlay = await new_overlay(graph, backing="base")
        await graph.change([NodeChange(overlay, False, {"backing": None})])
        assert graph.find("base") is base
        await graph.change([NodeChange(overlay, False, {"backing": base})])
        loose = PassingNode("loose", base)
        loose.put_over(graph)
        await graph.change([NodeChange(overlay, False, {"backing": loose})])
        await graph.change([NodeChange(overlay, False, {"backing": None})])
        assert "loose" not in [node.name for node in graph.nodes()]

    with_graph(scenario)
