"""Changing a graph while it is in use: replace, insert, remove, snapshot.

Owns: which edges each of these changes, and what it refuses. Who calls it is
`Graph.changing` the nodes, so that nothing is in flight.

Ordering rule: everything is checked before anything changes; what can fail or
wait (a flush, a reopening) comes before the edges are led elsewhere, which is one
step that nobody sees half done.
"""

from collections.abc import Sequence

from vblk.errors import GraphError, NodeBusy
from vblk.graph.edge import Edge, Role, edge_of
from vblk.graph.edges import Rewiring, reachable
from vblk.graph.mapper import Mapper
from vblk.graph.node import Filter, Node
from vblk.graph.registry import Graph
from vblk.graph.reopening import change_back, members_below, reopen_members, storage_access


async def replace(graph: Graph, old: Node, new: Node, users: Sequence[Edge] | None = None) -> None:
    """Let users of `old` use `new`; see `Graph.replace`."""
    own = reachable(new)
    if users is None and old not in own:
        graph.require_unpinned(old, above=new)
    moved = users if users is not None else [edge for edge in passing(graph, old) if edge.parent not in own]
    for edge in moved:
        if edge.node is not old:
            raise GraphError(f"{edge.user} does not use '{old.name}'")
    rewiring = Rewiring(moved=dict.fromkeys(moved, new))
    graph.edges.check(rewiring)
    await old.flush()
    graph.rewire(rewiring)
    await graph.close_unused([old])


async def insert_filter(graph: Graph, node: Node, filter: Node) -> None:
    """Put a filter between a node and its users; see `Graph.insert_filter`."""
    if filter.child(Role.FILTERED) is not node:
        raise GraphError(f"'{filter.name}' is not a filter of node '{node.name}'")
    await replace(graph, node, filter)


async def remove_filter(graph: Graph, filter: Node) -> None:
    """Let the users of a filter use what it decorates; see `Graph.remove_filter`."""
    decorated = [edge.node for edge in filter.children.values() if edge.role is Role.FILTERED]
    if not isinstance(filter, Filter) or len(decorated) != 1:
        raise GraphError(f"Node '{filter.name}' is not a filter of one node")
    if len(passing(graph, filter)) < len(graph.users(filter)):
        raise NodeBusy(f"Node '{filter.name}' is busy: another node shows what it keeps")
    await replace(graph, filter, decorated[0])


def passing(graph: Graph, node: Node) -> list[Edge]:
    """Return the edges to a node of those whom another node with the same disk would serve as well."""
    return [edge for edge in graph.users(node) if edge.role is not Role.ACCESSED]


async def put_overlay(graph: Graph, node: Node, overlay: Node) -> None:
    """Make `node` the backing of `overlay`, which its users use then; see `Graph.put_overlay`."""
    graph.require_unpinned(node)
    refuse_overlay(graph, node, overlay)
    members = members_below(graph, node, read_only=True)
    rewiring = Rewiring(
        moved=dict.fromkeys(graph.users(node), overlay),
        access=storage_access(members, read_only=True),
        added=[edge_of(overlay, Role.BACKING, node)],
    )
    graph.edges.check(rewiring, as_if=dict.fromkeys(members, True))
    await node.flush()
    await reopen_members(members, read_only=True)
    try:
        assert isinstance(overlay, Mapper)
        await overlay.stand_on(node)
        graph.rewire(rewiring)
    except BaseException:  # somebody came meanwhile
        await change_back(members, read_only=False)
        raise


def refuse_overlay(graph: Graph, node: Node, overlay: Node) -> None:
    """Refuse what cannot be put on a node.

    Raises:
        GraphError: With the reason, in QEMU's words where it has them.
    """
    if graph.users(overlay):
        raise GraphError("The overlay is already in use")
    if not isinstance(overlay, Mapper) or not overlay.takes_backing:
        raise GraphError("The overlay does not support backing images")
    if overlay.child(Role.BACKING) is not None:
        raise GraphError("The overlay already has a backing image")


async def take_off_overlay(graph: Graph, overlay: Node, *, read_only: bool) -> None:
    """Undo `put_overlay`; see `Graph.take_off_overlay`."""
    edge = overlay.children.get(Role.BACKING.value)
    if edge is None:
        raise GraphError(f"Node '{overlay.name}' has no backing image")
    graph.require_unpinned(overlay)
    node = edge.node
    members = [] if read_only else members_below(graph, node, read_only=False)
    access = storage_access(members, read_only=False)
    as_if = dict.fromkeys(members, False)
    rewiring = Rewiring(moved=dict.fromkeys(graph.users(overlay), node), access=access, removed=[edge])
    graph.edges.check(rewiring, as_if=as_if)
    await reopen_members(members, read_only=False)
    try:
        graph.rewire(rewiring)
    except BaseException:
        await change_back(members, read_only=True)
        raise
    await graph.close_unused([overlay])
