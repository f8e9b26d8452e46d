"""The smallest VHDX files, made field by field for tests of single rules.

Owns: one fixed layout (log at 1 MiB, metadata at 2 MiB, BAT at 3 MiB, blocks
from 4 MiB on) whose every field a test may replace before the file is read.
"""

import struct
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from vblk.codec.crc32c import crc32c
from vblk.extent import Extent, Kind, Missing
from vblk.formats.vhdx import VhdxImage, load_image

T = TypeVar("T")

MIB = 1 << 20
LOG_AT, METADATA_AT, BAT_AT, PAYLOAD_AT = (n * MIB for n in (1, 2, 3, 4))

FULLY, PARTLY = 6, 7

BAT = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08").bytes_le
METADATA = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
SIZE = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
DISK_ID = UUID("beca12ab-b2e6-4523-93ef-c309e000c746").bytes_le
LOGICAL = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f").bytes_le
PHYSICAL = UUID("cda348c7-445d-4471-9cc9-e9885251c556").bytes_le
LOCATOR = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le
LOCATOR_TYPE = UUID("b04aefb7-d19e-4a81-b789-25b8e9445913").bytes_le
LOG_GUID = UUID("10111213-1415-1617-1819-1a1b1c1d1e1f").bytes_le
OTHER = UUID("99999999-8888-7777-6666-555555555555").bytes_le


def sealed(data: bytes) -> bytes:
    """Put a right checksum into bytes 4 to 7."""
    blank = data[:4] + bytes(4) + data[8:]
    return data[:4] + crc32c(blank).to_bytes(4, "little") + data[8:]


def header(
    sequence: int = 1,
    *,
    log_guid: bytes = bytes(16),
    log_version: int = 0,
    version: int = 1,
    log_length: int = MIB,
    log_offset: int = LOG_AT,
    data_write: bytes = b"D" * 16,
) -> bytes:
    """Return a header of 4096 bytes."""
    fields = struct.pack(
        "<4sIQ16s16s16sHHIQ",
        b"head",
        0,
        sequence,
        b"F" * 16,
        data_write,
        log_guid,
        log_version,
        version,
        log_length,
        log_offset,
    )
    return sealed(fields.ljust(4096, b"\0"))


def region_entry(guid: bytes, offset: int, length: int = MIB, flags: int = 1) -> bytes:
    """Return a region's entry of 32 bytes."""
    return struct.pack("<16sQII", guid, offset, length, flags)


def region_table(*entries: bytes, count: int | None = None, reserved: int = 0) -> bytes:
    """Return a region table of 64 KiB."""
    number = len(entries) if count is None else count
    table = struct.pack("<4sIII", b"regi", 0, number, reserved) + b"".join(entries)
    return sealed(table.ljust(65536, b"\0"))


def metadata(
    items: dict[bytes, bytes],
    *,
    flags: dict[bytes, int] | None = None,
    entries: bytes = b"",
    count: int | None = None,
) -> bytes:
    """Return a metadata table and its items; `entries` are added as they are."""
    table, content = b"", b""
    for guid, data in items.items():
        place = 65536 + len(content) if data else 0
        table += struct.pack("<16sIIII", guid, place, len(data), (flags or {}).get(guid, 4), 0)
        content += data
    number = len(items) + len(entries) // 32 if count is None else count
    head = struct.pack("<8sHH20s", b"metadata", 0, number, bytes(20))
    return (head + table + entries).ljust(65536, b"\0") + content


def locator(pairs: dict[str, str], kind: bytes = LOCATOR_TYPE) -> bytes:
    """Return a parent locator item."""
    head = struct.pack("<16sHH", kind, 0, len(pairs))
    table, text, at = b"", b"", 20 + 12 * len(pairs)
    for key, value in pairs.items():
        raw_key, raw_value = key.encode("utf-16-le"), value.encode("utf-16-le")
        table += struct.pack("<IIHH", at, at + len(raw_key), len(raw_key), len(raw_value))
        text += raw_key + raw_value
        at += len(raw_key) + len(raw_value)
    return head + table + text


