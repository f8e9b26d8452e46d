"""One plan being made: cluster by cluster, which space is taken, kept or lost.

Owns: the walk over a guest range, and what each kind of change means for a
cluster in each state. It edits nothing and does no I/O: what is not in memory it
asks for.

A cluster that this image alone uses (COPIED) is overwritten in place. Any other
(a snapshot's too, compressed, a backing file's) is copied: a new cluster gets
what is not written now, and the old one loses a reference.

Ordering rule: a plan that lacks something gives back what it took, and is made
anew from the start.

Source: docs/interop/qcow2.txt, "Cluster mapping", "Host cluster management".
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vblk.errors import CorruptImage, Reason
from vblk.extent import Missing
from vblk.formats.edits import Range
from vblk.formats.plan import Need, NeedsRoom, Piece
from vblk.formats.qcow2.counts import set_count
from vblk.formats.qcow2.image import Qcow2Image
from vblk.formats.qcow2.layout import (
    COMPRESSED,
    COPIED,
    COUNT_OFFSET_MASK,
    ENTRY_SIZE,
    OFFSET_MASK,
    ZERO,
    Geometry,
)
from vblk.formats.qcow2.plan import Plan
from vblk.formats.qcow2.tables import Pages, entry_at, entry_offset, missing, require_aligned, table_offset
from vblk.formats.space import Place, Space


@dataclass(frozen=True, slots=True)
class NeedsTable(Need):
    """The L2 table of an L1 entry must be made, or made this image's own, first."""

    index: int


@dataclass(frozen=True, slots=True)
class NeedsCounts(Need):
    """The refcount block of a refcount table entry must be made first."""

    index: int


@dataclass(frozen=True, slots=True)
class NeedsCountTable(Need):
    """The refcount table must reach as far as an entry first."""

    index: int


Lack = Missing | NeedsRoom | NeedsTable | NeedsCounts | NeedsCountTable
Answer = Plan | Lack


class _Incomplete(Exception):
    """A plan that lacks something; the answer says what."""

    def __init__(self, answer: Lack) -> None:
        self.answer = answer


class PinnedPages(Pages, Protocol):
    """Pages that can be kept in memory."""

    def pin(self, offset: int, /) -> None:
        """Keep the page in memory until `unpin`."""
        ...


class Clusters(Protocol):
    """What a planner works on: `vblk.formats.qcow2.writing.ClusterWriter`."""

    image: Qcow2Image
    space: Space
    backed_end: int
    blocks: dict[int, int]

    @property
    def store(self) -> PinnedPages:
        """The pages in memory."""
        ...

    def abort(self, plan: Plan, *, touched: bool) -> None:
        """Give back what a plan took."""
        ...


