"""Rewriting the metadata table: what is kept stays where it is, what is new overlaps nothing."""

import pytest

from vblk.codec.guid import Guid
from vblk.errors import NoSpace
from vblk.formats.vhdx.encode import encode_metadata_table
from vblk.formats.vhdx.items import NewItem, items_of, key_of, rewrite_items
from vblk.formats.vhdx.layout import (
    ITEM_PARENT_LOCATOR,
    ITEM_VIRTUAL_DISK_ID,
    METADATA_TABLE_SIZE,
    TABLE_ENTRIES_MAX,
)
from vblk.formats.vhdx.metadata import MetadataItem, MetadataTable, parse_table

REGION, LENGTH = 3 << 20, 1 << 20
LOCATOR = MetadataItem(ITEM_PARENT_LOCATOR, METADATA_TABLE_SIZE, 100, False, False, True, 0)
DISK_ID = MetadataItem(ITEM_VIRTUAL_DISK_ID, METADATA_TABLE_SIZE + 100, 16, False, True, True, 0)
OTHER = MetadataItem(Guid(b"o" * 16), METADATA_TABLE_SIZE + 200, 50, True, True, False, 0)


def table(*items: MetadataItem) -> MetadataTable:
    return parse_table(encode_metadata_table(items), REGION, LENGTH)


def rewritten(
    before: MetadataTable, changes: dict[MetadataItem, bytes | None], length: int = LENGTH
) -> bytes:
    """Return the region after a rewriting, over zeros and the old table."""
    region = bytearray(encode_metadata_table(items_of(before)).ljust(length, b"\0"))
    new = {
        key_of(item): None if content is None else NewItem(item, content) for item, content in changes.items()
    }
    rewriting = rewrite_items(before, REGION, length, new, "disk")
    for offset, data in rewriting.writes:
        region[offset : offset + len(data)] = data
    parsed = parse_table(bytes(region[:METADATA_TABLE_SIZE]), REGION, length)
    assert items_of(parsed) == items_of(rewriting.items)
    return bytes(region)


def items_in(region: bytes) -> list[MetadataItem]:
    return items_of(parse_table(region[:METADATA_TABLE_SIZE], REGION, len(region)))


def content(region: bytes, item: MetadataItem) -> bytes | None:
    for each in items_in(region):
        if key_of(each) == key_of(item):
            return region[each.offset : each.offset + each.length]
    return None


def test_a_longer_item_moves_and_the_others_stay() -> None:
    before = table(LOCATOR, DISK_ID, OTHER)
    region = rewritten(before, {LOCATOR: b"L" * 120})
    assert content(region, LOCATOR) == b"L" * 120
    after = {
        key_of(item): item for item in items_of(parse_table(region[:METADATA_TABLE_SIZE], REGION, LENGTH))
    }
    for kept in (DISK_ID, OTHER):
        assert after[key_of(kept)].offset == kept.offset
        assert (after[key_of(kept)].is_user, after[key_of(kept)].is_virtual_disk) == kept[3:5]


def test_items_are_dropped_and_added() -> None:
    before = table(LOCATOR, DISK_ID)
    region = rewritten(before, {LOCATOR: None, OTHER: b"new", DISK_ID: b"i" * 16})
    assert (content(region, LOCATOR), content(region, OTHER), content(region, DISK_ID)) == (
        None,
        b"new",
        b"i" * 16,
    )


def test_an_empty_item_has_no_place() -> None:
    region = rewritten(table(DISK_ID), {OTHER: b""})
    (added,) = (
        each for each in items_of(parse_table(region[:METADATA_TABLE_SIZE], REGION, LENGTH)) if each.is_user
    )
    assert (added.offset, added.length) == (0, 0)


def test_an_item_may_take_the_place_of_the_one_it_replaces() -> None:
    length = METADATA_TABLE_SIZE + 200
    before = parse_table(encode_metadata_table([LOCATOR, DISK_ID]), REGION, length)
    assert content(rewritten(before, {LOCATOR: b"n" * 96}, length), LOCATOR) == b"n" * 96


def test_a_full_region_and_a_full_table_are_refused() -> None:
    before = parse_table(encode_metadata_table([LOCATOR]), REGION, METADATA_TABLE_SIZE + 128)
    with pytest.raises(NoSpace, match="no room for an item of 30 bytes"):
        rewrite_items(
            before, REGION, METADATA_TABLE_SIZE + 128, {key_of(OTHER): NewItem(OTHER, bytes(30))}, "disk"
        )
    many = [
        OTHER._replace(item_id=Guid(n.to_bytes(16, "big")), offset=0, length=0, is_user=False)
        for n in range(1, 2048)
    ]
    full = parse_table(encode_metadata_table(many), REGION, LENGTH)
    assert len(items_of(full)) == TABLE_ENTRIES_MAX
    with pytest.raises(NoSpace, match="the metadata table has no room"):
        rewrite_items(full, REGION, LENGTH, {key_of(OTHER): NewItem(OTHER, b"")}, "disk")
