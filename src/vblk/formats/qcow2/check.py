"""The check of a qcow2 image: every reference counted, and compared with what the image counts.

Owns: the walk over everything that names space, and QEMU's sentences for what is
wrong. It edits nothing. A table that is named often is walked once, so time is
bounded by the file.

Source: docs/interop/qcow2.txt, "Host cluster management", "Cluster mapping".
"""

import struct
from array import array
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from vblk.errors import CorruptImage
from vblk.formats.qcow2.bitmaps import read_directory, read_table
from vblk.formats.qcow2.counts import counts_of
from vblk.formats.qcow2.image import Qcow2Image, ReadAt
from vblk.formats.qcow2.layout import (
    COMPRESSED,
    COPIED,
    COUNT_OFFSET_MASK,
    ENTRY_SIZE,
    L1_SIZE_MAX,
    OFFSET_MASK,
    ZERO,
)
from vblk.formats.qcow2.snapshots import read_snapshots
from vblk.formats.qcow2.survey import entries_of

FINDINGS_MAX = 1000
"""How many sentences are kept; all are counted."""
_CHUNK = 512


@dataclass(slots=True)
class CheckReport:
    """What a check found: `messages` in QEMU's words, and how much there is of what."""

    messages: list[str] = field(default_factory=list[str])
    errors: int = 0
    leaks: int = 0
    total_clusters: int = 0
    allocated_clusters: int = 0
    fragmented_clusters: int = 0
    compressed_clusters: int = 0
    image_end_offset: int = 0

    def error(self, message: str) -> None:
        """Note damage; a message without a place of its own begins with a colon."""
        self.errors += 1
        self._say(f"ERROR{message}" if message.startswith(":") else f"ERROR {message}")

    def leak(self, message: str) -> None:
        """Note space that is counted and not used."""
        self.leaks += 1
        self._say(f"Leaked {message}")

    def _say(self, message: str) -> None:
        if len(self.messages) < FINDINGS_MAX:
            self.messages.append(message)


