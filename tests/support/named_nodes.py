"""Protocol nodes from the names that a user types."""

from vblk.graph.edge import READING, WRITING
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.opening import open_node
from vblk.options import NodeOptions, parse_filename


def leaf(name: str) -> NodeOptions:
    """Return the options of the protocol node that a name leads to."""
    options = parse_filename(name).children["file"]
    assert isinstance(options, NodeOptions)
    return options


async def opened(graph: Graph, name: str, *, read_only: bool = False) -> Node:
    """Open it, for the test to use."""
    node = await open_node(graph, leaf(name), Request(read_only=read_only))
    graph.hold(node, "the test", READING if read_only else WRITING)
    return node
