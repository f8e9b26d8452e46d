"""Writing the log: entries, where they go, and when their space is free again.

Owns: composing an entry, and the positions and numbers of one session's entries.
It does no I/O and never waits: it returns bytes and the file offset where they
belong, and is told when they are durable.

Ordering rule: a session works in passes.

    | never used | entry n | entry n+1 | ... free ...           | parked |
    0          4096                                    log length - 4096

- The last sector is parked on: an empty entry there says "everything before me
  is in place". It is the head when a session begins, so that a log GUID is only
  ever published over a log with a valid entry.
- A pass appends entries from the log's second sector on. The tail of each is the start of
  the pass: after a crash the whole pass is replayed, and nothing that it replays
  has been overwritten.
- When a pass is full, its pages are written to their places and flushed; then
  the log is parked again, which is durable before the next pass overwrites the
  first entry. The parked sector is overwritten only while a pass holds the head.

So the space of an entry is reused only when its pages are durable in place and
a durable head no longer names it. No entry and no live sequence ever wraps
around the log's end: that is allowed, and not every implementation replays it.
A sequence number is left out between the parked entry and its neighbours, so
that the two never form one sequence. Entries of a former pass stay where they are
not overwritten. They are no part of the sequence by their numbers; but QEMU 7.2
looks at these only from a sequence's third entry on. So the first entry of a pass
never ends where an older one begins, and no entry stands where the log goes on
behind the parked one: it would be replayed, too. An entry without pages cannot
be made longer: there QEMU may take an older one for the next.

Source: [MS-VHDX] "Log", "Log Entry", "Log Sequence".
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from vblk.codec.guid import Guid
from vblk.formats.vhdx.encode import with_checksum
from vblk.formats.vhdx.layout import PAGE_SIZE
from vblk.formats.vhdx.log import (
    DATA_DESCRIPTOR_SIGNATURE,
    DATA_SECTOR_SIGNATURE,
    DESCRIPTOR_RECORD,
    DESCRIPTOR_SIZE,
    ENTRY_HEADER_RECORD,
    ENTRY_HEADER_SIZE,
    ENTRY_SIGNATURE,
    ZERO_DESCRIPTOR_SIGNATURE,
    descriptor_sectors,
)
from vblk.units import MIB

PASS_SIZE_MAX = 16 * MIB
"""A pass takes no more of a large log: what it holds stays in memory until it is in place."""

_PASS_START = PAGE_SIZE
_ZERO_PAGE = bytes(PAGE_SIZE)
_HALF = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Lengths:
    """Two lengths of the file in bytes, multiples of 1 MiB: the durable one, and the one it needs."""

    flushed: int
    needed: int


@dataclass(frozen=True, slots=True)
class LogWrite:
    """One entry and the file offset where it belongs."""

    file_offset: int
    data: bytes


class Journal:
    """The log during one session.

    Args:
        log_offset: File offset of the log.
        log_length: Its length in bytes, at least 1 MiB.
        guid: The session's, never used before.

    Each write that is returned must be durable, and `settle` called, before the
    next is asked for; if it failed, the next takes its place.
    """

    def __init__(self, log_offset: int, log_length: int, guid: Guid) -> None:
        self.guid = guid
        self._offset = log_offset
        self._parking = log_length - PAGE_SIZE
        # The sector that is left lets an entry grow by a data sector and one for its descriptor.
        self._pass_end = min(self._parking - PAGE_SIZE, _PASS_START + PASS_SIZE_MAX)
        self.pages_max = _pages_max(self._pass_end - _PASS_START)
        """The most pages that one entry can have."""
        self._head = _PASS_START
        self._sequence = 0
        self._pending: tuple[int, int, int] | None = None
        self._starts: set[int] = set()
        """Where entries of this session begin that were not overwritten, the parked one aside."""

    @property
    def pass_is_empty(self) -> bool:
        """Whether the parked entry is the head."""
        return self._head == _PASS_START

    def fits(self, pages: int) -> bool:
        """Tell whether this pass has room for an entry of so many pages, at most `pages_max`."""
        return self._head + _length_max(pages) <= self._pass_end

    def compose(self, pages: Mapping[int, bytes], lengths: Lengths) -> LogWrite:
        """Return the pass's next entry.

        Args:
            pages: 4096 bytes each, by file offset; may be none, to publish lengths.
            lengths: The file's.
        """
        assert self.fits(len(pages)), "the pass is full"
        assert self._sequence, "the log was never parked"
        sequence = self._sequence + (2 if self.pass_is_empty else 1)
        data = encode_entry(pages, self.guid, sequence, tail=_PASS_START, lengths=lengths)
        longer = self._longer(len(data), len(pages)) if pages and self.pass_is_empty else 0
        if longer:
            data = encode_entry(pages, self.guid, sequence, tail=_PASS_START, lengths=lengths, longer=longer)
        self._pending = (self._head, self._head + len(data), sequence)
        return LogWrite(self._offset + self._head, data)

    def _longer(self, length: int, descriptors: int) -> int:
        """Return how many data sectors a pass's first entry needs more, to end where no older one begins."""
        others = length // PAGE_SIZE - descriptor_sectors(descriptors)
        longer = 0
        while True:
            sectors = descriptor_sectors(descriptors + longer) + others + longer
            if self._head + sectors * PAGE_SIZE not in self._starts:
                return longer
            longer += 1

    def park(self, lengths: Lengths) -> LogWrite:
        """Return the empty entry that ends a pass; all its pages are durable in place."""
        assert not self.pass_is_empty or not self._sequence, "the parked entry is the only head there is"
        sequence = self._sequence + 2
        data = encode_entry({}, self.guid, sequence, tail=self._parking, lengths=lengths)
        self._pending = (self._parking, self._parking + len(data), sequence)
        return LogWrite(self._offset + self._parking, data)

    def settle(self) -> None:
        """Take note that the last write is durable."""
        assert self._pending is not None, "nothing was composed"
        start, end, self._sequence = self._pending
        self._pending = None
        if start == self._parking:
            self._head = _PASS_START
            return
        self._head = end
        self._starts = {each for each in self._starts if not start <= each < end} | {start}


