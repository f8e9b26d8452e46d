"""Commands on the nodes of the graph: add, delete, resize, show.

Owns: how nodes and edges are shown.
"""

from collections.abc import Iterator
from typing import Any

from vblk.describing import describe_image
from vblk.graph.edge import WRITING, Edge, Permission, Role
from vblk.graph.node import Node
from vblk.graph.statistics import Statistics, block_stats
from vblk.monitor.blockdev import Blockdev, require_name
from vblk.monitor.daemon import Daemon
from vblk.monitor.schema import (
    BlockStats,
    CacheInfo,
    Flat,
    GraphEdge,
    GraphInfo,
    GraphNode,
    NodeInfo,
    NodeName,
    QueryNodes,
    Resize,
)
from vblk.monitor.table import CommandTable, plain
from vblk.wire.qmp import QmpError

TABLE = CommandTable()

_PERMISSIONS = (
    (Permission.RESIZE, "resize"),
    (Permission.WRITE_UNCHANGED, "write-unchanged"),
    (Permission.WRITE, "write"),
    (Permission.CONSISTENT_READ, "consistent-read"),
)


@TABLE.command("blockdev-add")
async def blockdev_add(daemon: Daemon, arguments: Blockdev) -> None:
    """Open a node, which lives until it is deleted."""
    require_name(arguments.options)
    await daemon.add_node(arguments.options)


@TABLE.command("blockdev-del")
async def blockdev_del(daemon: Daemon, arguments: NodeName) -> None:
    """Close a node that nobody uses."""
    for node in daemon.graph.nodes():
        if node.name == arguments.node_name:
            await daemon.delete_node(node)
            return
    raise QmpError(f"Failed to find node with node-name='{arguments.node_name}'")


@TABLE.command("block_resize")
async def block_resize(daemon: Daemon, arguments: Resize) -> None:
    """Change the size of a node."""
    node = daemon.find_device(arguments.device, arguments.node_name)
    if arguments.size < 0:
        raise QmpError("Parameter 'size' expects a >0 size")
    if node.read_only:
        raise QmpError("Image is read-only")
    daemon.graph.require_unpinned(node)
    handle = daemon.graph.hold(node, "a resize", WRITING)
    try:
        await handle.resize(arguments.size)
    finally:
        await daemon.graph.release(handle)


@TABLE.command("query-named-block-nodes")
async def query_named_block_nodes(daemon: Daemon, arguments: Flat) -> list[NodeInfo]:
    """Show all nodes, the newest first."""
    return [
        await describe_node(node, flat=bool(arguments.flat)) for node in reversed(list(daemon.graph.nodes()))
    ]


async def describe_node(node: Node, *, flat: bool = False) -> NodeInfo:
    """Return what is known of a node; unless `flat`, of its backing images too."""
    backing = list(_backings(node))
    image = await describe_image(node)
    inner = image
    for each in () if flat else backing:
        inner["backing-image"] = await describe_image(each)
        inner = inner["backing-image"]
    return NodeInfo(
        file=node.filename,
        node_name=node.name,
        ro=node.read_only,
        drv=node.driver,
        detect_zeroes=node.detect_zeroes,
        backing_file=image.get("full-backing-filename", image.get("backing-filename")),
        backing_file_depth=0 if flat else len(backing),
        encrypted=bool(image.get("encrypted")),
        image=image,
        cache=cache_of(node),
        dirty_bitmaps=[each.info() for each in reversed(node.bitmaps.values()) if each.name[0] != "#"]
        or None,
    )


def _backings(node: Node) -> Iterator[Node]:
    below = node.child(Role.BACKING)
    while below is not None:
        yield below
        below = below.child(Role.BACKING)


def cache_of(node: Node) -> CacheInfo:
    """Return how a node's data goes through the system's cache: what its storage says."""
    below: Node | None = node
    while below is not None and not hasattr(below, "cache"):
        below = below.below
    mode: Any = getattr(below, "cache", None)
    if mode is None:
        return CacheInfo(writeback=True, direct=False, no_flush=False)
    return CacheInfo(writeback=not mode.write_through, direct=mode.direct, no_flush=mode.no_flush)


@TABLE.command("x-debug-query-block-graph")
async def query_block_graph(daemon: Daemon) -> GraphInfo:
    """Show all nodes and users outside the graph, and the edges between them."""
    numbers: dict[object, int] = {}
    nodes: list[GraphNode] = []
    edges: list[GraphEdge] = []

    def number(thing: object) -> int:
        return numbers.setdefault(thing, len(numbers) + 1)

    for handle in daemon.graph.handles():
        edge = handle.edge
        nodes.append(GraphNode(id=number(edge), type="block-backend", name=edge.user))
        edges.append(_edge(edge, number(edge), number(edge.node)))
    for node in daemon.graph.nodes():
        nodes.append(GraphNode(id=number(node), type="block-driver", name=node.name))
        edges += [_edge(edge, number(node), number(edge.node)) for edge in reversed(node.children.values())]
    return GraphInfo(nodes=nodes[::-1], edges=edges[::-1])


def _edge(edge: Edge, parent: int, child: int) -> GraphEdge:
    return GraphEdge(
        parent=parent,
        child=child,
        name=edge.name or "root",
        perm=_names(edge.permissions),
        shared_perm=_names(edge.shared),
    )


def _names(permissions: Permission) -> list[str]:
    return [name for bit, name in _PERMISSIONS if bit & permissions]


@TABLE.command("query-block")
async def query_block(daemon: Daemon) -> list[dict[str, Any]]:
    """Show the devices of a guest: there are none in this daemon."""
    return []


@TABLE.command("query-blockstats")
async def query_blockstats(daemon: Daemon, arguments: QueryNodes) -> list[BlockStats]:
    """Show what the exports' clients asked of nodes, with `query-nodes`: there are no devices."""
    if not arguments.query_nodes:
        return []
    return [_statistics(daemon, node) for node in daemon.graph.nodes()]


def _statistics(daemon: Daemon, node: Node) -> BlockStats:
    total = Statistics()
    for export in daemon.exports.values():
        if export.handle.node is node:
            total.add(export.statistics)
    below = node.below
    parent = None if below is None else plain(_statistics(daemon, below))
    return BlockStats(node_name=node.name, stats=block_stats(total), parent=parent)
