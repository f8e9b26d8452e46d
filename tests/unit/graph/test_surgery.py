"""Surgery: what changes a graph in use changes all of it or nothing, and loses no request."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.support.cancellation import sweep
from tests.support.qcow2_disks import new_image
from tests.support.turns import turns
from vblk.errors import Cycle, GraphError, NodeBusy, PermissionConflict, ReadOnly, StorageError
from vblk.graph.edge import IDLE, READING, SHARED_BY_READER, WRITING, Role
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.opening import open_node
from vblk.options import NodeOptions, NodeReference, from_mapping
from vblk.protocols.memory import MemoryNode
from vblk.testing import FaultPlan, FaultyNode, PassingNode, hold_everything_free

SIZE = 64 << 10


def with_graph(scenario: Callable[[Graph], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Graph() as graph:
            await scenario(graph)

    asyncio.run(main())


def memory(graph: Graph, name: str = "node", *, read_only: bool = False, data: bytes = b"") -> MemoryNode:
    node = MemoryNode(name, size=SIZE, read_only=read_only, data=data)
    graph.add(node)
    return node


def passing(graph: Graph, name: str, node: Node) -> PassingNode:
    filter = PassingNode(name, node)
    filter.put_over(graph)
    return filter


async def raw(graph: Graph, name: str, file: Node, *, read_only: bool = False) -> Node:
    options = NodeOptions(driver="raw", node_name=name, children={"file": NodeReference(file.name)})
    return await open_node(graph, options, Request(read_only=read_only))


async def new_overlay(
    graph: Graph, name: str = "overlay", *, backing: str | None = None, read_only: bool = False
) -> Node:
    image = await new_image(SIZE, cluster_size=4096)
    file = MemoryNode(f"{name}-file", size=len(image), data=image)
    graph.add(file)
    mapping = {"driver": "qcow2", "node-name": name, "file": file.name, "backing": backing}
    return await open_node(graph, from_mapping(mapping), Request(read_only=read_only))


def shape(graph: Graph) -> dict[str, list[tuple[str, str, bool]]]:
    """Return every node's name with its children, what it calls them, and whether they are read-only."""
    return {
        node.name: [(name, edge.node.name, edge.node.read_only) for name, edge in node.children.items()]
        for node in graph.nodes()
    }


# Keeping


def test_a_kept_node_lives_without_users_until_it_is_let_go() -> None:
    async def scenario(graph: Graph) -> None:
        node = memory(graph)
        graph.keep(node)
        await graph.release(graph.hold(node, "a user", WRITING))
        assert graph.find("node") is node
        await graph.let_go(node)
        with pytest.raises(GraphError, match="Cannot find"):
            graph.find("node")
        with pytest.raises(GraphError, match="Node node is not owned by the monitor"):
            await graph.let_go(node)

    with_graph(scenario)


def test_what_is_in_use_is_not_let_go_and_says_by_whom_as_qemu_does() -> None:
    async def scenario(graph: Graph) -> None:
        node = memory(graph)
        top = passing(graph, "top", node)
        graph.keep(node)
        graph.keep(top)
        graph.hold(top, "an export", WRITING)
        with pytest.raises(NodeBusy, match=r"^Block device node is in use$"):
            await graph.let_go(node)
        with pytest.raises(NodeBusy, match=r"^Node top is in use$"):
            await graph.let_go(top)
        assert {"node", "top"} == {each.name for each in graph.nodes()}

    with_graph(scenario)


# Permissions


def test_a_filter_does_with_its_child_what_its_users_do() -> None:
    async def scenario(graph: Graph) -> None:
        node = memory(graph)
        lower = passing(graph, "lower", node)
        upper = passing(graph, "upper", lower)
        edges = [lower.children["file"], upper.children["file"]]
        assert [edge.access for edge in edges] == [IDLE, IDLE]
        writer = graph.hold(node, "a writer", WRITING)
        reader = graph.hold(upper, "a reader", READING)
        assert [edge.permissions for edge in edges] == [READING, READING]
        with pytest.raises(PermissionConflict, match=r"the check.*forbids.*'node'|a writer"):
            graph.hold(upper, "the check", READING, SHARED_BY_READER)
        await graph.release(writer)
        check = graph.hold(upper, "the check", READING, SHARED_BY_READER)
        assert [edge.shared for edge in edges] == [SHARED_BY_READER, SHARED_BY_READER]
        with pytest.raises(PermissionConflict, match=r"a writer.*which node 'lower'"):
            graph.hold(node, "a writer", WRITING)
        await graph.release(check)
        assert edges[0].access == reader.edge.access

    with_graph(scenario)


# Filters under running requests


