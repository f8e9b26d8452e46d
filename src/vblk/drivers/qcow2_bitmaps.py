"""The dirty bitmaps that a qcow2 image keeps: loaded when it is opened, stored when its writing ends.

Owns: the marks of a node's persistent bitmaps on their way from and to the file, and
the flag that says who trusts what the file has of them.

Ordering rule: while the image is open for writing all of its bitmaps are flagged in
use, from before the first change of the disk on; so whoever opens it after a crash
does not trust them. New ones are whole and durable before a header names them, and
the space of the former ones is given up after that.

Source: docs/interop/qcow2.txt, "Bitmaps".
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from vblk.errors import CorruptImage, GraphError, Reason
from vblk.formats.edits import Range
from vblk.formats.qcow2.bitmaps import (
    AUTO,
    COUNT_MAX,
    DATA_MAX,
    GRANULARITY_BITS,
    IN_USE,
    Directory,
    StoredBitmap,
    encode_directory,
    encode_table,
    read_table,
    table_entries,
    with_directory,
)
from vblk.formats.qcow2.layout import ENTRY_SIZE
from vblk.graph.dirty_bitmap import DirtyBitmap
from vblk.graph.recording import put_bitmap
from vblk.units import align_up

if TYPE_CHECKING:
    from vblk.drivers.qcow2 import Qcow2Node


def require_storable(node: "Qcow2Node", name: str, granularity: int) -> None:
    """Raise GraphError when the image cannot keep one more bitmap, in QEMU's words."""
    header = node.image.header
    reason = None
    if header.version < 3:
        reason = "Cannot store dirty bitmaps in qcow2 v2 files"
    elif granularity.bit_length() - 1 not in GRANULARITY_BITS:
        reason = f"Granularity exceeds maximum ({1 << GRANULARITY_BITS[-1]} bytes)"
    elif sum(each.persistent for each in node.bitmaps.values()) >= COUNT_MAX:
        reason = "Maximum number of persistent bitmaps is already reached"
    elif table_entries(header, granularity.bit_length() - 1) * node.image.geometry.cluster_size > DATA_MAX:
        reason = "Too much space will be occupied by the bitmap. Use larger granularity"
    if reason is not None:
        raise GraphError(f"Can't make bitmap '{name}' persistent in '{node.name}': {reason}")


async def load_bitmaps(node: "Qcow2Node") -> None:
    """Give a node the bitmaps that its image keeps and the node has not; nothing is in flight.

    Raises:
        CorruptImage: One cannot be right.
    """
    header, size = node.image.header, node.image.geometry.cluster_size
    left = DATA_MAX
    for stored in node.directory.bitmaps:
        if stored.name in node.bitmaps:
            continue
        granularity = 1 << stored.granularity_bits
        bitmap = DirtyBitmap(stored.name, node.size, granularity, enabled=bool(stored.flags & AUTO))
        bitmap.persistent = True
        if stored.in_use:
            bitmap.inconsistent = True
            bitmap.enabled = False
        else:
            places = await read_table(node.read_tables, header, stored)
            for index, place in enumerate(places):
                if place is None:
                    bitmap.set_bits_at(index * size, b"\xff" * size)
                elif place:
                    left -= size
                    if left < 0:
                        raise CorruptImage(
                            Reason.LIMIT, "the image's bitmaps take too much memory", filename=node.filename
                        )
                    bitmap.set_bits_at(index * size, await node.read_tables(place, size))
        put_bitmap(node, bitmap)


async def flag_in_use(node: "Qcow2Node") -> None:
    """Let nobody trust what the file has of the bitmaps, durably."""
    directory = node.directory
    if not directory.bitmaps:
        return
    await node.writer.session.begin()
    flagged = tuple(each._replace(flags=each.flags | IN_USE) for each in directory.bitmaps)
    if flagged != directory.bitmaps:
        await node.file.write(directory.offset, encode_directory(flagged))
        await node.file.flush()
        node.directory = directory._replace(bitmaps=flagged)