class References:
    """How often each cluster of a file is named."""

    def __init__(self, clusters: int) -> None:
        self.clusters = clusters
        self._chunks: dict[int, array[int]] = {}

    def add(self, cluster: int, count: int = 1) -> None:
        """Count `count` more references to a cluster."""
        index, within = divmod(cluster, _CHUNK)
        chunk = self._chunks.get(index)
        if chunk is None:
            chunk = self._chunks[index] = array("Q", bytes(8 * _CHUNK))
        chunk[within] += count

    def get(self, cluster: int) -> int:
        """Return the references to a cluster."""
        chunk = self._chunks.get(cluster // _CHUNK)
        return 0 if chunk is None else chunk[cluster % _CHUNK]

    def any_in(self, first: int, end: int) -> bool:
        """Tell whether a cluster of a range may be named."""
        return any(index in self._chunks for index in range(first // _CHUNK, (end - 1) // _CHUNK + 1))


class Checker:
    """The check of one image."""

    def __init__(self, image: Qcow2Image, read: ReadAt, file_size: int) -> None:
        self.image = image
        self.report = CheckReport(total_clusters=image.geometry.clusters)
        self.references = References(-(-file_size // image.geometry.cluster_size))
        self.blocks: dict[int, int] = {}
        self._read = read
        self._geometry = image.geometry
        self._file_size = file_size
        self._copied_tables: list[tuple[int, int]] = []
        self._copied: list[tuple[int, int]] = []

    async def run(self) -> CheckReport:
        """Count everything and compare."""
        header = self.image.header
        self._count(0, 1)
        await self._count_disk()
        await self._count_snapshots()
        await self._count_bitmaps()
        await self._count_blocks()
        await self._compare()
        await self._check_copied(header.l1_table_offset, header.l1_size)
        return self.report

    # References

    def _count(self, offset: int, length: int, times: int = 1) -> None:
        """Count references to all clusters of a range."""
        geometry = self._geometry
        last = (offset + length - 1) >> geometry.cluster_bits if length else -1
        if last >= self.references.clusters:
            self.report.error(
                f": counting reference for region exceeding the end of the file by one cluster "
                f"or more: offset {offset:#x} size {length:#x}"
            )
            return
        for cluster in range(offset >> geometry.cluster_bits, last + 1):
            self.references.add(cluster, times)

    async def _count_disk(self) -> None:
        header = self.image.header
        self._count(header.l1_table_offset, header.l1_size * ENTRY_SIZE)
        tables = await self._tables_of(header.l1_table_offset, header.l1_size)
        for table, times in tables.items():
            await self._count_table(table, times, active=True)

    async def _tables_of(self, offset: int, entries: int) -> Counter[int]:
        """Return the L2 tables that an L1 table names, and how often; each is counted."""
        tables: Counter[int] = Counter()
        async for _, entry in entries_of(self._read, offset, entries):
            table = entry & OFFSET_MASK
            if table % self._geometry.cluster_size:
                self.report.error(f"l2_offset={table:x}: Table is not cluster aligned; L1 entry corrupted")
            elif table:
                tables[table] += 1
        for table, times in tables.items():
            self._count(table, self._geometry.cluster_size, times)
        return tables

    async def _count_table(self, table: int, times: int, *, active: bool) -> None:
        geometry, report = self._geometry, self.report
        if table >= self._file_size:
            return
        data = (await self._read(table, geometry.cluster_size)).ljust(geometry.cluster_size, b"\0")
        if not any(data):
            return
        expected = 0
        for index, entry in enumerate(struct.unpack(f">{geometry.table_entries}Q", data)):
            if not entry:
                continue
            if entry & COMPRESSED:
                if entry & COPIED:
                    cluster = geometry.compressed(entry)[0] >> geometry.cluster_bits
                    report.error(
                        f"coffset={cluster:x}: copied flag must never be set for compressed clusters"
                    )
                self._count(*geometry.compressed(entry), times)
                if active:
                    report.allocated_clusters += 1
                    report.compressed_clusters += 1
                    report.fragmented_clusters += 1
                continue
            place = entry & OFFSET_MASK
            if not place:
                continue
            if place % geometry.cluster_size:
                report.error(f"offset={place:x}: Data cluster is not properly aligned; L2 entry corrupted.")
                continue
            if entry & ZERO and self.image.header.version < 3:
                report.error(f"l2_entry={entry:x}: zero cluster in an image of version 2 (L2 index: {index})")
            self._count(place, geometry.cluster_size, times)
            if active:
                report.allocated_clusters += 1
                if expected and place != expected:
                    report.fragmented_clusters += 1
                expected = place + geometry.cluster_size

    async def _count_snapshots(self) -> None:
        header = self.image.header
        if not header.snapshots:
            return
        try:
            snapshots, length = await read_snapshots(self._read, header)
        except CorruptImage as error:
            self.report.error(error.message)
            return
        self._count(header.snapshots_offset, length)
        tables: Counter[tuple[int, int]] = Counter()
        for snapshot in snapshots:
            label = f"snapshot {snapshot.identifier} ({snapshot.name})"
            if snapshot.l1_table_offset % self._geometry.cluster_size:
                self.report.error(
                    f"{label} l1_offset={snapshot.l1_table_offset:#x}: L1 table is not cluster aligned; "
                    "snapshot table entry corrupted"
                )
            elif snapshot.l1_size * ENTRY_SIZE > L1_SIZE_MAX:
                self.report.error(
                    f"{label} l1_size={snapshot.l1_size:#x}: L1 table is too large; "
                    "snapshot table entry corrupted"
                )
            else:
                tables[snapshot.l1_table_offset, snapshot.l1_size] += 1
        found: Counter[int] = Counter()
        for (offset, entries), times in tables.items():
            self._count(offset, entries * ENTRY_SIZE, times)
            for table, named in (await self._tables_of(offset, entries)).items():
                found[table] += named * times
        for table, times in found.items():
            await self._count_table(table, times, active=False)

    async def _count_bitmaps(self) -> None:
        header = self.image.header
        try:
            directory = await read_directory(self._read, header)
        except CorruptImage as error:
            self.report.error(error.message)
            return
        self._count(directory.offset, directory.length)
        for bitmap in directory.bitmaps:
            self._count(bitmap.table_offset, bitmap.table_size * ENTRY_SIZE)
            try:
                places = await read_table(self._read, header, bitmap)
            except CorruptImage as error:
                self.report.error(error.message)
                continue
            for place in places:
                if place:
                    self._count(place, self._geometry.cluster_size)

    async def _count_blocks(self) -> None:
        header, geometry = self.image.header, self._geometry
        length = header.refcount_table_clusters * geometry.cluster_size
        self._count(header.refcount_table_offset, length)
        async for index, entry in entries_of(self._read, header.refcount_table_offset, length // ENTRY_SIZE):
            block = entry & COUNT_OFFSET_MASK
            if block % geometry.cluster_size:
                self.report.error(
                    f"refcount block {index} is not cluster aligned; refcount table entry corrupted"
                )
            elif block >= self._file_size:
                self.report.error(f"refcount block {index} is outside image")
            elif block:
                self._count(block, geometry.cluster_size)
                self.blocks[index] = block

    # Comparison

    async def counted(self) -> AsyncIterator[tuple[int, int, list[int]]]:
        """Yield the counts of the image: first cluster, how many, and those counts that are not all 0."""
        geometry = self._geometry
        per_block = geometry.counts_per_block
        for first in range(0, self.references.clusters, per_block):
            end = min(first + per_block, self.references.clusters)
            block = self.blocks.get(first // per_block)
            data = b"" if block is None else await self._read(block, geometry.cluster_size)
            counts: list[int] = []
            if any(data):
                counts = list(counts_of(data.ljust(geometry.cluster_size, b"\0"), geometry.refcount_order))
            if counts or self.references.any_in(first, end):
                yield first, end - first, counts or [0] * per_block

    async def _compare(self) -> None:
        references, report = self.references, self.report
        highest = -1
        async for first, number, counts in self.counted():
            for index in range(number):
                count, named = counts[index], references.get(first + index)
                if count or named:
                    highest = first + index
                if count != named:
                    text = f"cluster {first + index} refcount={count} reference={named}"
                    if count < named:
                        report.error(text)
                    else:
                        report.leak(text)
        report.image_end_offset = (highest + 1) * self._geometry.cluster_size

    async def _check_copied(self, l1_offset: int, entries: int) -> None:
        """Compare the COPIED flags of the disk's tables with the counts."""
        geometry = self._geometry
        walked: set[int] = set()
        async for index, entry in entries_of(self._read, l1_offset, entries):
            table = entry & OFFSET_MASK
            if not table or table % geometry.cluster_size or table >= self._file_size:
                continue
            count = await self._count_of(table)
            if (count == 1) != bool(entry & COPIED):
                self.report.error(
                    f"OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} refcount={count}"
                )
            if table in walked:
                continue
            walked.add(table)
            data = (await self._read(table, geometry.cluster_size)).ljust(geometry.cluster_size, b"\0")
            for word in struct.unpack(f">{geometry.table_entries}Q", data):
                place = word & OFFSET_MASK
                if word & COMPRESSED or not place or place % geometry.cluster_size:
                    continue
                count = await self._count_of(place)
                if (count == 1) != bool(word & COPIED):
                    self.report.error(f"OFLAG_COPIED data cluster: l2_entry={word:x} refcount={count}")

    async def _count_of(self, offset: int) -> int:
        geometry = self._geometry
        index, within = divmod(offset >> geometry.cluster_bits, geometry.counts_per_block)
        block = self.blocks.get(index)
        if block is None:
            return 0
        if block != self._held_block:
            self._held = list(
                counts_of(
                    (await self._read(block, geometry.cluster_size)).ljust(geometry.cluster_size, b"\0"),
                    geometry.refcount_order,
                )
            )
            self._held_block = block
        return self._held[within]

    _held_block = -1
    _held: list[int]


async def check_image(image: Qcow2Image, read: ReadAt, file_size: int) -> CheckReport:
    """Check a whole image as it stands in its file.

    Raises:
        StorageError: It cannot be read.
    """
    return await Checker(image, read, file_size).run()
