"""Moving the BAT region of a VHDX image to another place in the file.

Owns: that one change, which growing and compacting need.

Ordering rule: the whole table is written to its new place and flushed; then one
batch has both region tables. The old place is free when that is durable.

Source: [MS-VHDX] "Region Table".
"""

from contextlib import ExitStack
from typing import TYPE_CHECKING

from vblk.drivers.vhdx_session import Level
from vblk.extent import Missing
from vblk.formats.space import Place
from vblk.formats.vhdx.encode import encode_region_table
from vblk.formats.vhdx.layout import BAT_ENTRY_SIZE, PAGE_SIZE, REGION_TABLE_OFFSETS
from vblk.formats.vhdx.plan import Plan
from vblk.formats.vhdx.resizing import edit_bytes, pages_under
from vblk.formats.vhdx.writing import BlockWriter
from vblk.units import MIB, FileOffset

if TYPE_CHECKING:
    from vblk.drivers.vhdx_writer import VhdxWriter


async def move_bat(
    writer: "VhdxWriter", blocks: BlockWriter, place: Place, *, level: Level = Level.DATA
) -> None:
    """Move the BAT region to `place`, as large as that; nobody else changes the image meanwhile.

    `level` is what the change is part of.
    """
    await writer.settle()
    writer.node.pages.clear()
    regions = writer.node.image.regions
    released = [(regions.bat.file_offset, regions.bat.length)]
    plan = Plan(places=[place], barrier=True, released=released)
    moved = regions._replace(
        bat=regions.bat._replace(file_offset=place.file_offset, length=place.length, required=True),
        metadata=regions.metadata._replace(required=True),
    )
    table = encode_region_table(sorted(moved.all(), key=lambda region: region.entry_offset))
    with ExitStack() as pins:
        for at in REGION_TABLE_OFFSETS:
            await load_pages(writer, pages_under(at, len(table)), pins)
        more_pages = 2 * len(table) // PAGE_SIZE
        async with writer.carried_out(blocks, plan, more_pages=more_pages, level=level):
            await _copy_table(writer, blocks, place)
            for at in REGION_TABLE_OFFSETS:
                edit_bytes(blocks.edits, at, table)
    writer.node.adopt(writer.node.image.changed(regions=moved))
    writer.follow(blocks)


async def _copy_table(writer: "VhdxWriter", blocks: BlockWriter, place: Place) -> None:
    """Copy the BAT, which is all in its place, and nothing behind its last entry."""
    old = blocks.geometry
    used = old.entries * BAT_ENTRY_SIZE
    for start in range(0, used, MIB):
        count = min(MIB, used - start)
        data = await writer.node.read_metadata(old.bat_offset + start, count)
        await writer.node.file.write(place.file_offset + start, data)
    if not place.fresh:
        await writer.node.file.write_zeroes(place.file_offset + used, place.length - used)


async def load_pages(writer: "VhdxWriter", pages: range, pins: ExitStack) -> None:
    """Bring pages into memory until `pins` is closed."""
    store = writer.node.pages
    pins.enter_context(store.pinned(pages))
    absent = [at for at in pages if store.get(at) is None]
    if absent:
        await writer.node.load(Missing([(FileOffset(at), PAGE_SIZE) for at in absent]), pins)
