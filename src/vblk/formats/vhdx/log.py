"""The log's entries, and which of them must be replayed.

Owns: judging one entry piece by piece, and finding the active sequence among
the entries. It must not know how bytes are read (`replay` does that) nor what
they change.
Ordering rule: whatever fails a test here is "not an entry", never an error: a
torn write at the tail is the normal case. Cheap tests come first, and a test
stops at the first sector that fails. As no sector can be part of one entry and
the start of another, the whole search costs one pass over the log, however
hostile its bytes are.

Source: [MS-VHDX] "Log", "Log Entry", "Log Sequence", "Log Replay".
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

from vblk.codec.crc32c import extend
from vblk.codec.guid import Guid
from vblk.formats.vhdx.layout import CHECKSUM_OFFSET, PAGE_SIZE

ENTRY_SIGNATURE = b"loge"
DATA_DESCRIPTOR_SIGNATURE = b"desc"
ZERO_DESCRIPTOR_SIGNATURE = b"zero"
DATA_SECTOR_SIGNATURE = b"data"

ENTRY_HEADER_SIZE = 64
DESCRIPTOR_SIZE = 32

ENTRY_HEADER_RECORD = struct.Struct("<4sIIIQII16sQQ")
"""
      0   4  "loge"
      4   4  CRC-32C of the whole entry, this field taken as zero
      8   4  entry length        multiple of 4096
     12   4  tail                position of the oldest entry that is still needed
     16   8  sequence number     greater than 0; the previous entry's + 1
     24   4  descriptor count    may be 0
     28   4  reserved
     32  16  log GUID            that of the current header
     48   8  flushed file offset the file's length that was durable
     56   8  last file offset    the length that the file needs
"""

DESCRIPTOR_RECORD = struct.Struct("<4s4sQQQ")
"""
             data                           zero
      0   4  "desc"                         "zero"
      4   4  the page's last 4 bytes        reserved
      8   8  the page's first 8 bytes       length, multiple of 4096
     16   8  file offset, multiple of 4096  the same
     24   8  the entry's sequence number    the same
"""

_SEQUENCE_HALF = struct.Struct("<I")
"""
    A data sector of 4096 bytes, in the order of the data descriptors:
      0   4  "data"
      4   4  upper half of the sequence number
      8 4084 the page's bytes 8..4091
   4092   4  lower half of the sequence number
"""


class LogEntry(NamedTuple):
    """The header of one entry; `position` and `tail` count from the log's start."""

    position: int
    length: int
    tail: int
    sequence_number: int
    descriptor_count: int
    flushed_file_offset: int
    last_file_offset: int
    checksum: int

    @property
    def descriptor_sectors(self) -> int:
        """Sectors of 4096 bytes that header and descriptors take."""
        return descriptor_sectors(self.descriptor_count)


class Descriptor(NamedTuple):
    """One change: a page (`length` 4096, `page_index` says which data sector), or zeros."""

    file_offset: int
    length: int
    page_index: int | None
    leading: bytes
    trailing: bytes


class LogSequence(NamedTuple):
    """The entries to replay, oldest first. The last is the head."""

    entries: tuple[LogEntry, ...]

    @property
    def head(self) -> LogEntry:
        """The newest entry: its file offsets and its tail count."""
        return self.entries[-1]


