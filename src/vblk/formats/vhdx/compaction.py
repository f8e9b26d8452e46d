"""What a block or a sector bitmap can do without: planning to make an image smaller.

Owns: which space is given back without changing what a guest reads, and what
moving a block or a bitmap means for its entry. Where things move is decided in
`vblk.formats.vhdx.packing`.

    state now            what the block holds            what it becomes
    FULLY_PRESENT        zeros alone                     ZERO: hides the parent, as before
    PARTIALLY_PRESENT    none of its sectors             NOT_PRESENT: the parent's, as before
    PARTIALLY_PRESENT    all of its sectors              FULLY_PRESENT, or ZERO if they are zeros
    any other            a place that it holds on to     the same state, without a place
    a sector bitmap      no partially present block      not present

Ordering rule: a plan is made and carried out while nobody else changes the
blocks that it is about. The bytes of what moves are in their new place, durably,
before the entry says so; the old place is free when the entry is durable.

Source: [MS-VHDX] "Payload BAT Entry States", "Sector Bitmap BAT Entry States".
"""

import sys
from array import array
from collections.abc import Iterator

from vblk.codec.bits import bit_runs
from vblk.formats.space import Place
from vblk.formats.vhdx.bat import BITMAP_PRESENT, Geometry, State
from vblk.formats.vhdx.layout import (
    BAT_ENTRIES_PER_PAGE,
    BAT_OFFSET_MASK,
    BAT_STATE_MASK,
    PAGE_SIZE,
    SECTOR_BITMAP_SIZE,
)
from vblk.formats.vhdx.planner import Answer, Blocks, Planner, bit_pages, block_bits
from vblk.units import MIB


def entries_with_places(first_index: int, raw: bytes) -> Iterator[tuple[int, int]]:
    """Yield (index, entry) of the BAT entries in `raw` that name a place in the file."""
    entries = array("Q", raw)
    if sys.byteorder == "big":
        entries.byteswap()
    for index, entry in enumerate(entries, first_index):
        if entry >= MIB:
            yield index, entry


def block_of(geometry: Geometry, index: int) -> int | None:
    """Return the block whose entry has this index; None if it is not one of the disk's blocks."""
    chunk, within = divmod(index, geometry.chunk_ratio + 1)
    block = index - chunk
    return block if within < geometry.chunk_ratio and block < geometry.payload_blocks else None


def chunk_of(geometry: Geometry, index: int) -> int | None:
    """Return the chunk whose sector bitmap has this entry; None if it is not one that counts."""
    chunk, within = divmod(index, geometry.chunk_ratio + 1)
    is_bitmap = geometry.differencing and within == geometry.chunk_ratio
    return chunk if is_bitmap and chunk < geometry.bitmap_blocks else None


class CompactionPlanner(Planner):
    """Plans for one block, or for the sector bitmap of the chunk that begins with it."""

    def __init__(self, blocks: Blocks, block: int) -> None:
        start = block << blocks.geometry.block_shift
        super().__init__(blocks, start, start + 1)

    def give_back(self, zeros_at: int | None) -> Answer:
        """Plan to give back what the block does not need.

        `zeros_at` is a place in the file that was found to hold zeros alone: it
        counts if the block is still there.
        """

        def visit(block: int, _low: int, _high: int) -> None:
            index = self._geometry.payload_index(block)
            state, place = self._state(block)
            if state == State.PARTIALLY_PRESENT:
                bits = self._bits_of(block)
                if bits == {False}:
                    self._release(index, State.NOT_PRESENT, place)
                elif bits == {True} and place == zeros_at:
                    self._release(index, State.ZERO, place)
                elif bits == {True}:
                    self._put(index, place | State.FULLY_PRESENT)
            elif state == State.FULLY_PRESENT:
                if place == zeros_at:
                    self._release(index, State.ZERO, place)
            elif place:
                self._put(index, state)
                if self._writer.holds_anchor(place):
                    self._plan.released.append((place, self._geometry.block_size))

        return self.run(visit)

    def give_back_bitmap(self) -> Answer:
        """Plan to give a chunk's sector bitmap back, if none of its blocks is partially present."""

        def visit(block: int, _low: int, _high: int) -> None:
            index = self._geometry.bitmap_index(block >> self._geometry.chunk_shift)
            entry = self._entry(index)
            if entry & BAT_STATE_MASK == BITMAP_PRESENT and not self._has_partial_block(block):
                self._put(index, 0)
                self._plan.released.append((entry & BAT_OFFSET_MASK, SECTOR_BITMAP_SIZE))

        return self.run(visit)

    def move(self, source: int, target: Place) -> Answer:
        """Plan to move the block from `source` to `target`; an empty plan: it is not there any more."""

        def visit(block: int, _low: int, _high: int) -> None:
            state, place = self._state(block)
            if place == source and state >= State.FULLY_PRESENT:
                self._move(self._geometry.payload_index(block), source, target)

        return self.run(visit)

    def move_bitmap(self, source: int, target: Place) -> Answer:
        """Plan to move the chunk's sector bitmap."""

        def visit(block: int, _low: int, _high: int) -> None:
            index = self._geometry.bitmap_index(block >> self._geometry.chunk_shift)
            if self._entry(index) == source | BITMAP_PRESENT:
                self._move(index, source, target)

        return self.run(visit)

    def _release(self, index: int, state: State, place: int) -> None:
        self._put(index, state)
        self._plan.released.append((place, self._geometry.block_size))

    def _move(self, index: int, source: int, target: Place) -> None:
        self._put(index, target.file_offset | self._entry(index) & BAT_STATE_MASK)
        self._plan.released.append((source, target.length))
        self._plan.places.append(target)
        self._plan.barrier = True

    def _bits_of(self, block: int) -> set[bool]:
        """Return what the bits of the block's sectors are; nothing where pages are missing."""
        geometry = self._geometry
        first, _ = block_bits(geometry, block)
        sectors = geometry.bytes_of_block(block) >> geometry.sector_shift
        pieces = list(bit_pages(self._bitmap_offset(block), first, sectors))
        if not self._all_loaded({at for at, _, _ in pieces}):
            return set()
        return {bit for at, low, count in pieces for bit, _ in bit_runs(self._page(at), low, count)}

    def _has_partial_block(self, first: int) -> bool:
        geometry = self._geometry
        last = min(first + geometry.chunk_ratio, geometry.payload_blocks) - 1
        self._require_bat(first, last)
        low = geometry.entry_offset(geometry.payload_index(first))
        high = geometry.entry_offset(geometry.payload_index(last) + 1)
        for at in range(low & -PAGE_SIZE, high, PAGE_SIZE):
            within = slice(max(low - at, 0), min(high - at, PAGE_SIZE), PAGE_SIZE // BAT_ENTRIES_PER_PAGE)
            if State.PARTIALLY_PRESENT in self._page(at)[within]:
                return True
        return False
