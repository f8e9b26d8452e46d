"""Commands that change the graph while it is in use: snapshots, filters in and out.

Owns: QEMU's words for overlays that cannot be, and the making of a snapshot's image.

Ordering rule: a new image is whole before the graph changes; a change that is taken
back leaves its file.
"""

from vblk.graph.node import Node
from vblk.monitor.actions import ActionTable, Undo
from vblk.monitor.commands.creating import make_beside
from vblk.monitor.daemon import Daemon
from vblk.monitor.schema import InsertFilter, NewImageMode, RemoveFilter, Snapshot, SnapshotSync
from vblk.monitor.table import CommandTable
from vblk.options import NodeOptions, check_node_name
from vblk.wire.qmp import QmpError

ACTIONS = ActionTable()
TABLE = CommandTable()


@ACTIONS.action("blockdev-snapshot")
async def blockdev_snapshot(daemon: Daemon, arguments: Snapshot) -> Undo:
    """Put an overlay, which is there, on a node."""
    node = daemon.find_either(arguments.node)
    overlay = daemon.find_either(arguments.overlay)
    return await _put(daemon, node, overlay)


@ACTIONS.action("blockdev-snapshot-sync")
async def blockdev_snapshot_sync(daemon: Daemon, arguments: SnapshotSync) -> Undo:
    """Make an image, or take one that is there, and put it on a node."""
    node = daemon.find_device(arguments.device, arguments.node_name)
    name = arguments.snapshot_node_name
    if name is None and arguments.node_name is not None:
        raise QmpError("New overlay node-name missing")
    if name is not None:
        check_node_name(name)
        if any(each.name == name for each in daemon.graph.nodes()):
            raise QmpError("New overlay node-name already in use")
    if arguments.mode is NewImageMode.ABSOLUTE_PATHS:
        await make_beside(daemon, arguments.snapshot_file, arguments.format, node.size, node)
    options = NodeOptions(
        driver=arguments.format,
        node_name=name,
        children={
            "file": NodeOptions(driver="file", own={"filename": arguments.snapshot_file}),
            "backing": None,
        },
    )
    overlay = await daemon.open_node(options)
    try:
        undo = await _put(daemon, node, overlay)
    except BaseException:
        await daemon.graph.discard_unused(overlay)
        raise
    if daemon.graph.users(overlay):
        return undo
    daemon.graph.keep(overlay)  # nobody used the node, so nobody would keep the snapshot

    async def undo_kept() -> None:
        await undo()
        await daemon.graph.let_go(overlay)

    return undo_kept


async def _put(daemon: Daemon, node: Node, overlay: Node) -> Undo:
    read_only = node.read_only
    await daemon.graph.put_overlay(node, overlay)
    daemon.log.say("snapshot", node=node.name, overlay=overlay.name)

    async def undo() -> None:
        await daemon.graph.take_off_overlay(overlay, read_only=read_only)

    return undo


@TABLE.command("blockdev-insert")
async def blockdev_insert(daemon: Daemon, arguments: InsertFilter) -> None:
    """Put a filter between the node that it stands on and all others that use that node."""
    node, filter = daemon.find_either(arguments.node), daemon.find_either(arguments.filter)
    await daemon.graph.insert_filter(node, filter)


@TABLE.command("blockdev-remove")
async def blockdev_remove(daemon: Daemon, arguments: RemoveFilter) -> None:
    """Let those who use a filter use the node that it stands on."""
    await daemon.graph.remove_filter(daemon.find_either(arguments.filter))
