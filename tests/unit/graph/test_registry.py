"""The graph: names, permissions, cycles, closing, reopening."""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from tests.support.turns import until
from vblk.errors import Cycle, GraphError, PermissionConflict, ReadOnly, StorageError
from vblk.graph.edge import IDLE, READING, SHARED_BY_READER, WRITING, Access, Permission, Role
from vblk.graph.edges import DEPTH_MAX, Rewiring
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.protocols.memory import MemoryNode
from vblk.testing import FaultPlan, FaultyNode, PassingNode


def with_graph(scenario: Callable[[Graph], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Graph() as graph:
            await scenario(graph)

    asyncio.run(main())


def memory(graph: Graph, name: str = "memory", *, read_only: bool = False) -> MemoryNode:
    node = MemoryNode(name, size=1024, read_only=read_only)
    graph.add(node)
    return node


class Noting(PassingNode):
    """Notes what happens to it, and may fail at it."""

    def __init__(self, name: str, file: Node, log: list[str], *, fails: str = "") -> None:
        super().__init__(name, file)
        self.log = log
        self.fails = fails

    def _note(self, what: str) -> None:
        self.log.append(f"{self.name} {what}")
        if self.fails == what:
            raise StorageError(errno.EIO, f"{self.name} fails")

    async def reopen(self, *, read_only: bool) -> None:
        await asyncio.sleep(0)
        self._note("read-only" if read_only else "writable")
        self.read_only = read_only

    async def close(self) -> None:
        await asyncio.sleep(0)
        self._note("closed")


def tower(graph: Graph, log: list[str], *, fails: dict[str, str] | None = None) -> list[Noting]:
    """Stack top, middle and bottom over memory."""
    nodes: list[Noting] = []
    below: Node = memory(graph)
    for name in ("bottom", "middle", "top"):
        node = Noting(name, below, log, fails=(fails or {}).get(name, ""))
        node.put_over(graph)
        nodes.append(node)
        below = node
    return nodes


def test_a_second_node_of_a_name_is_refused_and_harms_nobody() -> None:
    async def scenario(graph: Graph) -> None:
        first = memory(graph, "twin")
        second = MemoryNode("twin", size=1)
        with pytest.raises(GraphError, match="Duplicate nodes with node-name='twin'"):
            graph.add(second)
        await graph.discard_unused(second)
        assert graph.find("twin") is first

    with_graph(scenario)


def test_an_unknown_name_is_told() -> None:
    async def scenario(graph: Graph) -> None:
        with pytest.raises(GraphError, match="node-name='nobody'"):
            graph.find("nobody")

    with_graph(scenario)


def test_a_conflict_names_both_parties_and_the_file() -> None:
    async def scenario(graph: Graph) -> None:
        node = memory(graph)
        graph.hold(node, "the guest", WRITING, SHARED_BY_READER)
        with pytest.raises(PermissionConflict) as caught:
            graph.hold(node, "the backup", WRITING)
        assert '"write"' in caught.value.message
        for party in ("the backup", "the guest", "memory:"):
            assert party in caught.value.message

    with_graph(scenario)


def test_whoever_forbids_what_another_does_already_is_refused() -> None:
    async def scenario(graph: Graph) -> None:
        node = memory(graph)
        writer = graph.hold(node, "the guest", WRITING)
        with pytest.raises(PermissionConflict, match=r"the check forbids .* which the guest uses"):
            graph.hold(node, "the check", READING, SHARED_BY_READER)
        await graph.release(graph.hold(node, "a reader"))
        await graph.release(writer)

    with_graph(scenario)


def test_two_parents_may_read_one_child_and_not_write_to_it() -> None:
    async def scenario(graph: Graph) -> None:
        child = memory(graph, read_only=True)
        for name in ("one", "two"):
            PassingNode(name, child).put_over(graph)
        assert len(graph.users(child)) == 2

        shared = memory(graph, "shared")
        first, second = PassingNode("first", shared), PassingNode("second", shared)
        graph.add(first)
        graph.add(second)
        graph.attach(first, Role.FILE, shared)
        with pytest.raises(PermissionConflict, match=r"'second'.*'first'"):
            graph.attach(second, Role.FILE, shared)

    with_graph(scenario)


def test_nobody_writes_through_a_node_that_is_read_only() -> None:
    async def scenario(graph: Graph) -> None:
        child = memory(graph, read_only=True)
        with pytest.raises(ReadOnly):
            graph.hold(child, "a writer", WRITING)
        parent = PassingNode("parent", child)
        parent.read_only = False
        graph.add(parent)
        with pytest.raises(ReadOnly):
            graph.attach(parent, Role.FILE, child)

    with_graph(scenario)


def test_a_node_is_not_its_own_ancestor() -> None:
    async def scenario(graph: Graph) -> None:
        bottom, _, top = tower(graph, [])
        with pytest.raises(Cycle, match="would create a cycle"):
            graph.attach(bottom, Role.BACKING, top)
        with pytest.raises(Cycle):
            graph.attach(top, Role.BACKING, top)

    with_graph(scenario)


@pytest.mark.parametrize("downwards", [True, False])
def test_a_chain_deeper_than_the_limit_is_refused_whichever_way_it_grows(downwards: bool) -> None:
    async def scenario(graph: Graph) -> None:
        nodes = [memory(graph, f"n{number}", read_only=True) for number in range(DEPTH_MAX + 1)]
        pairs = list(pairwise(nodes))
        if not downwards:
            pairs.reverse()
        for parent, child in pairs[:-1]:
            graph.attach(parent, Role.BACKING, child)
        with pytest.raises(Cycle, match=f"more than {DEPTH_MAX} images"):
            graph.attach(pairs[-1][0], Role.BACKING, pairs[-1][1])

    with_graph(scenario)


def test_a_chain_of_the_greatest_depth_closes() -> None:
    async def scenario(graph: Graph) -> None:
        nodes = [memory(graph, f"n{number}", read_only=True) for number in range(DEPTH_MAX)]
        for parent, child in pairwise(nodes):
            graph.attach(parent, Role.BACKING, child)
        await graph.release(graph.hold(nodes[0], "the test"))
        assert not list(graph.nodes())

    with_graph(scenario)


def test_parents_are_closed_before_their_children_and_only_when_nobody_uses_them() -> None:
    async def scenario(graph: Graph) -> None:
        log: list[str] = []
        _, middle, top = tower(graph, log)
        upper, lower = graph.hold(top, "upper"), graph.hold(middle, "lower")
        await graph.release(upper)
        assert log == ["top closed"]
        await graph.release(lower)
        assert log == ["top closed", "middle closed", "bottom closed"]
        assert not list(graph.nodes())
        with pytest.raises(GraphError, match="not in the graph"):
            graph.hold(top, "too late")

    with_graph(scenario)


def test_a_failing_close_still_closes_everything_else() -> None:
    log: list[str] = []

    async def main() -> None:
        graph = Graph()
        _, _, top = tower(graph, log, fails={"top": "closed", "middle": "closed"})
        graph.hold(top, "the test")
        with pytest.raises(StorageError, match="top fails"):
            await graph.close()
        assert log == ["top closed", "middle closed", "bottom closed"]
        assert not list(graph.nodes())
        assert not list(graph.handles())
        await graph.close()

    asyncio.run(main())


def test_a_cancelled_close_goes_on_to_the_end() -> None:
    log: list[str] = []

    async def main() -> None:
        graph = Graph()
        _, _, top = tower(graph, log)
        handle = graph.hold(top, "the test")
        release = asyncio.create_task(graph.release(handle))
        await until(lambda: log)
        release.cancel()
        with pytest.raises(asyncio.CancelledError):
            await release
        assert log == ["top closed", "middle closed", "bottom closed"]
        await graph.close()

    asyncio.run(main())


def test_a_node_without_users_is_discarded_and_one_with_users_is_not() -> None:
    async def scenario(graph: Graph) -> None:
        log: list[str] = []
        _, middle, top = tower(graph, log)
        await graph.discard_unused(middle)
        assert log == []
        await graph.discard_unused(top)
        assert log == ["top closed", "middle closed", "bottom closed"]

    with_graph(scenario)


def test_writing_begins_below_and_ends_above() -> None:
    async def scenario(graph: Graph) -> None:
        log: list[str] = []
        bottom, _, top = tower(graph, log)
        handle = graph.hold(top, "the test", WRITING)
        await graph.reopen(top, read_only=True)
        assert log == ["top read-only", "middle read-only", "bottom read-only"]
        assert handle.read_only
        assert graph.users(bottom)[0].permissions == READING
        log.clear()
        await graph.reopen(top, read_only=False)
        assert log == ["bottom writable", "middle writable", "top writable"]
        await handle.write(0, b"x")
        assert graph.users(bottom)[0].permissions == WRITING

    with_graph(scenario)


@pytest.mark.parametrize("read_only", [True, False])
def test_a_refused_reopen_is_taken_back(read_only: bool) -> None:
    async def scenario(graph: Graph) -> None:
        log: list[str] = []
        nodes = tower(graph, log)
        handle = graph.hold(nodes[-1], "the test", WRITING)
        if not read_only:
            await graph.reopen(nodes[-1], read_only=True)
        nodes[1].fails = "read-only" if read_only else "writable"
        with pytest.raises(StorageError, match="middle fails"):
            await graph.reopen(nodes[-1], read_only=read_only)
        assert [node.read_only for node in nodes] == [not read_only] * 3
        assert handle.read_only is not read_only
        wanted = WRITING if read_only else READING
        assert [edge.permissions for node in nodes for edge in graph.users(node)] == [wanted] * 3

    with_graph(scenario)


def test_a_cancelled_reopen_is_whole() -> None:
    async def scenario(graph: Graph) -> None:
        log: list[str] = []
        nodes = tower(graph, log)
        graph.hold(nodes[-1], "the test", WRITING)
        reopen = asyncio.create_task(graph.reopen(nodes[-1], read_only=True))
        await until(lambda: log)
        reopen.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reopen
        assert [node.read_only for node in nodes] == [True] * 3

    with_graph(scenario)


def test_a_reopen_waits_for_requests_and_holds_users_that_come_meanwhile() -> None:
    async def scenario(graph: Graph) -> None:
        plan = FaultPlan(stop_at=1, only=frozenset(("read",)))
        node = FaultyNode("node", memory(graph), plan)
        node.put_over(graph)
        handle = graph.hold(node, "first", WRITING)
        read = asyncio.create_task(handle.read(0, 1))
        await plan.stopped.wait()
        reopen = asyncio.create_task(graph.reopen(node, read_only=True))
        await asyncio.sleep(0)
        late = graph.hold(node, "late")
        assert late.try_read(0, 1) is None
        late_read = asyncio.create_task(late.read(0, 1))
        await asyncio.sleep(0)
        assert not reopen.done()
        plan.go_on.set()
        await asyncio.gather(read, reopen, late_read)
        assert late.traffic.held == handle.traffic.held == 0

    with_graph(scenario)


def test_writing_is_refused_while_another_user_forbids_it() -> None:
    async def scenario(graph: Graph) -> None:
        node = memory(graph, read_only=True)
        graph.hold(node, "the guest")
        graph.hold(node, "the check", READING, SHARED_BY_READER)
        with pytest.raises(PermissionConflict, match=r"the check.*the guest|the guest.*the check"):
            await graph.reopen(node, read_only=False)
        assert node.read_only

    with_graph(scenario)


def test_a_child_that_somebody_else_writes_to_cannot_become_read_only() -> None:
    async def scenario(graph: Graph) -> None:
        child = memory(graph)
        parent = PassingNode("parent", child)
        graph.add(parent)
        edge = graph.attach(parent, Role.FILE, child)
        edge.shared = Permission.ALL
        graph.hold(child, "another writer", WRITING)
        graph.hold(parent, "the test", WRITING)
        with pytest.raises(PermissionConflict, match="another writer writes to it"):
            await graph.reopen(parent, read_only=True)
        assert not parent.read_only

    with_graph(scenario)


def test_a_loose_edge_goes_by_the_users_of_its_parent_until_somebody_says_what_it_is() -> None:
    async def scenario(graph: Graph) -> None:
        base, overlay = memory(graph, "base"), memory(graph, "overlay")
        edge = graph.attach(overlay, Role.BACKING, base, is_loose=True)
        graph.keep(overlay)
        strict = Access(READING, SHARED_BY_READER)
        assert edge.access == IDLE
        reader = graph.hold(overlay, "a reader", READING)
        assert edge.access == Access(READING, Permission.ALL)
        writer = graph.hold(base, "a writer", WRITING)
        with pytest.raises(PermissionConflict):
            graph.hold(overlay, "another writer", WRITING)
        assert edge.access == Access(READING, Permission.ALL), "what is refused changes nothing"
        await graph.release(writer)
        inverse = graph.rewire(Rewiring(access={edge: strict}))
        await graph.release(reader)
        assert edge.access == strict
        graph.restore(inverse)
        assert edge.is_loose
        await graph.release(graph.hold(overlay, "a reader", READING))
        assert edge.access == IDLE

    with_graph(scenario)
