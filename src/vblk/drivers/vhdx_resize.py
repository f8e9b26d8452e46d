"""Changing the virtual size of a VHDX image.

Owns: the steps of growing and shrinking, each of which leaves a sound image. What
they mean for blocks and entries is `vblk.formats.vhdx.resizing`.

Ordering rules, for `resize` has the whole disk for itself:
- A BAT region that is too small moves first, as a change of its own.
- A disk grows in steps, so that what one step changes goes into one batch
  together with the size: blocks of a fixed image, blocks that hide what the
  parent has behind the old end.

Source: [MS-VHDX] "Region Table", "BAT", "Virtual Disk Size".
"""

from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from vblk.drivers.vhdx_regions import load_pages, move_bat
from vblk.errors import Misaligned, OutOfRange, Unsupported
from vblk.formats.vhdx.bat import Geometry
from vblk.formats.vhdx.encode import encode_virtual_size
from vblk.formats.vhdx.layout import (
    BAT_ENTRY_SIZE,
    ITEM_VIRTUAL_DISK_SIZE,
    PAGE_SIZE,
    VIRTUAL_SIZE_MAX,
)
from vblk.formats.vhdx.plan import Plan
from vblk.formats.vhdx.resizing import (
    GrowthPlanner,
    clear_entries,
    edit_bytes,
    lost_entries,
    new_entries,
    pages_of,
    pages_under,
)
from vblk.formats.vhdx.writing import BlockWriter
from vblk.graph.node import Preallocation
from vblk.units import MIB, align_up

if TYPE_CHECKING:
    from vblk.drivers.vhdx_writer import VhdxWriter

STEP_BLOCKS = 32768
"""The most blocks that one step of a growth maps: 64 BAT pages, well below what a batch takes."""

SIZE_PAGES = 2
"""The most pages that the size item, 8 bytes, can touch."""


async def resize(writer: "VhdxWriter", blocks: BlockWriter, size: int, preallocation: Preallocation) -> None:
    """Give the disk another size; nobody else uses it meanwhile.

    Raises:
        OutOfRange: No VHDX disk is so small or large.
        Misaligned: It is not a whole number of sectors.
        Unsupported: The preallocation is not possible, or what the parent holds
            behind the present end is not known.
    """
    old = blocks.geometry
    _check(writer, blocks, size, preallocation)
    if size < old.virtual_size:
        await _shrink(writer, blocks, size)
    elif size > old.virtual_size:
        await _clear_strays(writer, blocks, old, _geometry(blocks, size))
        await _make_table_room(writer, blocks, size)
        if blocks.fixed:
            await _preallocate(writer, blocks, size, preallocation)
        step = STEP_BLOCKS << old.block_shift
        parent_size = writer.parent_size
        while blocks.geometry.virtual_size < size:
            now = blocks.geometry.virtual_size
            by_steps = blocks.fixed or now < parent_size
            await _grow(writer, blocks, min(size, now + step) if by_steps else size, parent_size)


def _check(writer: "VhdxWriter", blocks: BlockWriter, size: int, preallocation: Preallocation) -> None:
    filename = writer.node.filename
    if not 0 < size <= VIRTUAL_SIZE_MAX:
        raise OutOfRange(f"a VHDX disk cannot have {size} bytes: the limit is 64 TiB", filename=filename)
    if size % blocks.geometry.sector_size:
        raise Misaligned(
            f"the size {size} is not a multiple of the disk's {blocks.geometry.sector_size}-byte sectors",
            filename=filename,
        )
    possible = (Preallocation.OFF, Preallocation.FALLOC, Preallocation.FULL)
    if preallocation not in (possible if blocks.fixed else (Preallocation.OFF,)):
        raise Unsupported(f"Unsupported preallocation mode: {preallocation.value}", filename=filename)
    if size > blocks.geometry.virtual_size and writer.node.backing_left_closed:
        raise Unsupported("a disk cannot grow without its parent, which was not opened", filename=filename)


def _geometry(blocks: BlockWriter, size: int) -> Geometry:
    old = blocks.geometry
    return Geometry(size, old.block_size, old.sector_size, old.differencing, old.bat_offset, old.bat_length)


