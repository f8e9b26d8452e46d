"""The free space of a file: what a new cluster or block may take, and how safe it is.

Owns: which ranges nobody uses, and their class. It must not know tables, nor
when anything becomes durable: it is told. All offsets and lengths are multiples
of one unit.

    fresh   added to the file in this session, and nothing was written to it: it
            reads as zeros, so it may be mapped before data in it is durable.
    stale   held something once. Whoever takes it writes or zeroes all of it, and
            makes that durable before the mapping may become so.

Ordering rule: freed space passes through the deferred list. It becomes stale
space when the change of its former owner is durable, and every reader that may
have seen the former mapping has finished.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from vblk.codec.ranges import RangeSet
from vblk.units import GIB, MIB, align_down, align_up

EXTENSION_MIN = MIB
EXTENSION_MAX = GIB
"""A file grows by an eighth of its length, within these limits."""


@dataclass(frozen=True, slots=True)
class Place:
    """A range that was taken."""

    file_offset: int
    length: int
    fresh: bool


@dataclass(slots=True)
class Readers:
    """Reads that began while the same space was free; their number."""

    active: int = 0


@dataclass(slots=True)
class _Deferred:
    """Ranges that become free when `readers` and all before them have finished."""

    ranges: list[tuple[int, int]]
    readers: Readers


class Space:
    """The free space of one file.

    Args:
        stale: What is free now.
        file_size: Length of the file in bytes, a multiple of `unit`.
        unit: What space is taken in.

    Concurrency: every method runs to completion.
    """

    def __init__(self, stale: RangeSet, file_size: int, unit: int) -> None:
        self._stale = stale
        self._fresh = RangeSet()
        self._unit = unit
        self._too_long = 1 << 62
        self.file_size = file_size
        self.readers = Readers()
        self._deferred: deque[_Deferred] = deque()

    def try_take(self, length: int) -> Place | None:
        """Take a range, or return None: the file must be extended first."""
        if length < self._too_long:
            start = self._stale.first_fit(length)
            if start is not None:
                self._stale.remove(start, start + length)
                return Place(start, length, fresh=False)
            self._too_long = length  # nothing that long until something is given back
        start = self._fresh.first_fit(length)
        if start is None:
            return None
        self._fresh.remove(start, start + length)
        return Place(start, length, fresh=True)

    def try_take_within(self, start: int, end: int, length: int) -> Place | None:
        """Take a range that lies between two file offsets, or return None."""
        for free, fresh in ((self._stale, False), (self._fresh, True)):
            for low, high in free.within(start, end):
                if high - low >= length:
                    free.remove(low, low + length)
                    return Place(low, length, fresh=fresh)
        return None

    def take_exactly(self, start: int, end: int) -> None:
        """Take a range that is free."""
        self._stale.remove(start, end)
        self._fresh.remove(start, end)

    def try_take_at(self, file_offset: int, length: int) -> Place | None:
        """Take this range, or return None: part of it is not free."""
        end = file_offset + length
        parts = (*self._stale.within(file_offset, end), *self._fresh.within(file_offset, end))
        if sum(stop - start for start, stop in parts) < length:
            return None
        self.take_exactly(file_offset, end)
        return Place(file_offset, length, fresh=False)

    def free_ranges(self) -> list[tuple[int, int]]:
        """Return (start, end) of all that is free, ascending."""
        free = RangeSet()
        for start, end in (*self._stale.ranges(), *self._fresh.ranges()):
            free.add(start, end)
        return free.ranges()

    def put_back(self, place: Place) -> None:
        """Take back a range to which nothing was written."""
        if place.fresh:
            self._fresh.add(place.file_offset, place.file_offset + place.length)
        else:
            self.free(place.file_offset, place.length)

    def free(self, file_offset: int, length: int) -> None:
        """Take back a range whose content is unknown and that no durable mapping names."""
        self._stale.add(file_offset, file_offset + length)
        self._too_long = 1 << 62

    def extension(self, length: int) -> int:
        """Return how long the file should become so that a range of `length` bytes is fresh."""
        step = align_down(min(max(self.file_size // 8, EXTENSION_MIN), EXTENSION_MAX), self._unit)
        return self.file_size + max(step, align_up(length, self._unit))

    def least_extension(self, length: int) -> int:
        """Return how long the file must become at least so that a range of `length` bytes is fresh."""
        return self.file_size + align_up(length, self._unit)

    def extended(self, file_size: int) -> None:
        """Take note that the file was made longer."""
        self._fresh.add(self.file_size, file_size)
        self.file_size = file_size

    def shortened(self, file_size: int) -> None:
        """Take note that the file will end at `file_size`: what is behind is free, and nobody's."""
        self.take_exactly(file_size, self.file_size)
        self.file_size = file_size

    def defer(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Take (file offset, length) ranges whose release is durable, for when their readers are gone."""
        ranges = list(ranges)
        if ranges:
            self._deferred.append(_Deferred(ranges, self.readers))
            self.readers = Readers()
        self.promote()

    def promote(self) -> None:
        """Free the deferred ranges whose readers have finished."""
        while self._deferred and not self._deferred[0].readers.active:
            for file_offset, length in self._deferred.popleft().ranges:
                self.free(file_offset, length)

    @property
    def free_bytes(self) -> int:
        """Bytes that could be taken without making the file longer."""
        return sum(end - start for start, end in self.free_ranges())

    @property
    def used_end(self) -> int:
        """The file offset behind which everything is free, so that the file could be cut there."""
        free = self.free_ranges()
        return free[-1][0] if free and free[-1][1] == self.file_size else self.file_size
