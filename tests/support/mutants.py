"""Mutants: sound VHDX images with a few wrong bytes and right checksums, out of a string of choices.

Owns: the seeds, the mutations, and what is done to a mutant. The same few
hundred bytes always make the same image, so a corpus stays small. Checksums are
repaired after most mutations, else nothing behind them would ever be reached.
"""

import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import UUID

from tests.support.direct import DirectDisk, SparseBytes, run
from tests.support.vhdx.image import Block, Parts, State, Vhdx
from tests.support.vhdx.journal import Entry, Page, Zeros
from tests.support.vhdx.records import (
    HEADER_OFFSETS,
    IS_USER,
    KIB,
    MIB,
    NIL,
    TABLE_OFFSETS,
    Item,
    Region,
    encode_locator,
    linkage,
    seal,
)
from vblk.errors import BlockError
from vblk.formats.vhdx import check_image, parent_candidates, scan_image

LENGTH_MAX = 64 * MIB

GUID = UUID("0f1e2d3c-4b5a-4678-8796-a5b4c3d2e1f0")
OTHER_GUID = UUID("11111111-2222-3333-4444-555555555555")


class Choices:
    """A string of bytes, taken as decisions; after its end every decision is 0."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        """Return the next bytes, zeros after the end."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken.ljust(count, b"\0")

    def below(self, limit: int) -> int:
        """Return a number from 0 to `limit` - 1."""
        width = max(1, (limit.bit_length() + 7) // 8)
        return int.from_bytes(self.take(width), "little") % limit

    @property
    def spent(self) -> bool:
        """Whether no decisions are left."""
        return self._at >= len(self._data)


@dataclass
class Structure:
    """A part of the image that mutations aim at; `fields` is how much of it has a meaning."""

    offset: int
    data: bytearray
    fields: int
    sealed: bool = False
    changed: bool = False


def _dynamic() -> Parts:
    blocks = {0: Block(6), 1: Block(6), 3: Block(State.ZERO), 4: Block(State.UNMAPPED), 9: Block(6)}
    return Vhdx(blocks=blocks, data_write=GUID).assemble()


def _large_sectors() -> Parts:
    vhdx = Vhdx(size=40 * MIB, block_size=32 * MIB, sector_size=4096, fixed=True, blocks={0: Block(6)})
    vhdx.order = ("payload", "bat", "metadata", "log")
    return vhdx.assemble()


def _differencing() -> Parts:
    pairs = [("parent_linkage", linkage(GUID)), ("relative_path", ".\\a\\p.vhdx")]
    pairs += [("absolute_win32_path", "\\\\?\\D:\\x\\p.vhdx"), ("volume_path", "\\\\?\\Volume{1}\\p.vhdx")]
    bits = bytes(range(256))
    blocks = {0: Block(7, b"", bits), 1: Block(6), 2: Block(State.ZERO), 5: Block(7, b"", bits[::-1])}
    return Vhdx(blocks=blocks, locator=encode_locator(pairs), data_write=GUID).assemble()


def _many_chunks() -> Parts:
    vhdx = Vhdx(size=10_240 * MIB, block_size=256 * MIB, data_write=GUID)
    vhdx.blocks = {number: Block(State.FULLY_PRESENT, file_offset=4 * MIB) for number in (0, 16, 39)}
    return vhdx.assemble()


def _extras() -> Parts:
    vhdx = Vhdx(size=5 * MIB, block_size=2 * MIB, blocks={0: Block(6), 2: Block(6)}, gap=MIB)
    parts = vhdx.assemble()
    room = parts.append(MIB)
    for table in parts.tables:
        table.regions.append(Region(OTHER_GUID, room, MIB, 0))
    parts.metadata.items += [Item(OTHER_GUID, b"user", IS_USER), Item(OTHER_GUID, b"", 2)]
    return parts


def _dirty() -> Parts:
    parts = _dynamic()
    parts.dirty(OTHER_GUID)
    sizes: dict[str, Any] = {"flushed": parts.length, "last": parts.length + MIB}
    at, page = parts.bat_page(5, parts.length | 6)
    start = MIB - 4096
    after = parts.put_log(start, Entry(6, OTHER_GUID, tail=start, **sizes))
    after = parts.put_log(after, Entry(7, OTHER_GUID, [Page(at, page)], tail=start, **sizes))
    table = parts.page(TABLE_OFFSETS[0])
    changes: list[Page | Zeros] = [Zeros(at + 64 * KIB, 4096), Page(TABLE_OFFSETS[0], table), Page(at, page)]
    parts.put_log(after, Entry(8, OTHER_GUID, changes, tail=start, **sizes))
    return parts


SEEDS: tuple[Callable[[], Parts], ...] = (
    _dynamic,
    _large_sectors,
    _differencing,
    _many_chunks,
    _extras,
    _dirty,
)


@cache
def _seed(index: int) -> tuple[list[Structure], int, int]:
    """Return the structures of a seed, the length of the file, and where the log is."""
    parts = SEEDS[index]()
    structures: list[Structure] = []
    for at, data in parts.pieces():
        if at in HEADER_OFFSETS:
            structures.append(Structure(at, bytearray(data), 80, sealed=True))
        elif at in TABLE_OFFSETS:
            structures.append(Structure(at, bytearray(data), 16 + 32 * 4, sealed=True))
        elif data[:4] == b"loge":
            structures.append(Structure(at, bytearray(data), 64 + 32 * 4, sealed=True))
        else:
            cut = bytearray(data.rstrip(b"\0"))
            cut += bytes(-len(cut) % 8)
            structures.append(Structure(at, cut, len(cut)))
    bat = max(parts.bat, default=0) * 8 + 64
    structures.append(Structure(parts.bat_offset, bytearray(parts.page(parts.bat_offset, bat)), bat))
    return structures, parts.length, parts.log_offset


NUMBERS = (
    *(0, 1, 2, 3, 4, 5, 6, 7, 8, 511, 512, 520, 1024, 4095, 4096, 4097, 65535, 65536),
    *(MIB - 4096, MIB - 1, MIB, MIB + 1, MIB | 6, MIB | 7, 2 * MIB, 3 * MIB, 5 * MIB, 6 * MIB | 6, 256 * MIB),
    *(2**31 - 1, 2**31, 2**32 - 4096, 2**32 - MIB, 2**32 - 1, 2**32, 2**44, 2**46, 2**46 + 512, 2**63 - MIB),
    *(2**63, 2**64 - MIB, 2**64 - 512, 2**64 - 1, 0x2000, 0x80000, 2047, 2048, 1 << 20),
)


class Mutant:
    """One image in the making."""

    def __init__(self, choices: Choices) -> None:
        structures, self.length, self.log_offset = _seed(choices.below(len(SEEDS)))
        self.structures = [
            Structure(each.offset, bytearray(each.data), each.fields, each.sealed) for each in structures
        ]
        self.seal = choices.below(16) != 15
        self.choices = choices

    def mutate(self) -> None:
        """Apply one mutation."""
        choices = self.choices
        kind = choices.below(8)
        if kind == 0:
            self.length = choices.below(LENGTH_MAX // 512) * 512
        elif kind == 1:
            self._add_entry()
        elif kind == 2:
            self._copy()
        else:
            self._poke(kind)

    def _poke(self, kind: int) -> None:
        choices = self.choices
        target = self.structures[choices.below(len(self.structures))]
        if not target.fields:
            return
        at = choices.below(target.fields)
        if kind == 3:
            target.data[at] ^= 1 << choices.below(8)
        elif kind == 4:
            target.data[at] = choices.below(256)
        else:
            width = (2, 4, 8)[choices.below(3)]
            at = at // width * width
            number = NUMBERS[choices.below(len(NUMBERS))] if kind < 7 else choices.below(1 << 40)
            raw = struct.pack("<Q", number)[:width]
            target.data[at : at + width] = raw[: len(target.data) - at]
        target.changed = True

    def _copy(self) -> None:
        choices = self.choices
        source = self.structures[choices.below(len(self.structures))]
        target = self.structures[choices.below(len(self.structures))]
        count = 1 + choices.below(128)
        start, at = choices.below(source.fields + 1), choices.below(target.fields + 1)
        piece = source.data[start : start + count][: len(target.data) - at]
        target.data[at : at + len(piece)] = piece
        target.changed = True

    def _add_entry(self) -> None:
        choices = self.choices
        descriptors: list[Page | Zeros] = []
        for _ in range(choices.below(4)):
            at = choices.below(8192) * 4096
            if choices.below(3):
                descriptors.append(Page(at, self._page(at)))
            else:
                descriptors.append(Zeros(at, choices.below(1024) * 4096))
        guid = (OTHER_GUID, GUID, NIL)[choices.below(3)]
        position = choices.below(256) * 4096
        sizes = (self.length & -MIB, choices.below(64) * MIB)
        entry = Entry(
            choices.below(16),
            guid,
            descriptors,
            tail=None if choices.below(2) else choices.below(256) * 4096,
            flushed=sizes[choices.below(2)],
            last=sizes[choices.below(2)],
        )
        raw = bytearray(entry.encode(position))
        self.structures.append(Structure(self.log_offset + position, raw, 64 + 32 * 4, sealed=True))

    def _page(self, at: int) -> bytes:
        page = bytearray(self.file().at(at, 4096).ljust(4096, b"\0"))
        if self.choices.below(2):
            where = self.choices.below(512) * 8
            number = NUMBERS[self.choices.below(len(NUMBERS))]
            page[where : where + 8] = struct.pack("<Q", number)
        return bytes(page)

    def file(self) -> SparseBytes:
        """Return the image, with right checksums if it is to have them."""
        pieces: list[tuple[int, bytes]] = []
        for each in self.structures:
            data = bytes(each.data)
            if each.sealed and each.changed and self.seal:
                data = seal(data, None)
            pieces.append((each.offset, data))
        return SparseBytes(pieces, self.length, budget=1 << 30)


def exercise(data: bytes) -> str:
    """Make the mutant that `data` describes and do to it all that a reader does; say how far it came.

    Only `BlockError` may be raised inside, and it is swallowed here.
    """
    choices = Choices(data)
    mutant = Mutant(choices)
    for _ in range(1 + choices.below(6)):
        mutant.mutate()
        if choices.spent:
            break
    file = mutant.file()
    try:
        disk = DirectDisk(file, strict=choices.below(8) == 7)
    except BlockError as error:
        return type(error).__name__
    _ask(disk, choices)
    return "opened"


def _ask(disk: DirectDisk, choices: Choices) -> None:
    image = disk.image
    image.describe()
    if image.locator is not None:
        with suppress(BlockError):
            parent_candidates(image.locator, "/a/b", "/a/b", {"D:\\": "/mnt/d"}, ("/c",))
    size = disk.size
    block = image.block_size
    places = [0, size - 512, size // 2, block - 256, 5 * block]
    places += [choices.below(size) for _ in range(3)]
    for offset in places:
        length = min(choices.below(20_000) + 1, size - offset)
        if length > 0:
            _read(disk, offset, length)
    run(scan_image(image, disk.file.read))
    report = run(check_image(image, disk.file.read))
    assert len(report.findings) < 1000
    image.describe()


def _read(disk: DirectDisk, offset: int, length: int) -> None:
    try:
        read = disk.read(offset, length)
    except BlockError:
        return
    assert len(read) == length
