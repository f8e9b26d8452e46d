"""The first look at an image that is to be written: what is free, and where its tables are.

Owns: the walk over the reference counts. Tables count as used whatever their
counts say, so that damage does not spread to them.

Source: docs/interop/qcow2.txt, "Host cluster management".
"""

from collections.abc import AsyncIterator
from typing import NamedTuple

from vblk.codec.ranges import RangeSet
from vblk.errors import CorruptImage, Reason
from vblk.formats.qcow2.counts import zero_runs
from vblk.formats.qcow2.header import Header
from vblk.formats.qcow2.image import Qcow2Image, ReadAt
from vblk.formats.qcow2.layout import (
    COUNT_OFFSET_MASK,
    ENTRY_SIZE,
    OFFSET_MASK,
    SNAPSHOT_TABLE_SIZE_MAX,
)
from vblk.units import KIB, align_up

FREE_RANGES_MAX = 1 << 16
"""How many separate free ranges are remembered; more are left alone in this session."""
_PIECE = 64 * KIB


class Survey(NamedTuple):
    """What was found.

    `end` is the file's length in whole clusters, or where the last counted
    cluster ends: a crash may have taken the file's end and left its counts.
    """

    free: RangeSet
    blocks: dict[int, int]
    end: int


async def entries_of(read: ReadAt, offset: int, count: int) -> AsyncIterator[tuple[int, int]]:
    """Yield (index, entry) of the entries of a table that are not 0."""
    for first in range(0, count, _PIECE // ENTRY_SIZE):
        wanted = min(_PIECE // ENTRY_SIZE, count - first)
        data = await read(offset + first * ENTRY_SIZE, wanted * ENTRY_SIZE)
        if not any(data):
            continue
        for at in range(0, len(data) - 7, ENTRY_SIZE):
            entry = int.from_bytes(data[at : at + ENTRY_SIZE], "big")
            if entry:
                yield first + at // ENTRY_SIZE, entry


async def count_blocks(read: ReadAt, header: Header, file_size: int, filename: str) -> dict[int, int]:
    """Return the refcount blocks by their index.

    Raises:
        CorruptImage: One cannot be where the refcount table says, or stands there twice.
    """
    geometry = header.geometry
    found: dict[int, int] = {}
    entries = header.refcount_table_clusters * geometry.table_entries
    async for index, entry in entries_of(read, header.refcount_table_offset, entries):
        block = entry & COUNT_OFFSET_MASK
        if block % geometry.cluster_size or not 0 < block < file_size:
            raise CorruptImage(
                Reason.BAD_VALUE,
                f"Refblock offset {block:#x} "
                f"{'unaligned' if block % geometry.cluster_size else 'beyond the end of the file'} "
                f"(reftable index: {index:#x})",
                filename=filename,
                offset=header.refcount_table_offset + index * ENTRY_SIZE,
            )
        found[index] = block
        if len(found) * geometry.cluster_size > align_up(file_size, geometry.cluster_size):
            raise CorruptImage(
                Reason.DUPLICATE, "there are more refcount blocks than fit into the file", filename=filename
            )
    return found


async def survey_image(image: Qcow2Image, read: ReadAt, file_size: int) -> Survey:
    """Look through the reference counts of an image.

    Raises:
        CorruptImage: A table cannot be where it is said to be.
    """
    header, geometry = image.header, image.geometry
    size = geometry.cluster_size
    end = align_up(file_size, size)
    blocks = await count_blocks(read, header, file_size, image.filename)
    if len(set(blocks.values())) < len(blocks):
        raise CorruptImage(
            Reason.DUPLICATE, "two entries of the refcount table name one block", filename=image.filename
        )
    free = RangeSet()
    span = geometry.counts_per_block << geometry.cluster_bits
    for index in range(max(-(-end // span), max(blocks, default=-1) + 1)):
        start, block = index * span, blocks.get(index)
        counts = b"" if block is None else await read(block, size)
        runs = list(zero_runs(counts.ljust(size, b"\0"), geometry.refcount_order))
        if runs and runs[-1][1] == geometry.counts_per_block:
            last_counted = runs[-1][0]
        else:
            last_counted = geometry.counts_per_block
        if last_counted:
            end = max(end, start + last_counted * size)
        if len(free) < FREE_RANGES_MAX:
            for first, last in runs:
                free.add(start + first * size, start + last * size)
    free.remove(end, 1 << 63)
    used = [
        (0, size),
        (header.refcount_table_offset, header.refcount_table_clusters * size),
        (header.l1_table_offset, header.l1_size * ENTRY_SIZE),
        *((block, size) for block in blocks.values()),
    ]
    if header.snapshots:
        used.append((header.snapshots_offset, SNAPSHOT_TABLE_SIZE_MAX))
    async for _, entry in entries_of(read, header.l1_table_offset, header.l1_size):
        used.append((entry & OFFSET_MASK & -size, size))
    for start, length in used:
        free.remove(start, align_up(start + length, size))
    return Survey(free, blocks, end)
