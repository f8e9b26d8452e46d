"""Where blocks move when a file is packed: out of its end into what is free below.

Owns: the choice of moves. It knows places and lengths, no entries, and does no I/O.

The topmost goes first, to the lowest place that takes it whole, and so on down to
the first for which there is none: so nothing moves that could stay. A sector
bitmap, 1 MiB, takes what is too small for a block; where nothing but bitmaps
keeps a block out of a place, they move aside.

Ordering rule: what is in `aside` has moved, and its space is free, before anything
in `down` moves. Within each, any order is right: no move goes to where another
comes from.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from vblk.codec.ranges import RangeSet
from vblk.formats.vhdx.layout import SECTOR_BITMAP_SIZE


class Tenant(NamedTuple):
    """Who has `length` bytes at `place`; `entry` is the index of its BAT entry."""

    place: int
    length: int
    entry: int


class Move(NamedTuple):
    """A tenant, and the place where it goes."""

    tenant: Tenant
    to: int


@dataclass(frozen=True, slots=True)
class Packing:
    """The moves that make a file shorter."""

    aside: list[Move] = field(default_factory=list[Move])
    down: list[Move] = field(default_factory=list[Move])

    def __bool__(self) -> bool:
        return bool(self.aside or self.down)


def pack(
    free: Iterable[tuple[int, int]],
    blocks: Sequence[Tenant],
    bitmaps: Sequence[Tenant],
    *,
    block_size: int,
    floor: int,
) -> Packing:
    """Choose moves.

    Args:
        free: (start, end) of what nobody has, ascending.
        blocks: Everybody with a block that reaches above `floor`.
        bitmaps: All sector bitmaps.
        block_size: Bytes of a block.
        floor: Bytes; the file cannot become shorter than this, or what ends
            there cannot move. What lies below stays, unless it moves aside.
    """
    room = _Room(free, bitmaps, block_size)
    tenants = [*blocks, *(each for each in bitmaps if each.place >= floor)]
    for tenant in sorted(tenants, reverse=True):
        if tenant in room.moved:
            continue
        if tenant.length == block_size:
            taken = room.take_block(tenant)
        else:
            taken = room.take_bitmap(tenant, tenant.place)
        if not taken:
            break
    return Packing(room.aside, _in_order(room.down))


def _in_order(moves: list[Move]) -> list[Move]:
    """Let the same tenants have the same places, but in the order of the disk."""
    if not moves or max(move.to for move in moves) > min(move.tenant.place for move in moves):
        return moves
    tenants = sorted((move.tenant for move in moves), key=lambda tenant: tenant.entry)
    return [Move(tenant, to) for tenant, to in zip(tenants, sorted(move.to for move in moves), strict=True)]


class _Room:
    """The free space while moves are chosen.

    `slots` are the places that take a block, ascending; `scraps` what is left
    beside them.
    """

    def __init__(self, free: Iterable[tuple[int, int]], bitmaps: Sequence[Tenant], block_size: int) -> None:
        self._block_size = block_size
        self._bitmaps = bitmaps
        self._slots: deque[int] = deque()
        self._scraps = RangeSet()
        self._crowded: deque[int] | None = None
        self.aside: list[Move] = []
        self.down: list[Move] = []
        self.moved: set[Tenant] = set()
        for start, end in free:
            whole = start + (end - start) // block_size * block_size
            self._slots.extend(range(start, whole, block_size))
            self._scraps.add(whole, end)

    def take_block(self, tenant: Tenant) -> bool:
        """Let a block move down, if there is a place."""
        if self._slots and self._slots[0] + self._block_size <= tenant.place:
            self.down.append(Move(tenant, self._slots.popleft()))
            return True
        return self._take_crowded(tenant)

    def take_bitmap(self, tenant: Tenant, limit: int) -> bool:
        """Let a sector bitmap move to a place that ends at or below `limit`, if there is one."""
        size = SECTOR_BITMAP_SIZE
        place = self._scraps.first_fit(size)
        if place is None or place + size > limit:
            if not self._slots or self._slots[0] + size > limit:
                return False
            place = self._slots.popleft()
            self._scraps.add(place, place + self._block_size)
        self._scraps.remove(place, place + size)
        self.aside.append(Move(tenant, place))
        self.moved.add(tenant)
        return True

    def _take_crowded(self, tenant: Tenant) -> bool:
        """Let a block move to a place from which only sector bitmaps have to go."""
        if self._crowded is None:
            self._crowded = self._find_crowded()
        while self._crowded and self._crowded[0] + self._block_size <= tenant.place:
            start = self._crowded.popleft()
            end = start + self._block_size
            inside = [each for each in self._bitmaps if start <= each.place < end]
            own = self._scraps.within(start, end)
            length = sum(high - low for low, high in own) + len(inside) * SECTOR_BITMAP_SIZE
            if length < self._block_size or not self.moved.isdisjoint(inside):
                continue  # part of it was taken meanwhile
            self._scraps.remove(start, end)
            if self._move_aside(inside, tenant.place):
                self.down.append(Move(tenant, start))
                return True
            for low, high in own:
                self._scraps.add(low, high)
        return False

    def _move_aside(self, bitmaps: list[Tenant], limit: int) -> bool:
        """Let all of these move, or none."""
        done = len(self.aside)
        if all(self.take_bitmap(each, limit) for each in bitmaps):
            return True
        for move in self.aside[done:]:
            self._scraps.add(move.to, move.to + SECTOR_BITMAP_SIZE)
            self.moved.discard(move.tenant)
        del self.aside[done:]
        return False

    def _find_crowded(self) -> deque[int]:
        """Return the places that would take a block if the sector bitmaps in them were gone."""
        roomy = RangeSet()
        for start, end in self._scraps.ranges():
            roomy.add(start, end)
        for each in self._bitmaps:
            if each not in self.moved:
                roomy.add(each.place, each.place + each.length)
        return deque(
            place
            for start, end in roomy.ranges()
            for place in range(start, end - self._block_size + 1, self._block_size)
        )
