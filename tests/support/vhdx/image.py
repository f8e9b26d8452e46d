"""Whole VHDX files, built from the specification's text alone.

Owns: the geometry, the placing of structures, and the way from a description
(`Vhdx`) over its parts, every field of which a test may break (`Parts`), to a
file. Its ordering rule: change the description, `assemble`, change the parts,
`write`. Nothing of the product is used here.

Source: [MS-VHDX] 2.1-2.6.
"""

import os
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from uuid import UUID, uuid4

from tests.support.vhdx.journal import Entry
from tests.support.vhdx.model import Model
from tests.support.vhdx.records import (
    BAT_REGION,
    FILE_PARAMETERS,
    HEADER_OFFSETS,
    IS_REQUIRED,
    IS_VIRTUAL_DISK,
    LOGICAL_SECTOR_SIZE,
    METADATA_REGION,
    MIB,
    PARENT_LOCATOR,
    PHYSICAL_SECTOR_SIZE,
    TABLE_OFFSETS,
    VIRTUAL_DISK_ID,
    VIRTUAL_DISK_SIZE,
    Header,
    Item,
    Metadata,
    Region,
    RegionTable,
    encode_identifier,
    file_parameters,
)

Pieces = list[tuple[int, bytes]]


class State(IntEnum):
    """The states of a payload block."""

    NOT_PRESENT = 0
    UNDEFINED = 1
    ZERO = 2
    UNMAPPED = 3
    FULLY_PRESENT = 6
    PARTIALLY_PRESENT = 7


@dataclass
class Block:
    """One payload block.

    `data` lies at the block's start, the rest of the block is zeros. `bits` is
    the block's part of the sector bitmap (least significant bit first) and is
    put into the file whatever the state. `file_offset` overrides the placing.
    """

    state: int
    data: bytes = b""
    bits: bytes | None = None
    file_offset: int | None = None


def _no_blocks() -> dict[int, Block]:
    return {}


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