def test_a_filter_comes_and_goes_under_a_handle_that_goes_on() -> None:
    async def scenario(graph: Graph) -> None:
        node = memory(graph, data=b"before")
        handle = graph.hold(node, "the guest", WRITING)
        filter = passing(graph, "filter", node)
        await graph.insert_filter(node, filter)
        assert handle.node.name == "filter"
        assert await handle.read(0, 6) == b"before"
        await handle.write(0, b"during")
        await graph.remove_filter(filter)
        assert handle.node.name == "node"
        assert await handle.read(0, 6) == b"during"
        assert shape(graph) == {"node": []}

    with_graph(scenario)


def test_a_filter_that_is_kept_stays_open_when_it_is_removed() -> None:
    async def scenario(graph: Graph) -> None:
        node = memory(graph)
        graph.hold(node, "the guest", WRITING)
        filter = passing(graph, "filter", node)
        graph.keep(filter)
        await graph.insert_filter(node, filter)
        await graph.remove_filter(filter)
        assert shape(graph) == {"node": [], "filter": [("file", "node", False)]}
        assert filter.children["file"].access == IDLE

    with_graph(scenario)


@pytest.mark.parametrize("stopped", ["read", "write"])
def test_surgery_waits_for_the_requests_in_flight_and_holds_back_new_ones(stopped: str) -> None:
    async def scenario(graph: Graph) -> None:
        plan = FaultPlan(stop_at=1, only=frozenset((stopped,)))
        node = FaultyNode("node", memory(graph, "memory"), plan)
        node.put_over(graph)
        handle = graph.hold(node, "the guest", WRITING)
        first = asyncio.create_task(
            handle.read(0, 1) if stopped == "read" else handle.write(0, b"w", fua=True)
        )
        await plan.stopped.wait()
        filter = passing(graph, "filter", node)
        surgery = asyncio.create_task(graph.insert_filter(node, filter))
        await turns()
        late = asyncio.create_task(handle.read(0, 1))
        await turns()
        assert handle.node is node
        assert not surgery.done()
        assert not late.done()
        plan.go_on.set()
        await asyncio.gather(first, surgery)
        assert handle.node is filter
        assert await late == (b"w" if stopped == "write" else b"\0")
        hold_everything_free(graph)

    with_graph(scenario)


def test_a_filter_goes_between_a_format_that_writes_and_its_file() -> None:
    async def scenario(graph: Graph) -> None:
        overlay = await new_overlay(graph)
        handle = graph.hold(overlay, "the guest", WRITING)
        await handle.write(0, b"a" * 5000)
        file = graph.find("overlay-file")
        plan = FaultPlan()
        filter = FaultyNode("filter", file, plan)
        filter.put_over(graph)
        await graph.insert_filter(file, filter)
        await handle.write(20_000, b"b" * 5000)
        await handle.flush()
        seen = plan.count
        assert seen
        assert await handle.read(0, 5000) == b"a" * 5000
        await graph.remove_filter(filter)
        await handle.write(40_000, b"c" * 5000)
        await handle.flush()
        assert await handle.read(20_000, 5000) == b"b" * 5000
        assert plan.count > seen, "the reads before the removal passed the filter"
        assert shape(graph)["overlay"] == [("file", "overlay-file", False)]

    with_graph(scenario)


def test_what_is_no_filter_of_the_node_is_refused() -> None:
    async def scenario(graph: Graph) -> None:
        node, other = memory(graph), memory(graph, "other")
        graph.hold(node, "the guest", WRITING)
        filter = passing(graph, "filter", other)
        with pytest.raises(GraphError, match="'filter' is not a filter of node 'node'"):
            await graph.insert_filter(node, filter)
        with pytest.raises(GraphError, match="'node' is not a filter of one node"):
            await graph.remove_filter(node)

    with_graph(scenario)


# Replacing


def test_chosen_users_follow_and_others_stay() -> None:
    async def scenario(graph: Graph) -> None:
        old, new = memory(graph, "old", data=b"old"), memory(graph, "new", data=b"new")
        first, second = graph.hold(old, "first", WRITING), graph.hold(old, "second", WRITING)
        await graph.replace(old, new, users=[first.edge])
        assert [await first.read(0, 3), await second.read(0, 3)] == [b"new", b"old"]
        with pytest.raises(GraphError, match="first does not use 'old'"):
            await graph.replace(old, new, users=[first.edge])
        await graph.replace(old, new)
        assert await second.read(0, 3) == b"new"
        assert shape(graph) == {"new": []}

    with_graph(scenario)


