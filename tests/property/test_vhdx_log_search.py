"""The search for the active sequence agrees with the specification's own, step by step.

The product judges all entries in one pass. Here the steps of [MS-VHDX] "Log
Replay" are carried out to the letter over logs of every shape: torn entries,
runs around the end, old sessions, tails that point anywhere. What comes out is
compared, and then what the overlay makes of it.
"""

import random
import struct
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.direct import DirectDisk, SparseBytes
from tests.support.vhdx.crc32c import crc32c
from tests.support.vhdx.image import Parts, Vhdx
from tests.support.vhdx.journal import Entry, Page, Zeros
from tests.support.vhdx.records import MIB, Region

SECTOR = 4096

GUID = UUID("0f1e2d3c-4b5a-4678-8796-a5b4c3d2e1f0")
OLD_GUID = UUID("11111111-2222-3333-4444-555555555555")

Found = tuple[int, int, int, int]
"""Position, length, sequence number and tail of an entry."""


class Log:
    """The bytes of a circular log."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def piece(self, position: int, length: int) -> bytes:
        """Return bytes, around the end where needed."""
        position %= len(self.data)
        return (self.data[position:] + self.data[:position])[:length]

    def entry(self, position: int) -> Found | None:
        """Return the valid entry at a position, judged from scratch."""
        head = self.piece(position, 64)
        signature, checksum, length, tail, sequence, count, _, guid = struct.unpack("<4sIIIQII16s", head[:48])
        sectors = -(-(64 + 32 * count) // SECTOR)
        if signature != b"loge" or guid != GUID.bytes_le or not sequence or length % SECTOR:
            return None
        if not 0 < length < len(self.data) or tail % SECTOR or tail >= len(self.data):
            return None
        if sectors * SECTOR > length:
            return None
        raw = self.piece(position, length)
        if crc32c(raw[:4] + bytes(4) + raw[8:]) != checksum:
            return None
        return (position, length, sequence, tail) if self._sound(raw, sectors, count, sequence) else None

    @staticmethod
    def _sound(raw: bytes, sectors: int, count: int, sequence: int) -> bool:
        pages = 0
        for at in range(64, 64 + 32 * count, 32):
            signature, _, length, offset, own = struct.unpack_from("<4sIQQQ", raw, at)
            if own != sequence or offset % SECTOR or signature not in (b"desc", b"zero"):
                return False
            pages += signature == b"desc"
            if signature == b"zero" and length % SECTOR:
                return False
        data = [raw[at : at + SECTOR] for at in range(sectors * SECTOR, len(raw), SECTOR)]
        halves = struct.pack("<I", sequence >> 32), struct.pack("<I", sequence & 0xFFFFFFFF)
        right = all(each[:4] == b"data" and (each[4:8], each[-4:]) == halves for each in data)
        return right and len(data) == pages

    def run(self, position: int) -> list[Found]:
        """Return the longest run of entries from a position."""
        run: list[Found] = []
        total = 0
        while True:
            found = self.entry(position)
            if found is None or (run and found[2] != run[-1][2] + 1):
                return run
            total += found[1]
            if total > len(self.data):
                return run
            run.append(found)
            position = (position + found[1]) % len(self.data)

    def active(self) -> list[Found] | None:
        """Return the entries to replay, by the specification's search."""
        best: list[Found] | None = None
        tail = old = 0
        while True:
            run = self.run(tail)
            starts = [each[0] for each in run]
            complete = bool(run) and run[-1][3] in starts
            if complete and (best is None or run[-1][2] > best[-1][2]):
                best = run[starts.index(run[-1][3]) :]
            following = (run[-1][0] + run[-1][1]) if complete else tail + SECTOR
            following %= len(self.data)
            if following <= old:
                return best
            old = tail = following


def dirty_parts() -> tuple[Parts, int]:
    """Return an image with a spare region of 1 MiB, and where that is."""
    parts = Vhdx(size=4 * MIB).assemble()
    room = parts.append(MIB)
    for table in parts.tables:
        table.regions.append(Region(OLD_GUID, room, MIB, 0))
    parts.dirty(GUID)
    return parts, room


def log_with_a_life(generator: random.Random) -> tuple[Parts, int]:
    """Make an image whose log had a life: sessions, wraps, torn and overwritten entries."""
    parts, room = dirty_parts()
    for _ in range(generator.randrange(1, 5)):
        position = generator.choice([0, 0, generator.randrange(256), 250]) * SECTOR
        start = position
        sequence = generator.randrange(1, 12)
        guid = OLD_GUID if generator.random() < 0.1 else GUID
        for _ in range(generator.randrange(1, 9)):
            entry = Entry(sequence, guid, flushed=parts.length, last=parts.length)
            for _ in range(generator.randrange(4)):
                at = room + generator.randrange(8) * SECTOR
                if generator.random() < 0.3:
                    entry.descriptors.append(Zeros(at, generator.randrange(4) * SECTOR))
                else:
                    entry.descriptors.append(Page(at, generator.randbytes(8) * 512))
            entry.tail = generator.choice([start, start, position, generator.randrange(256) * SECTOR])
            raw = bytearray(entry.encode(position))
            if generator.random() < 0.12:
                raw[generator.randrange(len(raw))] ^= 1
            parts.put_log_bytes(position, bytes(raw))
            position = (position + len(raw)) % MIB
            sequence += 1 if generator.random() < 0.9 else 2
    return parts, room


@settings(max_examples=200, deadline=None, suppress_health_check=(HealthCheck.too_slow,))
@given(st.integers(0, 1 << 32))
def test_the_search_is_the_specifications(seed: int) -> None:
    parts, room = log_with_a_life(random.Random(seed))
    log = Log(parts.page(parts.log_offset, MIB))
    expected = log.active()
    disk = DirectDisk(SparseBytes(parts.pieces(), parts.length))
    assert disk.image.dirty_log is not None
    assert disk.image.dirty_log.replayable == (expected is not None)
    assert disk.image.dirty_log.entries == len(expected or ())
    page = bytearray(8 * SECTOR)
    for position, length, _, _ in expected or ():
        replay(log.piece(position, length), room, page)
    before = parts.page(room, 8 * SECTOR)
    assert disk.image.patch(room, before) == bytes(page)


def replay(raw: bytes, room: int, page: bytearray) -> None:
    """Carry out what an entry says about the first 8 sectors of the spare region."""
    count = struct.unpack_from("<I", raw, 24)[0]
    at = -(-(64 + 32 * count) // SECTOR) * SECTOR
    for index in range(count):
        signature, last, first, offset, _ = struct.unpack_from("<4s4s8sQQ", raw, 64 + 32 * index)
        start = offset - room
        if signature == b"desc":
            page[start : start + SECTOR] = first + raw[at + 8 : at + 4092] + last
            at += SECTOR
        else:
            end = min(start + int.from_bytes(first, "little"), len(page))
            page[start:end] = bytes(max(0, end - start))
