"""Replaying the log into memory.

Owns: reading the log in bounded pieces, the judgement of what the active
sequence wants to change, and the overlay that results. It must not write.
Ordering rule: entries are taken newest first, and what is decided stays; so
every page is decided once and memory is bounded by what remains visible. The
hostile-input rules apply to the sequence that is chosen, not to the search.

Source: [MS-VHDX] "Log Replay".
"""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from vblk.codec.ranges import RangeSet, overlap
from vblk.errors import CorruptImage, Reason
from vblk.formats.vhdx.header import Header
from vblk.formats.vhdx.layout import (
    LOG_WINDOW_SIZE,
    LOGGED_AREA_START,
    OVERLAY_LENGTH_MAX,
    PAGE_SIZE,
    REPLAY_DESCRIPTORS_MAX,
    REPLAY_PAGES_MAX,
)
from vblk.formats.vhdx.log import (
    ENTRY_SIGNATURE,
    Descriptor,
    EntryVerifier,
    LogEntry,
    LogSequence,
    active_sequence,
    parse_descriptors,
    parse_entry_header,
    rebuild_page,
)
from vblk.formats.vhdx.overlay import Overlay

Read = Callable[[int, int], Awaitable[bytes]]
"""(file offset, length) -> bytes, short only at the file's end."""


class Replay(NamedTuple):
    """The sequence that was found and what it makes of the file."""

    sequence: LogSequence
    overlay: Overlay
    descriptors: int


class _LogReader:
    """The circular log in pieces of at most one window."""

    def __init__(self, read: Read, header: Header) -> None:
        self._read = read
        self._offset = header.log_offset
        self._length = header.log_length

    async def piece(self, position: int, length: int) -> bytes:
        """Read `length` bytes, at most a window, wrapping at the log's end."""
        position %= self._length
        first = min(length, self._length - position)
        data = await self._exactly(position, first)
        return data if first == length else data + await self._exactly(0, length - first)

    async def _exactly(self, position: int, length: int) -> bytes:
        data = await self._read(self._offset + position, length)
        if len(data) != length:
            raise CorruptImage(
                Reason.TRUNCATED, "the file ends inside its log", offset=self._offset + position + len(data)
            )
        return data


async def find_sequence(read: Read, header: Header) -> LogSequence | None:
    """Search the log for the active sequence.

    Args:
        read: Reads the file.
        header: The current header; its log lies inside the file.

    Returns: the entries to replay, or None: the log cannot be replayed.

    Concurrency: may suspend; holds about two windows of 1 MiB.
    """
    log = _LogReader(read, header)
    entries: list[LogEntry] = []
    for base in range(0, header.log_length, LOG_WINDOW_SIZE):
        window = await log.piece(base, min(LOG_WINDOW_SIZE, header.log_length - base))
        # Looking at one byte of each sector costs nothing; searching all of them for a word would.
        first_bytes = window[::PAGE_SIZE]
        sector = first_bytes.find(ENTRY_SIGNATURE[0])
        while sector >= 0:
            at = sector * PAGE_SIZE
            entry = parse_entry_header(
                window[at : at + PAGE_SIZE], base + at, header.log_guid, header.log_length
            )
            if entry is not None and await _is_valid(log, entry, window, at):
                entries.append(entry)
            sector = first_bytes.find(ENTRY_SIGNATURE[0], sector + 1)
    return active_sequence(entries, header.log_length)


async def _is_valid(log: _LogReader, entry: LogEntry, window: bytes, at: int) -> bool:
    """Feed an entry to its verifier: first what is in the window, then the rest."""
    verifier = EntryVerifier(entry)
    piece = window[at : at + entry.length]
    done = 0
    while True:
        if not verifier.feed(piece):
            return False
        done += len(piece)
        if done == entry.length:
            return verifier.finish()
        piece = await log.piece(entry.position + done, min(LOG_WINDOW_SIZE, entry.length - done))


async def replay_into_memory(read: Read, header: Header, sequence: LogSequence, file_size: int) -> Replay:
    """Build the overlay that the active sequence amounts to.

    Args:
        read: Reads the file.
        header: The current header.
        sequence: What `find_sequence` found.
        file_size: Real length of the file in bytes.

    Raises:
        CorruptImage: The file was cut, or an entry changes what no log may.

    Concurrency: may suspend.
    """
    head = sequence.head
    if file_size < head.flushed_file_offset:
        raise CorruptImage(
            Reason.TRUNCATED,
            f"the file has {file_size:#x} bytes; its log says that it had {head.flushed_file_offset:#x}",
            offset=header.log_offset + head.position,
        )
    if head.last_file_offset > OVERLAY_LENGTH_MAX:
        raise CorruptImage(
            Reason.LIMIT,
            f"the log wants a file of {head.last_file_offset:#x} bytes",
            offset=header.log_offset + head.position,
        )
    total = sum(entry.descriptor_count for entry in sequence.entries)
    if total > REPLAY_DESCRIPTORS_MAX:
        raise CorruptImage(
            Reason.LIMIT,
            f"the log has {total} changes; at most {REPLAY_DESCRIPTORS_MAX} are replayed in memory",
            offset=header.log_offset + head.position,
        )
    log = _LogReader(read, header)
    pages: dict[int, bytes] = {}
    zeroed = RangeSet()
    for entry in reversed(sequence.entries):
        limit = max(entry.last_file_offset, head.last_file_offset)
        await _take_entry(log, entry, header, limit, pages, zeroed)
    return Replay(sequence, Overlay(pages, zeroed, max(head.last_file_offset, file_size)), total)


async def _take_entry(
    log: _LogReader, entry: LogEntry, header: Header, limit: int, pages: dict[int, bytes], zeroed: RangeSet
) -> None:
    at = header.log_offset + entry.position
    raw = bytearray()
    size = entry.descriptor_sectors * PAGE_SIZE
    while len(raw) < size:
        raw += await log.piece(entry.position + len(raw), min(LOG_WINDOW_SIZE, size - len(raw)))
    for descriptor in reversed(parse_descriptors(entry, bytes(raw))):
        if descriptor.length == 0:
            continue
        _check_descriptor(descriptor, header, limit, at)
        start, end = descriptor.file_offset, descriptor.file_offset + descriptor.length
        if descriptor.page_index is None:
            zeroed.add(start, end)
        elif start not in pages and not zeroed.contains(start, end):
            position = entry.position + (entry.descriptor_sectors + descriptor.page_index) * PAGE_SIZE
            pages[start] = rebuild_page(descriptor, await log.piece(position, PAGE_SIZE))
        if len(pages) + len(zeroed) > REPLAY_PAGES_MAX:
            raise CorruptImage(
                Reason.LIMIT,
                f"the log changes more than {REPLAY_PAGES_MAX} pages; it is not replayed in memory",
                offset=at,
            )


def _check_descriptor(descriptor: Descriptor, header: Header, limit: int, at: int) -> None:
    start, length = descriptor.file_offset, descriptor.length
    if start < LOGGED_AREA_START:
        raise CorruptImage(
            Reason.BAD_LOG,
            f"the log rewrites {start:#x}, where the identifier and the headers are; no log may",
            offset=at,
        )
    if overlap(start, length, header.log_offset, header.log_length):
        raise CorruptImage(Reason.BAD_LOG, f"the log rewrites itself at {start:#x}", offset=at)
    if start + length > limit:
        raise CorruptImage(
            Reason.BAD_LOG,
            f"the log rewrites {length:#x} bytes at {start:#x}, beyond the length {limit:#x} that it states",
            offset=at,
        )
