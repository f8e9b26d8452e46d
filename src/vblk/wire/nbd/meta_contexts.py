"""Metadata contexts: what a client may ask about ranges besides their bytes.

Owns: the names of the contexts, and which of them a query means. What a context
says of a range is for whoever knows the disk.

Source: proto.md, "Metadata querying"; QEMU's documentation, "QEMU NBD protocol".
"""

from collections.abc import Sequence
from typing import Final

from vblk.wire.nbd.numbers import ALLOCATION_CONTEXT

DEPTH_CONTEXT: Final = "qemu:allocation-depth"
BITMAP_PREFIX: Final = "qemu:dirty-bitmap:"

_NAMESPACES: Final = ("base:", "qemu:")
_FAMILIES: Final = (BITMAP_PREFIX,)


def matching(query: str, contexts: Sequence[str], *, listing: bool) -> list[int]:
    """Return the places in `contexts` of those that a query means.

    With `listing` a namespace, or the beginning of a family of contexts, means all
    of its members; to be selected, each is named whole.
    """
    if listing and (query in _NAMESPACES or query in _FAMILIES):
        return [number for number, name in enumerate(contexts) if name.startswith(query)]
    return [number for number, name in enumerate(contexts) if name == query]


def contexts_of(*, allocation_depth: bool, bitmaps: Sequence[str]) -> tuple[str, ...]:
    """Return the names of all contexts of an export."""
    depth = (DEPTH_CONTEXT,) if allocation_depth else ()
    return (ALLOCATION_CONTEXT, *depth, *(BITMAP_PREFIX + name for name in bitmaps))
