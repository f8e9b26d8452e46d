"""From guest ranges to extents.

Owns: `lookup`, the walk over BAT and bitmap pages that are in memory, and
`locate`, its short cut. It must not load anything: what it lacks it names.
Ordering rule: BAT pages are asked for before sector-bitmap pages, so an answer
takes at most three rounds; nothing in here suspends.

Source: [MS-VHDX] "BAT", "Payload BAT Entry States", "Sector Bitmap Blocks".
"""

import struct
from collections.abc import Callable
from typing import Protocol

from vblk.codec.bits import bit_runs
from vblk.codec.ranges import RangeSet
from vblk.errors import CorruptImage
from vblk.extent import Extent, Kind, Missing
from vblk.formats.vhdx.bat import (
    ENTRIES_SINGLY,
    Fault,
    Geometry,
    Placement,
    State,
    bitmap_fault,
    is_progression,
    payload_fault,
)
from vblk.formats.vhdx.layout import (
    BAT_ENTRIES_PER_PAGE,
    BAT_ENTRY_SIZE,
    BAT_OFFSET_MASK,
    BAT_RESERVED_MASK,
    BAT_STATE_MASK,
    CHUNK_SECTORS,
    LOOKUP_BAT_BYTES,
    LOOKUP_SPAN_DIFFERENCING,
    PAGE_SIZE,
)
from vblk.units import FileOffset, GuestOffset


class Pages(Protocol):
    """Metadata in memory: 4096-byte pages by their file offset, as the log leaves them."""

    def get(self, file_offset: int, /) -> bytes | memoryview | None:
        """Return the page at a multiple of 4096, or None: not in memory."""
        ...


_KIND_OF_STATE = (Kind.ABSENT, Kind.ZERO, Kind.ZERO, Kind.ZERO)
"""NOT_PRESENT asks the parent; UNDEFINED, ZERO and UNMAPPED are zeros and never do."""

_ENTRIES = struct.Struct("<Q")
_unpack_entry = _ENTRIES.unpack_from
_CHUNK_MASK = CHUNK_SECTORS - 1
_PAGE_MASK = PAGE_SIZE - 1
_BELOW_OFFSET = BAT_RESERVED_MASK | BAT_STATE_MASK


Locate = Callable[[int, int, Pages], int | None]
"""(guest offset, length, pages) -> file offset, or None: use `lookup`."""


def make_locate(geometry: Geometry, floor: int, real_size: int) -> Locate:
    """Return the short cut of one image: a closure, whose constants cost nothing to reach.

    Args:
        geometry: Of the image's BAT.
        floor: File offset from which on nothing is reserved.
        real_size: Length of the file in bytes.

    The function takes a guest range of at least one byte that ends inside the
    virtual disk, and the metadata in memory. It returns the file offset of a
    range inside one sound, fully present block, and None whenever it is not
    that simple. It runs to completion.
    """
    bat_offset = geometry.bat_offset
    block_shift = geometry.block_shift
    block_size = geometry.block_size
    block_mask = block_size - 1
    chunk_shift = geometry.chunk_shift
    last_place = real_size - block_size
    unpack_entry = _unpack_entry

    def locate(guest_offset: int, length: int, pages: Pages, /) -> int | None:
        within = guest_offset & block_mask
        if within + length > block_size:
            return None
        block = guest_offset >> block_shift
        at = bat_offset + ((block + (block >> chunk_shift)) << 3)
        page = pages.get(at & -4096)
        if page is None:
            return None
        place: int = unpack_entry(page, at & 4095)[0] - 6
        # With any state but 6, or a reserved bit set, the difference is no multiple of 1 MiB.
        if place & 0xFFFFF or not floor <= place <= last_place:
            return None
        return place + within

    return locate


