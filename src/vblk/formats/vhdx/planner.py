"""One plan being made: block by block, which space is taken, kept or lost.

Owns: the walk over a guest range, and what each kind of change means for a block
in each state. It edits nothing and does no I/O: what is not in memory it asks
for, all at once where it can.

Ordering rule: a plan that lacks something gives back what it took, and is made
anew from the start.

Source: [MS-VHDX] "Payload BAT Entry States", "Sector Bitmap Blocks".
"""

from collections.abc import Callable, Iterator
from typing import Protocol

from vblk.codec.bits import all_set
from vblk.codec.ranges import RangeSet
from vblk.errors import CorruptImage
from vblk.extent import Missing
from vblk.formats.edits import EditedPages
from vblk.formats.plan import NeedsRoom, Piece
from vblk.formats.space import Place
from vblk.formats.vhdx.bat import (
    BITMAP_PRESENT,
    Fault,
    Geometry,
    Placement,
    State,
    bitmap_fault,
    payload_fault,
)
from vblk.formats.vhdx.layout import (
    BAT_ENTRY_SIZE,
    BAT_OFFSET_MASK,
    BAT_STATE_MASK,
    CHUNK_SECTORS,
    PAGE_SIZE,
    SECTOR_BITMAP_SIZE,
)
from vblk.formats.vhdx.plan import NeedsBitmap, Plan, SectorRun
from vblk.formats.vhdx.space import Space
from vblk.units import FileOffset, align_down, align_up

Answer = Plan | Missing | NeedsRoom | NeedsBitmap

_PAGE_BITS = PAGE_SIZE * 8
_CHUNK_MASK = CHUNK_SECTORS - 1


class _Incomplete(Exception):
    """A plan that lacks something; the answer says what."""

    def __init__(self, answer: Missing | NeedsRoom | NeedsBitmap) -> None:
        self.answer = answer


class Blocks(Protocol):
    """What a planner works on: `vblk.formats.vhdx.writing.BlockWriter`."""

    geometry: Geometry
    placement: Placement
    edits: EditedPages
    space: Space
    fixed: bool

    def abort(self, plan: Plan, *, touched: bool) -> None:
        """Give back what a plan took."""
        ...

    def holds_anchor(self, file_offset: int) -> bool:
        """Tell whether a place belongs to the unmapped block that names it."""
        ...

    def require(self, fault: Fault | None, index: int) -> None:
        """Raise CorruptImage when a block is damaged."""
        ...