def log_entry(
    sequence: int,
    changes: list[tuple[int, bytes | int]],
    *,
    tail: int = 0,
    flushed: int = 8 * MIB,
    last: int = 8 * MIB,
    guid: bytes = LOG_GUID,
) -> bytes:
    """Return a log entry; a change is a page of 4096 bytes, or a number of bytes to zero."""
    descriptors, sectors = b"", b""
    for place, change in changes:
        if isinstance(change, int):
            descriptors += struct.pack("<4sIQQQ", b"zero", 0, change, place, sequence)
        else:
            descriptors += struct.pack("<4s4s8sQQ", b"desc", change[-4:], change[:8], place, sequence)
            sectors += struct.pack("<4sI", b"data", sequence >> 32) + change[8:-4]
            sectors += struct.pack("<I", sequence & 0xFFFFFFFF)
    size = -(-(64 + len(descriptors)) // 4096) * 4096
    head = struct.pack(
        "<4sIIIQII16sQQ",
        b"loge",
        0,
        size + len(sectors),
        tail,
        sequence,
        len(changes),
        0,
        guid,
        flushed,
        last,
    )
    return sealed((head + descriptors).ljust(size, b"\0") + sectors)


@dataclass
class Small:
    """A file under construction; `length` is its size in bytes."""

    size: int = 4 * MIB
    block_size: int = MIB
    bits: int = 0
    logical: int = 512
    physical: int = 4096
    entries: dict[int, int] = field(default_factory=lambda: dict[int, int]())
    length: int = 8 * MIB
    headers: tuple[bytes, bytes] = (header(1), header(2))
    regions: tuple[bytes, ...] = (region_entry(BAT, BAT_AT), region_entry(METADATA, METADATA_AT))
    extra_items: dict[bytes, bytes] = field(default_factory=lambda: dict[bytes, bytes]())
    pieces: dict[int, bytes] = field(default_factory=lambda: dict[int, bytes]())

    def items(self) -> dict[bytes, bytes]:
        """Return the metadata items."""
        return {
            PARAMETERS: struct.pack("<II", self.block_size, self.bits),
            SIZE: self.size.to_bytes(8, "little"),
            DISK_ID: b"I" * 16,
            LOGICAL: self.logical.to_bytes(4, "little"),
            PHYSICAL: self.physical.to_bytes(4, "little"),
        } | self.extra_items

    def build(self) -> "MemoryFile":
        """Return the file; `pieces` override what the layout puts at their offsets."""
        table = region_table(*self.regions)
        pieces = {
            0: b"vhdxfile" + "small".encode("utf-16-le"),
            0x10000: self.headers[0],
            0x20000: self.headers[1],
            0x30000: table,
            0x40000: table,
            METADATA_AT: metadata(self.items()),
        }
        for index, entry in self.entries.items():
            pieces[BAT_AT + index * 8] = entry.to_bytes(8, "little")
        return MemoryFile(list((pieces | self.pieces).items()), self.length)


class MemoryFile:
    """Pieces of bytes in a file of zeros; later pieces hide earlier ones."""

    def __init__(self, pieces: list[tuple[int, bytes]], length: int) -> None:
        self.pieces = pieces
        self.length = length
        self.reads: list[tuple[int, int]] = []

    async def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes; fewer only at the end."""
        self.reads.append((offset, length))
        return self.at(offset, length)

    def at(self, offset: int, length: int) -> bytes:
        """As `read`, without a trace."""
        length = max(0, min(length, self.length - offset))
        data = bytearray(length)
        for start, piece in self.pieces:
            first, last = max(start, offset), min(start + len(piece), offset + length)
            if first < last:
                data[first - offset : last - offset] = piece[first - start : last - start]
        return bytes(data)


def run(call: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends."""
    try:
        call.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    raise AssertionError("a pure reader suspended")


def load(file: MemoryFile, *, strict: bool = False) -> VhdxImage:
    """Load an image from memory."""
    return run(load_image(file.read, file.length, filename="small.vhdx", strict=strict))


def extents(file: MemoryFile, image: VhdxImage, offset: int, length: int) -> list[Extent]:
    """Look a range up, bringing what is missing, in at most three rounds."""
    pages: dict[int, bytes] = {}
    for _ in range(3):
        answer = image.lookup(offset, length, pages)
        if not isinstance(answer, Missing):
            return answer
        for start, count in answer.ranges:
            data = image.patch(start, file.at(start, count), count)
            pages |= {start + at: data[at : at + 4096] for at in range(0, count, 4096)}
    raise AssertionError("a lookup took more than three rounds")


def summary(found: list[Extent]) -> list[tuple[Kind, int, int, int | None]]:
    """Return extents as tuples."""
    return [(extent.kind, extent.guest_offset, extent.length, extent.file_offset) for extent in found]
