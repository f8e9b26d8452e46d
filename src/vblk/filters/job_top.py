"""The node over a disk that is mirrored or committed, for those who want one by name.

Owns: nothing. It passes every request on, and lives as long as its job.
"""

from typing import ClassVar

from vblk.filters.passing import PassingNode
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.options import check_node_name


class MirrorTop(PassingNode):
    """A filter that does nothing; mirroring, of the active layer of a commit too, is done below it."""

    driver: ClassVar[str] = "mirror_top"


class CommitTop(MirrorTop):
    """The same for a commit of layers below the active one."""

    driver: ClassVar[str] = "commit_top"


async def put_job_top(graph: Graph, node: Node, name: str, kind: type[MirrorTop] = MirrorTop) -> MirrorTop:
    """Put a filter of that name between a node and its users, and keep it.

    Raises:
        OptionError: It cannot be a name.
        GraphError: There is a node of that name, or the users cannot be moved.
    """
    check_node_name(name)
    filter = kind(name, node)
    filter.put_over(graph)
    try:
        await graph.insert_filter(node, filter)
    except BaseException:
        await graph.discard_unused(filter)
        raise
    graph.keep(filter)
    return filter


async def take_job_top(graph: Graph, filter: Node) -> None:
    """Let the users of such a filter use what is below it, and close it."""
    await graph.remove_filter(filter)
    await graph.let_go(filter)
