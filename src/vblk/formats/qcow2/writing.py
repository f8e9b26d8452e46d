"""Planning changes of the disk, and the end of every plan: tables edited in memory.

Owns: the questions `plan_write`, `plan_zero`, `plan_discard` and those about
tables, `commit` and `abort`, and which rank a page has in the order of writes.
It must not wait, read or write: what it lacks it names.

Ordering rule: tables are edited only after the bytes behind them were written.
Pages become durable rank by rank, each before the next: what is named before who
names it. So a crash leaves at worst space that is counted and not used.

    COUNTS       refcount blocks: space is counted before it is named
    COUNT_TABLE  the refcount table
    TABLES       L2 tables, and new L1 and refcount tables
    ROOT         the L1 table

Counts go down only when what named the space is durably gone.

Source: docs/interop/qcow2.txt, "Host cluster management", "Cluster mapping".
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from vblk.formats.edits import EditedPages, PageEditor, PageStore, Range
from vblk.formats.qcow2.counts import count_max, get_count, set_count
from vblk.formats.qcow2.image import Qcow2Image
from vblk.formats.qcow2.layout import COMPRESSED, COPIED, ENTRY_SIZE, OFFSET_MASK, ZERO
from vblk.formats.qcow2.plan import Plan
from vblk.formats.qcow2.planner import Answer, Planner
from vblk.formats.qcow2.tables import entry_at, entry_offset
from vblk.formats.space import Space


class Rank(enum.IntEnum):
    """When a page is written."""

    COUNTS = 0
    COUNT_TABLE = 1
    TABLES = 2
    ROOT = 3


class ClusterWriter:
    """The planner of one image.

    Args:
        image: The image; its tables may be changed.
        edits: The pages of its tables.
        space: The free space.
        blocks: File offsets of all refcount blocks, by their index.
        backed_end: The end of what a backing file may have to say, in guest bytes; 0 without one.

    Guest ranges have at least one byte, end inside the disk, and may have any
    alignment. Concurrency: every method runs to completion. A plan is good for
    as long as its clusters' gate is held.
    """

    def __init__(
        self, image: Qcow2Image, edits: EditedPages, space: Space, blocks: Mapping[int, int], backed_end: int
    ) -> None:
        self.image = image
        self.edits = edits
        self.space = space
        self.backed_end = backed_end
        self.blocks = dict(blocks)
        self._block_places = set(blocks.values())

    @property
    def store(self) -> PageStore:
        """The pages in memory."""
        return self.edits.store

    def needs_gate(self, guest_offset: int) -> bool:
        """Guess whether a write at `guest_offset` will change a table."""
        geometry = self.image.geometry
        index, within = divmod(guest_offset, geometry.table_span)
        root = entry_at(self.store, geometry, entry_offset(self.image.header.l1_table_offset, index))
        table = (root or 0) & OFFSET_MASK
        if not table:
            return True
        entry = entry_at(self.store, geometry, entry_offset(table, within >> geometry.cluster_bits))
        return entry is None or not entry & COPIED or bool(entry & (COMPRESSED | ZERO))

    def plan_write(self, guest_offset: int, length: int) -> Answer:
        """Plan where `length` bytes go that a caller will bring.

        Raises:
            CorruptImage: An entry of the range cannot be right.
        """
        planner = Planner(self, guest_offset, guest_offset + length)
        return planner.over_clusters(planner.write, needs_tables=True)

    def plan_compressed(self, guest_offset: int, layout: Sequence[Range]) -> Answer:
        """Plan where compressed clusters go, all in one piece of space, which the caller fills.

        `layout` says of each, in the disk's order, where in that piece it begins, and its length in bytes.
        """
        end = min(guest_offset + len(layout) * self.image.geometry.cluster_size, self.image.geometry.size)
        return Planner(self, guest_offset, end).compressed(layout)

    def plan_zero(self, guest_offset: int, length: int, *, unmap: bool) -> Answer:
        """Plan to make a range read as zeros; with `unmap` whole clusters lose their space."""
        planner = Planner(self, guest_offset, guest_offset + length)
        needs_tables = self.image.has_zero_clusters or bool(self.backed_end)
        return planner.over_clusters(planner.unmap if unmap else planner.zero, needs_tables=needs_tables)

    def plan_discard(self, guest_offset: int, length: int) -> Answer:
        """Plan to forget a range: whole clusters read as zeros and lose their space, others stay."""
        planner = Planner(self, guest_offset, guest_offset + length)
        needs_tables = self.image.has_zero_clusters and bool(self.backed_end)
        return planner.over_clusters(planner.discard, needs_tables=needs_tables)

    def plan_forget(self, guest_offset: int, length: int) -> Answer:
        """Plan to let go of all whole clusters of a range that the disk has not, or does not have yet."""
        planner = Planner(self, guest_offset, guest_offset + length)
        return planner.over_clusters(planner.forget, needs_tables=False)

    def plan_empty(self, guest_offset: int, length: int) -> Answer:
        """Plan to let go of everything that a range of whole clusters has, so that the backing file shows."""
        planner = Planner(self, guest_offset, guest_offset + length)
        return planner.over_clusters(planner.empty, needs_tables=False)

    def plan_table(self, index: int) -> Answer:
        """Plan the L2 table of an L1 entry."""
        return Planner(self).new_table(index)

    def plan_counts(self, index: int) -> Answer:
        """Plan the refcount block of a refcount table entry."""
        return Planner(self).new_counts(index)

    def plan_space(self, length: int) -> Answer:
        """Plan to take space in one piece: who commits it has to name it."""
        return Planner(self).some_space(length)

    def rank(self, page: int) -> Rank:
        """Return the rank of a page."""
        header, geometry = self.image.header, self.image.geometry
        if page & -geometry.cluster_size in self._block_places:
            return Rank.COUNTS
        table_size = header.refcount_table_clusters * geometry.cluster_size
        if 0 <= page - header.refcount_table_offset < table_size:
            return Rank.COUNT_TABLE
        if 0 <= page - header.l1_table_offset < header.l1_size * ENTRY_SIZE:
            return Rank.ROOT
        return Rank.TABLES

    def add_block(self, index: int, block: int) -> None:
        """Take note of a new refcount block."""
        self.blocks[index] = block
        self._block_places.add(block)

    def commit(self, plan: Plan) -> None:
        """Edit the tables: the plan's bytes are written, if not yet durable."""
        geometry = self.image.geometry
        pages = PageEditor(self.edits)
        for place in plan.places:
            for cluster in geometry.clusters_of(place.file_offset, place.length):
                references = plan.references.get(cluster, 1)
                self._change_count(pages, cluster, partial(_first_references, references))
        for at, data in plan.tables.items():
            self.edits.store.drop(at)  # what stood here once is not this table
            self.edits.edit(at, data)
        for index, place in plan.counted.items():
            self.add_block(index, place.file_offset)
        for where, entry in plan.entries.items():
            within = where & (geometry.page_size - 1)
            pages.at(where - within)[within : within + ENTRY_SIZE] = entry.to_bytes(ENTRY_SIZE, "big")
        pages.finish()
        self.edits.require(barrier=False, released=plan.released)
        self._unpin(plan)

    def abort(self, plan: Plan, *, touched: bool) -> None:
        """Give everything back. With `touched` bytes may have been written to the plan's space."""
        for place in (*plan.places, *plan.counted.values()):
            if touched:
                self.space.free(place.file_offset, place.length)
            else:
                self.space.put_back(place)
        self._unpin(plan)

    def count_page(self, cluster: int) -> int | None:
        """Return the page with the count of a cluster; None: it is counted nowhere."""
        geometry = self.image.geometry
        index, within = divmod(cluster >> geometry.cluster_bits, geometry.counts_per_block)
        block = self.blocks.get(index)
        if block is None:
            return None
        return block + ((within << geometry.refcount_order >> 3) & -geometry.page_size)

    def drop_reference(self, cluster: int) -> bool:
        """Count one reference less on a cluster whose count page is in memory; true: none is left."""
        pages = PageEditor(self.edits)
        left = self._change_count(pages, cluster, lambda count: count - 1)
        pages.finish()
        return left == 0

    def _change_count(self, pages: PageEditor, cluster: int, change: Callable[[int], int]) -> int:
        """Change a count in the page, if it is counted anywhere, and return it."""
        page_offset = self.count_page(cluster)
        if page_offset is None:
            return change(0)
        geometry = self.image.geometry
        order = geometry.refcount_order
        index = (cluster >> geometry.cluster_bits) % (geometry.page_size * 8 >> order)
        page = pages.at(page_offset)
        count = change(get_count(page, order, index))
        set_count(page, order, index, max(0, min(count, count_max(order))))
        return count

    def _unpin(self, plan: Plan) -> None:
        for at in plan.pages:
            self.edits.store.unpin(at)
        plan.pages = set()


def _first_references(references: int, count: int) -> int:
    assert count == 0, "space that is free has no references"
    return references