async def store_bitmaps(node: "Qcow2Node") -> None:
    """Bring a node's persistent bitmaps into the file, and let go of those that were there.

    Raises:
        NoSpace: There is no room; the bitmaps in the file stay flagged.
    """
    before = node.directory
    kept = [each for each in reversed(node.bitmaps.values()) if each.persistent]
    if not kept and not before.bitmaps:
        return
    writer = node.writer
    await writer.prepared()
    await writer.session.begin()
    # As QEMU has it: those that were there, in their order, then the new ones, the newest first.
    numbers = {each.name: number for number, each in enumerate(before.bitmaps)}
    kept.sort(key=lambda each: numbers.get(each.name, len(numbers)))
    inconsistent = {each.name for each in kept if each.inconsistent}
    unusable = {each.name: each for each in before.bitmaps if each.name in inconsistent}
    given_up = await _space_of(node, [each for each in before.bitmaps if each.name not in unusable])
    if before.length:
        given_up.append((before.offset, before.length))
    directory = await _write(node, kept, unusable) if kept else Directory()
    await writer.session.flush()
    await writer.session.publish(with_directory(writer.session.header, directory))
    node.directory = directory
    unit = node.image.geometry.cluster_size
    writer.give_up([(start, align_up(length, unit)) for start, length in given_up])


async def _write(
    node: "Qcow2Node", bitmaps: Sequence[DirtyBitmap], unusable: Mapping[str, StoredBitmap]
) -> Directory:
    """Write bitmaps in one piece of new space: marks and tables, then the directory.

    Those that are `unusable` stay as they are in the file.
    """
    writer, header, size = node.writer, node.image.header, node.image.geometry.cluster_size
    marks = {
        each.name: _clusters(each, table_entries(header, each.granularity.bit_length() - 1), size)
        for each in bitmaps
        if not each.inconsistent
    }
    described = [
        unusable.get(each.name)
        or StoredBitmap(
            each.name,
            each.granularity.bit_length() - 1,
            AUTO if each.enabled else 0,
            0,
            len(marks[each.name]),
        )
        for each in bitmaps
    ]
    length = len(encode_directory(described))
    total = align_up(length, size) + sum(
        align_up(len(clusters) * ENTRY_SIZE, size) + size * sum(map(bool, clusters))
        for clusters in marks.values()
    )
    planner = await writer.prepared()
    plan = await writer.answered(planner, lambda clusters: clusters.plan_space(total))
    at = start = plan.places[0].file_offset
    async with writer.carried_out(planner, plan):
        for index, each in enumerate(described):
            if each.name in unusable:
                continue
            places: list[int | None] = []
            for cluster in marks[each.name]:
                places.append(at if cluster else None if cluster is None else 0)
                if cluster:
                    await node.file.write(at, cluster)
                    at += size
            table = encode_table(places)
            if table:
                described[index] = each._replace(table_offset=at)
                await node.file.write(at, table.ljust(align_up(len(table), size), b"\0"))
                at += align_up(len(table), size)
        await node.file.write(at, encode_directory(described).ljust(align_up(length, size), b"\0"))
    for page in range(start, start + total, node.pages.page_size):
        node.pages.drop(page)
    return Directory(tuple(described), at, length)


def _clusters(bitmap: DirtyBitmap, count: int, size: int) -> list[bytes | None]:
    """Return the clusters of a bitmap: b"" for zeros alone, None for ones alone."""
    clusters: list[bytes | None] = []
    ones = b"\xff" * size
    for index in range(count):
        data = bitmap.bits_at(index * size, size)
        clusters.append(None if data == ones else data)
    return clusters


async def _space_of(node: "Qcow2Node", bitmaps: Iterable[StoredBitmap]) -> list[Range]:
    """Return the space that bitmaps of the file take; that of a damaged table is not known, and leaks."""
    size = node.image.geometry.cluster_size
    found: list[Range] = []
    for each in bitmaps:
        if each.table_size:
            found.append((each.table_offset, each.table_size * ENTRY_SIZE))
        try:
            places = await read_table(node.read_tables, node.image.header, each)
        except CorruptImage as error:
            node.warnings.append(f"space has leaked: {error}")
            continue
        found += [(place, size) for place in places if place]
    return found
