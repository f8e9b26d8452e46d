"""Hashes of what was copied, taken as it went by: so that nobody has to read it twice to compare the copy.

Owns: which ranges of the target were seen, and what their bytes were. It reads nothing
and decides nothing. What is copied past memory is not seen.

Ordering rule: a range is noted before its bytes are written, and forgotten before others
are. Who notes a range is its only copier; ranges side by side may be noted on several
threads at a time.

Source: RFC 7693 for BLAKE2b, cut to 128 bits.
"""

import threading
from collections.abc import Iterator
from hashlib import blake2b
from typing import Final

from vblk.units import MIB

UNIT_LEAST: Final = 2 * MIB
"""What one hash covers at most, in bytes, of disks that are not huge."""
UNITS_MOST: Final = 1 << 16
"""A disk has no more units than this: the longer it is, the longer they are."""
HASHES_MOST: Final = 1 << 17
"""So many hashes are kept: about 64 MiB. What comes then counts as not seen."""
HASHES_OF_UNIT: Final = 64
"""The same for one unit."""
DIGEST_SIZE: Final = 16


def new_hash() -> blake2b:
    """Return a hash of nothing yet."""
    return blake2b(digest_size=DIGEST_SIZE)


class Seen:
    """A range, from `start` to `end`, whose bytes were seen; `hash` is None where they were zeros."""

    __slots__ = ("end", "hash", "is_growing", "start")

    def __init__(self, start: int, hash: blake2b | None) -> None:
        self.start = self.end = start
        self.hash = hash
        self.is_growing = False
        """Whether somebody adds to it at this moment."""


class Digests:
    """What was seen of the bytes of a disk of `size` bytes. All offsets are those of the target."""

    def __init__(self, size: int) -> None:
        self.unit = UNIT_LEAST
        while self.unit * UNITS_MOST < size:
            self.unit *= 2
        self._units: dict[int, dict[int, Seen]] = {}
        self._count = 0
        self._lock = threading.Lock()

    def note(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Note what is copied to a range. Concurrency: on any thread."""
        view = memoryview(data)
        for start, length in self._by_unit(offset, len(view)):
            self._note(start, length, view[start - offset : start - offset + length])

    def note_zeros(self, offset: int, length: int) -> None:
        """Note that a range becomes zeros."""
        for start, count in self._by_unit(offset, length):
            self._note(start, count, None)

    def _note(self, start: int, length: int, data: memoryview | None) -> None:
        with self._lock:
            self._drop(start, start + length)
            seen = self._continued(start, are_zeros=data is None) or self._begun(
                start, are_zeros=data is None
            )
            if seen is None:
                return
            seen.is_growing = True
        if seen.hash is not None and data is not None:
            seen.hash.update(data)
        with self._lock:
            seen.is_growing = False
            seen.end = start + length

    def _continued(self, start: int, *, are_zeros: bool) -> Seen | None:
        for seen in self._units.get(start // self.unit, {}).values():
            if seen.end == start and not seen.is_growing and (seen.hash is None) is are_zeros:
                return seen
        return None

    def _begun(self, start: int, *, are_zeros: bool) -> Seen | None:
        unit = self._units.setdefault(start // self.unit, {})
        if self._count == HASHES_MOST or len(unit) == HASHES_OF_UNIT:
            return None
        self._count += 1
        seen = unit[start] = Seen(start, None if are_zeros else new_hash())
        return seen

    def forget(self, offset: int, length: int) -> None:
        """Forget what was seen of a range: other bytes come there."""
        with self._lock:
            for start, count in self._by_unit(offset, length):
                self._drop(start, start + count)

    def _drop(self, start: int, end: int) -> None:
        unit = self._units.get(start // self.unit, {})
        for seen in [each for each in unit.values() if each.start < end and start < each.end]:
            del unit[seen.start]
            self._count -= 1

    def seen(self) -> Iterator[Seen]:
        """Yield all that was seen; nobody notes anything meanwhile."""
        for unit in self._units.values():
            yield from unit.values()

    def ranges(self, offset: int, length: int) -> Iterator[tuple[int, int, Seen | None]]:
        """Yield (start, end, what was seen), gapless; a range that was seen in part counts as not seen.

        Nobody notes anything of it meanwhile.
        """
        at, end = offset, offset + length
        for start, count in self._by_unit(offset, length):
            unit = self._units.get(start // self.unit, {})
            for seen in sorted(unit.values(), key=lambda each: each.start):
                if at <= seen.start < seen.end <= start + count:
                    if at < seen.start:
                        yield at, seen.start, None
                    yield seen.start, seen.end, seen
                    at = seen.end
        if at < end:
            yield at, end, None

    def _by_unit(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (start, length) of the parts of a range in different units."""
        end = offset + length
        while offset < end:
            count = min(self.unit - offset % self.unit, end - offset)
            yield offset, count
            offset += count
