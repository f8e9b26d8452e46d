"""The tables of one image in memory, page by page: which page an entry is on, and what it says.

Owns: finding entries in pages that are in memory, and naming the pages that are
not. It must not read. Table pages are as long as a cluster, or 4 KiB, so no page
holds anything but one table.

Source: docs/interop/qcow2.txt, "Cluster mapping", "Host cluster management".
"""

import struct
from collections.abc import Iterable
from typing import Protocol

from vblk.codec.ranges import RangeSet
from vblk.errors import CorruptImage, Reason
from vblk.extent import Missing
from vblk.formats.qcow2.layout import ENTRY_SIZE, FILE_OFFSET_MAX, OFFSET_MASK, Geometry
from vblk.units import FileOffset

_ENTRY = struct.Struct(">Q")


class Pages(Protocol):
    """Pages of tables in memory, by their file offsets."""

    def get(self, offset: int, /) -> bytes | None:
        """Return the page, or None: not in memory."""
        ...


def entry_at(pages: Pages, geometry: Geometry, file_offset: int) -> int | None:
    """Return the 8-byte entry at a file offset, or None when its page is not in memory."""
    within = file_offset & (geometry.page_size - 1)
    page = pages.get(file_offset - within)
    return None if page is None else _ENTRY.unpack_from(page, within)[0]


def missing(geometry: Geometry, pages: Iterable[int]) -> Missing:
    """Name pages, given by their file offsets, as what must be loaded; neighbours are joined."""
    ranges = RangeSet()
    for at in pages:
        ranges.add(at, at + geometry.page_size)
    return Missing([(FileOffset(start), end - start) for start, end in ranges.ranges()])


def table_offset(geometry: Geometry, entry: int, index: int, filename: str) -> int:
    """Return where the L2 table is that an L1 entry names; 0: there is none.

    Raises:
        CorruptImage: It cannot be there.
    """
    offset = entry & OFFSET_MASK
    if offset & (geometry.cluster_size - 1):
        raise CorruptImage(
            Reason.BAD_VALUE,
            f"L2 table offset {offset:#x} unaligned (L1 index: {index:#x})",
            filename=filename,
        )
    return offset


def entry_offset(table: int, index: int) -> int:
    """Return the file offset of an entry of a table."""
    return table + index * ENTRY_SIZE


def require_aligned(geometry: Geometry, entry: int, table: int, index: int, filename: str) -> int:
    """Return the file offset of the cluster that a standard L2 entry names.

    Raises:
        CorruptImage: No cluster begins there.
    """
    offset = entry & OFFSET_MASK
    if offset & (geometry.cluster_size - 1) or offset >= FILE_OFFSET_MAX:
        raise CorruptImage(
            Reason.BAD_VALUE,
            f"Cluster allocation offset {offset:#x} unaligned (L2 offset: {table:#x}, L2 index: {index:#x})",
            filename=filename,
            offset=entry_offset(table, index),
        )
    return offset
