"""Planning another size of the disk.

Owns: what growing and shrinking mean for blocks, BAT entries, and the metadata
item that says the size. It does no I/O and changes no geometry: the shell does,
between two of these plans, while nobody else uses the disk.

Ordering rules:
- What a growing disk will newly show is made zeros first, durably: the rest of
  the old last block, and BAT entries behind the old last one. All edits and the
  new size are then one batch.
- A shrinking disk gets its new size first, or in the same batch; then entries
  behind its end are cleared and their space released.

Source: [MS-VHDX] "BAT", "Virtual Disk Size".
"""

from collections.abc import Iterator

from vblk.formats.edits import EditedPages, Range
from vblk.formats.vhdx.bat import BITMAP_PRESENT, Geometry, State
from vblk.formats.vhdx.layout import (
    BAT_ENTRIES_PER_PAGE,
    BAT_ENTRY_SIZE,
    BAT_OFFSET_MASK,
    BAT_STATE_MASK,
    PAGE_SIZE,
    SECTOR_BITMAP_SIZE,
)
from vblk.formats.vhdx.plan import Plan
from vblk.formats.vhdx.planner import Answer, Blocks, Planner

_ZERO_PAGE = bytes(PAGE_SIZE)


class GrowthPlanner(Planner):
    """Plans what a growing disk shows between its old and a new end.

    Args:
        blocks: As it will be: with the new geometry.
        old: The geometry before.
        size: Where the disk ends after this step, at most its new size.
        parent_size: Bytes of the parent's disk, 0 without one: what of it lies
            behind the old end must stay hidden.
    """

    def __init__(self, blocks: Blocks, old: Geometry, size: int, parent_size: int) -> None:
        end = size if blocks.fixed else min(size, max(old.payload_blocks << old.block_shift, parent_size))
        super().__init__(blocks, old.virtual_size, end)
        self._old = old
        self._fixed = blocks.fixed
        self._parent_size = parent_size

    def plan(self) -> Answer:
        """Return the plan; it is empty where no block is concerned."""
        return self.run(self.grow_block) if self._start < self._end else Plan()

    def grow_block(self, block: int, low: int, high: int) -> None:
        """Let a block, or the rest of the old last one, read as zeros."""
        if block >= self._old.payload_blocks:
            if self._fixed:
                start = block << self._geometry.block_shift
                self._allocate(block, start, start, State.NOT_PRESENT, 0)
            else:
                self._put(self._geometry.payload_index(block), State.ZERO)
            return
        state, place = self._state(block)
        if state == State.FULLY_PRESENT:
            start = block << self._geometry.block_shift
            self._plan.zeros.append((place + low - start, self._geometry.block_size - (low - start)))
            self._plan.barrier = True
        elif state == State.PARTIALLY_PRESENT or self._parent_size > low:
            self.zero_block(block, low, high)


def new_entries(old: Geometry, new: Geometry) -> Iterator[tuple[int, int]]:
    """Yield (first, count) of BAT entries that mean nothing before and something after a growth."""
    first = old.payload_index(old.payload_blocks)
    kept = old.bitmap_index(old.bitmap_blocks - 1) if new.differencing else -1
    if first <= kept < new.entries:
        yield first, kept - first
        first = kept + 1
    if first < new.entries:
        yield first, new.entries - first


def lost_entries(old: Geometry, new: Geometry) -> Iterator[tuple[int, int]]:
    """Yield (first, count) of BAT entries that mean something before and nothing after a shrinking."""
    return new_entries(new, old)


def pages_of(geometry: Geometry, first: int, count: int) -> range:
    """Return the file offsets of the BAT pages of a run of entries."""
    start = geometry.entry_offset(first) & -PAGE_SIZE
    return range(start, geometry.entry_offset(first + count), PAGE_SIZE)


def clear_entries(edits: EditedPages, geometry: Geometry, at: int, first: int, count: int) -> list[Range]:
    """Clear those of a run of BAT entries that lie in the page at `at`, and return what they owned.

    The page is in memory. It is not edited where it holds nothing but zeros.
    """
    page = edits.store.get(at)
    assert page is not None, "the page was loaded"
    base = (at - geometry.bat_offset) // BAT_ENTRY_SIZE
    low, high = max(first, base), min(first + count, base + BAT_ENTRIES_PER_PAGE)
    start, end = (low - base) * BAT_ENTRY_SIZE, (high - base) * BAT_ENTRY_SIZE
    if page[start:end] == _ZERO_PAGE[: end - start]:
        return []
    released: list[Range] = []
    for index in range(low, high):
        within = (index - base) * BAT_ENTRY_SIZE
        entry = int.from_bytes(page[within : within + BAT_ENTRY_SIZE], "little")
        owned = _owned(geometry, index, entry)
        if owned is not None:
            released.append(owned)
    edits.edit(at, page[:start] + bytes(end - start) + page[end:])
    return released


def _owned(geometry: Geometry, index: int, entry: int) -> Range | None:
    """Return the space of a sound entry."""
    state, place = entry & BAT_STATE_MASK, entry & BAT_OFFSET_MASK
    if index % (geometry.chunk_ratio + 1) == geometry.chunk_ratio:
        present = geometry.differencing and state == BITMAP_PRESENT
        return (place, SECTOR_BITMAP_SIZE) if present else None
    return (place, geometry.block_size) if state >= State.FULLY_PRESENT else None


def edit_bytes(edits: EditedPages, file_offset: int, data: bytes) -> None:
    """Replace bytes of metadata whose pages are in memory."""
    for at in pages_under(file_offset, len(data)):
        page = edits.store.get(at)
        assert page is not None, "the page was loaded"
        low, high = max(file_offset, at), min(file_offset + len(data), at + PAGE_SIZE)
        piece = data[low - file_offset : high - file_offset]
        edits.edit(at, page[: low - at] + piece + page[high - at :])


def pages_under(file_offset: int, length: int) -> range:
    """Return the offsets of the pages that a range of the file touches."""
    return range(file_offset & -PAGE_SIZE, file_offset + length, PAGE_SIZE)
