"""Bad inputs, cases T1 to T17: the region tables."""

from pathlib import Path
from uuid import UUID

import pytest

from tests.support.catalogue import (
    OWN,
    Catalogue,
    Make,
    Opens,
    Refused,
    judge_commands,
    judge_library,
    numbers,
    refused,
)
from tests.support.subject import Subject
from tests.support.vhdx.records import BAT_REGION, KIB, METADATA_REGION, MIB, Region
from vblk.errors import CorruptImage, Reason, UnsupportedFeature

CASES = Catalogue("T", numbers(17))

UNKNOWN = UUID("12345678-1234-5678-1234-567812345678")


def both_set(subject: Subject, guid: UUID, **changes: int) -> None:
    """Change the entry of a region in both tables."""
    for table in subject.parts.tables:
        for name, value in changes.items():
            setattr(table.find(guid), name, value)


@CASES.add("T1", Opens(codes=OWN))
def first_checksum_bad(subject: Subject) -> None:
    table = subject.parts.tables[0]
    table.find(BAT_REGION).offset = 77 * MIB
    table.checksum = 5


@CASES.add("T2", Opens(codes=OWN))
def second_checksum_bad(subject: Subject) -> None:
    table = subject.parts.tables[1]
    table.find(BAT_REGION).offset = 77 * MIB
    table.checksum = 5


@CASES.add("T3", refused(Reason.BAD_CHECKSUM, error=CorruptImage))
def both_checksums_bad(subject: Subject) -> None:
    for table in subject.parts.tables:
        table.checksum = 5


@CASES.add("T4", Opens(codes=OWN, read_only=True))
def valid_and_different(subject: Subject) -> None:
    room = subject.parts.append(MIB)
    subject.parts.tables[1].find(BAT_REGION).offset = room


@CASES.add("T5-2048", refused(Reason.LIMIT, Reason.BAD_VALUE, error=CorruptImage))
def one_entry_too_many(subject: Subject) -> None:
    for table in subject.parts.tables:
        table.count = 2048


@CASES.add("T5-most", refused(Reason.LIMIT, Reason.BAD_VALUE, error=CorruptImage))
def most_entries(subject: Subject) -> None:
    for table in subject.parts.tables:
        table.count = 0xFFFFFFFF


@CASES.add("T6", refused(Reason.DUPLICATE, error=CorruptImage))
def bat_twice(subject: Subject) -> None:
    room = subject.parts.append(MIB)
    for table in subject.parts.tables:
        table.regions.append(Region(BAT_REGION, room, MIB))


def _add_unknown(subject: Subject, flags: int) -> None:
    room = subject.parts.append(2 * MIB)
    subject.parts.patches.append((room, b"\xee" * 4096))
    for table in subject.parts.tables:
        table.regions.insert(0, Region(UNKNOWN, room, 2 * MIB, flags))


@CASES.add("T7", refused(Reason.UNKNOWN_REQUIRED, error=UnsupportedFeature))
def unknown_required(subject: Subject) -> None:
    _add_unknown(subject, 1)


@CASES.add("T8", Opens())
def unknown_optional(subject: Subject) -> None:
    _add_unknown(subject, 0)


@CASES.add("T9-bat", refused(Reason.MISSING_ITEM, error=CorruptImage))
def no_bat(subject: Subject) -> None:
    for table in subject.parts.tables:
        table.regions.remove(table.find(BAT_REGION))


@CASES.add("T9-metadata", refused(Reason.MISSING_ITEM, error=CorruptImage))
def no_metadata(subject: Subject) -> None:
    for table in subject.parts.tables:
        table.regions.remove(table.find(METADATA_REGION))


@CASES.add("T9-both", refused(Reason.MISSING_ITEM, error=CorruptImage))
def no_entries(subject: Subject) -> None:
    for table in subject.parts.tables:
        table.regions.clear()


@CASES.add("T10", refused(Reason.OVERLAP, error=CorruptImage))
def bat_over_metadata(subject: Subject) -> None:
    both_set(subject, BAT_REGION, offset=subject.parts.metadata_offset)


@CASES.add("T11-zero", refused(Reason.BAD_VALUE, Reason.OVERLAP, error=CorruptImage))
def at_offset_zero(subject: Subject) -> None:
    both_set(subject, BAT_REGION, offset=0)


@CASES.add("T11-headers", refused(Reason.BAD_VALUE, Reason.OVERLAP, error=CorruptImage))
def below_1_mib(subject: Subject) -> None:
    both_set(subject, METADATA_REGION, offset=512 * KIB)


@CASES.add("T12", refused(Reason.BAD_VALUE, error=CorruptImage))
def offset_unaligned(subject: Subject) -> None:
    both_set(subject, BAT_REGION, offset=subject.parts.bat_offset + 4096)


@CASES.add("T13-bat", refused(Reason.OUT_OF_FILE, Reason.TRUNCATED, error=CorruptImage))
def bat_beyond_end(subject: Subject) -> None:
    both_set(subject, BAT_REGION, offset=100 * MIB)


@CASES.add("T13-metadata", refused(Reason.OUT_OF_FILE, Reason.TRUNCATED, error=CorruptImage))
def metadata_beyond_end(subject: Subject) -> None:
    both_set(subject, METADATA_REGION, offset=100 * MIB)


@CASES.add("T14", refused(Reason.BAD_VALUE, error=CorruptImage))
def length_zero(subject: Subject) -> None:
    both_set(subject, BAT_REGION, length=0)


@CASES.add("T15-unaligned", refused(Reason.BAD_VALUE, error=CorruptImage))
def length_unaligned(subject: Subject) -> None:
    both_set(subject, BAT_REGION, length=MIB - 4096)


@CASES.add("T15-overflow", refused(Reason.BAD_VALUE, Reason.TRUNCATED, error=CorruptImage))
def end_overflows(subject: Subject) -> None:
    both_set(subject, BAT_REGION, offset=2**64 - MIB, length=2 * MIB)


@CASES.add("T16", Opens(clean=True))
def required_clear(subject: Subject) -> None:
    for guid in (BAT_REGION, METADATA_REGION):
        both_set(subject, guid, flags=0)


@CASES.add("T17-reserved", Opens(codes=OWN))
def reserved_field(subject: Subject) -> None:
    for table in subject.parts.tables:
        table.reserved = 0xFFFFFFFF


@CASES.add("T17-flags", Opens(codes=OWN))
def reserved_flags(subject: Subject) -> None:
    both_set(subject, BAT_REGION, flags=0xFFFFFFFF)


def test_every_number_of_the_section_has_a_case() -> None:
    assert CASES.missing() == []


@pytest.mark.parametrize(("make", "wanted"), CASES.parameters())
def test_the_library_does_what_is_asked(make: Make, wanted: Refused | Opens, tmp_path: Path) -> None:
    judge_library(make, wanted, tmp_path)


@pytest.mark.parametrize(("make", "wanted"), CASES.parameters())
def test_the_commands_do_what_is_asked(make: Make, wanted: Refused | Opens, tmp_path: Path) -> None:
    judge_commands(make, wanted, tmp_path)
