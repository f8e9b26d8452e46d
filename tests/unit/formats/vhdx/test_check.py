"""The check: what the walk over the BAT reports, rows B1 to B23."""

import pytest

from tests.support.small_vhdx import (
    BAT_AT,
    FULLY,
    LOCATOR,
    METADATA_AT,
    MIB,
    PARTLY,
    PAYLOAD_AT,
    MemoryFile,
    Small,
    header,
    load,
    locator,
    run,
)
from vblk.formats.vhdx import CheckReport, check_image, scan_image
from vblk.formats.vhdx.check import MESSAGES_PER_CODE
from vblk.formats.vhdx.ownership import Owner, OwnershipTable

PARENT = locator({"parent_linkage": "{00112233-4455-6677-8899-aabbccddeeff}", "relative_path": ".\\p.vhdx"})


def at(block: int, state: int = FULLY) -> int:
    return (PAYLOAD_AT + block * MIB) | state


def check(file: MemoryFile) -> CheckReport:
    return run(check_image(load(file), file.read))


ERRORS = [
    pytest.param({0: 4}, "B1", id="B1"),
    pytest.param({0: FULLY}, "B3", id="B3"),
    pytest.param({0: METADATA_AT | FULLY}, "B4", id="B4"),
    pytest.param({0: 1 << 40 | FULLY}, "B5", id="B5"),
    pytest.param({0: 1 << 63 | FULLY}, "B8", id="B8"),
    pytest.param({0: at(0), 1: at(0)}, "B9", id="B9"),
    pytest.param({0: at(0, PARTLY)}, "B11", id="B11"),
]


@pytest.mark.parametrize(("entries", "code"), ERRORS)
def test_a_violation_that_harms_is_an_error_and_forbids_writing(entries: dict[int, int], code: str) -> None:
    report = check(Small(entries=entries).build())
    assert dict(report.counts) == {code: 1}
    assert (report.errors, report.warnings, report.leaks) == (1, 0, 0)
    assert report.read_only_reasons


def test_b6_and_b7_tell_needed_bytes_from_others() -> None:
    small = Small(size=MIB + 512, entries={1: 7 * MIB | FULLY}, length=7 * MIB + 512)
    report = check(small.build())
    assert (dict(report.counts), report.errors) == ({"B7": 1}, 0)
    small.length -= 1
    report = check(small.build())
    assert (dict(report.counts), report.errors) == ({"B6": 1}, 1)


def test_b10_a_partial_overlap_is_told_from_an_equal_place() -> None:
    entries = {0: PAYLOAD_AT | FULLY, 1: PAYLOAD_AT + MIB | FULLY}
    report = check(Small(size=8 * MIB, block_size=2 * MIB, entries=entries).build())
    assert dict(report.counts) == {"B10": 1}


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        pytest.param({0: at(0) | 8}, "B2", id="B2"),
        pytest.param({0: at(0, 0)}, "B12", id="B12-not-present"),
        pytest.param({0: at(0, 2)}, "B12", id="B12-zero"),
        pytest.param({0: at(0, 3), 1: at(0)}, "B13", id="B13"),
        pytest.param({0: BAT_AT | 3}, "B13", id="B13-reserved"),
        pytest.param({4: 2}, "B20", id="B20"),
        pytest.param({131071: 1}, "B20", id="B20-last"),
    ],
)
def test_what_nothing_depends_on_is_a_warning(entries: dict[int, int], code: str) -> None:
    report = check(Small(entries=entries).build())
    assert dict(report.counts) == {code: 1}
    assert (report.errors, report.warnings, report.leaks) == (0, 1, 0)


def test_b14_junk_in_an_unused_bitmap_entry_is_a_warning() -> None:
    report = check(Small(size=4097 * MIB, entries={4096: at(0)}).build())
    assert dict(report.counts) == {"B14": 1}
    assert report.warnings == 1


def test_b20_space_that_no_block_reaches_is_a_leak() -> None:
    report = check(Small(entries={4: at(0)}).build())
    assert (report.leaks, report.leaked_bytes) == (1, MIB)


