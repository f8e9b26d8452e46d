"""Longer tables of a qcow2 image that is open for writing.

Owns: the two moves, of the L1 table when the disk grows and of the refcount table
when the file does; and what becomes of clusters at a disk's new and former ends.

Ordering rule: the new table, and the counts of its space, are durable before the
header names it; the former one loses its references after that.

Source: docs/interop/qcow2.txt, "Host cluster management", "Cluster mapping".
"""

from vblk.drivers.qcow2_writer import Qcow2Writer
from vblk.errors import OutOfRange
from vblk.formats.edits import Range
from vblk.formats.qcow2.image import Qcow2Image
from vblk.formats.qcow2.layout import COUNT_TABLE_SIZE_MAX, ENTRY_SIZE, L1_SIZE_MAX
from vblk.formats.qcow2.planner import new_block
from vblk.formats.qcow2.writing import ClusterWriter
from vblk.units import align_down, align_up


async def grow_disk(writer: Qcow2Writer, clusters: ClusterWriter, size: int) -> None:
    """Make the disk longer; nothing else uses it meanwhile."""
    node = writer.node
    old_size = clusters.image.header.size
    wanted = clusters.image.header._replace(size=size)
    mapped = wanted.l1_size * wanted.geometry.table_span  # behind it there is nothing to let go of
    entries = wanted.geometry.l1_needed
    if entries * ENTRY_SIZE > L1_SIZE_MAX:
        raise OutOfRange("Image is too big", filename=node.filename)
    if entries > wanted.l1_size:
        await _move_root(writer, clusters, entries)
        wanted = clusters.image.header._replace(size=size)
    # What was behind the end, or the backing file has there, must not come to light.
    hidden = max(
        min(size, align_up(old_size, clusters.image.geometry.cluster_size)), min(size, _backing_size(writer))
    )
    writer.adopt(Qcow2Image(wanted, node.filename))
    try:
        await writer.zero_hidden(clusters, old_size, hidden)
        await writer.forget_hidden(clusters, hidden, min(size, mapped))
        await writer.session.flush()
    except BaseException:
        writer.adopt(Qcow2Image(writer.session.header, node.filename))
        raise
    await writer.session.publish(wanted)


async def cut_disk(writer: Qcow2Writer, clusters: ClusterWriter, size: int) -> None:
    """Make the disk shorter; nothing else uses it meanwhile.

    The header says so first: a crash after that leaves at worst clusters behind
    the end, and whoever makes the disk longer again lets go of them.
    """
    old_size = clusters.image.header.size
    await writer.session.publish(clusters.image.header._replace(size=size))
    await writer.forget_hidden(clusters, align_up(size, clusters.image.geometry.cluster_size), old_size)


def _backing_size(writer: Qcow2Writer) -> int:
    node = writer.node
    if node.backing_left_closed:
        return 1 << 63
    return 0 if node.backing is None else node.backing.size


async def _move_root(writer: Qcow2Writer, clusters: ClusterWriter, entries: int) -> None:
    header = clusters.image.header
    old: Range = (header.l1_table_offset, header.l1_size * ENTRY_SIZE)
    plan = await writer.answered(clusters, lambda clusters: clusters.plan_space(entries * ENTRY_SIZE))
    place = plan.places[0]
    async with writer.carried_out(clusters, plan):
        table = await writer.node.read_tables(*old)
        await writer.node.file.write(place.file_offset, table.ljust(place.length, b"\0"))
    for at in range(place.file_offset, place.file_offset + place.length, writer.node.pages.page_size):
        writer.node.pages.drop(at)
    await writer.session.flush()
    await writer.session.publish(header._replace(l1_size=entries, l1_table_offset=place.file_offset))
    writer.give_up([old])


async def grow_count_table(writer: Qcow2Writer, clusters: ClusterWriter, index: int) -> None:
    """Let the refcount table reach at least as far as `index`: nobody makes refcount blocks meanwhile.

    The new table stands behind everything, with refcount blocks of its own, where
    no block counts yet.
    """
    node, header, geometry = writer.node, clusters.image.header, clusters.image.geometry
    entries = header.refcount_table_clusters * geometry.table_entries
    if index < entries:
        return
    await writer.session.flush()
    size, span = geometry.cluster_size, geometry.counts_per_block << geometry.cluster_bits
    start = max(align_up(clusters.space.file_size, span), entries * span)
    first = start // span
    table_clusters = -(-(max(index, first) * 5 // 4 + 2) // geometry.table_entries)
    blocks = 1
    while blocks * geometry.counts_per_block < table_clusters + blocks:
        blocks += 1
    if first + blocks > table_clusters * geometry.table_entries:
        table_clusters += 1
        blocks += 1
    if table_clusters * size > COUNT_TABLE_SIZE_MAX:
        raise OutOfRange("the file is as long as its refcount table can count", filename=node.filename)
    end = start + (blocks + table_clusters) * size
    await node.file.resize(align_up(end, size))
    table = bytearray(await node.read_tables(header.refcount_table_offset, entries * ENTRY_SIZE))
    table = table.ljust(table_clusters * size, b"\0")
    used = blocks + table_clusters
    for number in range(blocks):
        # Block number n counts the clusters of its own span; all stand at the area's start.
        counted = max(0, min(geometry.counts_per_block, used - number * geometry.counts_per_block))
        pages = new_block(geometry, start + number * span, counted)
        block = start + number * size
        await node.file.write(block, b"".join(pages[at] for at in sorted(pages)))
        where = (first + number) * ENTRY_SIZE
        table[where : where + ENTRY_SIZE] = block.to_bytes(ENTRY_SIZE, "big")
    table_offset = start + blocks * size
    await node.file.write(table_offset, table)
    await node.file.flush()
    clusters.space.extended(align_up(end, size))
    clusters.space.take_exactly(start, end)
    for number in range(blocks):
        clusters.add_block(first + number, start + number * size)
    old = (header.refcount_table_offset, align_down(entries * ENTRY_SIZE, size))
    for at in range(start, end, geometry.page_size):
        node.pages.drop(at)
    await writer.session.publish(
        header._replace(refcount_table_offset=table_offset, refcount_table_clusters=table_clusters)
    )
    writer.give_up([old])