async def _grow(writer: "VhdxWriter", blocks: BlockWriter, size: int, parent_size: int) -> None:
    """Grow by one step."""
    old, new = blocks.geometry, _geometry(blocks, size)
    with ExitStack() as pins:
        await load_pages(writer, _size_pages(writer), pins)
        blocks.geometry = new
        try:
            planned = await writer.answered(
                blocks, lambda blocks: GrowthPlanner(blocks, old, size, parent_size).plan()
            )
            async with writer.carried_out(blocks, planned, more_pages=SIZE_PAGES):
                await writer.fill(planned)
                _edit_size(writer, blocks, size)
        except BaseException:
            blocks.geometry = old
            raise
        _adopt_size(writer, blocks, size)


async def _clear_strays(writer: "VhdxWriter", blocks: BlockWriter, old: Geometry, new: Geometry) -> None:
    """Clear what stands in the table where a larger disk will have entries.

    It means nothing before and would mean something after: each page is a change
    of its own, made before the size is, so that any number of them fits the log.
    """
    last = old.bat_length // BAT_ENTRY_SIZE
    for first, count in new_entries(old, new):
        here = min(count, last - first)
        async for at in used_pages(writer, new, first, here):
            await _clear_page(writer, blocks, new, at, first, here, owning=False)


async def used_pages(writer: "VhdxWriter", geometry: Geometry, first: int, count: int) -> AsyncIterator[int]:
    """Yield the offsets of those BAT pages in which one of so many entries is not zero."""
    window = range(0)
    data = b""
    for at in pages_of(geometry, first, count):
        page = writer.node.pages.get(at)
        if page is None:
            if at not in window:
                window = range(at, at + MIB)
                data = await writer.node.read_metadata(at, MIB)
            page = data[at - window.start : at - window.start + PAGE_SIZE]
        low = max(0, geometry.entry_offset(first) - at)
        high = min(PAGE_SIZE, geometry.entry_offset(first + count) - at)
        if page[low:high].strip(b"\0"):
            yield at


async def _shrink(writer: "VhdxWriter", blocks: BlockWriter, size: int) -> None:
    """Publish the smaller size, then clear what is behind it, as much as one batch takes at a time."""
    old, new = blocks.geometry, _geometry(blocks, size)
    with ExitStack() as pins:
        await load_pages(writer, _size_pages(writer), pins)
        async with writer.carried_out(blocks, Plan(), more_pages=SIZE_PAGES):
            _edit_size(writer, blocks, size)
    blocks.geometry = new
    _adopt_size(writer, blocks, size)
    for first, count in lost_entries(old, new):
        for at in pages_of(old, first, count):
            await _clear_page(writer, blocks, old, at, first, count, owning=True)


async def _clear_page(
    writer: "VhdxWriter",
    blocks: BlockWriter,
    geometry: Geometry,
    at: int,
    first: int,
    count: int,
    *,
    owning: bool,
) -> None:
    """Clear those of a run of entries that lie in one page; what they name is free then if they own it."""
    with ExitStack() as pins:
        await load_pages(writer, range(at, at + 1, PAGE_SIZE), pins)
        async with writer.carried_out(blocks, Plan(), more_pages=1):
            released = clear_entries(blocks.edits, geometry, at, first, count)
            blocks.edits.require(barrier=False, released=released if owning else [])


async def _make_table_room(writer: "VhdxWriter", blocks: BlockWriter, size: int) -> None:
    """Move the BAT region to a larger place, if it is too small for the new size."""
    new = _geometry(blocks, size)
    length = align_up(new.entries * BAT_ENTRY_SIZE, MIB)
    if length <= writer.node.image.regions.bat.length:
        return
    await move_bat(writer, blocks, await writer.taken(blocks, length))


async def _preallocate(
    writer: "VhdxWriter", blocks: BlockWriter, size: int, preallocation: Preallocation
) -> None:
    """Extend the file at once by what a fixed image's new blocks take."""
    added = _geometry(blocks, size).payload_blocks - blocks.geometry.payload_blocks
    if added:
        await writer.extend_by(blocks, added * blocks.geometry.block_size, preallocation)


def _size_pages(writer: "VhdxWriter") -> range:
    return pages_under(_size_offset(writer), 8)


def _size_offset(writer: "VhdxWriter") -> int:
    image = writer.node.image
    return image.regions.metadata.file_offset + image.items.known[ITEM_VIRTUAL_DISK_SIZE].offset


def _edit_size(writer: "VhdxWriter", blocks: BlockWriter, size: int) -> None:
    edit_bytes(blocks.edits, _size_offset(writer), encode_virtual_size(size))


def _adopt_size(writer: "VhdxWriter", blocks: BlockWriter, size: int) -> None:
    image = writer.node.image
    writer.node.adopt(image.changed(facts=image.facts._replace(virtual_size=size)))
    writer.follow(blocks)
