"""The log's writer: its entries are valid, its space is reused only when nothing needs it."""

import asyncio

import pytest

from vblk.codec.guid import ZERO_GUID, new_guid
from vblk.formats.vhdx.header import Header
from vblk.formats.vhdx.journal import Journal, Lengths, LogWrite, encode_entry
from vblk.formats.vhdx.replay import find_sequence, replay_into_memory
from vblk.units import MIB

PAGE = 4096
LENGTHS = Lengths(8 * MIB, 16 * MIB)
GUID = new_guid()


def page(tag: int) -> bytes:
    return tag.to_bytes(8, "little") * (PAGE // 8)


class Disk:
    """A file of 8 MiB whose log lies in its second MiB."""

    def __init__(self, log_length: int = MIB) -> None:
        self.data = bytearray(8 * MIB)
        self.header = Header(0, 1, GUID, GUID, GUID, 0, 1, log_length, MIB)
        self.journal = Journal(MIB, log_length, GUID)

    async def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def put(self, write: LogWrite, cut: int | None = None) -> None:
        data = write.data[:cut]
        self.data[write.file_offset : write.file_offset + len(data)] = data

    def do(self, write: LogWrite) -> LogWrite:
        self.put(write)
        self.journal.settle()
        return write

    def replayed(self) -> dict[int, bytes] | None:
        """Return the pages that replay brings back, None where it finds no sequence."""

        async def look() -> dict[int, bytes] | None:
            sequence = await find_sequence(self.read, self.header)
            if sequence is None:
                return None
            overlay = (await replay_into_memory(self.read, self.header, sequence, len(self.data))).overlay
            zeros = {
                at: bytes(PAGE) for start, end in overlay.zeroed.ranges() for at in range(start, end, PAGE)
            }
            return zeros | dict(overlay.pages)

        return asyncio.run(look())


def test_a_parked_log_is_valid_and_changes_nothing() -> None:
    disk = Disk()
    write = disk.do(disk.journal.park(LENGTHS))
    assert write.file_offset == 2 * MIB - PAGE
    assert disk.replayed() == {}


def test_entries_of_a_pass_are_replayed_together_and_the_last_wins() -> None:
    disk = Disk()
    disk.do(disk.journal.park(LENGTHS))
    disk.do(disk.journal.compose({3 * MIB: page(1), 4 * MIB: page(2)}, LENGTHS))
    disk.do(disk.journal.compose({3 * MIB: page(3), 5 * MIB: bytes(PAGE)}, LENGTHS))
    assert disk.replayed() == {3 * MIB: page(3), 4 * MIB: page(2), 5 * MIB: bytes(PAGE)}


def test_an_entry_without_pages_publishes_lengths() -> None:
    disk = Disk()
    disk.do(disk.journal.park(LENGTHS))
    disk.do(disk.journal.compose({}, Lengths(2 * MIB, 3 * MIB)))
    head = asyncio.run(find_sequence(disk.read, disk.header))
    assert head is not None
    assert (head.head.flushed_file_offset, head.head.last_file_offset) == (2 * MIB, 3 * MIB)


@pytest.mark.parametrize("pages", [{4 * MIB: page(9)}, {4 * MIB: bytes(PAGE), 5 * MIB: page(8)}])
def test_the_first_entry_of_a_pass_never_ends_where_an_older_one_begins(pages: dict[int, bytes]) -> None:
    """QEMU 7.2 would take the older one for the second of the new sequence."""
    disk = Disk()
    disk.do(disk.journal.park(LENGTHS))
    for tag in (1, 2, 3):
        disk.do(disk.journal.compose({3 * MIB: page(tag)}, LENGTHS))
    starts = [at for at in range(MIB, 2 * MIB - PAGE, PAGE) if disk.data.startswith(b"loge", at)]
    disk.do(disk.journal.park(LENGTHS))
    write = disk.do(disk.journal.compose(pages, LENGTHS))
    assert write.file_offset + 2 * PAGE in starts
    assert write.file_offset + len(write.data) not in starts
    assert disk.replayed() == pages
    disk.do(disk.journal.compose({3 * MIB: page(7)}, LENGTHS))
    assert disk.replayed() == {**pages, 3 * MIB: page(7)}


def test_nothing_stands_where_the_log_goes_on_behind_the_parked_entry() -> None:
    """QEMU 7.2 would replay it, and with it a torn pass."""
    disk = Disk()
    for _ in range(3):
        disk.do(disk.journal.park(LENGTHS))
        while disk.journal.fits(1):
            disk.do(disk.journal.compose({3 * MIB: page(1)}, LENGTHS))
        assert not any(disk.data[MIB : MIB + PAGE])


@pytest.mark.parametrize("count", [0, 1, 126, 127, 251])
def test_entries_of_every_size_are_valid(count: int) -> None:
    disk = Disk()
    disk.do(disk.journal.park(LENGTHS))
    assert disk.journal.fits(count)
    pages = {3 * MIB + index * PAGE: page(index + 1) for index in range(count)}
    disk.do(disk.journal.compose(pages, LENGTHS))
    assert disk.replayed() == pages


@pytest.mark.parametrize("count", [1, 2, 125, 126, 127, 249, 250, 251])
def test_a_first_entry_ends_where_none_begins_even_at_the_end_of_the_log(count: int) -> None:
    """Here an older entry begins in every sector that one can begin in."""
    disk = Disk()
    disk.do(disk.journal.park(LENGTHS))
    starts: set[int] = set()
    while disk.journal.fits(0):
        starts.add(disk.do(disk.journal.compose({}, LENGTHS)).file_offset)
    disk.do(disk.journal.park(LENGTHS))
    pages = {3 * MIB + index * PAGE: page(index + 1) for index in range(count)}
    write = disk.do(disk.journal.compose(pages, LENGTHS))
    end = write.file_offset + len(write.data)
    assert end not in starts
    assert end <= 2 * MIB - PAGE
    assert disk.replayed() == pages


def test_the_largest_entry_leaves_one_sector_and_the_parked_one() -> None:
    disk = Disk()
    disk.do(disk.journal.park(LENGTHS))
    assert disk.journal.pages_max == 251
    pages = {3 * MIB + index * PAGE: page(index + 1) for index in range(251)}
    write = disk.do(disk.journal.compose(pages, LENGTHS))
    assert write.file_offset + len(write.data) == 2 * MIB - 2 * PAGE
    assert not disk.journal.fits(0)


def test_a_torn_entry_leaves_what_was_before() -> None:
    for cut in (1, 512, PAGE, 2 * PAGE - 512):
        disk = Disk()
        disk.do(disk.journal.park(LENGTHS))
        disk.do(disk.journal.compose({3 * MIB: page(1)}, LENGTHS))
        disk.put(disk.journal.compose({4 * MIB: page(2)}, LENGTHS), cut)
        assert disk.replayed() == {3 * MIB: page(1)}


def test_a_failed_write_is_overwritten_by_the_next() -> None:
    disk = Disk()
    disk.do(disk.journal.park(LENGTHS))
    failed = disk.journal.compose({3 * MIB: page(1)}, LENGTHS)
    disk.put(failed, 512)
    again = disk.do(disk.journal.compose({3 * MIB: page(2)}, LENGTHS))
    assert again.file_offset == failed.file_offset
    assert disk.replayed() == {3 * MIB: page(2)}


def test_at_every_moment_of_many_passes_the_log_replays_what_is_not_in_place() -> None:
    disk = Disk()
    disk.do(disk.journal.park(LENGTHS))
    waiting: dict[int, bytes] = {}
    passes = 0
    for number in range(1, 700):
        pages = {3 * MIB + (number * each % 200) * PAGE: page(number) for each in range(1, 1 + number % 9)}
        if not disk.journal.fits(len(pages)):
            write = disk.journal.park(LENGTHS)
            disk.put(write, 6)
            assert disk.replayed() == waiting
            disk.do(write)
            assert disk.replayed() == {}
            waiting = {}
            passes += 1
        write = disk.journal.compose(pages, LENGTHS)
        for cut in (512, len(write.data) - 512):
            disk.put(write, cut)
            assert disk.replayed() == waiting
        disk.do(write)
        waiting |= pages
        assert disk.replayed() == waiting
        assert write.file_offset + len(write.data) <= 2 * MIB - PAGE
    assert passes > 5


def test_a_large_log_is_used_in_bounded_passes() -> None:
    journal = Journal(MIB, 64 * MIB, GUID)
    assert journal.pages_max < 4096


def test_sequence_numbers_use_both_halves() -> None:
    raw = encode_entry({MIB: page(7)}, ZERO_GUID, 0x1122334455667788, tail=0, lengths=LENGTHS)
    assert raw[PAGE + 4 : PAGE + 8] == bytes.fromhex("44332211")
    assert raw[-4:] == bytes.fromhex("88776655")
