"""The catalogue of bad inputs, sections 6.1 to 6.6, opened for writing.

Every case that may not be written is refused with its reason, through the
library and the commands, and its bytes stay as they are. Every other has its
log replayed in place, is written to all over, resized, and reads back.
"""

import asyncio
import struct
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import vblk
from tests.catalogue import (
    test_vhdx_bat,
    test_vhdx_differencing,
    test_vhdx_headers,
    test_vhdx_log,
    test_vhdx_metadata,
    test_vhdx_regions,
)
from tests.support.catalogue import (
    Catalogue,
    Make,
    Opens,
    Refused,
    command_flags,
    fingerprint,
    windows,
)
from tests.support.command_line import Outcome, call
from tests.support.subject import Subject
from tests.support.vhdx.model import Model, pattern
from tests.support.vhdx.records import HEADER_OFFSETS, KIB, MIB, TIB, seal
from vblk.drivers.vhdx import VhdxNode
from vblk.errors import BlockError
from vblk.graph.site import ChainRules

SECTIONS: tuple[Catalogue, ...] = (
    test_vhdx_headers.CASES,
    test_vhdx_regions.CASES,
    test_vhdx_metadata.CASES,
    test_vhdx_bat.CASES,
    test_vhdx_differencing.CASES,
    test_vhdx_log.CASES,
)

READ_ONLY = frozenset(
    "H12 H15 H17-dirty H18 H18-near T4 M3 B1 B2 B3 B4 B5 B6 B8 B9 B10 B11 B15 B16 B17 "
    "L2 L3 L10 L13 L20 L21 L23-only L28-bat".split()
)
"""Cases that open for reading and never for writing, by number or as a whole."""

WRITTEN_THOUGH = frozenset(["H18-far-enough", "L21-a-sector-less"])

COSTLY = frozenset(["H17-dirty"])
"""Searching a log of 4 GiB takes seconds; that nothing is found there is refused as L2 is."""

REPAIRED = frozenset("H3 H4 H6 H9 B12 B13 L29".split())
"""What writing to all blocks and growing puts right by the way, so that it is not reported any more."""


def is_refused(identity: str, wanted: Refused | Opens) -> bool:
    if isinstance(wanted, Refused):
        return True
    number = identity.split("-")[0]
    return identity in READ_ONLY or (number in READ_ONLY and identity not in WRITTEN_THOUGH)


CASES = [case for section in SECTIONS for case in section.cases]
REFUSED = [
    pytest.param(make, id=name)
    for name, make, wanted in CASES
    if is_refused(name, wanted) and name not in COSTLY
]
WRITTEN = [pytest.param(make, id=name) for name, make, wanted in CASES if not is_refused(name, wanted)]


def assert_refused(outcome: Outcome, folder: Path) -> None:
    assert outcome.status == 1, outcome.out
    assert str(folder) in outcome.err, outcome.err
    assert len(outcome.err.splitlines()) == 1, outcome.err


def made(make: Make, folder: Path) -> tuple[Subject, tuple[object, ...]]:
    subject = Subject(folder)
    make(subject)
    return subject, fingerprint(subject.write())


@pytest.mark.parametrize("make", REFUSED)
def test_what_must_not_be_written_is_refused_and_untouched(make: Make, tmp_path: Path) -> None:
    subject, before = made(make, tmp_path)

    async def attempt() -> None:
        async with vblk.open(subject.path, format="vhdx", read_only=False, rules=subject.rules):
            pass

    with pytest.raises(BlockError) as caught:
        asyncio.run(attempt())
    assert str(tmp_path) in str(caught.value)
    if subject.rules == ChainRules():
        assert_refused(call("io", "-f", "vhdx", "-c", "write -P 7 0 4k", subject.path), tmp_path)
    else:
        assert_refused(call("resize", *command_flags(subject), "-f", "vhdx", subject.path, "+1M"), tmp_path)
    assert fingerprint(subject.path) == before


