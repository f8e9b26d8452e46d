"""Which bytes of a disk were written since, and where they are kept.

Owns: the map of a temporary overlay, as sorted runs of bytes. Pure: it moves no
bytes. Space is handed out from the end of the store and used again where a run
is overwritten in place.

Ordering rule: `place` promises space and changes nothing that a reader sees;
`set_data` publishes it when the bytes are there.
"""

from bisect import bisect_right
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes `start` to `end` of the disk, at `slot` of the store; None: they are zeros."""

    start: int
    end: int
    slot: int | None

    def cut(self, start: int, end: int) -> "Run":
        """Return the part of this run from `start` to `end`."""
        return Run(start, end, None if self.slot is None else self.slot + start - self.start)

    def continued_by(self, other: "Run") -> bool:
        """Tell whether the two are one run."""
        if self.end != other.start:
            return False
        if self.slot is None or other.slot is None:
            return self.slot is other.slot
        return self.slot + self.end - self.start == other.slot


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes `start` to `end` that the overlay says nothing about."""

    start: int
    end: int


class OverlayMap:
    """Sorted runs that neither touch as one nor overlap."""

    def __init__(self) -> None:
        self._runs: list[Run] = []
        self._starts: list[int] = []
        self.store_end = 0

    def __len__(self) -> int:
        return len(self._runs)

    def lookup(self, offset: int, length: int) -> list[Run | Gap]:
        """Return the runs and gaps of a range, in order and without holes."""
        found: list[Run | Gap] = []
        end = offset + length
        index = self._first_reaching(offset)
        while offset < end:
            run = self._runs[index] if index < len(self._runs) else None
            if run is None or run.start >= end:
                found.append(Gap(offset, end))
                break
            if run.start > offset:
                found.append(Gap(offset, run.start))
                offset = run.start
            stop = min(run.end, end)
            found.append(run.cut(offset, stop))
            offset = stop
            index += 1
        return found

    def place(self, offset: int, length: int) -> list[Run]:
        """Return where the bytes of a range are to be stored, as runs with slots."""
        places: list[Run] = []
        for part in self.lookup(offset, length):
            if isinstance(part, Run) and part.slot is not None:
                fresh = part
            else:
                fresh = Run(part.start, part.end, self.store_end)
                self.store_end += part.end - part.start
            if places and places[-1].continued_by(fresh):
                places[-1] = Run(places[-1].start, fresh.end, places[-1].slot)
            else:
                places.append(fresh)
        return places

    def set_data(self, places: list[Run]) -> None:
        """Publish what `place` returned."""
        for place in places:
            self._replace(place)

    def set_zero(self, offset: int, length: int) -> list[Run]:
        """Make a range zeros; return the runs of the store that nobody needs any more."""
        unused = [
            part for part in self.lookup(offset, length) if isinstance(part, Run) and part.slot is not None
        ]
        if length:
            self._replace(Run(offset, offset + length, None))
        return unused

    def _first_reaching(self, offset: int) -> int:
        index = bisect_right(self._starts, offset)
        return index - 1 if index and self._runs[index - 1].end > offset else index

    def _replace(self, run: Run) -> None:
        first = self._first_reaching(run.start)
        last = first
        kept: list[Run] = []
        while last < len(self._runs) and self._runs[last].start < run.end:
            old = self._runs[last]
            if old.start < run.start:
                kept.append(old.cut(old.start, run.start))
            if old.end > run.end:
                kept.append(old.cut(run.end, old.end))
            last += 1
        # Neighbours that touch are taken in, so that a run never continues another.
        if first and self._runs[first - 1].end == run.start:
            first -= 1
            kept.append(self._runs[first])
        if last < len(self._runs) and self._runs[last].start == run.end:
            kept.append(self._runs[last])
            last += 1
        joined: list[Run] = []
        for each in sorted([*kept, run], key=lambda each: each.start):
            if joined and joined[-1].continued_by(each):
                joined[-1] = Run(joined[-1].start, each.end, joined[-1].slot)
            else:
                joined.append(each)
        self._runs[first:last] = joined
        self._starts[first:last] = [each.start for each in joined]
