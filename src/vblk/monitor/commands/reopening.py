"""`blockdev-reopen`: other access, and other children, for nodes that are in use.

Owns: what can be changed so, and QEMU's words for what cannot.

Ordering rule: everything is looked at before anything changes; what was changed is
changed back when a later step fails.
"""

from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple

from vblk.errors import BlockError
from vblk.graph.edge import Edge
from vblk.graph.node import Node
from vblk.monitor.blockdev import Blockdev
from vblk.monitor.daemon import Daemon
from vblk.monitor.schema import Object
from vblk.monitor.table import CommandTable
from vblk.options import NodeOptions, NodeReference
from vblk.wire.qmp import QmpError

TABLE = CommandTable()

_FIXED = {
    "cache_direct": "cache.direct",
    "cache_no_flush": "cache.no-flush",
    "discard": "discard",
    "detect_zeroes": "detect-zeroes",
    "force_share": "force-share",
}
"""Common options that stay as they are."""

_DEFAULTS = {"discard": "ignore", "detect_zeroes": "off"}

Undo = Callable[[], Awaitable[None]]


class Reopen(Object):
    """The arguments of `blockdev-reopen`."""

    options: list[Blockdev]


class _Change(NamedTuple):
    """What becomes of one node: its access, and where its edges lead."""

    node: Node
    read_only: bool
    moved: dict[Edge, Node]


@TABLE.command("blockdev-reopen")
async def blockdev_reopen(daemon: Daemon, arguments: Reopen) -> None:
    """Give nodes the options as if they were added with them now."""
    changes = [change for each in arguments.options for change in _changes(daemon, each.options)]
    done: list[Undo] = []
    try:
        for change in changes:
            await _carry_out(daemon, change, done)
    except BlockError:
        for undo in reversed(done):
            await undo()
        raise


def _changes(daemon: Daemon, options: NodeOptions) -> Iterator[_Change]:
    if options.node_name is None:
        raise QmpError("node-name not specified")
    for node in daemon.graph.nodes():
        if node.name == options.node_name:
            yield from _changes_of(daemon, node, options)
            return
    raise QmpError(f"Failed to find node with node-name='{options.node_name}'")


def _changes_of(daemon: Daemon, node: Node, options: NodeOptions) -> Iterator[_Change]:
    """Yield what is to be changed in a node, and in those that its options describe."""
    _refuse_fixed(node, options)
    moved: dict[Edge, Node] = {}
    for name, child in options.children.items():
        edge = node.children.get(name)
        if child is None:
            if edge is not None:
                raise QmpError(f"Cannot change the option '{name}'")
        elif edge is None:
            raise QmpError(f"Cannot change the option '{name}'")
        elif isinstance(child, NodeReference):
            other = daemon.graph.find(child.name)
            if other is not edge.node:
                moved[edge] = other
        else:
            yield from _changes_of(daemon, edge.node, child)
    yield _Change(node, bool(options.read_only), moved)


def _refuse_fixed(node: Node, options: NodeOptions) -> None:
    """Refuse what cannot be changed while a node lives.

    Raises:
        QmpError: With the option's name.
    """
    old = node.options if node.options is not None else NodeOptions(driver=node.driver)
    if options.driver != node.driver:
        raise QmpError("Cannot change the option 'driver'")
    for name in {**old.own, **options.own}:
        if old.own.get(name) != options.own.get(name):
            raise QmpError(f"Cannot change the option '{name}'")
    for attribute, name in _FIXED.items():
        default = _DEFAULTS.get(attribute, False)
        before, after = getattr(old, attribute), getattr(options, attribute)
        if after is not None and after != (default if before is None else before):
            raise QmpError(f"Cannot change the option '{name}'")


async def _carry_out(daemon: Daemon, change: _Change, done: list[Undo]) -> None:
    graph, node = daemon.graph, change.node
    for edge, other in change.moved.items():
        before = edge.node
        await graph.replace(before, other, users=[edge])
        done.append(_replacing(daemon, other, before, edge))
    if node.read_only != change.read_only:
        await graph.reopen(node, read_only=change.read_only)
        done.append(_reopening(daemon, node, read_only=not change.read_only))


def _replacing(daemon: Daemon, old: Node, new: Node, edge: Edge) -> Undo:
    async def undo() -> None:
        await daemon.graph.replace(old, new, users=[edge])

    return undo


def _reopening(daemon: Daemon, node: Node, *, read_only: bool) -> Undo:
    async def undo() -> None:
        await daemon.graph.reopen(node, read_only=read_only)

    return undo
