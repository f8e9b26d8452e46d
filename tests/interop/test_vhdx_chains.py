"""Differencing chains read the same through vblk and through every reader that is right about them.

7-Zip is the judge of all of them; libvhdi where no level holds blocks in the
states 1 to 3 and no child is larger than its parent; dissect and QEMU only for
the base, since dissect misreads sector bitmaps and QEMU knows no parents.
"""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

import vblk
from tests.support.readers import dissect, qemu_sha256, seven_zip_sha256, sha256_of, sha256_through, vhdi
from tests.support.vhdx.chain import Chain
from tests.support.vhdx.image import State
from tests.support.vhdx.records import KIB, MIB

pytestmark = pytest.mark.interop


async def read_all(path: Path) -> bytes:
    """Return the whole disk through vblk."""
    async with vblk.open(path, format="vhdx") as disk:
        return b"".join([await disk.read(at, min(MIB, disk.size - at)) for at in range(0, disk.size, MIB)])


def vblk_agrees(chain: Chain) -> None:
    """Assert that every level of a chain reads as its model, whole and in odd pieces."""
    for level in chain.levels:
        whole = asyncio.run(read_all(level.path))
        assert whole == level.model.read(0, level.model.size)
    asyncio.run(odd_pieces(chain))


async def odd_pieces(chain: Chain) -> None:
    """Read the top in pieces of every alignment."""
    generator = random.Random(chain.top.model.size)
    async with vblk.open(chain.top.path, format="vhdx") as disk:
        for _ in range(200):
            offset = generator.randrange(disk.size)
            length = min(generator.randrange(1, 70_000), disk.size - offset)
            assert await disk.read(offset, length) == chain.top.model.read(offset, length)


def levels(chain: Chain, depth: int, unit: int, **own: Any) -> Chain:
    """Lay `depth` - 1 children over the base, each with partial, whole and edge writes."""
    generator = random.Random(depth * unit)
    for _ in range(depth - 1):
        size = chain.top.vhdx.size
        writes = [(0, unit), (size - unit, unit), (5 * MIB, MIB), (9 * MIB - unit, 3 * unit)]
        for _ in range(20):
            at = generator.randrange(size // unit - 64) * unit
            writes.append((at, generator.randrange(1, 64) * unit))
        chain.child(writes, **own)
    return chain


@pytest.mark.parametrize("unit", [512, 4096])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_chains_of_one_block_size(tmp_path: Path, depth: int, unit: int) -> None:
    chain = Chain(tmp_path)
    chain.base([(0, 3 * MIB), (8 * MIB + unit, 64 * KIB)], size=20 * MIB, sector_size=unit)
    levels(chain, depth, unit)
    vblk_agrees(chain)
    meant = chain.top.model.sha256()
    assert seven_zip_sha256(chain.top.path, tmp_path) == meant
    with vhdi(*(level.path for level in reversed(chain.levels))) as read:
        assert sha256_through(read, chain.top.model.size) == meant
    if unit == 512:
        assert qemu_sha256(chain.levels[0].path, tmp_path) == chain.levels[0].model.sha256()
        with dissect(chain.levels[0].path) as read:
            assert sha256_through(read, chain.levels[0].model.size) == chain.levels[0].model.sha256()


@pytest.mark.parametrize("unit", [512, 4096])
def test_chains_of_mixed_block_sizes(tmp_path: Path, unit: int) -> None:
    chain = Chain(tmp_path)
    chain.base([(0, 3 * MIB), (30 * MIB, 5 * MIB)], size=40 * MIB, block_size=2 * MIB, sector_size=unit)
    levels(chain, 2, unit, block_size=MIB, size=40 * MIB)
    levels(chain, 2, unit, block_size=32 * MIB, size=40 * MIB, order=("payload", "bat", "log", "metadata"))
    levels(chain, 2, unit, block_size=8 * MIB, size=40 * MIB)
    assert len(chain.levels) == 4
    vblk_agrees(chain)
    assert seven_zip_sha256(chain.top.path, tmp_path) == chain.top.model.sha256()


@pytest.mark.parametrize("unit", [512, 4096])
def test_blocks_that_hide_the_parent(tmp_path: Path, unit: int) -> None:
    chain = Chain(tmp_path)
    chain.base([(0, 12 * MIB)], size=16 * MIB, sector_size=unit)
    hiding: dict[int, int] = {1: State.ZERO, 3: State.UNMAPPED, 5: State.UNDEFINED, 14: State.ZERO}
    chain.child([(2 * MIB + unit, 2 * unit)], states=hiding)
    chain.child([(unit, unit), (3 * MIB + unit, 5 * unit)], states={2: State.ZERO, 7: State.NOT_PRESENT})
    vblk_agrees(chain)
    assert seven_zip_sha256(chain.top.path, tmp_path) == chain.top.model.sha256()


def test_bits_across_the_bytes_of_a_bitmap(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.base([(0, 4 * MIB)], size=4 * MIB)
    chain.child([(512 * at, 512 * count) for at, count in ((1, 3), (6, 3), (15, 1), (17, 14), (2047, 2))])
    vblk_agrees(chain)
    assert seven_zip_sha256(chain.top.path, tmp_path) == chain.top.model.sha256()


@pytest.mark.parametrize("size", [9 * MIB + 4 * KIB, 16 * MIB, 33 * MIB])
def test_children_smaller_than_their_parents(tmp_path: Path, size: int) -> None:
    chain = Chain(tmp_path)
    chain.base([(0, 3 * MIB), (8 * MIB, 5 * MIB), (30 * MIB, MIB)], size=40 * MIB, block_size=2 * MIB)
    chain.child([(size - 4096, 4096), (512, 512)], size=size)
    vblk_agrees(chain)
    meant = chain.top.model.sha256()
    assert seven_zip_sha256(chain.top.path, tmp_path) == meant
    with vhdi(chain.top.path, chain.levels[0].path) as read:
        assert sha256_through(read, size) == meant


def test_children_larger_than_their_parents(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.base([(0, 3 * MIB)], size=3 * MIB - 4096, block_size=2 * MIB)
    chain.child([(3 * MIB + 512, 512)], size=11 * MIB)
    chain.child([(512, 512), (30 * MIB, 512)], size=31 * MIB, block_size=32 * MIB)
    vblk_agrees(chain)


def test_a_chain_over_several_chunks(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    far = 9 * 1024 * MIB
    chain.base([(0, MIB), (far, MIB)], size=10 * 1024 * MIB, block_size=256 * MIB)
    chain.child([(512, 1024), (far + 1024, 512), (far + 300 * MIB, 512)], size=10 * 1024 * MIB)
    model = chain.top.model

    async def compare() -> None:
        async with vblk.open(chain.top.path, format="vhdx") as disk:
            for offset in (0, MIB, far - MIB, far, far + 300 * MIB - 4096, disk.size - MIB):
                assert await disk.read(offset, MIB) == model.read(offset, MIB)

    asyncio.run(compare())


def test_reading_a_chain_changes_none_of_its_files(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.base([(0, 3 * MIB)], size=12 * MIB)
    levels(chain, 3, 512)
    before = [sha256_of(level.path) for level in chain.levels]
    vblk_agrees(chain)
    assert [sha256_of(level.path) for level in chain.levels] == before
