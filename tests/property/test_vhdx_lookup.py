"""Whatever the geometry, the states, the bitmaps and the depth: a VHDX reads as its model says.

The files are made by the builder of the tests, which shares nothing with the
reader. Each example reads through the pure map (`locate` and `lookup` must
agree) and through an open disk.
"""

import asyncio
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vblk
from tests.support.direct import DirectDisk, SparseBytes
from tests.support.vhdx.chain import Chain, Level
from tests.support.vhdx.image import Block, State, Vhdx
from tests.support.vhdx.model import Model, pattern
from tests.support.vhdx.records import MIB, encode_locator, linkage

SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)

STATES = (State.NOT_PRESENT, State.UNDEFINED, State.ZERO, State.UNMAPPED, State.FULLY_PRESENT)

DATA_MAX = 16 << 10
"""Bytes of a block that are not zeros, so that examples stay quick."""


@st.composite
def geometries(draw: st.DrawFn, sector_size: int) -> Vhdx:
    """Draw a file without content."""
    block_size = MIB << draw(st.sampled_from([0, 0, 1, 3, 5, 8]))
    blocks = draw(st.integers(1, 40))
    cut = draw(st.integers(0, 40)) * 4096
    return Vhdx(
        size=blocks * block_size - min(cut, block_size - 4096),
        block_size=block_size,
        sector_size=sector_size,
        physical_sector_size=draw(st.sampled_from([512, 4096])),
        fixed=draw(st.booleans()),
        order=tuple(draw(st.permutations(["log", "metadata", "bat", "payload"]))),
        gap=draw(st.sampled_from([0, 0, MIB, 5 * MIB])),
    )


@st.composite
def blocks(draw: st.DrawFn, vhdx: Vhdx, tag: int) -> dict[int, Block]:
    """Draw the blocks of a file; those of a differencing one may be present in part."""
    last = vhdx.block_count - 1
    near = st.integers(0, last) if last < 8 else st.one_of(st.integers(0, 5), st.integers(last - 2, last))
    drawn: dict[int, Block] = {}
    for number in draw(st.lists(near, unique=True, max_size=6)):
        kinds = STATES if vhdx.locator is None else (*STATES, State.PARTIALLY_PRESENT)
        state = draw(st.sampled_from(kinds))
        bits = None
        if vhdx.locator is not None and (state == State.PARTIALLY_PRESENT or draw(st.booleans())):
            bits = draw(st.binary(max_size=min(vhdx.bits_length, DATA_MAX // vhdx.sector_size // 8)))
        data = b""
        if state >= State.FULLY_PRESENT:
            data = pattern(tag, number * vhdx.block_size, draw(st.sampled_from([512, 4096, DATA_MAX])))
        drawn[number] = Block(state, data, bits)
    return drawn


def fill_up(vhdx: Vhdx, tag: int) -> None:
    """Make every block present that is not there yet, so that long runs stand in order."""
    for number in range(vhdx.block_count):
        data = pattern(tag, number * vhdx.block_size, 512)
        vhdx.blocks.setdefault(number, Block(State.FULLY_PRESENT, data))


@st.composite
def chains(draw: st.DrawFn) -> list[Vhdx]:
    """Draw one to four files, the base first."""
    sector_size = draw(st.sampled_from([512, 4096]))
    files: list[Vhdx] = []
    for depth in range(draw(st.integers(1, 4))):
        vhdx = draw(geometries(sector_size))
        if files:
            pairs = [("parent_linkage", linkage(files[-1].data_write))]
            vhdx.locator = encode_locator([("relative_path", f".\\{depth - 1}.vhdx"), *pairs])
        vhdx.blocks = draw(blocks(vhdx, depth + 1))
        if draw(st.integers(0, 3)) == 0:
            fill_up(vhdx, depth + 1)
        vhdx.placing = tuple(draw(st.permutations(sorted(vhdx.blocks)[:6])))
        files.append(vhdx)
    return files


def models(files: list[Vhdx]) -> list[Model]:
    """Return what a guest sees at each level."""
    seen = [files[0].model()]
    for vhdx in files[1:]:
        seen.append(vhdx.see(seen[-1].copy(vhdx.size)))
    return seen


@st.composite
def reads(draw: st.DrawFn, vhdx: Vhdx) -> list[tuple[int, int]]:
    """Draw ranges of any alignment, most of them near something."""
    edges = [0, vhdx.size, *(number * vhdx.block_size for number in vhdx.blocks)]
    drawn: list[tuple[int, int]] = []
    for _ in range(draw(st.integers(1, 8))):
        near = draw(st.sampled_from(edges)) + draw(st.integers(-70_000, 70_000))
        offset = max(0, min(near, vhdx.size - 1))
        drawn.append((offset, min(draw(st.integers(1, 140_000)), vhdx.size - offset)))
    return drawn


@settings(max_examples=120, deadline=None, suppress_health_check=SLOW)
@given(st.data())
def test_the_map_agrees_with_the_model(data: st.DataObject) -> None:
    files = data.draw(chains())
    model = models(files)[-1]
    disk: DirectDisk | None = None
    for vhdx in files:
        parts = vhdx.assemble()
        disk = DirectDisk(SparseBytes(parts.pieces(), parts.length, budget=1 << 30), disk)
        assert disk.image.findings == []
    assert disk is not None
    assert disk.size == model.size
    for offset, length in data.draw(reads(files[-1])):
        assert disk.read(offset, length) == model.read(offset, length)


@settings(max_examples=40, deadline=None, suppress_health_check=SLOW)
@given(st.data())
def test_an_open_disk_agrees_with_the_model(data: st.DataObject) -> None:
    files = data.draw(chains())
    ranges = data.draw(reads(files[-1]))
    with tempfile.TemporaryDirectory() as folder:
        chain = Chain(Path(folder))
        for depth, (vhdx, model) in enumerate(zip(files, models(files), strict=True)):
            chain.levels.append(Level(vhdx.build(chain.folder / f"{depth}.vhdx"), vhdx, model))
        asyncio.run(agrees(chain.top, ranges))


async def agrees(level: Level, ranges: list[tuple[int, int]]) -> None:
    """Read ranges one by one, then all at once, then through the extents."""
    async with vblk.open(level.path) as disk:
        assert disk.format == "vhdx"
        assert disk.size == level.model.size
        meant = [level.model.read(offset, length) for offset, length in ranges]
        assert [await disk.read(offset, length) for offset, length in ranges] == meant
        assert await asyncio.gather(*(disk.read(offset, length) for offset, length in ranges)) == meant
        for (offset, length), expected in zip(ranges, meant, strict=True):
            known = disk.try_read(offset, length)
            assert known is None or known == expected
            at = offset
            for span in await disk.extents(offset, length):
                assert span.guest_offset == at
                if span.kind is vblk.Kind.ZERO:
                    assert not any(expected[at - offset : at - offset + span.length])
                at += span.length
            assert at == offset + length
