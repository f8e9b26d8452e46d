"""Bad inputs, cases H1 to H20: the identifier and the headers."""

import struct
from pathlib import Path
from uuid import uuid4

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
from tests.support.subject import Journal, Subject
from tests.support.vhdx.records import GIB, KIB, MIB, NIL, encode_identifier
from vblk.errors import CorruptImage, Reason, UnsupportedFeature, WrongFormat

CASES = Catalogue("H", numbers(20))


@CASES.add("H1", refused(Reason.WRONG_SIGNATURE, error=WrongFormat))
def identifier_signature_wrong(subject: Subject) -> None:
    subject.parts.identifier = encode_identifier(signature=b"vhdxfilE")


@CASES.add("H2-empty", refused(Reason.TRUNCATED))
def empty_file(subject: Subject) -> None:
    subject.write_bytes(b"")


@CASES.add("H2-300KiB", refused(Reason.TRUNCATED))
def cut_at_300_kib(subject: Subject) -> None:
    subject.parts.length = 300 * KIB


@CASES.add("H2-1MiB", refused(Reason.TRUNCATED, Reason.OUT_OF_FILE))
def cut_at_1_mib(subject: Subject) -> None:
    subject.parts.length = MIB


@CASES.add("H3", Opens(codes=OWN))
def old_header_checksum_bad(subject: Subject) -> None:
    subject.parts.other.checksum = 0x12345678


@CASES.add("H4", Opens(codes=OWN))
def current_header_checksum_bad(subject: Subject) -> None:
    subject.parts.current.checksum = 0


@CASES.add("H4-signature", Opens(("H3",)))
def current_header_signature_bad(subject: Subject) -> None:
    subject.parts.current.signature = b"heaD"


@CASES.add("H5", refused(Reason.BAD_CHECKSUM, Reason.WRONG_SIGNATURE, error=CorruptImage))
def both_header_checksums_bad(subject: Subject) -> None:
    for header in subject.parts.headers:
        header.checksum = 1


@CASES.add("H6", Opens(codes=OWN))
def identical_twins(subject: Subject) -> None:
    for header in subject.parts.headers:
        header.sequence = 1


@CASES.add("H7", refused(Reason.BAD_VALUE, Reason.DUPLICATE, error=CorruptImage))
def equal_sequences_different_bytes(subject: Subject) -> None:
    for header in subject.parts.headers:
        header.sequence = 1
    subject.parts.headers[0].data_write = uuid4()


@CASES.add("H8", refused(Reason.UNSUPPORTED_VERSION, error=UnsupportedFeature))
def current_version_unknown(subject: Subject) -> None:
    subject.parts.current.version = 2


@CASES.add("H9", Opens(codes=OWN))
def log_version_unknown_without_log(subject: Subject) -> None:
    for header in subject.parts.headers:
        header.log_version = 1


@CASES.add("H10", refused(Reason.UNSUPPORTED_VERSION, error=UnsupportedFeature))
def log_version_unknown_with_log(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(3, journal.map(3)))
    for header in subject.parts.headers:
        header.log_version = 1


@CASES.add("H11", refused(Reason.BAD_VALUE, error=CorruptImage))
def log_offset_unaligned(subject: Subject) -> None:
    for header in subject.parts.headers:
        header.log_offset += 4096


@CASES.add("H12", Opens(codes=OWN, read_only=True))
def no_log_region_clean(subject: Subject) -> None:
    for header in subject.parts.headers:
        header.log_length = 0


@CASES.add("H13", refused(Reason.BAD_VALUE, Reason.BAD_LOG, error=CorruptImage))
def no_log_region_dirty(subject: Subject) -> None:
    subject.parts.dirty(uuid4())
    no_log_region_clean(subject)


@CASES.add("H14-bat", refused(Reason.OVERLAP, error=CorruptImage))
def log_over_bat(subject: Subject) -> None:
    for header in subject.parts.headers:
        header.log_offset = subject.parts.bat_offset


