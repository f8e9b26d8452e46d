"""Who owns which MiB of the file.

Owns: the table in which `check` finds two blocks that share a place, and a writer
the space that is free. One byte a MiB, allocated where the file is used: 16 bytes
of memory for 16 MiB of blocks.
"""

import enum
import re
from collections.abc import Iterator

from vblk.units import MIB

_SEGMENT_SHIFT = 16
_SEGMENT = 1 << _SEGMENT_SHIFT
"""MiB in one piece of the table."""

_FREE = re.compile(rb"\x00+")


class Owner(enum.IntEnum):
    """What a MiB of the file belongs to."""

    FREE = 0
    BLOCK_START = 1
    BLOCK_REST = 2
    BITMAP = 3
    ANCHOR = 4
    STRUCTURE = 5


class OwnershipTable:
    """All offsets and lengths are multiples of 1 MiB."""

    __slots__ = ("_segments", "claimed")

    def __init__(self) -> None:
        self._segments: dict[int, bytearray] = {}
        self.claimed = 0
        """Bytes that have an owner."""

    def owner_within(self, offset: int, length: int) -> Owner:
        """Return the owner of the first owned MiB in a range, or FREE."""
        for segment, start, stop in self._pieces(offset, length):
            held = self._segments.get(segment)
            if held is not None:
                owned = held[start:stop].lstrip(b"\0")
                if owned:
                    return Owner(owned[0])
        return Owner.FREE

    def claim(self, offset: int, length: int, owner: Owner) -> Owner:
        """Give a range an owner unless part of it has one.

        Returns: FREE when it was free and is now claimed, or who owns part of it.
        """
        holder = self.owner_within(offset, length)
        if holder is not Owner.FREE:
            return holder
        filler = Owner.BLOCK_REST if owner is Owner.BLOCK_START else owner
        for segment, start, stop in self._pieces(offset, length):
            held = self._segments.setdefault(segment, bytearray(_SEGMENT))
            held[start:stop] = bytes((filler,)) * (stop - start)
        first = offset // MIB
        self._segments[first >> _SEGMENT_SHIFT][first % _SEGMENT] = owner
        self.claimed += length
        return Owner.FREE

    def cover(self, offset: int, length: int, owner: Owner) -> None:
        """Give a whole range to an owner, whoever had it."""
        for segment, start, stop in self._pieces(offset, length):
            held = self._segments.setdefault(segment, bytearray(_SEGMENT))
            held[start:stop] = bytes((owner,)) * (stop - start)

    def claim_blocks(self, offset: int, count: int, block_size: int) -> bool:
        """Claim `count` blocks that follow each other, all or none; tell whether it was free."""
        if self.owner_within(offset, count * block_size) is not Owner.FREE:
            return False
        pattern = bytes((Owner.BLOCK_START,)) + bytes((Owner.BLOCK_REST,)) * (block_size // MIB - 1)
        owners = pattern * count
        taken = 0
        for segment, start, stop in self._pieces(offset, count * block_size):
            held = self._segments.setdefault(segment, bytearray(_SEGMENT))
            held[start:stop] = owners[taken : taken + stop - start]
            taken += stop - start
        self.claimed += count * block_size
        return True

    def free_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges of `start` <= x < `end` that nobody owns, ascending; neighbours may touch."""
        for segment, low, high in self._pieces(start, end - start):
            base = segment << _SEGMENT_SHIFT
            held = self._segments.get(segment)
            if held is None:
                yield (base + low) * MIB, (base + high) * MIB
                continue
            for match in _FREE.finditer(held, low, high):
                yield (base + match.start()) * MIB, (base + match.end()) * MIB

    @staticmethod
    def _pieces(offset: int, length: int) -> list[tuple[int, int, int]]:
        first, last = offset // MIB, (offset + length) // MIB
        pieces: list[tuple[int, int, int]] = []
        while first < last:
            segment, start = divmod(first, _SEGMENT)
            stop = min(_SEGMENT, start + last - first)
            pieces.append((segment, start, stop))
            first += stop - start
        return pieces
