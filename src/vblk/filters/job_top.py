"""The node over a disk that is mirrored, for those who want one by name.

Owns: nothing. It passes every request on, and lives as long as its job.
"""

from typing import ClassVar

from vblk.filters.passing import PassingNode
from vblk.graph.node import Node
from vblk.graph.registry import Graph


class MirrorTop(PassingNode):
    """A filter that does nothing; mirroring is done below it."""

    driver: ClassVar[str] = "mirror_top"


async def put_mirror_top(graph: Graph, node: Node, name: str) -> MirrorTop:
    """Put a filter of that name between a node and its users, and keep it.

    Raises:
        GraphError: There is a node of that name, or the users cannot be moved.
    """
    filter = MirrorTop(name, node)
    filter.put_over(graph)
    try:
        await graph.insert_filter(node, filter)
    except BaseException:
        await graph.discard_unused(filter)
        raise
    graph.keep(filter)
    return filter


async def take_mirror_top(graph: Graph, filter: Node) -> None:
    """Let the users of such a filter use what is below it, and close it."""
    await graph.remove_filter(filter)
    await graph.let_go(filter)