class Planner:
    """A plan for the guest range from `start` to `end`."""

    def __init__(self, writer: Blocks, start: int, end: int) -> None:
        self._writer = writer
        self._geometry = writer.geometry
        self._start = start
        self._end = end
        self._plan = Plan()
        self._missing = RangeSet()

    def run(self, visit: Callable[[int, int, int], None]) -> Answer:
        """Visit every block of the range with what of it is in the range."""
        geometry = self._geometry
        shift = geometry.block_shift
        try:
            self._require_bat(self._start >> shift, (self._end - 1) >> shift)
            for block in range(self._start >> shift, ((self._end - 1) >> shift) + 1):
                start = block << shift
                visit(block, max(start, self._start), min(start + geometry.block_size, self._end))
            self._require_nothing_missing()
        except _Incomplete as incomplete:
            self._writer.abort(self._plan, touched=False)
            return incomplete.answer
        except CorruptImage:
            self._writer.abort(self._plan, touched=False)
            raise
        return self._plan

    def write_block(self, block: int, low: int, high: int) -> None:
        """Find or take the space of a range that will be written."""
        state, place = self._state(block)
        is_stale = False
        if state == State.PARTIALLY_PRESENT:
            self._cover(block, low, high, place, fresh_block=False)
            is_stale = True
        elif state != State.FULLY_PRESENT:
            taken = self._allocate(block, low, high, state, place)
            place, is_stale = taken.file_offset, not taken.fresh
        within = low - (block << self._geometry.block_shift)
        self._plan.add_payload(low, high - low, place + within, is_stale=is_stale)

    def zero_block(self, block: int, low: int, high: int) -> None:
        """Zero a range whose space is kept."""
        state, place = self._state(block)
        within = low - (block << self._geometry.block_shift)
        if state == State.FULLY_PRESENT:
            self._plan.zeros.append((place + within, high - low))
        elif state == State.PARTIALLY_PRESENT and not self._is_whole(block, low, high):
            self._cover(block, low, high, place, fresh_block=False)
            self._plan.zeros.append((place + within, high - low))
        elif (
            state == State.NOT_PRESENT
            and self._geometry.differencing
            and not self._is_whole(block, low, high)
        ):
            taken = self._allocate(block, low, high, state, place)
            if not taken.fresh:
                self._plan.zeros.append((taken.file_offset + within, high - low))
        else:
            self._forget(block, state, place)

    def unmap_block(self, block: int, low: int, high: int) -> None:
        """Zero a range; a whole block gives its space back."""
        state, place = self._state(block)
        if state == State.FULLY_PRESENT and self._is_whole(block, low, high):
            self._forget(block, state, place)
        else:
            self.zero_block(block, low, high)

    def discard_block(self, block: int, low: int, high: int) -> None:
        """Forget a range; what is not a whole block is a hint for the host's file, no more."""
        state, place = self._state(block)
        if self._is_whole(block, low, high):
            if state not in (State.UNDEFINED, State.UNMAPPED):
                self._forget(block, state, place)
        elif state == State.FULLY_PRESENT:
            within = low - (block << self._geometry.block_shift)
            self._plan.holes.append((place + within, high - low))

    def make_bitmap(self, block: int, _low: int, _high: int) -> None:
        """Take the space of a chunk's sector bitmap, unless it has one by now."""
        geometry = self._geometry
        index = geometry.bitmap_index(block >> geometry.chunk_shift)
        if self._entry(index) & BAT_STATE_MASK == BITMAP_PRESENT:
            return
        place = self._take(SECTOR_BITMAP_SIZE)
        if not place.fresh:
            self._plan.zeros.append((place.file_offset, place.length))
            self._plan.barrier = True
        for at in range(place.file_offset, place.file_offset + place.length, PAGE_SIZE):
            self._writer.edits.store.drop(at)  # what stood here once is not this bitmap
        self._put(index, place.file_offset | BITMAP_PRESENT)

    def _is_whole(self, block: int, low: int, high: int) -> bool:
        start = block << self._geometry.block_shift
        return low == start and high - low == self._geometry.bytes_of_block(block)

    def _state(self, block: int) -> tuple[int, int]:
        """Return state and file offset of a sound block."""
        index = self._geometry.payload_index(block)
        entry = self._entry(index)
        self._writer.require(payload_fault(self._geometry, self._writer.placement, block, entry), index)
        state = entry & BAT_STATE_MASK
        if state == State.PARTIALLY_PRESENT and not self._geometry.differencing:
            state = State.FULLY_PRESENT  # without a parent all sectors can only be here
        return state, entry & BAT_OFFSET_MASK

    def _forget(self, block: int, state: int, place: int) -> None:
        """Let a block read as zeros; what it owned becomes free."""
        if state == State.ZERO or (state == State.NOT_PRESENT and not self._geometry.differencing):
            return
        if self._writer.fixed:  # the space stays with the block, so its former content has to go
            start = block << self._geometry.block_shift
            self._allocate(block, start, start, state, place)
            return
        if state >= State.FULLY_PRESENT or (place and self._writer.holds_anchor(place)):
            self._plan.released.append((place, self._geometry.block_size))
        self._put(self._geometry.payload_index(block), State.ZERO)

    def _allocate(self, block: int, low: int, high: int, state: int, anchor: int) -> Place:
        """Map a block that has no data to a place of its own; `low` to `high` will be written."""
        geometry = self._geometry
        place = self._place_for(state, anchor)
        is_parents = state == State.NOT_PRESENT and geometry.differencing
        if is_parents and not self._is_whole(block, low, high):
            self._cover(block, low, high, place.file_offset, fresh_block=True)
            entry = place.file_offset | State.PARTIALLY_PRESENT
        else:
            entry = place.file_offset | State.FULLY_PRESENT
            if not place.fresh:
                start = block << geometry.block_shift
                self._fill(place.file_offset, 0, low - start)
                self._fill(place.file_offset, high - start, geometry.block_size)
        self._plan.barrier |= is_parents or not place.fresh
        self._put(geometry.payload_index(block), entry)
        return place

    def _fill(self, place: int, start: int, end: int) -> None:
        if start < end:
            self._plan.zeros.append((place + start, end - start))

    def _place_for(self, state: int, anchor: int) -> Place:
        size = self._geometry.block_size
        if state in (State.UNDEFINED, State.UNMAPPED) and self._writer.holds_anchor(anchor):
            return Place(anchor, size, fresh=False)
        return self._take(size)

    def _take(self, size: int) -> Place:
        place = self._writer.space.try_take(size)
        if place is None:
            self._require_nothing_missing()
            raise _Incomplete(NeedsRoom(size, self._writer.space.file_size))
        self._plan.places.append(place)
        return place

    def _cover(self, block: int, low: int, high: int, place: int, *, fresh_block: bool) -> None:
        """Plan the bits of the sectors from `low` to `high`, and what is kept of those cut by the edges."""
        geometry = self._geometry
        bitmap_offset = self._bitmap_offset(block)
        first = low >> geometry.sector_shift
        count = ((high - 1) >> geometry.sector_shift) - first + 1
        touched = block_bits(geometry, block) if fresh_block else (first & _CHUNK_MASK, count)
        pages = {at for at, _, _ in bit_pages(bitmap_offset, *touched)}
        if not self._all_loaded(pages):
            return
        self._keep_edges(low, high, bitmap_offset, place - (block << geometry.block_shift), fresh_block)
        bits = bit_pages(bitmap_offset, first & _CHUNK_MASK, count)
        if not fresh_block and all(all_set(self._page(at), bit, length) for at, bit, length in bits):
            return
        self._plan.runs.append(SectorRun(block, bitmap_offset, first & _CHUNK_MASK, count, fresh_block))
        self._plan.barrier = True
        pages.add(geometry.entry_offset(geometry.payload_index(block)) & -PAGE_SIZE)
        self._pin(pages)

    def _keep_edges(self, low: int, high: int, bitmap_offset: int, shift: int, fresh_block: bool) -> None:
        """Plan copies of what a first and a last sector hold beside the range, unless it is here already."""
        size = self._geometry.sector_size
        for start, end in ((align_down(low, size), low), (high, align_up(high, size))):
            if start == end:
                continue
            bit = (start >> self._geometry.sector_shift) & _CHUNK_MASK
            at, in_page, _ = next(bit_pages(bitmap_offset, bit, 1))
            if fresh_block or not all_set(self._page(at), in_page, 1):
                self._plan.copies.append(Piece(start, end - start, start + shift))
                self._plan.exclusive = True

    def _bitmap_offset(self, block: int) -> int:
        geometry = self._geometry
        chunk = block >> geometry.chunk_shift
        index = geometry.bitmap_index(chunk)
        entry = self._entry(index)
        if entry & BAT_STATE_MASK == 0:
            raise _Incomplete(NeedsBitmap(chunk))
        self._writer.require(bitmap_fault(self._writer.placement, chunk, entry), index)
        return entry & BAT_OFFSET_MASK

    def _put(self, index: int, entry: int) -> None:
        self._plan.entries[index] = entry
        self._plan.exclusive = True
        self._pin({self._geometry.entry_offset(index) & -PAGE_SIZE})

    def _pin(self, pages: set[int]) -> None:
        for at in pages - self._plan.pages:
            self._writer.edits.store.pin(at)
            self._plan.pages.add(at)

    def _entry(self, index: int) -> int:
        at = self._geometry.entry_offset(index)
        start = at & (PAGE_SIZE - 1)
        return int.from_bytes(self._page(at - start)[start : start + BAT_ENTRY_SIZE], "little")

    def _page(self, at: int) -> bytes:
        page = self._writer.edits.store.get(at)
        if page is None:
            self._missing.add(at, at + PAGE_SIZE)
            self._require_nothing_missing()
            raise AssertionError("a page is missing and nothing is")
        return page

    def _all_loaded(self, pages: set[int]) -> bool:
        absent = [at for at in pages if self._writer.edits.store.get(at) is None]
        for at in absent:
            self._missing.add(at, at + PAGE_SIZE)
        return not absent

    def _require_bat(self, first: int, last: int) -> None:
        """Ask for all BAT pages of the range at once."""
        geometry = self._geometry
        indexes = [geometry.payload_index(first), geometry.payload_index(last)]
        pages = set(
            range(
                geometry.entry_offset(indexes[0]) & -PAGE_SIZE,
                geometry.entry_offset(indexes[1]) + 1,
                PAGE_SIZE,
            )
        )
        if geometry.differencing:
            index = geometry.bitmap_index(last >> geometry.chunk_shift)
            pages.add(geometry.entry_offset(index) & -PAGE_SIZE)
        if not self._all_loaded(pages):
            self._require_nothing_missing()

    def _require_nothing_missing(self) -> None:
        if self._missing:
            ranges = [(FileOffset(start), end - start) for start, end in self._missing.ranges()]
            raise _Incomplete(Missing(ranges))


def block_bits(geometry: Geometry, block: int) -> tuple[int, int]:
    """Return the first bit of a block in its chunk's bitmap, and how many it has."""
    count = geometry.block_size >> geometry.sector_shift
    return (block & (geometry.chunk_ratio - 1)) * count, count


def bit_pages(bitmap_offset: int, first_bit: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Yield (file offset of a page, first bit in it, count) for a run of bits."""
    while count:
        index, bit = divmod(first_bit, _PAGE_BITS)
        taken = min(count, _PAGE_BITS - bit)
        yield bitmap_offset + index * PAGE_SIZE, bit, taken
        first_bit += taken
        count -= taken
