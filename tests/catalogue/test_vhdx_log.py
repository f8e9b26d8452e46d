"""Bad inputs, cases L1 to L30: the log, read-only.

The disk has 2 GiB, so that blocks 512 apart have their entries in different
pages of the BAT and an entry of the log that was wrongly taken or left shows.
"""

import struct
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.catalogue import (
    Catalogue,
    Make,
    Opens,
    Refused,
    judge_commands,
    judge_library,
    numbers,
    refused,
)
from tests.support.subject import Journal, Subject
from tests.support.vhdx.image import State
from tests.support.vhdx.journal import Page, Zeros
from tests.support.vhdx.records import BAT_REGION, MIB, TABLE_OFFSETS, TIB, VIRTUAL_DISK_SIZE, Region
from vblk.errors import CorruptImage, NeedsReplay, Reason
from vblk.graph.site import ChainRules

CASES = Catalogue("L", numbers(30))

UNREPLAYABLE = Opens(("L2",), read_only=True)
"""The log is not empty by its name and holds nothing that can be replayed."""

DIRTY = Opens(("L29",))


@CASES.add("L1", DIRTY)
def one_good_entry(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(3, journal.map(3)))


@CASES.add("L1-high-sequence", DIRTY)
def sequence_above_32_bits(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0x7000, journal.entry(0x1234_5678_9ABC_DEF0, journal.map(3), journal.map(515)))


