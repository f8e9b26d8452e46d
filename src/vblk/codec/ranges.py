"""Half-open ranges of bytes in a file, and sets of them.

Owns: arithmetic on (offset, length) pairs that come from hostile bytes. Python's
integers do not wrap, so a sum is right; it must still be compared with a limit
before it is believed.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable


def overlap(offset_a: int, length_a: int, offset_b: int, length_b: int) -> bool:
    """Tell whether two ranges share a byte; an empty range shares none."""
    return offset_a < offset_b + length_b and offset_b < offset_a + length_a and length_a > 0 and length_b > 0


def fits(offset: int, length: int, limit: int) -> bool:
    """Tell whether a range ends at or before `limit`."""
    return offset + length <= limit


def first_overlap(ranges: Iterable[tuple[int, int, str]]) -> tuple[str, str, int] | None:
    """Find two overlapping (offset, length, name) ranges.

    Returns: both names and the offset of the later one, or None.
    """
    reach = -1
    holder = ""
    for offset, length, name in sorted(item for item in ranges if item[1] > 0):
        if offset < reach:
            return holder, name, offset
        reach, holder = offset + length, name
    return None


class RangeSet:
    """A set of bytes, kept as sorted, disjoint, non-adjacent ranges."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        return len(self._starts)

    def ranges(self) -> list[tuple[int, int]]:
        """Return all (start, end) pairs, ascending."""
        return list(zip(self._starts, self._ends, strict=True))

    def add(self, start: int, end: int) -> None:
        """Add the bytes `start` <= x < `end`."""
        if start >= end:
            return
        first = bisect_right(self._ends, start - 1)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def remove(self, start: int, end: int) -> None:
        """Take the bytes `start` <= x < `end` out."""
        if start >= end:
            return
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        if first >= last:
            return
        kept = [(self._starts[first], start)] if self._starts[first] < start else []
        if self._ends[last - 1] > end:
            kept.append((end, self._ends[last - 1]))
        self._starts[first:last] = [low for low, _ in kept]
        self._ends[first:last] = [high for _, high in kept]

    def first_fit(self, length: int) -> int | None:
        """Return the start of the first range of at least `length` bytes, or None."""
        for start, end in zip(self._starts, self._ends, strict=True):
            if end - start >= length:
                return start
        return None

    def contains(self, start: int, end: int) -> bool:
        """Tell whether all bytes `start` <= x < `end` are in the set."""
        at = bisect_right(self._starts, start) - 1
        return at >= 0 and self._ends[at] >= end

    def within(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the parts of the set inside `start` <= x < `end`."""
        parts: list[tuple[int, int]] = []
        at = max(bisect_right(self._starts, start) - 1, 0)
        while at < len(self._starts) and self._starts[at] < end:
            low, high = max(start, self._starts[at]), min(end, self._ends[at])
            if low < high:
                parts.append((low, high))
            at += 1
        return parts
