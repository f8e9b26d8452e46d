"""Region tables, rows T1 to T17."""

import pytest

from tests.support.small_vhdx import (
    BAT,
    BAT_AT,
    METADATA,
    METADATA_AT,
    MIB,
    OTHER,
    Small,
    load,
    region_entry,
    region_table,
)
from vblk.errors import CorruptImage, ImageError, Reason, UnsupportedFeature

KNOWN = (region_entry(BAT, BAT_AT), region_entry(METADATA, METADATA_AT))
GOOD = region_table(*KNOWN)
BROKEN = GOOD[:-1] + b"x"
MOVED = region_table(*KNOWN, region_entry(OTHER, 6 * MIB, flags=0))


@pytest.mark.parametrize(
    ("first", "second", "codes", "writable"),
    [
        pytest.param(BROKEN, GOOD, ["T1"], True, id="T1"),
        pytest.param(GOOD, BROKEN, ["T2"], True, id="T2"),
        pytest.param(GOOD, MOVED, ["T4"], False, id="T4"),
    ],
)
def test_one_good_table_is_enough(first: bytes, second: bytes, codes: list[str], writable: bool) -> None:
    image = load(Small(pieces={0x30000: first, 0x40000: second}).build())
    assert [finding.code for finding in image.findings] == codes
    assert bool(image.read_only_reasons) is not writable


@pytest.mark.parametrize(
    ("table", "error", "reason"),
    [
        pytest.param(BROKEN, CorruptImage, Reason.BAD_CHECKSUM, id="T3"),
        pytest.param(region_table(*KNOWN, count=2048), CorruptImage, Reason.LIMIT, id="T5"),
        pytest.param(region_table(*KNOWN, count=0xFFFFFFFF), CorruptImage, Reason.LIMIT, id="T5-most"),
        pytest.param(
            region_table(*KNOWN, region_entry(BAT, 5 * MIB)), CorruptImage, Reason.DUPLICATE, id="T6"
        ),
        pytest.param(
            region_table(*KNOWN, region_entry(OTHER, 6 * MIB)),
            UnsupportedFeature,
            Reason.UNKNOWN_REQUIRED,
            id="T7",
        ),
        pytest.param(region_table(KNOWN[1]), CorruptImage, Reason.MISSING_ITEM, id="T9-bat"),
        pytest.param(region_table(KNOWN[0]), CorruptImage, Reason.MISSING_ITEM, id="T9-metadata"),
        pytest.param(
            region_table(KNOWN[0], region_entry(METADATA, BAT_AT)), CorruptImage, Reason.OVERLAP, id="T10"
        ),
        pytest.param(region_table(region_entry(BAT, 0), KNOWN[1]), CorruptImage, Reason.OVERLAP, id="T11"),
        pytest.param(
            region_table(region_entry(BAT, BAT_AT + 512), KNOWN[1]), CorruptImage, Reason.BAD_VALUE, id="T12"
        ),
        pytest.param(
            region_table(region_entry(BAT, 1 << 60), KNOWN[1]), CorruptImage, Reason.TRUNCATED, id="T13"
        ),
        pytest.param(
            region_table(region_entry(BAT, BAT_AT, 0), KNOWN[1]), CorruptImage, Reason.BAD_VALUE, id="T14"
        ),
        pytest.param(
            region_table(region_entry(BAT, BAT_AT, 4096), KNOWN[1]), CorruptImage, Reason.BAD_VALUE, id="T15"
        ),
        pytest.param(
            region_table(region_entry(BAT, (1 << 64) - MIB), KNOWN[1]),
            CorruptImage,
            Reason.TRUNCATED,
            id="T15-overflow",
        ),
    ],
)
def test_a_table_that_cannot_be_is_refused(table: bytes, error: type[ImageError], reason: Reason) -> None:
    with pytest.raises(error) as caught:
        load(Small(pieces={0x30000: table, 0x40000: table}).build())
    assert caught.value.reason is reason


def test_t8_an_unknown_optional_region_is_kept_and_reserved() -> None:
    entries = (*KNOWN, region_entry(OTHER, 6 * MIB, flags=0))
    image = load(Small(regions=entries).build())
    assert image.findings == []
    assert [region.guid for region in image.unknown_regions] == [OTHER]
    assert image.placement.floor == 7 * MIB


def test_t16_the_required_bit_is_not_demanded() -> None:
    entries = (region_entry(BAT, BAT_AT, flags=0), region_entry(METADATA, METADATA_AT, flags=0))
    assert load(Small(regions=entries).build()).findings == []


@pytest.mark.parametrize(
    "table",
    [
        region_table(*KNOWN, reserved=1),
        region_table(region_entry(BAT, BAT_AT, flags=3), KNOWN[1]),
    ],
)
def test_t17_reserved_bits_are_a_finding(table: bytes) -> None:
    image = load(Small(pieces={0x30000: table, 0x40000: table}).build())
    assert [finding.code for finding in image.findings] == ["T17"]
