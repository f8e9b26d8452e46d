"""A block store of two pages of map and a log: small enough to be seen right, or wrong on purpose.

Owns: `ToyStore`, whose rules of order are those of every journalled format, and
`Defect`, each of which breaks one of them. It exists so that the crash kit can
be shown to pass what is right and to catch what is not.

Layout, in pages of 4 KiB: 0 and 1 the map (a byte offset for every block, 0 for
"not there", and a checksum in the last 8 bytes of each page), 2 to 10 the log
(three slots of a header and up to two pages of the map), from 16 on the blocks.
"""

import enum
import struct
import zlib
from hashlib import blake2b

from vblk.graph.node import Node

PAGE = 4096
LOG_AT = 2 * PAGE
ENTRY_SIZE = 3 * PAGE
PLACES_AT = 16 * PAGE
PER_PAGE = PAGE // 8 - 1
BLOCKS = 2 * PER_PAGE
_HEAD = struct.Struct("<8sIQQBB")
_MAP_PAGE = struct.Struct(f"<{PER_PAGE}Q")


class Defect(enum.Enum):
    """A rule that a store breaks."""

    NONE = "none"
    APPLIES_EARLY = "applies a commit before its entry is durable"
    NEVER_FLUSHES = "answers a flush without flushing"
    REUSES_LOG_EARLY = "overwrites an entry that the newest durable one still needs"
    MAPS_EARLY = "maps a block before its data is durable"
    REUSES_SPACE_EARLY = "gives a block's space away before that is durable"
    SPLITS_A_COMMIT = "logs the pages of one commit in two entries"


class Unopenable(Exception):
    """The log's newest entry needs another that is gone, or a page of the map is torn."""


class ToyStore:
    """A disk of BLOCKS blocks of a page each, on `file`; single-minded: one request at a time.

    A commit logs the pages of the map that changed. The newest entry names the
    oldest that must be replayed with it, its tail: what was applied before the
    last flush needs no replay. Every write goes to a new place.
    """

    def __init__(self, file: Node, defect: Defect = Defect.NONE) -> None:
        self._file = file
        self._defect = defect
        self._slots = 2 if defect is Defect.REUSES_LOG_EARLY else 3
        self._map = [0] * BLOCKS
        self._dirty: set[int] = set()
        self._data_dirty = False
        self._sequence = 0
        self._tail = 1
        self._free: list[int] = []
        self._freed: list[int] = []
        self._end = PLACES_AT

    @classmethod
    async def open(cls, file: Node, defect: Defect = Defect.NONE) -> "ToyStore":
        """Open a store, replaying its log.

        Raises:
            Unopenable: An entry that must be replayed is not there, or the map is torn.
        """
        store = cls(file, defect)
        await store._replay()
        store._map = [place for page in (0, 1) for place in _parse_page(await store._read(page * PAGE))]
        used = set(store._map)
        store._end = max(PLACES_AT, *(place + PAGE for place in used))
        store._free = [place for place in range(PLACES_AT, store._end, PAGE) if place not in used]
        return store

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return BLOCKS * PAGE

    async def pages(self) -> dict[int, bytes]:
        """Return the blocks that are there, by number."""
        return {block: await self._read(place) for block, place in enumerate(self._map) if place}

    async def write(self, offset: int, data: bytes, *, fua: bool = False) -> None:
        """Write whole blocks."""
        for at in range(0, len(data), PAGE):
            place = self._free.pop(0) if self._free else self._extend()
            await self._file.write(place, data[at : at + PAGE])
            self._data_dirty = True
            self._put((offset + at) // PAGE, place)
        if fua:
            await self.flush()

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool = False) -> None:
        """Give whole blocks back."""
        for block in range(offset // PAGE, (offset + length) // PAGE):
            self._put(block, 0)

    async def discard(self, offset: int, length: int) -> None:
        """Give whole blocks back."""
        await self.write_zeroes(offset, length)

    async def resize(self, size: int) -> None:
        """Refuse: a toy has one size."""
        raise AssertionError("a toy has one size")

    async def flush(self) -> None:
        """Make everything written so far stable: data, then its entry; then apply it, lazily durable."""
        if not self._dirty:
            await self._flush()
            return
        if self._data_dirty and self._defect is not Defect.MAPS_EARLY:
            await self._flush()
        self._data_dirty = False
        freed, self._freed = self._freed, []
        dirty, self._dirty = sorted(self._dirty), set[int]()
        pages = {page: _encode_page(self._map[page * PER_PAGE : (page + 1) * PER_PAGE]) for page in dirty}
        if self._defect is Defect.APPLIES_EARLY:
            await self._apply(pages)
        if self._defect is Defect.SPLITS_A_COMMIT:
            for page, data in pages.items():
                await self._append({page: data})
        else:
            await self._append(pages)
        await self._flush()
        self._tail = self._sequence  # the flush made durable what earlier commits applied
        await self._apply(pages)
        self._free += freed

    def _extend(self) -> int:
        place = self._end
        self._end += PAGE
        return place

    def _put(self, block: int, place: int) -> None:
        before, self._map[block] = self._map[block], place
        self._dirty.add(block // PER_PAGE)
        if before:
            (self._free if self._defect is Defect.REUSES_SPACE_EARLY else self._freed).append(before)

    async def _flush(self) -> None:
        if self._defect is not Defect.NEVER_FLUSHES:
            await self._file.flush()

    async def _apply(self, pages: dict[int, bytes]) -> None:
        for page, data in pages.items():
            await self._file.write(page * PAGE, data)

    async def _append(self, pages: dict[int, bytes]) -> None:
        self._sequence += 1
        first, count = min(pages), len(pages)
        body = b"".join(pages.values())
        head = _HEAD.pack(b"toyentry", 0, self._sequence, self._tail, first, count)
        head = head[:8] + zlib.crc32(head + body).to_bytes(4, "little") + head[12:]
        slot = LOG_AT + self._sequence % self._slots * ENTRY_SIZE
        await self._file.write(slot, head.ljust(PAGE, b"\0") + body)

    async def _replay(self) -> None:
        found: dict[int, tuple[int, dict[int, bytes]]] = {}
        for slot in range(3):
            entry = await self._read(LOG_AT + slot * ENTRY_SIZE, ENTRY_SIZE)
            name, checksum, sequence, tail, first, count = _HEAD.unpack_from(entry)
            body = entry[PAGE : PAGE + count * PAGE]
            blank = entry[:8] + bytes(4) + entry[12 : _HEAD.size]
            if name == b"toyentry" and checksum == zlib.crc32(blank + body):
                pages = {first + at: body[at * PAGE : (at + 1) * PAGE] for at in range(count)}
                found[sequence] = (tail, pages)
        if not found:
            return
        newest = max(found)
        for sequence in range(found[newest][0], newest + 1):
            if sequence not in found:
                raise Unopenable(f"entry {newest} needs entry {sequence}")
            await self._apply(found[sequence][1])
        await self._file.flush()
        self._sequence, self._tail = newest, newest + 1

    async def _read(self, offset: int, length: int = PAGE) -> bytes:
        inside = max(0, min(length, self._file.size - offset))
        return (await self._file.read(offset, inside)).ljust(length, b"\0")


def _encode_page(places: list[int]) -> bytes:
    data = _MAP_PAGE.pack(*places)
    return data + _digest(data)  # a CRC here would cancel itself out in the CRC of the entry


def _parse_page(page: bytes) -> tuple[int, ...]:
    if any(page) and page[-8:] != _digest(page[:-8]):
        raise Unopenable("a page of the map is torn")
    return _MAP_PAGE.unpack(page[:-8])


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=8).digest()
