"""`x-blockdev-change`: children of a quorum that come and go.

Owns: QEMU's words for those that cannot.

Ordering rule: nothing is in flight on the quorum meanwhile. A child that comes is not
made equal to the others: that is its user's to do.
"""

from vblk.filters.quorum import QuorumNode
from vblk.graph.edge import Role, edge_of
from vblk.graph.edges import Rewiring
from vblk.graph.node import Node
from vblk.monitor.daemon import Daemon
from vblk.monitor.schema import ChangeChild
from vblk.monitor.table import CommandTable
from vblk.runtime.uninterrupted import to_the_end
from vblk.wire.qmp import QmpError

TABLE = CommandTable()


@TABLE.command("x-blockdev-change")
async def x_blockdev_change(daemon: Daemon, arguments: ChangeChild) -> None:
    """Give a quorum another child, or take one from it."""
    parent = daemon.find_either(arguments.parent)
    if arguments.child is not None:
        if arguments.node is not None:
            raise QmpError("The parameters child and node are in conflict")
        await _remove(daemon, parent, arguments.child)
    elif arguments.node is not None:
        await _add(daemon, parent, arguments.node)
    else:
        raise QmpError("Either child or node must be specified")


async def _remove(daemon: Daemon, parent: Node, name: str) -> None:
    edge = parent.children.get(name)
    if edge is None:
        raise QmpError(f"Node '{parent.name}' does not have child '{name}'")
    if not isinstance(parent, QuorumNode):
        raise QmpError(f"The node {parent.name} does not support removing a child")
    if len(parent.children) <= parent.vote_threshold:
        text = f"The number of children cannot be lower than the vote threshold {parent.vote_threshold}"
        raise QmpError(text)
    child = edge.node

    async def remove() -> None:
        daemon.graph.rewire(Rewiring(removed=[edge]))
        await daemon.graph.close_unused([child])

    async with daemon.graph.changing(parent):
        await to_the_end(remove())


async def _add(daemon: Daemon, parent: Node, name: str) -> None:
    child = next((node for node in daemon.graph.nodes() if node.name == name), None)
    if child is None:
        raise QmpError(f"Node '{name}' not found")
    if not isinstance(parent, QuorumNode):
        raise QmpError(f"The node {parent.name} does not support adding a child")
    if child.size != parent.size:
        raise QmpError(f"Node '{name}' is not as long as the children of '{parent.name}'")
    number = 1 + max(int(each.rpartition(".")[2]) for each in parent.children)
    async with daemon.graph.changing(parent):
        edge = edge_of(parent, Role.FILTERED, child, f"children.{number}")
        daemon.graph.rewire(Rewiring(added=[edge]))