@dataclass
class Vhdx:
    """The description of one file; sizes in bytes."""

    size: int = 16 * MIB
    block_size: int = MIB
    sector_size: int = 512
    physical_sector_size: int = 512
    fixed: bool = False
    locator: bytes | None = None
    blocks: dict[int, Block] = field(default_factory=_no_blocks)
    log_length: int = MIB
    order: tuple[str, ...] = ("log", "metadata", "bat", "payload")
    gap: int = 0
    placing: tuple[int, ...] = ()
    """Blocks to place first, in this order; the others follow by number."""
    sequence: int = 7
    data_write: UUID = field(default_factory=uuid4)
    disk_id: UUID = field(default_factory=uuid4)

    @property
    def chunk_ratio(self) -> int:
        """Payload blocks for each sector-bitmap block."""
        return (1 << 23) * self.sector_size // self.block_size

    @property
    def block_count(self) -> int:
        """Payload blocks that the disk has."""
        return -(-self.size // self.block_size)

    @property
    def bat_entries(self) -> int:
        """Entries that the block allocation table needs."""
        if self.locator is not None:
            return -(-self.block_count // self.chunk_ratio) * (self.chunk_ratio + 1)
        return self.block_count + (self.block_count - 1) // self.chunk_ratio

    @property
    def bits_length(self) -> int:
        """Bytes of sector bitmap that one block has."""
        return self.block_size // self.sector_size // 8

    def payload_index(self, block: int) -> int:
        """Return the BAT index of a payload block."""
        return block + block // self.chunk_ratio

    def bitmap_index(self, chunk: int) -> int:
        """Return the BAT index of a sector-bitmap block."""
        return chunk * (self.chunk_ratio + 1) + self.chunk_ratio

    def assemble(self) -> "Parts":
        """Place everything and return the parts, all of them as the specification asks."""
        return _Assembler(self).parts()

    def build(self, path: Path) -> Path:
        """Write the file and return its path."""
        return self.assemble().write(path)

    def see(self, model: Model) -> Model:
        """Lay this file over what its parent shows (in place); an empty model for a file without one."""
        for number, block in self.blocks.items():
            start = number * self.block_size
            if block.state == State.FULLY_PRESENT:
                model.zero(start, self.block_size)
                model.write(start, block.data)
            elif block.state in (State.UNDEFINED, State.ZERO, State.UNMAPPED):
                model.zero(start, self.block_size)
            elif block.state == State.PARTIALLY_PRESENT:
                self._see_sectors(model, start, block)
        return model

    def _see_sectors(self, model: Model, start: int, block: Block) -> None:
        bits = int.from_bytes(block.bits or b"", "little")
        sector = 0
        while bits >> sector:
            if bits >> sector & 1:
                at = sector * self.sector_size
                model.zero(start + at, self.sector_size)
                model.write(start + at, block.data[at : at + self.sector_size])
            sector += 1

    def model(self) -> Model:
        """Return what a guest sees of a file without a parent."""
        return self.see(Model(self.size))


@dataclass
class Parts:
    """A file in parts: mutable to the last field, then written."""

    of: Vhdx
    identifier: bytes
    headers: list[Header]
    tables: list[RegionTable]
    metadata: Metadata
    metadata_offset: int
    bat_offset: int
    bat: dict[int, int]
    payload: dict[int, tuple[int, bytes]]
    bitmaps: dict[int, tuple[int, bytes]]
    log_offset: int
    length: int
    log: Pieces = field(default_factory=list[tuple[int, bytes]])
    patches: Pieces = field(default_factory=list[tuple[int, bytes]])

    @property
    def current(self) -> Header:
        """The header with the greater sequence number."""
        return max(self.headers, key=lambda header: header.sequence)

    @property
    def other(self) -> Header:
        """The header that is not current."""
        return min(self.headers, key=lambda header: header.sequence)

    def state(self, block: int) -> int:
        """Return the BAT entry of a payload block."""
        return self.bat.get(self.of.payload_index(block), 0)

    def set_entry(self, block: int, state: int, file_offset: int = 0) -> None:
        """Replace the BAT entry of a payload block."""
        self.bat[self.of.payload_index(block)] = file_offset | state

    def append(self, length: int) -> int:
        """Make the file longer; return the offset of the new room, a multiple of 1 MiB."""
        offset = _round_up(self.length, MIB)
        self.length = offset + length
        return offset

    def dirty(self, guid: UUID) -> None:
        """Say in both headers that there is a log to replay."""
        for header in self.headers:
            header.log_guid = guid

    def put_log(self, position: int, entry: Entry) -> int:
        """Put an entry into the log, around its end where needed; return the position after it."""
        raw = entry.encode(position)
        self.put_log_bytes(position, raw)
        return (position + len(raw)) % self.of.log_length

    def put_log_bytes(self, position: int, raw: bytes) -> None:
        """Put bytes into the log, around its end where needed."""
        room = self.of.log_length - position
        self.log.append((position, raw[:room]))
        if len(raw) > room:
            self.log.append((0, raw[room:]))

    def bat_pieces(self) -> Pieces:
        """Return the BAT as runs of entries that follow each other."""
        pieces: Pieces = []
        run: list[int] = []
        first = 0
        for index in sorted(self.bat):
            if run and index != first + len(run):
                pieces.append((self.bat_offset + 8 * first, struct.pack(f"<{len(run)}Q", *run)))
                run = []
            if not run:
                first = index
            run.append(self.bat[index])
        if run:
            pieces.append((self.bat_offset + 8 * first, struct.pack(f"<{len(run)}Q", *run)))
        return pieces

    def pieces(self) -> Pieces:
        """Return everything that is to be written; later pieces lie over earlier ones."""
        pieces: Pieces = [*self.payload.values(), *self.bitmaps.values()]
        pieces += [(0, self.identifier)]
        pieces += [(at, header.encode()) for at, header in zip(HEADER_OFFSETS, self.headers, strict=True)]
        pieces += [(at, table.encode()) for at, table in zip(TABLE_OFFSETS, self.tables, strict=True)]
        pieces += [(self.metadata_offset + at, data) for at, data in self.metadata.encode()]
        pieces += self.bat_pieces()
        pieces += [(self.log_offset + at, data) for at, data in self.log]
        return pieces + self.patches

    def page(self, file_offset: int, length: int = 4096) -> bytes:
        """Return what the file holds at `file_offset`."""
        page = bytearray(length)
        for at, data in self.pieces():
            first, last = max(at, file_offset), min(at + len(data), file_offset + length)
            if first < last:
                page[first - file_offset : last - file_offset] = data[first - at : last - at]
        return bytes(page)

    def bat_page(self, block: int, entry: int) -> tuple[int, bytes]:
        """Return (file offset, content) of the BAT page of `block`, with another entry there."""
        at = self.bat_offset + 8 * self.of.payload_index(block)
        start = at & ~4095
        page = bytearray(self.page(start))
        page[at - start : at - start + 8] = struct.pack("<Q", entry)
        return start, bytes(page)

    def write(self, path: Path) -> Path:
        """Write the file, sparse, exactly `length` bytes long; return its path."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            for at, data in self.pieces():
                os.pwrite(descriptor, data[: max(0, self.length - at)], at)
            os.ftruncate(descriptor, self.length)
        finally:
            os.close(descriptor)
        return path


class _Assembler:
    """Places the structures of one description."""

    def __init__(self, vhdx: Vhdx) -> None:
        self.vhdx = vhdx
        self.free = MIB
        self.offsets: dict[str, int] = {}
        self.bat: dict[int, int] = {}
        self.payload: dict[int, tuple[int, bytes]] = {}
        self.bitmaps: dict[int, tuple[int, bytes]] = {}
        self.bat_length = max(MIB, _round_up(vhdx.bat_entries * 8, MIB))

    def take(self, length: int) -> int:
        offset = self.free
        self.free = offset + _round_up(length, MIB) + self.vhdx.gap
        return offset

    def parts(self) -> Parts:
        vhdx = self.vhdx
        lengths = {"log": vhdx.log_length, "metadata": MIB, "bat": self.bat_length}
        for name in vhdx.order:
            if name == "payload":
                self.place_payload()
            else:
                self.offsets[name] = self.take(lengths[name])
        headers = [Header(vhdx.sequence, self.offsets["log"], vhdx.log_length, data_write=vhdx.data_write)]
        twin = Header(vhdx.sequence + 1, self.offsets["log"], vhdx.log_length, data_write=vhdx.data_write)
        twin.file_write = headers[0].file_write
        return Parts(
            of=vhdx,
            identifier=encode_identifier(),
            headers=[*headers, twin],
            tables=[self.region_table(), self.region_table()],
            metadata=self.metadata(),
            metadata_offset=self.offsets["metadata"],
            bat_offset=self.offsets["bat"],
            bat=self.bat,
            payload=self.payload,
            bitmaps=self.bitmaps,
            log_offset=self.offsets["log"],
            length=self.free - vhdx.gap,
        )

    def region_table(self) -> RegionTable:
        bat = Region(BAT_REGION, self.offsets["bat"], self.bat_length)
        return RegionTable([bat, Region(METADATA_REGION, self.offsets["metadata"], MIB)])

    def metadata(self) -> Metadata:
        vhdx = self.vhdx
        disk = IS_VIRTUAL_DISK | IS_REQUIRED
        parameters = file_parameters(vhdx.block_size, fixed=vhdx.fixed, has_parent=vhdx.locator is not None)
        items = [
            Item(FILE_PARAMETERS, parameters, IS_REQUIRED),
            Item(VIRTUAL_DISK_SIZE, struct.pack("<Q", vhdx.size), disk),
            Item(VIRTUAL_DISK_ID, vhdx.disk_id.bytes_le, disk),
            Item(LOGICAL_SECTOR_SIZE, struct.pack("<I", vhdx.sector_size), disk),
            Item(PHYSICAL_SECTOR_SIZE, struct.pack("<I", vhdx.physical_sector_size), disk),
        ]
        if vhdx.locator is not None:
            items.append(Item(PARENT_LOCATOR, vhdx.locator, IS_REQUIRED))
        return Metadata(items)

    def place_payload(self) -> None:
        vhdx = self.vhdx
        rest = sorted(set(vhdx.blocks) - set(vhdx.placing))
        for number in (*(each for each in vhdx.placing if each in vhdx.blocks), *rest):
            block = vhdx.blocks[number]
            offset = block.file_offset
            if offset is None:
                stored = block.state in (State.FULLY_PRESENT, State.PARTIALLY_PRESENT)
                offset = self.take(vhdx.block_size) if stored else 0
            self.bat[vhdx.payload_index(number)] = offset | block.state
            if offset and block.data:
                self.payload[number] = (offset, block.data)
        self.place_bitmaps()

    def place_bitmaps(self) -> None:
        vhdx = self.vhdx
        chunks = {
            number // vhdx.chunk_ratio for number, block in vhdx.blocks.items() if block.bits is not None
        }
        for chunk in sorted(chunks):
            bitmap = bytearray(MIB)
            for number, block in vhdx.blocks.items():
                if number // vhdx.chunk_ratio == chunk and block.bits is not None:
                    at = number % vhdx.chunk_ratio * vhdx.bits_length
                    bitmap[at : at + len(block.bits)] = block.bits
            offset = self.take(MIB)
            self.bat[vhdx.bitmap_index(chunk)] = offset | State.FULLY_PRESENT
            self.bitmaps[chunk] = (offset, bytes(bitmap))