def test_a_replacement_that_would_corrupt_is_refused_and_names_both_parties() -> None:
    async def scenario(graph: Graph) -> None:
        old, new = memory(graph, "old"), memory(graph, "new")
        handle = graph.hold(old, "the guest", WRITING)
        check = graph.hold(new, "the check", READING, SHARED_BY_READER)
        with pytest.raises(PermissionConflict, match=r"the guest needs .*, which the check forbids"):
            await graph.replace(old, new)
        await graph.release(check)
        with pytest.raises(ReadOnly):
            await graph.replace(old, memory(graph, "fixed", read_only=True))
        top = passing(graph, "top", old)
        with pytest.raises(Cycle):
            await graph.replace(old, top, users=[top.children["file"]])
        assert handle.node is old
        await handle.write(0, b"x")
        hold_everything_free(graph)

    with_graph(scenario)


def test_a_pinned_node_keeps_its_users_and_says_why_and_filters_come_all_the_same() -> None:
    async def scenario(graph: Graph) -> None:
        node, other = memory(graph), memory(graph, "other")
        handle = graph.hold(node, "the guest", WRITING)
        overlay = await new_overlay(graph)
        graph.keep(node)
        graph.keep(other)
        words = r"^Node 'node' is busy: block device is in use by block job: mirror$"
        with graph.pinned(node, "block device is in use by block job: mirror"):
            with pytest.raises(NodeBusy, match=words):
                await graph.put_overlay(node, overlay)
            with pytest.raises(NodeBusy, match=words):
                await graph.replace(node, other)
            filter = passing(graph, "filter", node)
            await graph.insert_filter(node, filter)
            with pytest.raises(NodeBusy, match=words):
                await graph.put_overlay(filter, overlay)
            await handle.write(0, b"seen by the node")
            assert await node.read(0, 4) == b"seen"
            [edge] = [edge for edge in graph.users(node) if edge.parent is not None]
            await graph.replace(node, other, users=[edge])
            await graph.replace(other, node, users=[edge])
            await graph.remove_filter(filter)
        await graph.put_overlay(node, overlay)

    with_graph(scenario)


def test_a_drain_holds_users_that_surgery_brings_to_its_node() -> None:
    async def scenario(graph: Graph) -> None:
        old, new = memory(graph, "old"), memory(graph, "new", data=b"new")
        handle = graph.hold(old, "the guest", WRITING)
        keeper = graph.hold(new, "another", WRITING)
        async with graph.drained(new):
            await graph.replace(old, new)
            read = asyncio.create_task(handle.read(0, 3))
            await turns()
            assert not read.done()
            assert handle.try_read(0, 3) is None
        assert await read == b"new"
        assert keeper.traffic.held == handle.traffic.held == 0

    with_graph(scenario)


# Overlays


def test_a_snapshot_sends_writes_to_the_overlay_and_leaves_the_node_as_it_was() -> None:
    async def scenario(graph: Graph) -> None:
        file = memory(graph, "file", data=b"old" * 1000)
        node = await raw(graph, "node", file)
        handle = graph.hold(node, "the guest", WRITING)
        await handle.write(0, b"first")
        overlay = await new_overlay(graph)
        await graph.put_overlay(node, overlay)
        assert handle.node is overlay
        assert await handle.read(0, 8) == b"firstdol"
        await handle.write(0, b"again")
        assert await handle.read(0, 8) == b"againdol"
        assert await file.read(0, 8) == b"firstdol"
        assert node.read_only
        assert file.read_only
        assert [edge.access for edge in graph.users(node)] == [(READING, SHARED_BY_READER)]
        assert [edge.permissions for edge in graph.users(file)] == [READING]
        with pytest.raises(ReadOnly):
            graph.hold(node, "a writer", WRITING)
        hold_everything_free(graph)

    with_graph(scenario)


def test_parents_follow_to_the_overlay_and_a_kept_file_keeps_its_access() -> None:
    async def scenario(graph: Graph) -> None:
        file = memory(graph, "file")
        graph.keep(file)
        node = await raw(graph, "node", file)
        top = passing(graph, "top", node)
        handle = graph.hold(top, "the guest", WRITING)
        overlay = await new_overlay(graph)
        await graph.put_overlay(node, overlay)
        await handle.write(0, b"x")
        assert not file.read_only
        assert await file.read(0, 1) == b"\0"
        assert shape(graph)["top"] == [("file", "overlay", False)]
        assert shape(graph)["overlay"] == [("file", "overlay-file", False), ("backing", "node", True)]

    with_graph(scenario)


