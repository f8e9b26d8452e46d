"""Whatever a disk went through: compacting leaves it as it is, in a file that is no longer than before.

And what a rehearsal says comes true, a second time nothing moves, the check is
clean, and children stay valid. 512- and 4096-byte sectors, with and without parents.
"""

import asyncio
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.vhdx.model import Model, pattern
from tests.support.vhdx_disks import Chain, MemoryFile
from tests.support.worn_vhdx import worn
from vblk.codec.guid import Guid
from vblk.drivers.vhdx import VhdxNode
from vblk.formats.vhdx.create import NewVhdx
from vblk.graph.handle import Handle
from vblk.graph.plane import Mover
from vblk.graph.registry import Graph
from vblk.jobs.compact import CompactJob, CompactReport
from vblk.units import KIB, MIB

SIZE = 9 * MIB + 12 * KIB


async def scribble(disk: Handle, model: Model, lot: Random, rounds: int) -> None:
    """Fill, half empty, and leave zeros behind, so that the file has holes of all kinds."""
    for tag in range(rounds):
        block = lot.choice((MIB, 2 * MIB, 4 * MIB))
        start = lot.randrange(SIZE // block) * block
        length = min(block, SIZE - start)
        kind = lot.random()
        if kind < 0.35:
            at = start + lot.choice((0, 512, 64 * KIB)) // 4096 * 4096
            data = pattern(tag, at, lot.choice((4 * KIB, 16 * KIB, length - (at - start))))
            await disk.write(at, data)
            model.write(at, data)
        elif kind < 0.6:
            await disk.write(start, bytes(length))
            model.zero(start, length)
        elif kind < 0.8:
            await disk.write_zeroes(start, length, unmap=lot.random() < 0.7)
            model.zero(start, length)
        else:
            await disk.flush()


async def compacted(chain: Chain, model: Model) -> tuple[CompactReport, Guid]:
    """Rehearse, compact, and compare everything that can be."""
    async with Graph() as graph:
        handle = await chain.open(graph, read_only=True)
        assert isinstance(handle.node, VhdxNode)
        told = await CompactJob(handle.node, Mover(graph.engine)).rehearse()
        guid = handle.node.image.data_write_guid
        assert await handle.read(0, model.size) == model.read(0, model.size)
    length = len(chain.files[-1].content)
    async with Graph() as graph:
        handle = await chain.open(graph)
        assert isinstance(handle.node, VhdxNode)
        report = await CompactJob(handle.node, Mover(graph.engine)).run()
        assert await handle.read(0, model.size) == model.read(0, model.size)
        assert handle.node.image.data_write_guid == guid
    assert (told.gains, told.length_after) == (report.gains, report.length_after)
    assert report.length_before == length
    assert report.length_after == len(chain.files[-1].content) <= length
    assert (await chain.check()).findings == []
    return report, guid


@pytest.mark.parametrize("levels", [1, 2])
@settings(max_examples=6, deadline=None)
@given(
    block_sizes=st.lists(st.sampled_from((MIB, 2 * MIB, 8 * MIB)), min_size=2, max_size=2),
    sector_size=st.sampled_from((512, 4096)),
    seed=st.integers(0, 1 << 32),
)
def test_the_disk_stays_and_the_file_gets_no_longer(
    levels: int, block_sizes: list[int], sector_size: int, seed: int
) -> None:
    async def main() -> None:
        chain, model, lot = Chain(), Model(SIZE), Random(seed)
        for level in range(levels):
            new = NewVhdx(size=SIZE, block_size=block_sizes[level], logical_sector_size=sector_size)
            await chain.add(new)
            for _ in range(2):
                async with Graph() as graph:
                    await scribble(await chain.open(graph), model, lot, 12)
        report, guid = await compacted(chain, model)
        again, same = await compacted(chain, model)
        assert same == guid
        assert again.gains == type(again.gains)(), "the first time should have done it"
        assert again.length_after == report.length_after
        async with Graph() as graph:  # and it is good for writing
            await scribble(await chain.open(graph), model, lot, 6)
        await compacted(chain, model)

    asyncio.run(main())


@pytest.mark.parametrize("parent", [False, True])
@settings(max_examples=20, deadline=None)
@given(
    block_size=st.sampled_from((MIB, 2 * MIB, 4 * MIB)),
    sector_size=st.sampled_from((512, 4096)),
    sectors=st.integers(1, 14 * MIB // 4096),
    seed=st.integers(0, 1 << 32),
)
def test_images_as_others_leave_them_are_compacted(
    parent: bool, block_size: int, sector_size: int, sectors: int, seed: int
) -> None:
    async def main() -> None:
        image = worn(
            Random(seed), size=sectors * 4096, block_size=block_size, sector_size=sector_size, parent=parent
        )
        chain = Chain([MemoryFile(content) for content in image.contents()])
        report, _ = await compacted(chain, image.model)
        again, _ = await compacted(chain, image.model)
        assert again.gains == type(again.gains)(), "the first time should have done it"
        assert again.length_after == report.length_after

    asyncio.run(main())
