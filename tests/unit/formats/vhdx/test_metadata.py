"""The metadata region, rows M1 to M26."""

import struct
from typing import Any

import pytest

from tests.support.small_vhdx import (
    BAT,
    BAT_AT,
    DISK_ID,
    LOCATOR,
    LOGICAL,
    METADATA,
    METADATA_AT,
    MIB,
    OTHER,
    PARAMETERS,
    PHYSICAL,
    SIZE,
    Small,
    load,
    locator,
    metadata,
    region_entry,
)
from vblk.errors import CorruptImage, ImageError, Reason, UnsupportedFeature

UNFINISHED = bytes.fromhex("f085cc71691b284e9558c3bf83ae75d3")
ITEMS = Small().items()
PARENT = locator(
    {"parent_linkage": "{" + "0" * 8 + "-0000-0000-0000-" + "1" * 12 + "}", "relative_path": "p"}
)


def entry(guid: bytes, offset: int, length: int, flags: int = 0) -> bytes:
    return struct.pack("<16sIIII", guid, offset, length, flags, 0)


def without(*guids: bytes) -> dict[bytes, bytes]:
    return {guid: data for guid, data in ITEMS.items() if guid not in guids}


def with_item(guid: bytes, data: bytes) -> dict[bytes, bytes]:
    return ITEMS | {guid: data}


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        pytest.param(b"x" + metadata(ITEMS)[1:], Reason.WRONG_SIGNATURE, id="M1"),
        pytest.param(metadata(ITEMS, count=2048), Reason.LIMIT, id="M2"),
        pytest.param(metadata(without(PARAMETERS)), Reason.MISSING_ITEM, id="M3-parameters"),
        pytest.param(metadata(without(SIZE)), Reason.MISSING_ITEM, id="M3-size"),
        pytest.param(metadata(without(LOGICAL)), Reason.MISSING_ITEM, id="M3-logical"),
        pytest.param(metadata(ITEMS, entries=entry(SIZE, 80000, 8, 4)), Reason.DUPLICATE, id="M4"),
        pytest.param(metadata(ITEMS, entries=entry(OTHER, 80000, 8, 4)), Reason.UNKNOWN_REQUIRED, id="M5"),
        pytest.param(metadata(ITEMS, entries=entry(UNFINISHED, 0, 0, 4)), Reason.UNFINISHED, id="M7"),
        pytest.param(metadata(ITEMS, entries=entry(OTHER, 65535, 8)), Reason.OVERLAP, id="M8"),
        pytest.param(metadata(ITEMS, entries=entry(OTHER, MIB - 4, 8)), Reason.OUT_OF_FILE, id="M9"),
        pytest.param(metadata(ITEMS, entries=entry(OTHER, 0xFFFFFFFF, 8)), Reason.OUT_OF_FILE, id="M9-wrap"),
        pytest.param(metadata(ITEMS, entries=entry(OTHER, 65540, 8)), Reason.OVERLAP, id="M10"),
        pytest.param(metadata(with_item(SIZE, bytes(4))), Reason.BAD_VALUE, id="M11"),
        pytest.param(metadata(with_item(SIZE, b"")), Reason.BAD_VALUE, id="M11-empty"),
        pytest.param(metadata(ITEMS, entries=entry(OTHER, 80000, MIB + 1)), Reason.LIMIT, id="M12"),
        pytest.param(metadata(ITEMS, entries=entry(bytes(16), 80000, 8)), Reason.BAD_VALUE, id="zero-id"),
        pytest.param(
            metadata(
                ITEMS,
                entries=b"".join(entry(OTHER[:14] + struct.pack("<H", n), 0, 0, 1) for n in range(1025)),
            ),
            Reason.LIMIT,
            id="too-many-user-items",
        ),
    ],
)
def test_a_table_that_cannot_be_is_refused(region: bytes, reason: Reason) -> None:
    with pytest.raises(ImageError) as caught:
        load(Small(pieces={METADATA_AT: region}).build())
    assert caught.value.reason is reason
    assert isinstance(caught.value, UnsupportedFeature) is (
        reason in (Reason.UNFINISHED, Reason.UNKNOWN_REQUIRED)
    )


