"""Changing nodes that are in use: between reading only and writing, and to other children.

Owns: which nodes change together, and in which order. It takes no drain: who
calls it is `Graph.changing` the node.

Ordering rule: to write, storage comes before what stands on it; to end writing, a
format finishes before its storage. Permissions are there before they are used, and
go after their last use. What fails is changed back.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from vblk.errors import BlockError, GraphError
from vblk.graph.edge import READING, WRITING, Access, Edge, Role, access_of, edge_of
from vblk.graph.edges import Rewiring, reachable
from vblk.graph.mapper import Mapper
from vblk.graph.node import Node
from vblk.graph.registry import Graph


def members_below(graph: Graph, node: Node, *, read_only: bool, others: Container[Node] = ()) -> list[Node]:
    """Return a node and what stores it, as far as they change with it, from the top down.

    What somebody keeps under a name of its own keeps its access as well, and so do `others`.
    """
    members: list[Node] = []
    member: Node | None = node
    while member is not None and (member is node or not (graph.keeps(member) or member in others)):
        if member.read_only != read_only:
            members.append(member)
        member = member.below
    return members


def storage_access(members: Sequence[Node], *, read_only: bool) -> dict[Edge, Access]:
    """Return what the members will do with their files."""
    return {
        edge: access_of(edge.role, read_only=read_only)
        for member in members
        for edge in member.children.values()
        if edge.role is Role.FILE
    }


@dataclass(slots=True)
class NodeChange:
    """What a node is to be: its access, and, by their names, the children that are others then.

    A child that is None goes. With `handles` those on the node take on the new
    access; otherwise they do what they did.
    """

    node: Node
    read_only: bool
    children: dict[str, Node | None] = field(default_factory=dict[str, "Node | None"])
    handles: bool = False


async def change_nodes(graph: Graph, changes: Sequence[NodeChange]) -> None:
    """Change nodes, and what stores them, all or none; see `Graph.change`."""
    plan = _Plan({change.node for change in changes})
    for change in changes:
        _plan_children(plan.rewiring, change)
        _plan_access(graph, plan, change)
    as_if = dict.fromkeys(plan.closing, True) | dict.fromkeys(plan.opening, False)
    graph.edges.check(plan.rewiring, as_if=as_if)
    for edge in (*plan.rewiring.moved, *plan.rewiring.removed):
        assert edge.parent is not None
        await edge.parent.flush()
    left = [edge.node for edge in (*plan.rewiring.moved, *plan.rewiring.removed)]
    closing, opening = _from_the_top(plan.closing), _from_the_top(plan.opening)
    await reopen_members(closing, read_only=True)
    try:
        await _stand_on(plan.rewiring)
        before = graph.rewire(plan.rewiring, as_if=as_if)
        try:
            await reopen_members(opening, read_only=False)
        except BaseException:
            graph.restore(before)
            raise
    except BaseException:  # somebody came meanwhile, or storage that does not open for writing
        await change_back(closing, read_only=False)
        raise
    await graph.close_unused(left)


async def _stand_on(rewiring: Rewiring) -> None:
    """Ask images whether they may stand on what is to be their backing."""
    wanted = [(edge, edge.node) for edge in rewiring.added] + list(rewiring.moved.items())
    for edge, node in wanted:
        if edge.role is Role.BACKING and isinstance(edge.parent, Mapper):
            await edge.parent.stand_on(node)


@dataclass(slots=True)
class _Plan:
    """What is to be done: edges that change, nodes that end writing, nodes that begin."""

    named: set[Node]
    """The nodes that a change was asked for."""
    rewiring: Rewiring = field(default_factory=Rewiring)
    closing: list[Node] = field(default_factory=list[Node])
    opening: list[Node] = field(default_factory=list[Node])


def _plan_children(rewiring: Rewiring, change: NodeChange) -> None:
    node = change.node
    for name, child in change.children.items():
        edge = node.children.get(name)
        if edge is None and child is not None:
            if name != Role.BACKING.value or not isinstance(node, Mapper) or not node.takes_backing:
                raise GraphError(f"Node '{node.name}' does not support a child '{name}'")
            rewiring.added = [*rewiring.added, edge_of(node, Role.BACKING, child)]
        elif edge is not None and child is None:
            if edge.role is not Role.BACKING:
                raise GraphError(f"Node '{node.name}' cannot be without its child '{name}'")
            rewiring.removed = [*rewiring.removed, edge]
        elif edge is not None and child is not None and child is not edge.node:
            if edge.role is Role.FILE and isinstance(node, Mapper) and node.has_tables:
                _refuse_other_tables(node, edge.node, child)
            rewiring.moved[edge] = child


def _refuse_other_tables(node: Node, old: Node, new: Node) -> None:
    """Let an image whose tables are in memory go on only where its bytes are the same."""
    if old not in reachable(new) and new not in reachable(old):
        raise GraphError(
            f"the file of '{node.name}' can be replaced by a filter on it, or by what that decorates: "
            f"'{new.name}' is another file"
        )


def _plan_access(graph: Graph, plan: _Plan, change: NodeChange) -> None:
    members = members_below(graph, change.node, read_only=change.read_only, others=plan.named)
    changed = plan.closing if change.read_only else plan.opening
    changed += [member for member in members if member not in changed]
    plan.rewiring.access |= storage_access(members, read_only=change.read_only)
    if change.handles:
        for edge in graph.users(change.node):
            if edge.role is None:
                permissions = READING if change.read_only else WRITING
                plan.rewiring.access[edge] = Access(permissions, edge.shared)


def _from_the_top(nodes: Sequence[Node]) -> list[Node]:
    """Return nodes so that each comes before what is below it."""
    return sorted(nodes, key=lambda node: -len(reachable(node)))


async def reopen_members(members: Sequence[Node], *, read_only: bool) -> None:
    """Reopen nodes, given from the top down; when one fails, all are as before."""
    changed: list[Node] = []
    try:
        for member in members if read_only else reversed(members):
            await member.reopen(read_only=read_only)
            changed.append(member)
    except BaseException:
        await change_back(changed if read_only else changed[::-1], read_only=not read_only)
        raise


async def change_back(members: Sequence[Node], *, read_only: bool) -> None:
    """Reopen nodes, given from the top down, as they were; what fails leaves a warning."""
    for member in members if read_only else reversed(members):
        try:
            await member.reopen(read_only=read_only)
        except BlockError as error:
            member.warnings.append(f"its access could not be changed back: {error}")
