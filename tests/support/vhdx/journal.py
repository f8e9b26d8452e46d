"""Log entries of a VHDX file, right or wrong in any field.

Owns: the packing of entries and descriptors. It must not know what the logged
pages mean.

Source: [MS-VHDX] 2.3.
"""

import struct
from dataclasses import dataclass, field
from uuid import UUID

from tests.support.vhdx.records import seal

SECTOR = 4096


@dataclass
class Page:
    """A data descriptor and its data sector: 4096 bytes for `file_offset`."""

    file_offset: int
    data: bytes
    sequence: int | None = None
    data_sequence: int | None = None
    signature: bytes = b"desc"
    data_signature: bytes = b"data"

    def descriptor(self, sequence: int) -> bytes:
        """Return the 32 bytes of the descriptor."""
        own = sequence if self.sequence is None else self.sequence
        return struct.pack(
            "<4s4s8sQQ", self.signature, self.data[4092:], self.data[:8], self.file_offset, own
        )

    def sector(self, sequence: int) -> bytes:
        """Return the 4096 bytes of the data sector."""
        own = sequence if self.data_sequence is None else self.data_sequence
        high, low = own >> 32, own & 0xFFFFFFFF
        return struct.pack("<4sI", self.data_signature, high) + self.data[8:4092] + struct.pack("<I", low)


@dataclass
class Zeros:
    """A zero descriptor: `length` bytes from `file_offset` become zero."""

    file_offset: int
    length: int
    sequence: int | None = None
    signature: bytes = b"zero"

    def descriptor(self, sequence: int) -> bytes:
        """Return the 32 bytes of the descriptor."""
        own = sequence if self.sequence is None else self.sequence
        return struct.pack("<4sIQQQ", self.signature, 0, self.length, self.file_offset, own)


@dataclass
class Entry:
    """One log entry; positions are bytes from the start of the log."""

    sequence: int
    guid: UUID
    descriptors: list[Page | Zeros] = field(default_factory=list[Page | Zeros])
    tail: int | None = None
    flushed: int = 0
    last: int = 0
    count: int | None = None
    length: int | None = None
    checksum: int | None = None
    signature: bytes = b"loge"
    pad_sectors: int = 0

    @property
    def size(self) -> int:
        """The bytes that the entry takes in the log."""
        sectors = -(-(64 + 32 * len(self.descriptors)) // SECTOR)
        pages = sum(isinstance(each, Page) for each in self.descriptors)
        return (sectors + pages + self.pad_sectors) * SECTOR

    def encode(self, position: int) -> bytes:
        """Return the entry as it stands at `position`; without a tail of its own it is its own tail."""
        table = b"".join(each.descriptor(self.sequence) for each in self.descriptors)
        head = struct.pack(
            "<4sIIIQII16sQQ",
            self.signature,
            0,
            self.size if self.length is None else self.length,
            position if self.tail is None else self.tail,
            self.sequence,
            len(self.descriptors) if self.count is None else self.count,
            0,
            self.guid.bytes_le,
            self.flushed,
            self.last,
        )
        sectors = -(-(64 + len(table)) // SECTOR)
        body = (head + table).ljust(sectors * SECTOR, b"\0")
        for each in self.descriptors:
            if isinstance(each, Page):
                body += each.sector(self.sequence)
        return seal(body.ljust(self.size, b"\0"), self.checksum)
