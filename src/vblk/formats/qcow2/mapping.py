"""From a range of the disk to extents: the walk through L1 and L2 tables.

Owns: `ClusterMap.lookup` and `locate`. Tables are read page by page as they are
needed; L1 pages first, then L2 pages, so a lookup asks at most twice. It edits
nothing.

An entry that names a cluster beyond the file's end is refused, for what was
there is lost; the part of a cluster behind the end of a file that was not
filled up reads as zeros.

Source: docs/interop/qcow2.txt, "Cluster mapping".
"""

import struct

from vblk.errors import CorruptImage, Reason
from vblk.extent import Extent, Kind, Missing, append_extent
from vblk.formats.qcow2.header import Header
from vblk.formats.qcow2.layout import COMPRESSED, ENTRY_SIZE, OFFSET_MASK, ZERO
from vblk.formats.qcow2.tables import Pages, entry_at, entry_offset, missing, require_aligned, table_offset
from vblk.units import FileOffset, GuestOffset

PAGES_AT_ONCE = 256
"""The most pages of L2 tables that one lookup needs."""


class ClusterMap:
    """The map of one image."""

    def __init__(self, header: Header, filename: str) -> None:
        self._geometry = geometry = header.geometry
        self._l1 = header.l1_table_offset
        self._version = header.version
        self._filename = filename
        self._page_bytes = geometry.page_size // ENTRY_SIZE * geometry.cluster_size
        self.lookup_step = PAGES_AT_ONCE * self._page_bytes
        """The most guest bytes that one lookup should cover."""

    def l2_entry(self, guest_offset: int, pages: Pages) -> int | None:
        """Return the L2 entry of a cluster (0 without a table), or None: not in memory."""
        geometry = self._geometry
        index, within = divmod(guest_offset, geometry.table_span)
        root = entry_at(pages, geometry, entry_offset(self._l1, index))
        if root is None:
            return None
        table = table_offset(geometry, root, index, self._filename)
        if not table:
            return 0
        return entry_at(pages, geometry, entry_offset(table, within >> geometry.cluster_bits))

    def locate(self, offset: int, length: int, pages: Pages, file_size: int) -> int | None:
        """Return the file offset of a range inside one plain cluster, or None: use `lookup`."""
        geometry = self._geometry
        within = offset & (geometry.cluster_size - 1)
        if within + length > geometry.cluster_size:
            return None
        entry = self.l2_entry(offset, pages)
        if not entry or entry & (COMPRESSED | ZERO):
            return None
        start = entry & OFFSET_MASK
        if not start or start & (geometry.cluster_size - 1) or start + within + length > file_size:
            return None
        return start + within

    def lookup(self, offset: int, length: int, pages: Pages, file_size: int) -> list[Extent] | Missing:
        """Translate a guest range.

        Args:
            offset: Guest offset in bytes.
            length: > 0; the range lies within the disk.
            pages: The pages in memory.
            file_size: Length of the file in bytes.

        Returns: gapless extents, or the pages that are missing.

        Raises:
            CorruptImage: An entry of the range cannot be right.
        """
        geometry = self._geometry
        end = offset + length
        lacking: list[int] = []
        extents: list[Extent] = []
        at = offset
        while at < end:
            index, within = divmod(at, geometry.table_span)
            stop = min(end, at - within + geometry.table_span)
            where = entry_offset(self._l1, index)
            root = entry_at(pages, geometry, where)
            if root is None:
                lacking.append(where & -geometry.page_size)
                at = stop
                continue
            table = table_offset(geometry, root, index, self._filename)
            if not table:
                append_extent(extents, Extent(Kind.ABSENT, GuestOffset(at), stop - at))
                at = stop
                continue
            if table >= file_size:
                raise CorruptImage(
                    Reason.OUT_OF_FILE,
                    f"the L2 table at {table:#x} lies beyond the end of the file",
                    filename=self._filename,
                    offset=where,
                )
            while at < stop:
                piece = min(stop, at - at % self._page_bytes + self._page_bytes)
                first = entry_offset(table, at % geometry.table_span >> geometry.cluster_bits)
                page = pages.get(first & -geometry.page_size)
                if page is None:
                    lacking.append(first & -geometry.page_size)
                elif not lacking:
                    self._add_page(extents, at, piece, page, first, table, file_size)
                at = piece
        return missing(geometry, lacking) if lacking else extents

    def _add_page(
        self, extents: list[Extent], at: int, end: int, page: bytes, first: int, table: int, file_size: int
    ) -> None:
        """Add the extents of the clusters from `at` to `end`, whose entries begin at file offset `first`."""
        bits, size = self._geometry.cluster_bits, self._geometry.cluster_size
        count = (end - 1 >> bits) - (at >> bits) + 1
        within = first & (self._geometry.page_size - 1)
        data = page[within : within + count * ENTRY_SIZE]
        if data == data[:ENTRY_SIZE] * count:
            words: tuple[int, ...] = struct.unpack(">Q", data[:ENTRY_SIZE])
            if not words[0] & COMPRESSED and (words[0] & ZERO or not words[0] & OFFSET_MASK):
                self._add(extents, at, end, words[0], table, first - table >> 3, file_size)
                return
        words = struct.unpack(f">{count}Q", data)
        in_order = words == tuple(range(words[0], words[0] + count * size, size))
        if in_order and not words[0] & (COMPRESSED | ZERO) and (words[-1] & OFFSET_MASK) + size <= file_size:
            self._add(extents, at, end, words[0], table, first - table >> 3, file_size)
            return
        index = first - table >> 3
        for number, word in enumerate(words):
            stop = min(end, (at >> bits) + 1 << bits)
            self._add(extents, at, stop, word, table, index + number, file_size)
            at = stop

    def _add(
        self, extents: list[Extent], at: int, end: int, entry: int, table: int, index: int, file_size: int
    ) -> None:
        """Add what an entry says of `at` to `end`, which it alone maps, or clusters in order after it."""
        geometry = self._geometry
        guest, length = GuestOffset(at), end - at
        if entry & COMPRESSED:
            place, _ = geometry.compressed(entry)
            if place >= file_size:
                raise self._beyond(place, table, index)
            extents.append(Extent(Kind.ENCODED, guest, length, FileOffset(place)))
            return
        if entry & ZERO:
            if self._version < 3:
                raise CorruptImage(
                    Reason.BAD_VALUE,
                    f"Zero cluster entry found in pre-v3 image (L2 offset: {table:#x}, L2 index: {index:#x})",
                    filename=self._filename,
                    offset=entry_offset(table, index),
                )
            append_extent(extents, Extent(Kind.ZERO, guest, length))
            return
        place = require_aligned(geometry, entry, table, index, self._filename)
        if not place:
            append_extent(extents, Extent(Kind.ABSENT, guest, length))
            return
        if place >= file_size:
            raise self._beyond(place, table, index)
        start = place + (at & (geometry.cluster_size - 1))
        present = max(0, min(length, file_size - start))
        if present:
            append_extent(extents, Extent(Kind.DATA, guest, present, FileOffset(start)))
        if present < length:
            append_extent(extents, Extent(Kind.ZERO, GuestOffset(at + present), length - present))

    def _beyond(self, place: int, table: int, index: int) -> CorruptImage:
        return CorruptImage(
            Reason.OUT_OF_FILE,
            f"the cluster at {place:#x} lies beyond the end of the file "
            f"(L2 offset: {table:#x}, L2 index: {index:#x})",
            filename=self._filename,
            offset=entry_offset(table, index),
        )
