"""Changing what a VHDX image says about itself and its parent, and parting from the parent.

Owns: the steps that change metadata items, and those that empty an image or let
it stand alone. What the items are to say is `vblk.formats.vhdx.linkage`'s and
the caller's.

Ordering rules:
- Items change in one entry of the log: table, contents, all of them or none.
- An image that is emptied loses its blocks page by page of the block table: what
  shows then, the parent must already hold, durably.
- An image that is to stand alone first has no partially present block any more,
  then no sector bitmap, and only then no parent.

Source: [MS-VHDX] "Metadata Region", "Parent Locator", "Payload BAT Entry States".
"""

import os
from collections.abc import Mapping
from contextlib import ExitStack

from vblk.codec.guid import Guid
from vblk.drivers.vhdx import VhdxNode
from vblk.drivers.vhdx_create import relative_path
from vblk.drivers.vhdx_parent import local_path
from vblk.drivers.vhdx_regions import load_pages
from vblk.drivers.vhdx_resize import used_pages
from vblk.drivers.vhdx_writer import VhdxWriter
from vblk.errors import GraphError, Unsupported
from vblk.extent import Kind
from vblk.formats.edits import Range
from vblk.formats.vhdx.bat import Geometry, State
from vblk.formats.vhdx.encode import encode_file_parameters, encode_locator
from vblk.formats.vhdx.items import ItemKey, NewItem, items_of, key_of, rewrite_items
from vblk.formats.vhdx.layout import (
    BAT_ENTRIES_PER_PAGE,
    BAT_ENTRY_SIZE,
    BAT_OFFSET_MASK,
    BAT_STATE_MASK,
    ITEM_FILE_PARAMETERS,
    ITEM_PARENT_LOCATOR,
    PAGE_SIZE,
    SECTOR_BITMAP_SIZE,
)
from vblk.formats.vhdx.linkage import reparented
from vblk.formats.vhdx.locator import KEY_LINKAGE, KEY_LINKAGE_2, parse_locator
from vblk.formats.vhdx.metadata import DiskFacts, MetadataItem
from vblk.formats.vhdx.plan import Plan
from vblk.formats.vhdx.resizing import clear_entries, edit_bytes, pages_under
from vblk.graph.node import Filter, Node


async def set_locator(node: VhdxNode, pairs: Mapping[str, str]) -> None:
    """Give a differencing image another parent locator, durably.

    The image keeps its data write GUID, unless it was told another.
    """
    content = encode_locator(pairs)
    known = node.image.items.known
    changes: dict[ItemKey, NewItem | None] = {}
    changes[ITEM_PARENT_LOCATOR, False] = NewItem(known[ITEM_PARENT_LOCATOR], content)
    await _set_items(node, changes, node.image.facts)
    place = node.image.regions.metadata.file_offset + node.image.items.known[ITEM_PARENT_LOCATOR].offset
    node.adopt(node.image.changed(locator=parse_locator(content, place, node.filename)))


async def link_to(node: VhdxNode, parent: Node) -> None:
    """Let a differencing image accept `parent`, filters on it aside, as the one that it stands on.

    Raises:
        GraphError: The parent is of another format, or the image is read-only and names another state of it.
    """
    locator, identity = node.image.locator, _image_of(node, parent).image.data_write_guid
    assert locator is not None, "only differencing images stand on others"
    if locator.accepts(identity):
        return
    if node.read_only:
        raise GraphError(
            f"the image was made for another state of '{parent.filename}', and is open for reading only",
            filename=node.filename,
        )
    pairs = {key: value for key, value in locator.pairs.items() if key != KEY_LINKAGE_2}
    await set_locator(node, {**pairs, KEY_LINKAGE: str(identity)})


