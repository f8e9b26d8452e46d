"""A disk as it was when a `copy-before-write` node began: QEMU's `snapshot-access`.

Owns: reading it. What was changed since is in that node's target, the rest is where
it was.

Ordering rule: a range that was not kept is held while it is read, so that its change
comes after the read; one that was kept needs no hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from vblk.errors import GraphError
from vblk.extent import Kind
from vblk.filters.copy_before_write import CopyBeforeWriteNode
from vblk.graph.edge import Edge, Role
from vblk.graph.node import Filter, Span, coalesce
from vblk.graph.site import Site
from vblk.graph.unwritable import Unwritable
from vblk.options import bind, check_children
from vblk.units import KIB

INLINE_MAX = 256 * KIB
"""The longest read that is tried on the loop's own thread."""


@dataclass(slots=True)
class Options:
    """There are none."""


class SnapshotAccessNode(Unwritable, Filter):
    """What a `copy-before-write` node keeps, as a disk for reading only."""

    driver: ClassVar[str] = "snapshot-access"

    def __init__(self, name: str, filename: str, *, file: CopyBeforeWriteNode) -> None:
        super().__init__(name, filename, read_only=True, file=file)
        self._cbw = file

    def child_changed(self, edge: Edge) -> None:
        """Go on with another such node.

        A graph leads this edge only from a filter to what it decorates, or back.
        """
        super().child_changed(edge)
        assert isinstance(edge.node, CopyBeforeWriteNode), "nothing else keeps old bytes"
        self._cbw = edge.node

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Read without waiting what is in one place that nobody is changing."""
        if length > INLINE_MAX or not self._cbw.old_is_still(offset, length):
            return None
        places = self._cbw.old_places(offset, length)
        return places[0][0].try_read(offset, length) if len(places) == 1 else None

    async def read(self, offset: int, length: int) -> bytes:
        """Read what was there."""
        buffer = bytearray(length)
        await self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with what was there."""
        if not len(buffer):
            return
        async with self._cbw.reading_old(offset, len(buffer)):
            for node, at, count in self._cbw.old_places(offset, len(buffer)):
                await node.read_into(at, buffer[at - offset : at - offset + count])
            self._cbw.require_old(
                offset, len(buffer)
            )  # it may have broken meanwhile, which holds nobody back

    async def resolve(self, offset: int, length: int) -> list[Span]:
        """Say what is zeros and how deep the rest is; the bytes are to be had here."""
        return await self._spans(offset, length, stored=False)

    async def allocation(self, offset: int, length: int) -> list[Span]:
        """As `resolve`, with the holes of the storage."""
        return await self._spans(offset, length, stored=True)

    async def _spans(self, offset: int, length: int, *, stored: bool) -> list[Span]:
        if not length:
            return []
        spans: list[Span] = []
        async with self._cbw.reading_old(offset, length):
            for node, at, count in self._cbw.old_places(offset, length):
                found = await (node.allocation if stored else node.resolve)(at, count)
                spans += [
                    span
                    if span.kind is Kind.ZERO
                    else replace(span, kind=Kind.DATA, leaf=self, leaf_offset=span.guest_offset)
                    for span in found
                ]
        return coalesce(spans)

    async def flush(self) -> None:
        """There is nothing to flush."""

    async def reopen(self, *, read_only: bool) -> None:
        """Stay for reading only.

        Raises:
            GraphError: On any other wish.
        """
        if not read_only:
            raise GraphError("a snapshot-access node is for reading only", filename=self.filename)

    def info(self) -> Mapping[str, Any]:
        """Nothing is special here."""
        return {}

    async def close(self) -> None:
        """There is nothing to release."""


async def open_node(site: Site) -> SnapshotAccessNode:
    """Open the node under the key `file`, which keeps old bytes, to show them.

    Raises:
        GraphError: It keeps none.
    """
    check_children(site.options, "snapshot-access", "file")
    bind(site.options.own, Options, "snapshot-access")
    file = await site.child()
    if not isinstance(file, CopyBeforeWriteNode):
        raise GraphError(f"Node '{file.name}' is no copy-before-write node")
    node = SnapshotAccessNode(site.name, site.filename, file=file)
    await site.take(node, file, "file", Role.ACCESSED)
    return node