class BlockMap:
    """The map of one image: immutable, and quick to ask.

    Args:
        geometry: Of the image's BAT.
        placement: Where blocks may lie.
        real_size: Length of the file in bytes before any replay. Beyond it, up
            to the placement's size, blocks read as zeros.
        filename: For errors.
    """

    __slots__ = (
        "_filename",
        "_floor",
        "_geometry",
        "_last_start",
        "_placement",
        "_real_size",
        "locate",
        "lookup_step",
    )

    def __init__(self, geometry: Geometry, placement: Placement, real_size: int, filename: str) -> None:
        self._geometry = geometry
        self._placement = placement
        self._real_size = real_size
        self._filename = filename
        self.locate = make_locate(geometry, placement.floor, real_size)
        self._floor = placement.floor
        self._last_start = real_size - geometry.block_size
        """The greatest file offset at which a whole block lies in the file."""
        self.lookup_step = max(LOOKUP_BAT_BYTES // BAT_ENTRY_SIZE * geometry.block_size, geometry.block_size)
        if geometry.differencing:
            self.lookup_step = min(self.lookup_step, max(LOOKUP_SPAN_DIFFERENCING, geometry.block_size))

    def lookup(self, guest_offset: int, length: int, pages: Pages) -> list[Extent] | Missing:
        """Translate a guest range into extents without performing I/O.

        Args:
            guest_offset: First byte, of any alignment.
            length: Bytes, > 0; the range must end inside the virtual disk, and
                should not exceed `lookup_step`.
            pages: Metadata in memory.

        Returns:
            Gapless extents in guest order whose lengths sum to `length`, merged
            where they continue each other; or the 4 KiB pages to load.

        Raises:
            CorruptImage: A block of the range is damaged; it names the block
                and the file offset of its BAT entry.

        Concurrency: Runs to completion. Results go stale at the next await
            unless the caller holds the range's guard.
        """
        assert guest_offset >= 0
        assert 0 < length <= self._geometry.virtual_size - guest_offset
        return _Walk(self, self._geometry, guest_offset, length, pages).run()

    def require(self, fault: Fault | None, index: int) -> None:
        """Raise when a block is damaged.

        Raises:
            CorruptImage: `fault` is set; `index` is that of the BAT entry to blame.
        """
        if fault is not None:
            at = self._geometry.entry_offset(index)
            raise CorruptImage(
                fault.reason,
                f"{fault.message}; its BAT entry is at file offset {at:#x}",
                filename=self._filename,
                offset=at,
            )

    def payload(self, block: int, entry: int) -> None:
        """Raise CorruptImage when a block cannot be read."""
        self.require(
            payload_fault(self._geometry, self._placement, block, entry), self._geometry.payload_index(block)
        )

    def bitmap(self, chunk: int, entry: int) -> int:
        """Return the file offset of a chunk's sector bitmap, or raise CorruptImage."""
        self.require(bitmap_fault(self._placement, chunk, entry), self._geometry.bitmap_index(chunk))
        return entry & BAT_OFFSET_MASK

    def is_plain(self, entry: int) -> bool:
        """Tell whether an entry is FULLY_PRESENT, sound, and wholly in the file."""
        place = entry - State.FULLY_PRESENT
        return not place & _BELOW_OFFSET and self._floor <= place <= self._last_start

    @property
    def real_size(self) -> int:
        """Length of the file in bytes before any replay."""
        return self._real_size


class _Walk:
    """One lookup under way."""

    __slots__ = ("_bat", "_end", "_extents", "_geometry", "_map", "_missing", "_pages", "_start")

    def __init__(
        self, block_map: BlockMap, geometry: Geometry, guest_offset: int, length: int, pages: Pages
    ) -> None:
        self._map = block_map
        self._geometry = geometry
        self._start = guest_offset
        self._end = guest_offset + length
        self._pages = pages
        self._bat: dict[int, bytes] = {}
        self._extents: list[Extent] = []
        self._missing = RangeSet()

    def run(self) -> list[Extent] | Missing:
        """Carry the lookup out."""
        geometry = self._geometry
        block = self._start >> geometry.block_shift
        last = (self._end - 1) >> geometry.block_shift
        self._gather_bat(block, last)
        if not self._missing:
            while block <= last:
                chunk = block >> geometry.chunk_shift
                page_index, in_page = divmod(block + chunk, BAT_ENTRIES_PER_PAGE)
                count = min(
                    last - block + 1,
                    ((chunk + 1) << geometry.chunk_shift) - block,
                    BAT_ENTRIES_PER_PAGE - in_page,
                )
                raw = self._bat[page_index][in_page * BAT_ENTRY_SIZE : (in_page + count) * BAT_ENTRY_SIZE]
                self._segment(block, raw, count)
                block += count
        if self._missing:
            return Missing([(FileOffset(start), end - start) for start, end in self._missing.ranges()])
        return self._extents

    def _gather_bat(self, first: int, last: int) -> None:
        """Take the BAT pages of blocks `first` to `last`, and of their chunks' bitmaps."""
        geometry = self._geometry
        low = geometry.payload_index(first) // BAT_ENTRIES_PER_PAGE
        high = geometry.payload_index(last) // BAT_ENTRIES_PER_PAGE
        for page_index in range(low, high + 1):
            self._take_bat_page(page_index)
        if geometry.differencing:
            # Only the last chunk's bitmap entry can stand beyond the pages taken so far.
            page_index = geometry.bitmap_index(last >> geometry.chunk_shift) // BAT_ENTRIES_PER_PAGE
            if page_index > high:
                self._take_bat_page(page_index)

    def _take_bat_page(self, page_index: int) -> None:
        at = self._geometry.bat_offset + page_index * PAGE_SIZE
        page = self._pages.get(at)
        if page is None:
            self._missing.add(at, at + PAGE_SIZE)
        else:
            self._bat[page_index] = bytes(page)

    def _segment(self, block: int, raw: bytes, count: int) -> None:
        """Walk over `count` payload entries that stand side by side."""
        if count > 1:
            if raw == raw[:BAT_ENTRY_SIZE] * count:
                state = raw[0] & BAT_STATE_MASK
                if state < len(_KIND_OF_STATE):
                    self._emit(block, count, _KIND_OF_STATE[state], None)
                    return
            elif self._contiguous(block, raw, count):
                return
            if count > ENTRIES_SINGLY:
                half = count // 2
                self._segment(block, raw[: half * BAT_ENTRY_SIZE], half)
                self._segment(block + half, raw[half * BAT_ENTRY_SIZE :], count - half)
                return
        block_map = self._map
        entry: int
        for (entry,) in _ENTRIES.iter_unpack(raw):
            state = entry & BAT_STATE_MASK
            if state < len(_KIND_OF_STATE):
                self._emit(block, 1, _KIND_OF_STATE[state], None)
            elif block_map.is_plain(entry):
                self._emit(block, 1, Kind.DATA, entry & BAT_OFFSET_MASK)
            else:
                self._special_block(block, entry)
            block += 1

    def _contiguous(self, block: int, raw: bytes, count: int) -> bool:
        """Take a segment whose blocks stand in the file in order, as in most fixed images."""
        size = self._geometry.block_size
        first = int.from_bytes(raw[:BAT_ENTRY_SIZE], "little")
        final = first + (count - 1) * size
        if int.from_bytes(raw[-BAT_ENTRY_SIZE:], "little") != final:
            return False
        if not (self._map.is_plain(first) and self._map.is_plain(final)):
            return False
        if not is_progression(raw, size):
            return False
        self._emit(block, count, Kind.DATA, first & BAT_OFFSET_MASK)
        return True

    def _emit(self, block: int, count: int, kind: Kind, file_offset: int | None) -> None:
        """Add `count` whole blocks, cut to the range that was asked for."""
        shift = self._geometry.block_shift
        block_start = block << shift
        start = max(block_start, self._start)
        end = min((block + count) << shift, self._end)
        if file_offset is not None:
            file_offset += start - block_start
        self._append(kind, start, end - start, file_offset)

    def _append(self, kind: Kind, start: int, length: int, file_offset: int | None) -> None:
        if self._extents:
            last = self._extents[-1]
            if last.kind is kind and (
                file_offset is None
                or (last.file_offset is not None and last.file_offset + last.length == file_offset)
            ):
                last.length += length
                return
        place = None if file_offset is None else FileOffset(file_offset)
        self._extents.append(Extent(kind, GuestOffset(start), length, place))

    def _special_block(self, block: int, entry: int) -> None:
        """Add a block that is damaged, partly present, or partly beyond the file's real end."""
        self._map.payload(block, entry)
        geometry = self._geometry
        block_start = block << geometry.block_shift
        start = max(block_start, self._start)
        end = min(block_start + geometry.block_size, self._end)
        place = (entry & BAT_OFFSET_MASK) - block_start
        if entry & BAT_STATE_MASK == State.PARTIALLY_PRESENT and geometry.differencing:
            self._partial_block(block, start, end, place)
        else:
            self._data(start, end, start + place)

    def _data(self, start: int, end: int, file_offset: int) -> None:
        """Add data; what lies beyond the file's real end is zeros that replay will add."""
        inside = max(0, min(end - start, self._map.real_size - file_offset))
        if inside:
            self._append(Kind.DATA, start, inside, file_offset)
        if start + inside < end:
            self._append(Kind.ZERO, start + inside, end - start - inside, None)

    def _partial_block(self, block: int, start: int, end: int, place: int) -> None:
        """Add the runs of a partially present block, by its chunk's sector bitmap."""
        geometry = self._geometry
        chunk = block >> geometry.chunk_shift
        page_index, in_page = divmod(geometry.bitmap_index(chunk), BAT_ENTRIES_PER_PAGE)
        entry: int = _unpack_entry(self._bat[page_index], in_page * BAT_ENTRY_SIZE)[0]
        bitmap_offset = self._map.bitmap(chunk, entry)
        # A chunk is 2**23 sectors from a multiple of that many, so bits count from the disk's start.
        shift = geometry.sector_shift
        first = (start >> shift) & _CHUNK_MASK
        count = ((end - 1) >> shift) - (start >> shift) + 1
        low = (first // 8) & ~_PAGE_MASK
        bits = self._bitmap_bytes(bitmap_offset + low, bitmap_offset + (first + count + 7) // 8)
        if bits is None:
            return
        at = start
        edge = start & -geometry.sector_size
        for present, length in bit_runs(bits, first - low * 8, count):
            edge += length << shift
            stop = min(edge, end)
            if present:
                self._data(at, stop, at + place)
            else:
                self._append(Kind.ABSENT, at, stop - at, None)
            at = stop

    def _bitmap_bytes(self, start: int, end: int) -> bytes | None:
        parts: list[bytes | memoryview] = []
        for at in range(start, end, PAGE_SIZE):
            page = self._pages.get(at)
            if page is None:
                self._missing.add(at, at + PAGE_SIZE)
            else:
                parts.append(page)
        return None if self._missing else b"".join(parts)