async def name_parent(node: VhdxNode, parent: Node, path: str) -> None:
    """Let a differencing image stand on `parent` as that is now, which it finds at a path from its folder.

    Raises:
        GraphError: The parent is of another format.
    """
    here = local_path(node)
    there = os.path.join(os.path.dirname(here), path)
    identity = _image_of(node, parent).image.data_write_guid
    await set_locator(node, reparented(identity, relative_path(here, there)))


def _image_of(node: VhdxNode, parent: Node) -> VhdxNode:
    """Return a parent without the filters on it."""
    while isinstance(parent, Filter) and parent.below is not None:
        parent = parent.below
    if not isinstance(parent, VhdxNode):
        raise GraphError(
            f"a VHDX image stands on VHDX images only, and node '{parent.name}' is {parent.driver}",
            filename=node.filename,
        )
    return parent


async def take_disk_items(node: VhdxNode, items: Mapping[MetadataItem, bytes], like: DiskFacts) -> None:
    """Let an image say of its disk what `items`, another image's, say; both disks have the same size."""
    changes: dict[ItemKey, NewItem | None] = {
        key_of(item): None for item in node.image.unknown_items if item.is_virtual_disk
    }
    changes |= {key_of(item): NewItem(item, content) for item, content in items.items()}
    facts = node.image.facts._replace(disk_id=like.disk_id, physical_sector_size=like.physical_sector_size)
    await _set_items(node, changes, facts)


async def disk_items(node: VhdxNode) -> dict[MetadataItem, bytes]:
    """Return the items of an image that describe its disk, with their contents."""
    return {
        item: await node.read_item(item) if item.length else b""
        for item in items_of(node.image.items)
        if item.is_virtual_disk
    }


async def _set_items(node: VhdxNode, changes: Mapping[ItemKey, NewItem | None], facts: DiskFacts) -> None:
    """Change metadata items in one entry of the log, durably."""
    writer, region = node.writer, node.image.regions.metadata
    async with writer.alone() as blocks:
        rewriting = rewrite_items(node.image.items, region.file_offset, region.length, changes, node.filename)
        pages = {
            at
            for offset, data in rewriting.writes
            for at in pages_under(region.file_offset + offset, len(data))
        }
        if len(pages) > blocks.edits.batch_max:
            raise Unsupported(
                "the metadata items are larger than the log takes at once", filename=node.filename
            )
        with ExitStack() as pins:
            for at in pages:
                await load_pages(writer, range(at, at + 1, PAGE_SIZE), pins)
            async with writer.carried_out(blocks, Plan(), more_pages=len(pages)):
                for offset, data in rewriting.writes:
                    edit_bytes(blocks.edits, region.file_offset + offset, data)
        node.adopt(node.image.changed(items=rewriting.items, facts=facts))
        writer.follow(blocks)
    await writer.flush()


async def make_empty(node: VhdxNode) -> None:
    """Let a differencing image hold nothing, durably; the disk reads the same if the parent has it all.

    Raises:
        Unsupported: The image has no parent.
    """
    if not node.image.has_parent:
        raise Unsupported("an image without a parent cannot be emptied", filename=node.filename)
    writer = node.writer
    writer.become(node.image.data_write_guid)
    async with writer.alone() as blocks:
        geometry = blocks.geometry
        async for at in used_pages(writer, geometry, 0, geometry.entries):
            with ExitStack() as pins:
                await load_pages(writer, range(at, at + 1, PAGE_SIZE), pins)
                async with writer.carried_out(blocks, Plan(), more_pages=1):
                    released = clear_entries(blocks.edits, geometry, at, 0, geometry.entries)
                    blocks.edits.require(barrier=False, released=released)
    await writer.flush()