@CASES.add("L1-wrapping-entry", DIRTY)
def entry_around_the_end(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(MIB - 4096, journal.entry(3, journal.map(3), journal.map(515)))


@CASES.add("L1-payload-signature", DIRTY)
def page_that_begins_and_ends_like_something_else(subject: Subject) -> None:
    journal = Journal(subject)
    room = journal.parts.append(MIB)
    guid = uuid4()
    for table in journal.parts.tables:
        table.regions.append(Region(guid, room, MIB, 0))
    page = b"loge" + b"\xff" * 4088 + b"data"
    journal.put(0, journal.entry(3, Page(room, page), journal.map(3)))


@CASES.add("L2", UNREPLAYABLE)
def log_all_zeros(subject: Subject) -> None:
    Journal(subject)


@CASES.add("L3", UNREPLAYABLE)
def only_entry_has_a_bad_checksum(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(3, journal.map(3, seen=False), checksum=1))


@CASES.add("L4", DIRTY)
def second_entry_lost_a_data_sector(subject: Subject) -> None:
    journal = Journal(subject)
    after = journal.put(0, journal.entry(3, journal.map(3)))
    raw = journal.entry(4, journal.map(515, seen=False), tail=0).encode(after)
    journal.parts.put_log_bytes(after, raw[:-4096] + bytes(4096))


@CASES.add("L5", DIRTY)
def second_entry_lost_a_descriptor_sector(subject: Subject) -> None:
    journal = Journal(subject)
    after = journal.put(0, journal.entry(3, journal.map(3)))
    lost = journal.map(515, seen=False)
    many = [Zeros(journal.parts.bat_offset + 4096 * 100, 4096) for _ in range(130)]
    raw = journal.entry(4, *many, lost, tail=0).encode(after)
    journal.parts.put_log_bytes(after, raw[:4096] + bytes(4096) + raw[8192:])


@CASES.add("L6", DIRTY)
def second_entry_has_old_descriptors(subject: Subject) -> None:
    journal = Journal(subject)
    after = journal.put(0, journal.entry(3, journal.map(3)))
    page = journal.map(515, seen=False)
    page.sequence = 2
    journal.put(after, journal.entry(4, page, tail=0))


@CASES.add("L6-data", DIRTY)
def second_entry_has_old_data_sectors(subject: Subject) -> None:
    journal = Journal(subject)
    after = journal.put(0, journal.entry(3, journal.map(3)))
    page = journal.map(515, seen=False)
    page.data_sequence = 4 | 1 << 32
    journal.put(after, journal.entry(4, page, tail=0))


@CASES.add("L7", DIRTY)
def four_entries_around_the_end(subject: Subject) -> None:
    journal = Journal(subject)
    start = MIB - 4 * 4096
    blocks = (3, 515, 1027, 1539)
    entries = [
        journal.entry(sequence, journal.map(block), tail=start)
        for sequence, block in zip((3, 4, 5, 6), blocks, strict=True)
    ]
    assert journal.put(start, *entries) == 4 * 4096


@CASES.add("L8", DIRTY)
def head_is_its_own_tail(subject: Subject) -> None:
    journal = Journal(subject)
    after = journal.put(0, journal.entry(3, journal.map(3, seen=False)))
    journal.put(after, journal.entry(4, journal.map(515)))


@CASES.add("L9", DIRTY)
def numbers_one_and_three(subject: Subject) -> None:
    journal = Journal(subject)
    after = journal.put(0, journal.entry(1, journal.map(3, seen=False)))
    journal.put(after, journal.entry(3, journal.map(515)))


@CASES.add("L9-tail-before-the-gap", DIRTY)
def tail_before_a_gap_in_the_numbers(subject: Subject) -> None:
    journal = Journal(subject)
    after = journal.put(0, journal.entry(1, journal.map(3)))
    journal.put(after, journal.entry(3, journal.map(515, seen=False), tail=0))


@CASES.add("L10", UNREPLAYABLE)
def tail_outside_the_run(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(3, journal.map(3, seen=False), tail=0x80000))


@CASES.add("L10-tail-within-an-entry", UNREPLAYABLE)
def tail_within_an_entry(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(3, journal.map(3, seen=False), tail=4096))


@CASES.add("L11", refused(Reason.TRUNCATED, error=CorruptImage))
def file_shorter_than_flushed(subject: Subject) -> None:
    journal = Journal(subject)
    page = journal.map(3)
    length = journal.parts.length
    journal.put(0, journal.entry(3, page, flushed=length + MIB, last=length + MIB))


@CASES.add("L12", DIRTY)
def file_shorter_than_needed(subject: Subject) -> None:
    journal = Journal(subject)
    beyond = journal.parts.length
    page = journal.page(3, beyond + MIB | State.FULLY_PRESENT)
    journal.put(0, journal.entry(3, page, last=beyond + 2 * MIB))


@CASES.add("L13", UNREPLAYABLE)
def entries_of_another_session(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(3, journal.map(3, seen=False)))
    journal.parts.dirty(uuid4())


@CASES.add("L14-header", refused(Reason.BAD_LOG, error=CorruptImage))
def descriptor_for_a_header(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(3, journal.map(3), Page(0x10000, bytes(4096))))


@CASES.add("L14-identifier", refused(Reason.BAD_LOG, error=CorruptImage))
def zeros_from_the_identifier(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(3, Zeros(0, 256 * 1024)))


@CASES.add("L15", refused(Reason.BAD_LOG, error=CorruptImage))
def descriptor_for_the_log(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(3, Page(journal.parts.log_offset + 0x80000, bytes(4096))))


@CASES.add("L15-zeros-across", refused(Reason.BAD_LOG, error=CorruptImage))
def zeros_across_the_log(subject: Subject) -> None:
    journal = Journal(subject, order=("metadata", "log", "bat", "payload"))
    journal.put(0, journal.entry(3, Zeros(journal.parts.log_offset - 4096, 2 * MIB)))


@CASES.add("L16", DIRTY)
def empty_entry_only(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(1))


@CASES.add("L17", DIRTY)
def zeros_over_a_bat_page(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(3, Zeros(journal.parts.bat_offset, 4096)))
    subject.model.zero(0, 3 * MIB)


@CASES.add("L18-length-0", DIRTY)
def zeros_of_no_length(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(3, Zeros(0, 0), journal.map(3)))


@CASES.add("L18-offset", refused(Reason.BAD_LOG, Reason.LIMIT, error=CorruptImage))
def zeros_far_away(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(3, Zeros(1 << 50, 4096)))


@CASES.add("L18-page-offset", refused(Reason.BAD_LOG, Reason.LIMIT, error=CorruptImage))
def page_past_the_last_offset(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(3, Page(journal.parts.length, bytes(4096))))


@CASES.add("L19", refused(Reason.BAD_LOG, Reason.LIMIT, error=CorruptImage))
def a_tebibyte_of_zeros(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(3, Zeros(journal.parts.bat_offset, TIB)))


@CASES.add("L19-wrap", refused(Reason.BAD_LOG, Reason.LIMIT, error=CorruptImage))
def zeros_past_64_bits(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(3, Zeros(journal.parts.bat_offset, 2**64 - 4096)))


@CASES.add("L20", UNREPLAYABLE)
def sequence_number_zero(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(0, journal.map(3, seen=False)))


@CASES.add("L21", UNREPLAYABLE)
def entry_as_long_as_the_log(subject: Subject) -> None:
    journal = Journal(subject)
    page = journal.map(3, seen=False)
    again = [Page(page.file_offset, page.data) for _ in range(252)]
    entry = journal.entry(3, page, *again)
    assert entry.size == MIB - 4096
    entry.descriptors += [Page(page.file_offset, page.data)]
    assert entry.size == MIB
    journal.put(0, entry)


@CASES.add("L21-a-sector-less", DIRTY)
def entry_a_sector_shorter_than_the_log(subject: Subject) -> None:
    journal = Journal(subject)
    page = journal.map(3)
    journal.put(8192, journal.entry(3, *[Page(page.file_offset, page.data) for _ in range(253)]))


@CASES.add("L22-pages", DIRTY)
def later_page_wins(subject: Subject) -> None:
    journal = Journal(subject)
    early, late = journal.map(4, seen=False), journal.map(3)
    assert early.file_offset == late.file_offset
    journal.put(0, journal.entry(3, early, late))


@CASES.add("L22-zeros-then-page", DIRTY)
def page_after_zeros_wins(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(3, Zeros(journal.parts.bat_offset, 64 * 1024), journal.map(3)))


@CASES.add("L22-page-then-zeros", DIRTY)
def zeros_after_a_page_win(subject: Subject) -> None:
    journal = Journal(subject)
    page = journal.map(3, seen=False)
    journal.put(0, journal.entry(3, page, journal.map(515), Zeros(page.file_offset, 4096)))
    subject.model.zero(0, 4 * MIB)


def _second_entry(**wrong: int) -> Make:
    def make(subject: Subject) -> None:
        journal = Journal(subject)
        after = journal.put(0, journal.entry(3, journal.map(3)))
        journal.put(after, journal.entry(4, journal.map(515, seen=False), **({"tail": 0} | wrong)))

    return make


CASES.add("L23-count", DIRTY)(_second_entry(count=2**32 - 1))
CASES.add("L23-length", DIRTY)(_second_entry(length=2**32 - 4096))
CASES.add("L23-both", DIRTY)(_second_entry(count=2**27 - 2, length=2**32 - 4096))
CASES.add("L23-length-0", DIRTY)(_second_entry(length=0))
CASES.add("L23-length-odd", DIRTY)(_second_entry(length=8192 + 512))
CASES.add("L23-count-less", DIRTY)(_second_entry(count=0))
CASES.add("L23-padded", DIRTY)(_second_entry(pad_sectors=1))
CASES.add("L24-unaligned", DIRTY)(_second_entry(tail=512))
CASES.add("L24-length", DIRTY)(_second_entry(tail=MIB))
CASES.add("L24-most", DIRTY)(_second_entry(tail=2**32 - 4096))


@CASES.add("L23-only", UNREPLAYABLE)
def only_entry_claims_too_much(subject: Subject) -> None:
    journal = Journal(subject)
    wrong = {"count": 2**32 - 1, "length": 2**32 - 4096}
    journal.put(0, journal.entry(4, journal.map(515, seen=False), **wrong))


@CASES.add("L25", DIRTY)
def ring_full_of_entries(subject: Subject) -> None:
    journal = Journal(subject)
    entries = [journal.entry(number, tail=0x5000) for number in range(1, 255)]
    last = journal.entry(255, journal.map(3), tail=0x5000)
    assert journal.put(0x5000, *entries, last) == 0x5000


@CASES.add("L25-own-start", DIRTY)
def entry_whose_next_is_itself(subject: Subject) -> None:
    journal = Journal(subject)
    after = journal.put(0, journal.entry(3, journal.map(3)))
    journal.put(after, journal.entry(4, journal.map(515, seen=False), length=MIB, tail=0))


@CASES.add("L26", DIRTY)
def greater_head_wins(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0x20000, journal.entry(9, journal.map(3)))
    journal.put(0x40000, journal.entry(5, journal.map(515, seen=False)))
    journal.put(0, journal.entry(7, journal.map(1027, seen=False)))


@CASES.add("L27", DIRTY)
def entry_moves_the_bat(subject: Subject) -> None:
    journal = Journal(subject)
    page = journal.map(3)
    room = journal.parts.append(MIB)
    old = journal.parts.page(journal.parts.bat_offset, MIB)
    at = page.file_offset - journal.parts.bat_offset
    journal.parts.patches += [(room, old[:at] + page.data + old[at + 4096 :])]
    moved = journal.parts.tables[0]
    before = moved.encode()
    moved.find(BAT_REGION).offset = room
    pages = [
        Page(start + offset, moved.encode()[offset : offset + 4096])
        for start in TABLE_OFFSETS
        for offset in range(0, 65536, 4096)
    ]
    moved.find(BAT_REGION).offset = journal.parts.bat_offset
    assert moved.encode() == before
    journal.put(0, journal.entry(3, *pages))


@CASES.add("L28-bat", Opens(("L29", "B5"), read_only=True))
def entry_makes_a_bad_bat(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(3, journal.page(3, 1 << 45 | State.FULLY_PRESENT)))
    subject.lose(3)


@CASES.add("L28-metadata", refused(Reason.WRONG_SIGNATURE, error=CorruptImage))
def entry_wipes_the_metadata(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(3, Zeros(journal.parts.metadata_offset, 4096)))


@CASES.add("L28-size", refused(Reason.BAD_VALUE, error=CorruptImage))
def entry_makes_the_size_zero(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(3, Zeros(journal.parts.metadata_offset + 65536, 4096)))


@CASES.add("L28-grows", DIRTY)
def entry_makes_the_disk_larger(subject: Subject) -> None:
    journal = Journal(subject)
    at = journal.parts.metadata_offset + 65536
    page = bytearray(journal.parts.page(at))
    size = 3 * 1024 * MIB
    offset = 8
    assert struct.unpack_from("<Q", page, offset)[0] == subject.vhdx.size
    assert journal.parts.metadata.find(VIRTUAL_DISK_SIZE).offset is None
    struct.pack_into("<Q", page, offset, size)
    journal.put(0, journal.entry(3, Page(at, bytes(page)), journal.map(3)))
    subject.model = subject.model.copy(size)


@CASES.add("L29", DIRTY)
def dirty_and_read_only(subject: Subject) -> None:
    journal = Journal(subject)
    first = journal.put(0x9000, journal.entry(1))
    second = journal.put(first, journal.entry(2, journal.map(3), tail=0x9000))
    journal.put(second, journal.entry(3, journal.map(515), journal.map(1539), tail=0x9000))


@CASES.add("L29-strict", refused(Reason.DIRTY_LOG, error=NeedsReplay))
def dirty_and_strict(subject: Subject) -> None:
    one_good_entry(subject)
    subject.rules = ChainRules(strict=True)


@CASES.add("L2-strict", refused(Reason.DIRTY_LOG, Reason.BAD_LOG))
def unreplayable_and_strict(subject: Subject) -> None:
    Journal(subject)
    subject.rules = ChainRules(strict=True)


@CASES.add("L30", DIRTY)
def dirty_without_permission_to_write(subject: Subject) -> None:
    one_good_entry(subject)
    subject.write().chmod(0o444)


def test_every_number_of_the_section_has_a_case() -> None:
    assert CASES.missing() == []


@pytest.mark.parametrize(("make", "wanted"), CASES.parameters())
def test_the_library_does_what_is_asked(make: Make, wanted: Refused | Opens, tmp_path: Path) -> None:
    judge_library(make, wanted, tmp_path)


@pytest.mark.parametrize(("make", "wanted"), CASES.parameters())
def test_the_commands_do_what_is_asked(make: Make, wanted: Refused | Opens, tmp_path: Path) -> None:
    judge_commands(make, wanted, tmp_path)