@pytest.mark.parametrize(
    "own",
    [
        *(pytest.param({"block_size": size}, id=f"M13-{size}") for size in (0, MIB // 2, 3 * MIB, 512 * MIB)),
        pytest.param({"size": 0}, id="M15"),
        pytest.param({"size": 65 << 40}, id="M17"),
        pytest.param({"size": (1 << 64) - 512}, id="M17-most"),
        pytest.param({"size": (4 << 50) + 16 * MIB}, id="M17b"),
        pytest.param({"size": 4 * MIB + 1}, id="M18"),
        pytest.param({"size": MIB << 20}, id="M20"),
        *(pytest.param({"logical": size}, id=f"M21-{size}") for size in (0, 520, 1024, 1 << 31)),
    ],
)
def test_a_value_that_cannot_be_is_refused(own: dict[str, Any]) -> None:
    with pytest.raises(CorruptImage) as caught:
        load(Small(**own).build())
    assert caught.value.reason is Reason.BAD_VALUE


@pytest.mark.parametrize(
    ("guid", "fact", "value"),
    [(PHYSICAL, "physical_sector_size", 512), (DISK_ID, "disk_id", bytes(16))],
)
def test_m3_a_missing_optional_fact_has_a_default_and_forbids_writing(
    guid: bytes, fact: str, value: object
) -> None:
    image = load(Small(pieces={METADATA_AT: metadata(without(guid))}).build())
    assert getattr(image, fact) == value
    assert [finding.code for finding in image.findings] == ["M3"]
    assert image.read_only_reasons


@pytest.mark.parametrize("flags", [0, 1])
def test_m6_unknown_items_are_kept(flags: int) -> None:
    region = metadata(ITEMS, entries=entry(OTHER, 80000, 8, flags))
    image = load(Small(pieces={METADATA_AT: region}).build())
    assert [(item.item_id, item.is_user) for item in image.unknown_items] == [(OTHER, bool(flags))]
    assert image.findings == []


def test_a_known_id_of_a_user_is_another_item() -> None:
    region = metadata(ITEMS, entries=entry(SIZE, 80000, 3, 1))
    image = load(Small(pieces={METADATA_AT: region}).build())
    assert image.virtual_size == 4 * MIB


def test_an_item_far_from_the_table_is_found() -> None:
    far = metadata(without(SIZE), entries=entry(SIZE, 900_000, 8, 6))
    file = Small(pieces={METADATA_AT: far, METADATA_AT + 900_000: (3 * MIB).to_bytes(8, "little")}).build()
    assert load(file).virtual_size == 3 * MIB


@pytest.mark.parametrize(
    ("own", "codes"),
    [
        pytest.param({"bits": 4}, ["M14"], id="M14"),
        pytest.param({"size": 16 * MIB + 512}, [], id="M19"),
        pytest.param({"logical": 4096, "physical": 4096}, [], id="M22"),
        pytest.param({"logical": 4096, "physical": 512}, [], id="M22-mixed"),
        pytest.param({"physical": 520}, ["M23"], id="M23"),
        pytest.param({"extra_items": {LOCATOR: PARENT}}, ["M26"], id="M26"),
        pytest.param({"bits": 3, "extra_items": {LOCATOR: PARENT}}, [], id="M24"),
    ],
)
def test_what_is_odd_but_readable_opens(own: dict[str, Any], codes: list[str]) -> None:
    image = load(Small(**own).build())
    assert [finding.code for finding in image.findings] == codes
    if own.get("physical") == 520:
        assert image.physical_sector_size == image.logical_sector_size


@pytest.mark.parametrize(("bits", "kind"), [(0, "dynamic"), (1, "fixed"), (3, "differencing")])
def test_m24_a_parent_outweighs_fixed(bits: int, kind: str) -> None:
    assert load(Small(bits=bits, extra_items={LOCATOR: PARENT}).build()).type == kind


def test_m25_a_parent_needs_a_locator() -> None:
    with pytest.raises(CorruptImage) as caught:
        load(Small(bits=2).build())
    assert caught.value.reason is Reason.PARENT_LOCATOR


def test_m16_64_tib_is_the_greatest_disk() -> None:
    image = load(Small(size=64 << 40, block_size=256 * MIB, length=8 * MIB, regions=_wide_regions()).build())
    assert image.virtual_size == 64 << 40


def _wide_regions() -> tuple[bytes, ...]:
    return region_entry(BAT, BAT_AT, 4 * MIB), region_entry(METADATA, METADATA_AT)
