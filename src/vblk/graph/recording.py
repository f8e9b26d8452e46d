"""Nodes that note what of them was changed, in their dirty bitmaps.

Owns: which operations mark, and how a node begins and ends to note. A node
without bitmaps pays nothing: one with some changes its class (`vblk.graph.kinds`).

Ordering rule: a mark comes after its change has ended, well or not, and before
anybody is told that it has; a request that is cancelled is over when its mark is
set. `place` marks after the bytes and the mapping are there. There may be a mark
too many before: a write at once that comes to nothing leaves one.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import ClassVar

from vblk.errors import GraphError
from vblk.graph.dirty_bitmap import DirtyBitmap, granularity_for
from vblk.graph.kinds import Extra, add_extra, remove_extra
from vblk.graph.node import Buffer, Leaf, Node, Preallocation, Span
from vblk.graph.registry import Graph


class Recording(Extra):
    """What a node with bitmaps does more than one without."""

    below_name: ClassVar[str] = "recorded"
    recorded: ClassVar[type[Node]]

    def try_write(self, offset: int, data: Buffer) -> bool:
        """Write at once, and mark; after False a part may be written."""
        _require_room(self, offset + len(data))
        try:
            return self.recorded.try_write(self, offset, data)
        finally:
            _mark(self, offset, len(data))

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write, and mark."""
        _require_room(self, offset + len(data))
        try:
            await self.recorded.write(self, offset, data, fua=fua)
        finally:
            _mark(self, offset, len(data))

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Write zeros, and mark."""
        _require_room(self, offset + length)
        try:
            await self.recorded.write_zeroes(
                self, offset, length, unmap=unmap, no_fallback=no_fallback, fua=fua
            )
        finally:
            _mark(self, offset, length)

    async def discard(self, offset: int, length: int) -> None:
        """Discard, and mark."""
        try:
            await self.recorded.discard(self, offset, length)
        finally:
            _mark(self, offset, length)

    @asynccontextmanager
    async def place(self, offset: int, length: int) -> AsyncGenerator[list[Span], None]:
        """Make room, and mark when the bytes are there."""
        _require_room(self, offset + length)
        try:
            async with self.recorded.place(self, offset, length) as spans:
                yield spans
        finally:
            _mark(self, offset, length)

    def written(self, offset: int, length: int) -> None:
        """Note what arrived through a leaf's descriptor, and mark."""
        assert isinstance(self, Leaf)
        assert issubclass(self.recorded, Leaf)
        self.recorded.written(self, offset, length)
        _mark(self, offset, length)

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        """Resize, and let the bitmaps follow."""
        _require_room(self, size)
        try:
            await self.recorded.resize(self, size, preallocation=preallocation, exact=exact)
        finally:
            _mark(self, 0, 0)


def _require_room(node: Node, end: int) -> None:
    """Raise OptionError before a node grows to where one of its bitmaps cannot follow."""
    for bitmap in node.bitmaps.values():
        if end > bitmap.size:
            bitmap.require_room(end)


def _mark(node: Node, offset: int, length: int) -> None:
    """Mark a change; the node may have lost its bitmaps, and its class, while it was made."""
    size = node.size
    for bitmap in node.bitmaps.values():
        if bitmap.size != size:  # files grow by writes as well
            bitmap.resize(size)
        bitmap.mark(offset, length)


async def add_bitmap(
    graph: Graph,
    node: Node,
    name: str,
    *,
    granularity: int | None = None,
    enabled: bool = True,
    persistent: bool = False,
) -> DirtyBitmap:
    """Give a node a new bitmap, without marks; its image keeps one that is `persistent`.

    Raises:
        OptionError: The name or the granularity cannot be.
        GraphError: The node has a bitmap of that name, or its image cannot keep it.

    Concurrency: waits for the requests in flight, which would end without a mark.
    """
    async with graph.drained(node):
        if granularity is None:
            granularity = granularity_for(node.allocation_unit)
        bitmap = DirtyBitmap(name, node.size, granularity, enabled=enabled)
        bitmap.persistent = persistent
        if persistent and name not in node.bitmaps:
            node.require_storable(name, granularity)
        put_bitmap(node, bitmap)
    return bitmap


def put_bitmap(node: Node, bitmap: DirtyBitmap) -> None:
    """Let a node have a bitmap; nothing may be in flight on the node.

    Raises:
        GraphError: It has one of that name.
    """
    if bitmap.name in node.bitmaps:
        raise GraphError(f"Bitmap already exists: {bitmap.name}")
    add_extra(node, Recording)
    node.bitmaps[bitmap.name] = bitmap


def find_bitmap(node: Node, name: str) -> DirtyBitmap:
    """Return a node's bitmap of that name.

    Raises:
        GraphError: There is none.
    """
    try:
        return node.bitmaps[name]
    except KeyError:
        raise GraphError(f"Dirty bitmap '{name}' not found") from None


def find_below(node: Node, name: str) -> DirtyBitmap:
    """Return the bitmap of that name of a node, or of what it decorates or is stored in, for a look at it.

    Raises:
        GraphError: There is none, or it is inconsistent.
    """
    below: Node | None = node
    while below is not None:
        if name in below.bitmaps:
            found = below.bitmaps[name]
            found.require_consistent()
            return found
        below = below.below
    raise GraphError(f"Bitmap '{name}' is not found")


def require_changeable(node: Node, bitmap: DirtyBitmap) -> None:
    """Raise GraphError when somebody holds a bitmap, or its image keeps it as it is."""
    bitmap.require_free()
    if bitmap.persistent and node.read_only:
        raise GraphError(f"Bitmap '{bitmap.name}' is readonly and cannot be modified")


def remove_bitmap(node: Node, name: str) -> DirtyBitmap:
    """Take a bitmap from a node and return it, for whoever may have to put it back.

    Raises:
        GraphError: There is none of that name, or somebody holds it.
    """
    bitmap = find_bitmap(node, name)
    bitmap.require_free()
    del node.bitmaps[name]
    if not node.bitmaps:
        remove_extra(node, Recording)
    return bitmap
