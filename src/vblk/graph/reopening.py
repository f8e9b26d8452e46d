"""Changing nodes that are in use between reading only and writing.

Owns: which nodes change together, and in which order. It takes no drain: who
calls it is `Graph.changing` the node.

Ordering rule: to write, storage comes before what stands on it; to end writing, a
format finishes before its storage. Permissions are there before they are used, and
go after their last use. What fails is changed back.
"""

from collections.abc import Sequence

from vblk.errors import BlockError
from vblk.graph.edge import READING, WRITING, Access, Edge, Role, access_of
from vblk.graph.edges import Rewiring
from vblk.graph.node import Node
from vblk.graph.registry import Graph


def members_below(graph: Graph, node: Node, *, read_only: bool) -> list[Node]:
    """Return a node and what stores it, as far as they change with it, from the top down.

    What somebody keeps under a name of its own keeps its access as well.
    """
    members: list[Node] = []
    member: Node | None = node
    while member is not None and (member is node or not graph.keeps(member)):
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


async def change_access(graph: Graph, node: Node, *, read_only: bool, handles: bool) -> None:
    """Change a node and what stores it, and, if asked to, what its handles do.

    Raises:
        PermissionConflict: A user of one of the nodes excludes writing, or
            writes where writing is to end.
    """
    members = members_below(graph, node, read_only=read_only)
    rewiring = Rewiring(access=storage_access(members, read_only=read_only))
    if handles:
        for edge in graph.users(node):
            if edge.role is None:
                rewiring.access[edge] = Access(READING if read_only else WRITING, edge.shared)
    as_if = dict.fromkeys(members, read_only)
    graph.edges.check(rewiring, as_if=as_if)
    if read_only:
        await reopen_members(members, read_only=True)
        try:
            graph.rewire(rewiring)
        except BaseException:  # somebody came meanwhile
            await change_back(members, read_only=False)
            raise
        return
    before = graph.edges.apply(rewiring, as_if=as_if)
    try:
        await reopen_members(members, read_only=False)
    except BaseException:
        graph.edges.restore(before)
        raise


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