async def scribble(disk: vblk.Disk, model: Model) -> None:
    """Change blocks in every state: in part, as a whole, to zeros, to nothing."""
    size = model.size
    for number, at in enumerate(range(0, min(size, 18 * MIB), MIB)):
        for start, length in ((4 * KIB, 8 * KIB), (MIB - 3 * KIB, 6 * KIB), (600, 200)):
            offset = at + start
            length = min(length, size - offset)
            if length > 0 and number % 5 != 3:
                data = pattern(1000 + number, offset, length)
                await disk.write(offset, data)
                model.write(offset, data)
        if number % 5 == 2:
            length = min(MIB, size - at)
            await disk.write_zeroes(at, length, unmap=True)
            model.zero(at, length)
        if number % 7 == 0:
            await disk.flush()
    for offset in (size - 512, size // 2 & -512):
        data = pattern(77, offset, 512)
        await disk.write(offset, data)
        model.write(offset, data)


async def compare(disk: vblk.Disk, subject: Subject) -> None:
    assert disk.size == subject.model.size
    for offset, length in windows(subject):
        read = await disk.read(offset, length)
        assert read == subject.model.read(offset, length), f"wrong bytes in {length:#x} from {offset:#x}"


@dataclass(frozen=True)
class Identity:
    """What one of the two header copies says."""

    sequence: int
    file_write: bytes
    data_write: bytes
    log: bytes


def identities(path: Path) -> list[Identity]:
    """Return both header copies, the older first; their checksums are right."""
    found: list[Identity] = []
    for at in HEADER_OFFSETS:
        with path.open("rb") as file:
            file.seek(at)
            raw = file.read(4096)
        assert raw == seal(raw, None)
        found.append(Identity(*struct.unpack_from("<Q16s16s16s", raw, 8)))
    return sorted(found, key=lambda each: each.sequence)


def open_to_write(subject: Subject) -> AbstractAsyncContextManager[vblk.Disk]:
    return vblk.open(subject.path, format="vhdx", read_only=False, rules=subject.rules)


async def open_and_close(subject: Subject, *, dirty: bool) -> None:
    """Open for writing without a write: a log is replayed, and else nothing happens to the file."""
    before, written = fingerprint(subject.path), subject.parts.current
    async with open_to_write(subject) as disk:
        await compare(disk, subject)
    if not dirty:
        assert fingerprint(subject.path) == before
        return
    older, newer = identities(subject.path)
    assert older == replace(newer, sequence=newer.sequence - 1)
    assert newer.log == bytes(16)
    assert newer.file_write != written.file_write.bytes_le
    assert newer.data_write == written.data_write.bytes_le


async def write_all_over(subject: Subject) -> None:
    async with open_to_write(subject) as disk:
        await scribble(disk, subject.model)
        await compare(disk, subject)
    async with open_to_write(subject) as disk:
        size = min(subject.model.size + 5 * MIB + 4 * KIB, 64 * TIB)
        await disk.resize(size)
        subject.model = subject.model.copy(size)
        await compare(disk, subject)
        await disk.write_zeroes(0, min(4 * MIB, size), unmap=True)
        subject.model.zero(0, 4 * MIB)
        await scribble(disk, subject.model)


async def codes(subject: Subject) -> set[str]:
    async with vblk.open(subject.path, format="vhdx", rules=subject.rules) as disk:
        await compare(disk, subject)
        assert isinstance(disk.node, VhdxNode)
        report = await disk.node.check()
        assert report.read_only_reasons == []
        return {finding.code for finding in report.findings}


@pytest.mark.parametrize("make", WRITTEN)
def test_what_may_be_written_is_written_well(make: Make, tmp_path: Path) -> None:
    subject, _ = made(make, tmp_path)
    before = asyncio.run(codes(subject))
    asyncio.run(open_and_close(subject, dirty="L29" in before))
    asyncio.run(write_all_over(subject))
    after = asyncio.run(codes(subject))
    assert after <= before - REPAIRED, (before, after)
    older, newer = identities(subject.path)
    assert older == replace(newer, sequence=newer.sequence - 1)
