"""Commands on dirty bitmaps, alone or as actions of a transaction.

Owns: how each is taken back. What a bitmap is and may be is `vblk.graph`'s.

Ordering rule: an action takes effect when it is carried out; what it returns takes it
back, as long as nothing else was done with the bitmap since.
"""

from collections.abc import Callable

from vblk.errors import GraphError
from vblk.graph.dirty_bitmap import DirtyBitmap
from vblk.graph.recording import add_bitmap, find_bitmap, put_bitmap, remove_bitmap, require_changeable
from vblk.monitor.actions import ActionTable, Undo
from vblk.monitor.daemon import Daemon
from vblk.monitor.schema import BitmapAdd, BitmapDigest, BitmapMerge, BitmapName, BitmapOfNode
from vblk.monitor.table import CommandTable

ACTIONS = ActionTable()
TABLE = CommandTable()


def _find(daemon: Daemon, arguments: BitmapName) -> DirtyBitmap:
    """Return a bitmap that may be changed."""
    node = daemon.find_either(arguments.node)
    bitmap = find_bitmap(node, arguments.name)
    require_changeable(node, bitmap)
    bitmap.require_consistent()
    return bitmap


@ACTIONS.action("block-dirty-bitmap-add")
async def add(daemon: Daemon, arguments: BitmapAdd) -> Undo:
    """Give a node a new bitmap."""
    node = daemon.find_either(arguments.node)
    await add_bitmap(
        daemon.graph,
        node,
        arguments.name,
        granularity=arguments.granularity,
        enabled=not arguments.disabled,
        persistent=bool(arguments.persistent),
    )
    return _undo(lambda: remove_bitmap(node, arguments.name))


@ACTIONS.action("block-dirty-bitmap-remove")
async def remove(daemon: Daemon, arguments: BitmapName) -> Undo:
    """Take a bitmap from its node."""
    node = daemon.find_either(arguments.node)
    bitmap = find_bitmap(node, arguments.name)
    require_changeable(node, bitmap)
    remove_bitmap(node, arguments.name)
    return _undo(lambda: put_bitmap(node, bitmap))


@ACTIONS.action("block-dirty-bitmap-clear")
async def clear(daemon: Daemon, arguments: BitmapName) -> Undo:
    """Make a bitmap clean."""
    bitmap = _find(daemon, arguments)
    marks = bitmap.clear()
    return _undo(lambda: bitmap.give_back(marks))


@ACTIONS.action("block-dirty-bitmap-enable")
async def enable(daemon: Daemon, arguments: BitmapName) -> Undo:
    """Let a bitmap note changes."""
    return _switch(daemon, arguments, enabled=True)


@ACTIONS.action("block-dirty-bitmap-disable")
async def disable(daemon: Daemon, arguments: BitmapName) -> Undo:
    """Let a bitmap stay as it is."""
    return _switch(daemon, arguments, enabled=False)


def _switch(daemon: Daemon, arguments: BitmapName, *, enabled: bool) -> Undo:
    bitmap = find_bitmap(daemon.find_either(arguments.node), arguments.name)
    bitmap.require_usable()
    before = bitmap.enabled
    bitmap.enabled = enabled

    def switch_back() -> None:
        bitmap.enabled = before

    return _undo(switch_back)


@ACTIONS.action("block-dirty-bitmap-merge")
async def merge(daemon: Daemon, arguments: BitmapMerge) -> Undo:
    """Add the marks of bitmaps to another one: of all or of none."""
    node = daemon.find_either(arguments.node)
    target = _find(daemon, BitmapName(arguments.node, arguments.target))
    marks = target.marks()
    try:
        for source in arguments.bitmaps:
            if isinstance(source, BitmapOfNode):
                other = find_bitmap(daemon.find_either(source.node), source.name)
            else:
                other = find_bitmap(node, source)
            other.require_usable()
            target.merge(other)
    except GraphError:
        target.restore(marks)
        raise
    return _undo(lambda: target.restore(marks))


@TABLE.command("x-debug-block-dirty-bitmap-sha256")
async def digest(daemon: Daemon, arguments: BitmapName) -> BitmapDigest:
    """Tell whether bitmaps have the same marks: then this is the same."""
    bitmap = find_bitmap(daemon.find_either(arguments.node), arguments.name)
    return BitmapDigest(sha256=bitmap.digest())


def _undo(step: Callable[[], object]) -> Undo:
    async def undo() -> None:
        step()

    return undo
