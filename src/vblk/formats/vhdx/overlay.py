"""What a log changes, held in memory.

Owns: pages and zeroed ranges that replace bytes of the file, so that a dirty
image reads right and its file is not touched. It must not know where they came
from. The log never carries payload, so the overlay covers metadata only.
Ordering rule: a page, where there is one, hides the zeroed range around it.

Source: [MS-VHDX] "Log Replay".
"""

from bisect import bisect_left
from collections.abc import Mapping

from vblk.codec.ranges import RangeSet
from vblk.formats.vhdx.layout import PAGE_SIZE


class Overlay:
    """Immutable once built.

    `pages` are 4096 bytes each, keyed by their file offset, a multiple of 4096.
    `required_length` is the length in bytes that the file has after replay, at
    the least: bytes between its real end and there are zeros.
    """

    __slots__ = ("_offsets", "pages", "required_length", "zeroed")

    def __init__(self, pages: Mapping[int, bytes], zeroed: RangeSet, required_length: int) -> None:
        self.pages = pages
        self.zeroed = zeroed
        self.required_length = required_length
        self._offsets = sorted(pages)

    @property
    def empty(self) -> bool:
        """Whether no byte changes; the length still may."""
        return not self._offsets and not len(self.zeroed)

    def changed_in(self, start: int, end: int) -> int:
        """Return how many bytes in `start` <= x < `end` are pages or zeroed."""
        low = bisect_left(self._offsets, start - PAGE_SIZE + 1)
        high = bisect_left(self._offsets, end)
        total = (high - low) * PAGE_SIZE
        for first, last in self.zeroed.within(start, end):
            low = bisect_left(self._offsets, first)
            high = bisect_left(self._offsets, last)
            total += last - first - (high - low) * PAGE_SIZE
        return total

    def patch(self, file_offset: int, data: bytes) -> bytes:
        """Return `data`, read at `file_offset`, as it is after replay."""
        end = file_offset + len(data)
        low = bisect_left(self._offsets, file_offset - PAGE_SIZE + 1)
        high = bisect_left(self._offsets, end)
        zeroed = self.zeroed.within(file_offset, end)
        if low == high and not zeroed:
            return data
        patched = bytearray(data)
        for first, last in zeroed:
            patched[first - file_offset : last - file_offset] = bytes(last - first)
        for offset in self._offsets[low:high]:
            first, last = max(offset, file_offset), min(offset + PAGE_SIZE, end)
            patched[first - file_offset : last - file_offset] = self.pages[offset][
                first - offset : last - offset
            ]
        return bytes(patched)


NO_OVERLAY = Overlay({}, RangeSet(), 0)
"""The overlay of a clean image."""
