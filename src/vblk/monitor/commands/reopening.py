"""`blockdev-reopen`: other access, and other children, for nodes that are in use.

Owns: what can be changed so, and QEMU's words for what cannot.

Ordering rule: everything is looked at before anything changes, and all changes are
made or none (`Graph.change`).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from vblk.graph.node import Node
from vblk.graph.reopening import NodeChange
from vblk.graph.zero_detection import set_detection
from vblk.monitor.blockdev import Blockdev
from vblk.monitor.daemon import Daemon
from vblk.monitor.schema import Object
from vblk.monitor.table import CommandTable
from vblk.options import NodeOptions, NodeReference, check_consistent
from vblk.wire.qmp import QmpError

TABLE = CommandTable()

_FIXED = {
    "cache_direct": "cache.direct",
    "cache_no_flush": "cache.no-flush",
    "discard": "discard",
    "force_share": "force-share",
}
"""Common options that stay as they are."""

_DEFAULTS = {"discard": "ignore"}


class Reopen(Object):
    """The arguments of `blockdev-reopen`."""

    options: list[Blockdev]


class _Wanted(NamedTuple):
    """What a node is to be, and what gives it its own options, if they are others."""

    change: NodeChange
    options: NodeOptions
    apply: Callable[[], None] | None


@TABLE.command("blockdev-reopen")
async def blockdev_reopen(daemon: Daemon, arguments: Reopen) -> None:
    """Give nodes the options as if they were added with them now."""
    wanted = [each for options in arguments.options for each in _wanted(daemon, options.options)]
    await daemon.graph.change([each.change for each in wanted])
    for change, options, apply in wanted:
        node = change.node
        async with daemon.graph.drained(node):
            set_detection(node, options.detect_zeroes or "off")
            if apply is not None:
                apply()
        if node.options is not None:
            node.options = replace(node.options, own=options.own, detect_zeroes=options.detect_zeroes)


def _wanted(daemon: Daemon, options: NodeOptions) -> Iterator[_Wanted]:
    if options.node_name is None:
        raise QmpError("node-name not specified")
    for node in daemon.graph.nodes():
        if node.name == options.node_name:
            yield from _wanted_of(daemon, node, options)
            return
    raise QmpError(f"Failed to find node with node-name='{options.node_name}'")


def _wanted_of(daemon: Daemon, node: Node, options: NodeOptions) -> Iterator[_Wanted]:
    """Yield what is to be changed in a node, and in those that its options describe."""
    is_other = _refuse_fixed(node, options)
    if "backing" in node.children and "backing" not in options.children:
        raise QmpError(f"backing is missing for '{node.name}'")
    change = NodeChange(node, bool(options.read_only))
    for name, child in options.children.items():
        edge = node.children.get(name)
        if child is None:
            change.children[name] = None
        elif isinstance(child, NodeReference):
            change.children[name] = daemon.graph.find(child.name)
        elif edge is None:
            raise QmpError(f"Cannot change the option '{name}'")
        else:
            yield from _wanted_of(daemon, edge.node, child)
    apply = node.prepare_options(daemon.graph.objects, options.own) if is_other else None
    yield _Wanted(change, options, apply)


def _refuse_fixed(node: Node, options: NodeOptions) -> bool:
    """Refuse what cannot be changed while a node lives; tell whether the driver's own options are others.

    Raises:
        QmpError: With the option's name.
    """
    old = node.options if node.options is not None else NodeOptions(driver=node.driver)
    if options.driver != node.driver:
        raise QmpError("Cannot change the option 'driver'")
    others = [name for name in {**old.own, **options.own} if old.own.get(name) != options.own.get(name)]
    for name in others:
        if name not in node.changeable:
            raise QmpError(f"Cannot change the option '{name}'")
    check_consistent(options)
    for attribute, name in _FIXED.items():
        default = _DEFAULTS.get(attribute, False)
        before, after = getattr(old, attribute), getattr(options, attribute)
        if after is not None and after != (default if before is None else before):
            raise QmpError(f"Cannot change the option '{name}'")
    return bool(others)