@CASES.add("H14-metadata", refused(Reason.OVERLAP, error=CorruptImage))
def log_over_metadata(subject: Subject) -> None:
    for header in subject.parts.headers:
        header.log_offset = subject.parts.metadata_offset


@CASES.add("H14-tail-over-metadata", refused(Reason.OVERLAP, error=CorruptImage))
def log_reaches_into_metadata(subject: Subject) -> None:
    for header in subject.parts.headers:
        header.log_length = 2 * MIB


@CASES.add("H14-header-area", refused(Reason.OVERLAP, Reason.BAD_VALUE, error=CorruptImage))
def log_over_headers(subject: Subject) -> None:
    for header in subject.parts.headers:
        header.log_offset = 0


@CASES.add("H15", Opens(codes=OWN, read_only=True))
def log_beyond_end_clean(subject: Subject) -> None:
    for header in subject.parts.headers:
        header.log_offset = 64 * MIB


@CASES.add("H16", refused(Reason.OUT_OF_FILE, Reason.TRUNCATED, error=CorruptImage))
def log_beyond_end_dirty(subject: Subject) -> None:
    subject.parts.dirty(uuid4())
    log_beyond_end_clean(subject)


def _huge_log(subject: Subject) -> None:
    subject.parts.length = 5 * GIB
    for header in subject.parts.headers:
        header.log_offset = 64 * MIB
        header.log_length = 4 * GIB - MIB
    subject.parts.log_offset = 64 * MIB


@CASES.add("H17-clean", Opens())
def huge_log_clean(subject: Subject) -> None:
    _huge_log(subject)


@CASES.add("H17-dirty", Opens(codes=("L2",), read_only=True))
def huge_log_of_plausible_garbage(subject: Subject) -> None:
    _huge_log(subject)
    guid = uuid4()
    subject.parts.dirty(guid)
    length = 256 * MIB
    for position in range(0, 8 * MIB, 4096):
        head = struct.pack("<4sIIIQII", b"loge", 7, length, position, position // 4096 + 1, 70_000, 0)
        head += guid.bytes_le + struct.pack("<QQ", 4 * MIB, 5 * GIB)
        descriptor = struct.pack("<4sIQQQ", b"desc", 0, 0, 4 * MIB, position // 4096 + 1)
        subject.parts.log.append((position, (head + descriptor * 126)[:4096]))


@CASES.add("H18", Opens(OWN, read_only=True))
def sequence_at_its_end(subject: Subject) -> None:
    subject.parts.headers[1].sequence = 2**64 - 1


@CASES.add("H18-near", Opens(OWN, read_only=True))
def sequence_near_its_end(subject: Subject) -> None:
    subject.parts.headers[1].sequence = 2**64 - 4


@CASES.add("H18-far-enough", Opens(clean=True))
def sequence_that_can_still_grow(subject: Subject) -> None:
    subject.parts.headers[1].sequence = 2**64 - 100


@CASES.add("H19", Opens())
def reserved_bytes_set(subject: Subject) -> None:
    for header in subject.parts.headers:
        header.reserved = b"\xa5" * 4016


@CASES.add("H20-newer-clean", Opens())
def newer_clean_older_dirty(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(3, journal.map(3, seen=False)))
    subject.parts.current.log_guid = NIL


@CASES.add("H20-newer-dirty", Opens(codes=("L29",)))
def newer_dirty_older_clean(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(3, journal.map(3)))
    subject.parts.other.log_guid = NIL


def test_every_number_of_the_section_has_a_case() -> None:
    assert CASES.missing() == []


@pytest.mark.parametrize(("make", "wanted"), CASES.parameters())
def test_the_library_does_what_is_asked(make: Make, wanted: Refused | Opens, tmp_path: Path) -> None:
    judge_library(make, wanted, tmp_path)


@pytest.mark.parametrize(("make", "wanted"), CASES.parameters())
def test_the_commands_do_what_is_asked(make: Make, wanted: Refused | Opens, tmp_path: Path) -> None:
    judge_commands(make, wanted, tmp_path)
