"""Dirty bitmaps that are copied along with their disk: `vblk convert --bitmaps`.

Owns: which are copied, and QEMU's sentences for those that cannot be.
"""

from collections.abc import Sequence

from vblk.cli.console import Console
from vblk.cli.failure import Failure
from vblk.errors import BlockError
from vblk.graph.dirty_bitmap import GRANULARITY_DEFAULT, DirtyBitmap
from vblk.graph.handle import Handle
from vblk.graph.node import Node
from vblk.graph.recording import add_bitmap
from vblk.graph.registry import Graph


def bitmaps_of(sources: Sequence[Handle], console: Console, *, skip_broken: bool) -> list[DirtyBitmap]:
    """Return the bitmaps that are kept of a disk, without those that are not to be trusted.

    Raises:
        Failure: There are several disks, there cannot be any bitmap, or one is not to be trusted.
    """
    if len(sources) > 1:
        raise Failure("Copying bitmaps only possible with single source")
    node = sources[0].node
    kept = [each for each in reversed(node.bitmaps.values()) if each.persistent]
    if not kept and not _keeps(node):
        raise Failure("Source lacks bitmap support")
    for each in kept:
        if each.inconsistent and not skip_broken:
            raise Failure(
                f"Cannot copy inconsistent bitmap '{each.name}'\n"
                "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it",
            )
        if each.inconsistent:
            console.warn(f"Skipping inconsistent bitmap '{each.name}'")
    return [each for each in kept if not each.inconsistent]


def require_keeping(node: Node) -> None:
    """Raise Failure when no bitmaps can be kept of a disk."""
    if not _keeps(node):
        raise Failure(f"Format driver '{node.driver}' does not support bitmaps")


def _keeps(node: Node) -> bool:
    try:
        node.require_storable("bitmap", GRANULARITY_DEFAULT)
    except BlockError:
        return False
    return True


async def copy_bitmaps(graph: Graph, node: Node, bitmaps: Sequence[DirtyBitmap]) -> None:
    """Let a node keep the same bitmaps, with the same marks.

    Raises:
        Failure: One cannot be kept.
    """
    for each in bitmaps:
        try:
            copy = await add_bitmap(
                graph, node, each.name, granularity=each.granularity, enabled=each.enabled, persistent=True
            )
            copy.merge(each)
        except BlockError as error:
            raise Failure(f"Failed to create bitmap {each.name}: {error.message}") from error