def test_an_overlay_that_cannot_be_one_is_refused_in_qemus_words() -> None:
    async def scenario(graph: Graph) -> None:
        node, base = memory(graph), memory(graph, "base", read_only=True)
        handle = graph.hold(node, "the guest", WRITING)
        backed = await new_overlay(graph, "backed", backing="base")
        used = await new_overlay(graph, "used")
        graph.hold(used, "somebody")
        fixed = await new_overlay(graph, "fixed", read_only=True)
        before = shape(graph)
        for overlay, words in (
            (await raw(graph, "raw", memory(graph, "file")), "The overlay does not support backing images"),
            (backed, "The overlay already has a backing image"),
            (used, "The overlay is already in use"),
            (fixed, "Block node is read-only"),
        ):
            with pytest.raises((GraphError, ReadOnly), match=words):
                await graph.put_overlay(node, overlay)
        assert base.read_only
        assert handle.node is node
        await handle.write(0, b"still")
        assert {name: before[name] for name in before} == {name: shape(graph)[name] for name in before}
        hold_everything_free(graph)

    with_graph(scenario)


@pytest.mark.parametrize("fails", ["flush", "reopen"])
def test_a_snapshot_that_fails_leaves_everything_as_it_was(fails: str) -> None:
    async def scenario(graph: Graph) -> None:
        plan = FaultPlan(fail_at=1, only=frozenset((fails,)))
        node = FaultyNode("node", memory(graph, "memory"), plan)
        node.put_over(graph)
        handle = graph.hold(node, "the guest", WRITING)
        overlay = await new_overlay(graph)
        graph.keep(overlay)
        before = shape(graph)
        with pytest.raises(StorageError, match="fails by plan"):
            await graph.put_overlay(node, overlay)
        assert shape(graph) == before
        assert handle.node is node
        await handle.write(0, b"still")
        hold_everything_free(graph)
        await graph.put_overlay(node, overlay)
        assert await handle.read(0, 5) == b"still"

    with_graph(scenario)


def test_a_user_who_comes_between_check_and_change_stops_the_snapshot_and_nothing_else() -> None:
    async def scenario(graph: Graph) -> None:
        plan = FaultPlan(stop_at=1, only=frozenset(("reopen",)))
        node = FaultyNode("node", memory(graph, "memory"), plan)
        node.put_over(graph)
        handle = graph.hold(node, "the guest", WRITING)
        overlay = await new_overlay(graph)
        surgery = asyncio.create_task(graph.put_overlay(node, overlay))
        await plan.stopped.wait()
        graph.hold(overlay, "the check", READING, SHARED_BY_READER)
        plan.go_on.set()
        with pytest.raises(PermissionConflict, match="the guest"):
            await surgery
        assert not node.read_only
        await handle.write(0, b"still")
        assert handle.node is node
        hold_everything_free(graph)

    with_graph(scenario)


def test_an_overlay_is_taken_off_again() -> None:
    async def scenario(graph: Graph) -> None:
        node = await raw(graph, "node", memory(graph, "file"))
        handle = graph.hold(node, "the guest", WRITING)
        before = shape(graph)
        overlay = await new_overlay(graph)
        await graph.put_overlay(node, overlay)
        await graph.take_off_overlay(overlay, read_only=False)
        assert shape(graph) == before
        await handle.write(0, b"x")
        assert await node.read(0, 1) == b"x"
        with pytest.raises(GraphError, match="has no backing image"):
            await graph.take_off_overlay(node, read_only=False)

    with_graph(scenario)


def test_surgery_that_is_cancelled_at_any_turn_leaves_the_old_graph_or_the_new_one() -> None:
    async def scenario(graph: Graph) -> None:
        node = FaultyNode("node", memory(graph, "memory"), FaultPlan())
        node.put_over(graph)
        graph.keep(node)
        handle = graph.hold(node, "the guest", WRITING)
        overlay = await new_overlay(graph)
        graph.keep(overlay)
        filter = passing(graph, "filter", node)
        graph.keep(filter)
        old = shape(graph)
        new = old | {
            "node": [("file", "memory", True)],
            "overlay": [*old["overlay"], ("backing", "node", True)],
            "filter": [("file", "overlay", False)],
        }

        async def change() -> None:
            await graph.insert_filter(node, filter)
            await graph.put_overlay(node, overlay)

        async def check() -> None:
            found = shape(graph)
            assert found in (old, new)
            assert handle.node in (node, filter)
            hold_everything_free(graph)
            await handle.write(0, b"goes on")
            assert await handle.read(0, 7) == b"goes on"
            if found == new:
                assert not node.read_only or handle.node is filter
                await graph.take_off_overlay(overlay, read_only=False)
            if handle.node is filter:
                await graph.remove_filter(filter)
            assert shape(graph) == old

        assert await sweep(change, check) > 4

    with_graph(scenario)


def test_children_are_found_by_their_role_whatever_their_name() -> None:
    async def scenario(graph: Graph) -> None:
        node = memory(graph)
        top = PassingNode("top", node)
        graph.add(top)
        edge = graph.attach(top, Role.FILTERED, node, "image")
        assert top.child(Role.FILTERED) is top.below is node
        assert top.children == {"image": edge}
        assert edge.user == "node 'top' (memory:) as its image"

    with_graph(scenario)
