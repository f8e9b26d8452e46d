"""Rewriting the metadata table: items replaced, added and dropped.

Owns: where the bytes of a changed item go, and the table that names them. It
reads and writes nothing: the shell edits the pages.

Ordering rule: all that a rewriting returns is one change of the log, so that a
crash leaves the old items or the new ones. Only therefore may an item take the
place of the one that it replaces. Items that are kept are not moved.

Source: [MS-VHDX] "Metadata Region", "Metadata Table".
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vblk.codec.guid import Guid
from vblk.errors import NoSpace
from vblk.formats.vhdx.encode import encode_metadata_table
from vblk.formats.vhdx.layout import METADATA_TABLE_SIZE, TABLE_ENTRIES_MAX
from vblk.formats.vhdx.metadata import ENTRY_RECORD, TABLE_RECORD, MetadataItem, MetadataTable

ItemKey = tuple[Guid, bool]
"""An item's id, and whether it is the user's."""


class NewItem(NamedTuple):
    """What an item is to say. Place, length and `entry_offset` of `item` do not count."""

    item: MetadataItem
    content: bytes


class Rewriting(NamedTuple):
    """The items as they will be, and the bytes that make them so: (offset in the region, bytes)."""

    items: MetadataTable
    writes: tuple[tuple[int, bytes], ...]


def items_of(table: MetadataTable) -> list[MetadataItem]:
    """Return all items of a table in its order."""
    return sorted((*table.known.values(), *table.unknown), key=lambda item: item.entry_offset)


def key_of(item: MetadataItem) -> ItemKey:
    """Return what tells an item from all others."""
    return item.item_id, item.is_user


def rewrite_items(
    table: MetadataTable,
    region_offset: int,
    region_length: int,
    changes: Mapping[ItemKey, NewItem | None],
    filename: str,
) -> Rewriting:
    """Replace, add or (with None) drop items.

    Args:
        table: The items as they are.
        region_offset: File offset of the metadata region.
        region_length: Its length in bytes.
        changes: What becomes of which item; the others stay as they are.
        filename: For errors.

    Raises:
        NoSpace: The region or its table has no room; nothing has changed.
    """
    old = items_of(table)
    kept = [item for item in old if key_of(item) not in changes]
    used = sorted([(0, METADATA_TABLE_SIZE), *((item.offset, item.length) for item in kept if item.length)])
    placed: dict[ItemKey, MetadataItem] = {}
    writes: list[tuple[int, bytes]] = []
    for key, new in changes.items():
        if new is None:
            continue
        offset = _place(used, len(new.content), region_length, filename) if new.content else 0
        placed[key] = new.item._replace(offset=offset, length=len(new.content))
        if new.content:
            writes.append((offset, new.content))
            used = sorted([*used, (offset, len(new.content))])
    order = [placed.pop(key_of(item)) if key_of(item) in placed else item for item in old]
    items = [item for item in order if changes.get(key_of(item), item) is not None]
    items += placed.values()
    if len(items) > TABLE_ENTRIES_MAX:
        raise NoSpace("the metadata table has no room for another item", filename=filename)
    numbered = [
        item._replace(entry_offset=region_offset + TABLE_RECORD.size + ENTRY_RECORD.size * index)
        for index, item in enumerate(items)
    ]
    reach = TABLE_RECORD.size + ENTRY_RECORD.size * max(len(old), len(items))
    writes.append((0, encode_metadata_table(numbered)[:reach]))
    return Rewriting(_table(numbered), tuple(writes))


def _place(used: Sequence[tuple[int, int]], length: int, region_length: int, filename: str) -> int:
    """Return the lowest free place, at a multiple of 8, behind the table."""
    at = 0
    for start, taken in used:
        if at + length <= start:
            return at
        at = max(at, -(-(start + taken) // 8) * 8)
    if at + length > region_length:
        raise NoSpace(f"the metadata region has no room for an item of {length} bytes", filename=filename)
    return at


def _table(items: Sequence[MetadataItem]) -> MetadataTable:
    return MetadataTable(
        {item.item_id: item for item in items if item.known},
        tuple(item for item in items if not item.known),
        (),
    )