class Planner:
    """A plan for the guest range from `start` to `end`."""

    def __init__(self, writer: Clusters, start: int = 0, end: int = 0) -> None:
        self._writer = writer
        self._image = writer.image
        self._geometry: Geometry = writer.image.geometry
        self._pages = writer.store
        self._start = start
        self._end = end
        self._plan = Plan()
        self._lacking: set[int] = set()

    # The walk

    def over_clusters(self, visit: Callable[[int, int, int, int], None], *, needs_tables: bool) -> Answer:
        """Visit every cluster of the range: its start, what of it is in the range, its entry.

        Without `needs_tables` clusters without a table are left out.
        """
        return self._complete(lambda: self._walk(visit, needs_tables))

    def _walk(self, visit: Callable[[int, int, int, int], None], needs_tables: bool) -> None:
        geometry = self._geometry
        at = self._start
        while at < self._end:
            index, within = divmod(at, geometry.table_span)
            stop = min(self._end, at - within + geometry.table_span)
            table = self._own_table(index, needs_tables)
            while at < stop and table is not None:
                start = at & -geometry.cluster_size
                high = min(stop, start + geometry.cluster_size)
                where = entry_offset(table, start % geometry.table_span >> geometry.cluster_bits)
                entry = self._read(where)
                if entry is not None:
                    self._where = where
                    self._table = table
                    visit(start, at, high, entry)
                at = high
            at = stop

    def _own_table(self, index: int, needed: bool) -> int | None:
        """Return the L2 table of an L1 entry, which this image alone uses; None: nothing to visit."""
        root = self._read(entry_offset(self._image.header.l1_table_offset, index))
        if root is None:
            return None
        table = table_offset(self._geometry, root, index, self._image.filename)
        if table and root & COPIED:
            return table
        if not table and not needed:
            return None
        self._require_nothing_lacking()
        raise _Incomplete(NeedsTable(index))

    def _read(self, where: int) -> int | None:
        """Return a table entry, or note that its page is lacking."""
        entry = entry_at(self._pages, self._geometry, where)
        if entry is None:
            self._lacking.add(where & -self._geometry.page_size)
        return entry

    def _complete(self, make: Callable[[], None]) -> Answer:
        try:
            make()
            for place in self._plan.places:
                self._pin_counts(place)
            self._require_nothing_lacking()
        except _Incomplete as incomplete:
            self._writer.abort(self._plan, touched=False)
            return incomplete.answer
        except CorruptImage:
            self._writer.abort(self._plan, touched=False)
            raise
        return self._plan

    def _require_nothing_lacking(self) -> None:
        if self._lacking:
            raise _Incomplete(missing(self._geometry, self._lacking))

    # What happens to one cluster

    def write(self, start: int, low: int, high: int, entry: int) -> None:
        """Find or take the space of a range that will be written."""
        if entry & COPIED and not entry & (COMPRESSED | ZERO) and entry & OFFSET_MASK:
            self._plan.add_payload(low, high - low, self._place(entry) + low - start)
        else:
            taken = self._allocate(start, low, high, entry)
            self._plan.add_payload(low, high - low, taken.file_offset + low - start, is_stale=not taken.fresh)

    def compressed(self, layout: Sequence[Range]) -> Answer:
        """Map whole clusters to where they are compressed; see `ClusterWriter.plan_compressed`."""
        return self._complete(lambda: self._compress(layout))

    def _compress(self, layout: Sequence[Range]) -> None:
        geometry, references = self._geometry, self._plan.references
        base = self._take_only(sum(layout[-1])).file_offset
        for start, length in layout:
            for cluster in geometry.clusters_of(base + start, length):
                references[cluster] = references.get(cluster, 0) + 1
        first = self._start

        def visit(start: int, low: int, high: int, entry: int) -> None:
            at, length = layout[(start - first) // geometry.cluster_size]
            self._release(entry)
            self._put(geometry.compressed_entry(base + at, length))

        self._walk(visit, needs_tables=True)

    def zero(self, start: int, low: int, high: int, entry: int) -> None:
        """Zero a range whose space is kept, if it has its own."""
        if self._is_whole(start, low, high) and self._image.has_zero_clusters:
            if entry & ZERO and not entry & COMPRESSED:
                return
            if entry & COPIED and not entry & COMPRESSED and entry & OFFSET_MASK:
                self._put(self._place(entry) | COPIED | ZERO)
            else:
                self._release(entry)
                self._put(ZERO)
        else:
            self._zero_bytes(start, low, high, entry)

    def unmap(self, start: int, low: int, high: int, entry: int) -> None:
        """Zero a range; a whole cluster gives its space back."""
        if not self._is_whole(start, low, high):
            self._zero_bytes(start, low, high, entry)
        elif self._image.has_zero_clusters:
            self._become(ZERO, entry)
        elif not self._writer.backed_end:
            self._become(0, entry)
        else:
            self._zero_bytes(start, low, high, entry)

    def discard(self, start: int, low: int, high: int, entry: int) -> None:
        """Forget a range: whole clusters read as zeros then, others stay as they are."""
        backed = self._writer.backed_end
        if not self._is_whole(start, low, high) or (not entry and not backed):
            return
        if self._image.has_zero_clusters:
            self._become(ZERO, entry)
        elif not backed:
            self._become(0, entry)

    def forget(self, start: int, low: int, high: int, entry: int) -> None:
        """Let go of a whole cluster that has anything; it reads as zeros."""
        if entry and low == start:
            self._become(ZERO if self._image.has_zero_clusters else 0, entry)

    def empty(self, start: int, low: int, high: int, entry: int) -> None:
        """Let go of a cluster; what stands behind the image shows."""
        self._become(0, entry)

    def _become(self, wanted: int, entry: int) -> None:
        """Let a cluster be one without space, unless it is already."""
        if entry != wanted:
            self._release(entry)
            self._put(wanted)

    def _zero_bytes(self, start: int, low: int, high: int, entry: int) -> None:
        """Zero a range in space of the image's own, unless it reads as zeros already."""
        if not entry & COMPRESSED:
            if entry & ZERO or (not entry & OFFSET_MASK and low >= self._writer.backed_end):
                return
            if entry & COPIED and entry & OFFSET_MASK:
                self._plan.zeros.append((self._place(entry) + low - start, high - low))
                return
        taken = self._allocate(start, low, high, entry)
        if not taken.fresh:
            self._plan.zeros.append((taken.file_offset + low - start, high - low))

    def _is_whole(self, start: int, low: int, high: int) -> bool:
        return low == start and high >= min(start + self._geometry.cluster_size, self._geometry.size)

    def _place(self, entry: int) -> int:
        index = self._where - self._table >> 3
        return require_aligned(self._geometry, entry, self._table, index, self._image.filename)

    def _allocate(self, start: int, low: int, high: int, entry: int) -> Place:
        """Give a cluster space of its own; `low` to `high` will be written."""
        size = self._geometry.cluster_size
        if entry & ZERO and entry & COPIED and entry & OFFSET_MASK and not entry & COMPRESSED:
            place = Place(self._place(entry), size, fresh=False)
        else:
            place = self._take(size, self._end - start)
            self._release(entry)
        is_zero = not entry & COMPRESSED and (
            bool(entry & ZERO) or (not entry & OFFSET_MASK and start >= self._writer.backed_end)
        )
        for first, last in ((start, low), (high, start + size)):
            end = first if is_zero else max(first, min(last, self._geometry.size))
            if first < end:
                self._plan.copies.append(Piece(first, end - first, place.file_offset + first - start))
            if end < last and not place.fresh:
                self._plan.zeros.append((place.file_offset + end - start, last - end))
        self._put(place.file_offset | COPIED)
        return place

    def _put(self, entry: int) -> None:
        self._plan.entries[self._where] = entry
        self._plan.exclusive = True
        self._pin(self._where & -self._geometry.page_size)

    def _release(self, entry: int) -> None:
        """Take the references of an entry back."""
        if entry & COMPRESSED:
            for cluster in self._geometry.clusters_of(*self._geometry.compressed(entry)):
                self._plan.released.append((cluster, self._geometry.cluster_size))
        elif entry & OFFSET_MASK:
            self._plan.released.append((self._place(entry), self._geometry.cluster_size))

    # Space and counts

    def _take(self, length: int, wish: int = 0) -> Place:
        place = self._writer.space.try_take(length)
        if place is None:
            self._require_nothing_lacking()
            raise _Incomplete(NeedsRoom(length, self._writer.space.file_size, wish))
        self._plan.places.append(place)
        return place

    def _pin(self, page: int) -> None:
        if page not in self._plan.pages:
            self._pages.pin(page)
            self._plan.pages.add(page)

    def _pin_counts(self, place: Place) -> None:
        """Pin the pages with the counts of a place."""
        geometry = self._geometry
        for cluster in geometry.clusters_of(place.file_offset, place.length):
            index, within = divmod(cluster >> geometry.cluster_bits, geometry.counts_per_block)
            block = self._block(index)
            page = block + ((within << geometry.refcount_order >> 3) & -geometry.page_size)
            if page in self._plan.tables or page in self._plan.pages:
                continue
            if self._pages.get(page) is None:
                self._lacking.add(page)
            else:
                self._pin(page)

    def _block(self, index: int) -> int:
        """Return the refcount block with that index."""
        block = self._writer.blocks.get(index)
        if block is not None:
            return block
        self._require_nothing_lacking()
        if index >= self._image.header.refcount_table_clusters * self._geometry.table_entries:
            raise _Incomplete(NeedsCountTable(index))
        raise _Incomplete(NeedsCounts(index))

    # Tables

    def new_table(self, index: int) -> Answer:
        """Make the L2 table of an L1 entry, a copy where a snapshot has it too; nothing if it is there."""
        return self._complete(lambda: self._make_table(index))

    def _make_table(self, index: int) -> None:
        geometry = self._geometry
        where = entry_offset(self._image.header.l1_table_offset, index)
        root = self._read(where)
        if root is None:
            return
        old = table_offset(geometry, root, index, self._image.filename)
        if old and root & COPIED:
            return
        pages = [bytes(geometry.page_size)] * (geometry.cluster_size // geometry.page_size)
        if old:
            pages = self._shared_pages(old)
            self._plan.released.append((old, geometry.cluster_size))
        self._require_nothing_lacking()
        place = self._take(geometry.cluster_size)
        for number, page in enumerate(pages):
            self._plan.tables[place.file_offset + number * geometry.page_size] = page
        self._where = where
        self._put(place.file_offset | COPIED)

    def _shared_pages(self, table: int) -> list[bytes]:
        """Return the pages of a table that others use too, no cluster of which is this image's own."""
        pages: list[bytes] = []
        for at in range(table, table + self._geometry.cluster_size, self._geometry.page_size):
            page = self._pages.get(at)
            if page is None:
                self._lacking.add(at)
                continue
            words = struct.unpack(f">{len(page) // ENTRY_SIZE}Q", page)
            pages.append(struct.pack(f">{len(words)}Q", *(word & ~COPIED for word in words)))
        return pages

    def new_counts(self, index: int) -> Answer:
        """Make the refcount block of an entry, in the space that it counts; nothing if it is there."""
        return self._complete(lambda: self._make_counts(index))

    def _make_counts(self, index: int) -> None:
        geometry = self._geometry
        where = entry_offset(self._image.header.refcount_table_offset, index)
        entry = self._read(where)
        if entry is None or entry & COUNT_OFFSET_MASK:
            return
        span = geometry.counts_per_block << geometry.cluster_bits
        place = self._writer.space.try_take_within(index * span, (index + 1) * span, geometry.cluster_size)
        if place is None:
            raise CorruptImage(
                Reason.BAD_VALUE,
                f"no cluster counted by the missing refcount block {index} is free",
                filename=self._image.filename,
                offset=where,
            )
        # It is counted here, not by the commit, for its own pages are new.
        self._plan.tables |= new_block(geometry, place.file_offset, 1)
        self._plan.counted[index] = place
        self._where = where
        self._put(place.file_offset)

    def some_space(self, length: int) -> Answer:
        """Take space in one piece, for a table that the caller makes."""

        def make() -> None:
            self._take_only(length)

        return self._complete(make)

    def _take_only(self, length: int) -> Place:
        return self._take(-(-length // self._geometry.cluster_size) * self._geometry.cluster_size)


def new_block(geometry: Geometry, block: int, used: int) -> dict[int, bytes]:
    """Return the pages of a new refcount block at a file offset that counts itself and what follows.

    `used` clusters from the block on have one reference each, as far as it counts them.
    """
    data = bytearray(geometry.cluster_size)
    first = (block >> geometry.cluster_bits) % geometry.counts_per_block
    for index in range(first, min(first + used, geometry.counts_per_block)):
        set_count(data, geometry.refcount_order, index, 1)
    return {
        block + at: bytes(data[at : at + geometry.page_size])
        for at in range(0, geometry.cluster_size, geometry.page_size)
    }