def _length_max(pages: int) -> int:
    """Return the length of an entry of so many pages, none of them all zeros."""
    return (descriptor_sectors(pages) + pages) * PAGE_SIZE


def _pages_max(size: int) -> int:
    pages = size // PAGE_SIZE - 1
    while _length_max(pages) > size:
        pages -= 1
    return pages


def encode_entry(
    pages: Mapping[int, bytes], guid: Guid, sequence: int, *, tail: int, lengths: Lengths, longer: int = 0
) -> bytes:
    """Return a whole log entry, a multiple of 4096 bytes long.

    Pages that are all zeros need no data sector. The last page is there `longer`
    times more than it has to be, each time with a data sector.
    """
    descriptors: list[bytes] = []
    sectors: list[bytes] = []
    upper, lower = _HALF.pack(sequence >> 32), _HALF.pack(sequence & 0xFFFFFFFF)
    order = sorted(pages)
    for number, file_offset in enumerate(order + order[-1:] * longer):
        page = pages[file_offset]
        if page == _ZERO_PAGE and number < len(order):
            descriptors.append(
                DESCRIPTOR_RECORD.pack(ZERO_DESCRIPTOR_SIGNATURE, bytes(4), PAGE_SIZE, file_offset, sequence)
            )
            continue
        leading = int.from_bytes(page[:8], "little")
        descriptors.append(
            DESCRIPTOR_RECORD.pack(DATA_DESCRIPTOR_SIGNATURE, page[-4:], leading, file_offset, sequence)
        )
        sectors.append(b"".join((DATA_SECTOR_SIGNATURE, upper, page[8:-4], lower)))
    head = descriptor_sectors(len(descriptors)) * PAGE_SIZE
    data = bytearray(head)
    ENTRY_HEADER_RECORD.pack_into(
        data,
        0,
        ENTRY_SIGNATURE,
        0,
        head + len(sectors) * PAGE_SIZE,
        tail,
        sequence,
        len(descriptors),
        0,
        guid,
        lengths.flushed,
        lengths.needed,
    )
    end = ENTRY_HEADER_SIZE + DESCRIPTOR_SIZE * len(descriptors)
    data[ENTRY_HEADER_SIZE:end] = b"".join(descriptors)
    data += b"".join(sectors)
    return with_checksum(data)