def descriptor_sectors(count: int) -> int:
    """Return the sectors that an entry's header and `count` descriptors take."""
    return -(-(ENTRY_HEADER_SIZE + DESCRIPTOR_SIZE * count) // PAGE_SIZE)


def parse_entry_header(sector: bytes, position: int, log_guid: Guid, log_length: int) -> LogEntry | None:
    """Parse an entry's first 64 bytes, or return None: not an entry of this log.

    Args:
        sector: At least 64 bytes from the entry's start.
        position: The entry's start, from the log's start.
        log_guid: The current header's log GUID.
        log_length: The log's length in bytes.
    """
    if sector[:4] != ENTRY_SIGNATURE:
        return None
    _, checksum, length, tail, sequence, count, _, guid, flushed, last = ENTRY_HEADER_RECORD.unpack_from(
        sector
    )
    sectors = descriptor_sectors(count)
    if (
        guid != log_guid
        or sequence == 0
        or length % PAGE_SIZE
        or not sectors * PAGE_SIZE <= length < log_length
        or length > (sectors + count) * PAGE_SIZE
        or tail % PAGE_SIZE
        or tail >= log_length
    ):
        return None
    return LogEntry(position, length, tail, sequence, count, flushed, last, checksum)


class EntryVerifier:
    """Judges an entry whose sectors arrive in order, in pieces of any whole number of them."""

    def __init__(self, entry: LogEntry) -> None:
        self._entry = entry
        self._crc = 0
        self._sectors_seen = 0
        self._descriptors_left = entry.descriptor_count
        self._data_descriptors = 0
        self._sequence = entry.sequence_number
        self._upper = _SEQUENCE_HALF.pack(entry.sequence_number >> 32)
        self._lower = _SEQUENCE_HALF.pack(entry.sequence_number & 0xFFFFFFFF)

    def feed(self, piece: bytes) -> bool:
        """Take the next sectors; return False when this cannot be an entry."""
        start = 0
        if self._sectors_seen == 0:
            self._crc = extend(extend(0, piece[:CHECKSUM_OFFSET]), bytes(4))
            start = CHECKSUM_OFFSET + 4
        for at in range(0, len(piece), PAGE_SIZE):
            sector = piece[at : at + PAGE_SIZE]
            if self._sectors_seen < self._entry.descriptor_sectors:
                plausible = self._descriptor_sector(sector)
            else:
                plausible = (
                    sector.startswith(DATA_SECTOR_SIGNATURE)
                    and sector[4:8] == self._upper
                    and sector[-4:] == self._lower
                )
            if not plausible:
                return False
            self._sectors_seen += 1
        self._crc = extend(self._crc, piece[start:])
        return True

    def finish(self) -> bool:
        """Tell, after the last sector, whether the entry is valid."""
        entry = self._entry
        return (
            self._crc == entry.checksum
            and self._sectors_seen * PAGE_SIZE == entry.length
            and (entry.descriptor_sectors + self._data_descriptors) * PAGE_SIZE == entry.length
        )

    def _descriptor_sector(self, sector: bytes) -> bool:
        at = ENTRY_HEADER_SIZE if self._sectors_seen == 0 else 0
        count = min(self._descriptors_left, (PAGE_SIZE - at) // DESCRIPTOR_SIZE)
        self._descriptors_left -= count
        for signature, _, length, file_offset, sequence in DESCRIPTOR_RECORD.iter_unpack(
            sector[at : at + count * DESCRIPTOR_SIZE]
        ):
            if sequence != self._sequence or file_offset % PAGE_SIZE:
                return False
            if signature == DATA_DESCRIPTOR_SIGNATURE:
                self._data_descriptors += 1
            elif signature != ZERO_DESCRIPTOR_SIGNATURE or length % PAGE_SIZE:
                return False
        if self._descriptors_left == 0:
            expected = (self._entry.descriptor_sectors + self._data_descriptors) * PAGE_SIZE
            return expected == self._entry.length
        return True


def active_sequence(entries: Sequence[LogEntry], log_length: int) -> LogSequence | None:
    """Find what must be replayed among the valid entries of a log.

    Args:
        entries: All valid entries, by ascending position.
        log_length: The log's length in bytes.

    Returns:
        The entries from the tail to the head of the complete sequence with the
        greatest head, or None: no sequence is complete.

    A sequence is a run of entries that touch each other in the circular log and
    whose numbers rise by one. It is complete when its head's tail is the start
    of one of its entries. The runs are taken at their greatest length: of every
    shorter one that ends with the same head the answer is the same.
    """
    best: list[LogEntry] | None = None
    for run in _runs(entries, log_length):
        if best is not None and run[-1].sequence_number <= best[-1].sequence_number:
            continue
        tail = run[-1].tail
        for index, entry in enumerate(run):
            if entry.position == tail:
                best = run[index:]
                break
    return None if best is None else LogSequence(tuple(best))


def _runs(entries: Sequence[LogEntry], log_length: int) -> list[list[LogEntry]]:
    runs: list[list[LogEntry]] = []
    for entry in entries:
        if runs and _continues(runs[-1][-1], entry, log_length):
            runs[-1].append(entry)
        else:
            runs.append([entry])
    if len(runs) > 1 and _continues(runs[-1][-1], runs[0][0], log_length):
        # Its part at the front counts too, and first: of sequences with equal heads the first one wins.
        runs[-1] += runs[0]
    return runs


def _continues(entry: LogEntry, following: LogEntry, log_length: int) -> bool:
    return (
        entry.position + entry.length
    ) % log_length == following.position and following.sequence_number == entry.sequence_number + 1


def parse_descriptors(entry: LogEntry, data: bytes) -> list[Descriptor]:
    """Parse a valid entry's descriptors from its descriptor sectors."""
    descriptors: list[Descriptor] = []
    page_index = 0
    end = ENTRY_HEADER_SIZE + entry.descriptor_count * DESCRIPTOR_SIZE
    for at in range(ENTRY_HEADER_SIZE, end, DESCRIPTOR_SIZE):
        signature, trailing, leading_or_length, file_offset, _ = DESCRIPTOR_RECORD.unpack_from(data, at)
        if signature == DATA_DESCRIPTOR_SIGNATURE:
            leading = leading_or_length.to_bytes(8, "little")
            descriptors.append(Descriptor(file_offset, PAGE_SIZE, page_index, leading, trailing))
            page_index += 1
        else:
            descriptors.append(Descriptor(file_offset, leading_or_length, None, b"", b""))
    return descriptors


def rebuild_page(descriptor: Descriptor, sector: bytes) -> bytes:
    """Put a page together from its descriptor and its data sector."""
    return descriptor.leading + sector[8 : PAGE_SIZE - 4] + descriptor.trailing