async def complete_blocks(node: VhdxNode) -> None:
    """Zero what partially present blocks do not hold, and let them be fully present, durably."""
    writer = node.writer
    geometry = node.image.geometry
    async for at in used_pages(writer, geometry, 0, geometry.entries):
        for block in await _partial_blocks(writer, geometry, at):
            start = block << geometry.block_shift
            for extent in await node.extents(start, geometry.bytes_of_block(block)):
                if extent.kind is Kind.ABSENT:
                    await node.write_zeroes(extent.guest_offset, extent.length)
    await writer.flush()
    async with writer.alone() as blocks:
        async for at in used_pages(writer, geometry, 0, geometry.entries):
            partial = await _partial_blocks(writer, geometry, at)
            if not partial:
                continue
            with ExitStack() as pins:
                await load_pages(writer, range(at, at + 1, PAGE_SIZE), pins)
                async with writer.carried_out(blocks, Plan(), more_pages=1):
                    for block in partial:
                        place = geometry.entry_offset(geometry.payload_index(block))
                        entry = int.from_bytes(_bytes_at(node, place), "little")
                        entry = entry & BAT_OFFSET_MASK | State.FULLY_PRESENT
                        edit_bytes(blocks.edits, place, entry.to_bytes(BAT_ENTRY_SIZE, "little"))
    await writer.flush()


async def _partial_blocks(writer: VhdxWriter, geometry: Geometry, at: int) -> list[int]:
    """Return the partially present blocks whose entries stand in a BAT page."""
    with ExitStack() as pins:
        await load_pages(writer, range(at, at + 1, PAGE_SIZE), pins)
        page = writer.node.pages.get(at)
    assert page is not None, "the page was loaded"
    first = (at - geometry.bat_offset) // BAT_ENTRY_SIZE
    found: list[int] = []
    for index in range(first, min(first + BAT_ENTRIES_PER_PAGE, geometry.entries)):
        chunk, within = divmod(index, geometry.chunk_ratio + 1)
        block = (chunk << geometry.chunk_shift) + within
        if within < geometry.chunk_ratio and block < geometry.payload_blocks:
            entry = page[(index - first) * BAT_ENTRY_SIZE]
            if entry & BAT_STATE_MASK == State.PARTIALLY_PRESENT:
                found.append(block)
    return found


def _bytes_at(node: VhdxNode, place: int) -> bytes:
    page = node.pages.get(place & -PAGE_SIZE)
    assert page is not None, "the page was loaded"
    return page[place & (PAGE_SIZE - 1) :][:BAT_ENTRY_SIZE]


async def part(node: VhdxNode) -> None:
    """Let a differencing image have no parent, durably; what it does not hold reads as zeros then."""
    await complete_blocks(node)
    writer = node.writer
    async with writer.alone() as blocks:
        geometry = blocks.geometry
        for chunk in range(geometry.bitmap_blocks):
            place = geometry.entry_offset(geometry.bitmap_index(chunk))
            with ExitStack() as pins:
                await load_pages(writer, pages_under(place, BAT_ENTRY_SIZE), pins)
                entry = int.from_bytes(_bytes_at(node, place), "little")
                if not entry:
                    continue
                released: list[Range] = [(entry & BAT_OFFSET_MASK, SECTOR_BITMAP_SIZE)]
                async with writer.carried_out(blocks, Plan(), more_pages=1):
                    edit_bytes(blocks.edits, place, bytes(BAT_ENTRY_SIZE))
                    blocks.edits.require(barrier=False, released=released)
    await writer.flush()
    facts = node.image.facts
    known = node.image.items.known
    parameters = encode_file_parameters(facts.block_size, leave_blocks_allocated=False, has_parent=False)
    changes: dict[ItemKey, NewItem | None] = {(ITEM_PARENT_LOCATOR, False): None}
    changes[ITEM_FILE_PARAMETERS, False] = NewItem(known[ITEM_FILE_PARAMETERS], parameters)
    await _set_items(node, changes, facts._replace(has_parent=False, leave_blocks_allocated=False))


def keep_identity(node: VhdxNode) -> Guid:
    """Let an image that was just opened for writing keep its data write GUID, and return that."""
    identity = node.image.data_write_guid
    node.writer.become(identity)
    return identity