@pytest.mark.parametrize(
    ("entries", "codes"),
    [
        pytest.param({0: at(0, PARTLY), 4096: at(1)}, {}, id="sound"),
        pytest.param({0: at(0, PARTLY)}, {"B15": 1}, id="B15"),
        pytest.param({0: at(0, PARTLY), 4096: at(1, 3)}, {"B16": 1}, id="B16"),
        pytest.param({0: at(0), 4096: at(1, 7)}, {"B16": 1}, id="B16-unused"),
        pytest.param({0: at(0, PARTLY), 4096: at(0)}, {"B17": 1}, id="B17"),
        pytest.param({0: at(0), 4096: 0}, {}, id="none-needed"),
        pytest.param({5: 1, 4095: 1}, {"B20": 2}, id="B20-padding"),
    ],
)
def test_sector_bitmaps_of_a_differencing_image(entries: dict[int, int], codes: dict[str, int]) -> None:
    small = Small(bits=2, extra_items={LOCATOR: PARENT}, entries=entries)
    assert dict(check(small.build()).counts) == codes


def test_a_sound_image_is_counted() -> None:
    file = Small(entries={0: at(0), 1: at(1), 2: 2, 3: at(3, 3)}, length=9 * MIB).build()
    report = check(file)
    assert report.findings == []
    assert dict(report.states) == {"FULLY_PRESENT": 2, "ZERO": 1, "UNMAPPED": 1}
    assert (report.total_blocks, report.allocated_blocks, report.fragmented_blocks) == (4, 2, 0)
    assert report.image_end_offset == 8 * MIB
    assert report.unused_bytes == 2 * MIB
    assert report.complete


def test_blocks_out_of_order_are_fragmented() -> None:
    assert check(Small(entries={0: at(2), 1: at(0), 2: at(1)}).build()).fragmented_blocks == 1


def test_findings_of_loading_come_first() -> None:
    file = Small(headers=(header(1), header(1)), entries={0: at(0, 2)}).build()
    assert [finding.code for finding in check(file).findings] == ["H6", "B12"]


def test_messages_are_bounded_and_counts_are_not() -> None:
    entries = {block: 4 | block << 20 for block in range(4000)}
    report = check(Small(size=4000 * MIB, entries=entries).build())
    assert (report.counts["B1"], report.errors) == (4000, 4000)
    assert len(report.findings) == MESSAGES_PER_CODE


def test_a_brief_scan_stops_and_says_so_and_the_image_tells() -> None:
    file = Small(size=4000 * MIB, entries={0: at(0, 2)} | {n: 4 | n << 20 for n in range(600, 4000)}).build()
    image = load(file)
    report = run(scan_image(image, file.read, entries_max=512))
    assert not report.complete
    assert {finding.code for finding in image.findings} == {"B12", "B1"}
    assert report.counts["B1"] < 512  # each is an entry of its own, and so many are looked at
    again = run(check_image(image, file.read))
    assert again.complete
    assert (again.counts["B12"], again.counts["B1"]) == (1, 3400)


def test_ownership_is_exclusive_across_segments() -> None:
    table = OwnershipTable()
    edge = 65536 * MIB
    assert table.claim(edge - 2 * MIB, 4 * MIB, Owner.BLOCK_START) is Owner.FREE
    assert table.owner_within(edge, MIB) is Owner.BLOCK_REST
    assert table.owner_within(edge + 2 * MIB, MIB) is Owner.FREE
    assert table.claim(edge + MIB, 4 * MIB, Owner.BITMAP) is Owner.BLOCK_REST
    assert not table.claim_blocks(edge - 4 * MIB, 2, 2 * MIB)
    assert table.claim_blocks(edge + 2 * MIB, 3, 2 * MIB)
    assert table.owner_within(edge + 4 * MIB, MIB) is Owner.BLOCK_START
    assert table.claimed == 10 * MIB
