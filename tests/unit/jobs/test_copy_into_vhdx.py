"""Copying into images that take space by blocks: what takes none, in which order, and what a child holds."""

import asyncio
import random
from pathlib import Path

import pytest

import vblk
from vblk.aio.clock import LoopClock
from vblk.drivers.vhdx import VhdxNode
from vblk.drivers.vhdx_create import NewVhdxImage, parent_facts
from vblk.formats.vhdx.create import NewVhdx
from vblk.graph.creation import FileOptions
from vblk.graph.plane import Mover
from vblk.graph.registry import Graph
from vblk.jobs.copy import CopyJob, CopyPlan, concatenated
from vblk.jobs.target import new_image
from vblk.opening import open_image
from vblk.units import KIB, MIB

SIZE = 24 * MIB


def write_raw(path: Path, data: dict[int, bytes], *, sparse: bool) -> bytes:
    """Make a raw disk, its zeros holes or written out; return what it holds."""
    content = bytearray(SIZE)
    for at, piece in data.items():
        content[at : at + len(piece)] = piece
    with path.open("wb") as file:
        if sparse:
            file.truncate(SIZE)
            for at, piece in data.items():
                file.seek(at)
                file.write(piece)
        else:
            file.write(content)
    return bytes(content)


async def convert(
    source: Path, target: Path, new: NewVhdx, plan: CopyPlan, parent: Path | None = None
) -> None:
    async with Graph() as graph:
        behind: VhdxNode | None = None
        if parent is not None:
            node = (await open_image(graph, str(parent))).node
            assert isinstance(node, VhdxNode)
            behind = node
            new = NewVhdx(block_size=new.block_size, parent=await parent_facts(behind, str(target)))
        sources = concatenated([await open_image(graph, str(source))])
        image = NewVhdxImage(new, FileOptions(), behind)
        async with new_image(graph, str(target), image, cache="unsafe") as made:
            assert made.is_zero == (parent is None)
            await CopyJob(sources, made.handle, plan, Mover(graph.engine), clock=LoopClock()).run()


async def looked_at(path: Path) -> tuple[bytes, int, int, int]:
    """Return a disk's content, its errors, how many blocks have space, and how many are out of order."""
    async with vblk.open(path) as disk:
        assert isinstance(disk.node, VhdxNode)
        report = await disk.node.check()
        content = await disk.read(0, disk.size)
        return content, report.errors, report.allocated_blocks, report.fragmented_blocks


def noise(length: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(length)


PLANS = {
    "plain": CopyPlan(target_is_zero=True),
    "offload": CopyPlan(target_is_zero=True, offload=True),
    "sparse": CopyPlan(target_is_zero=True, sparse=4 * KIB),
    "salvage": CopyPlan(target_is_zero=True, salvage=True),
    "any order": CopyPlan(target_is_zero=True, out_of_order=True, workers=16),
}


@pytest.mark.parametrize("sparse", [False, True], ids=["written-out", "holes"])
@pytest.mark.parametrize("name", PLANS)
def test_blocks_of_zeros_take_no_space(tmp_path: Path, name: str, sparse: bool) -> None:
    data = {3 * MIB - 512: noise(1024, 1), 9 * MIB: noise(MIB, 2), 20 * MIB + 700 * KIB: b"x"}
    content = write_raw(tmp_path / "a", data, sparse=sparse)
    asyncio.run(convert(tmp_path / "a", tmp_path / "b", NewVhdx(size=SIZE, block_size=MIB), PLANS[name]))
    seen, errors, blocks, _ = asyncio.run(looked_at(tmp_path / "b"))
    assert seen == content
    assert errors == 0
    assert blocks == (4 if sparse or name != "offload" else SIZE // MIB)


@pytest.mark.parametrize("sparse", [None, 0, 4 * KIB])
def test_in_order_the_blocks_stand_in_the_file_as_on_the_disk(tmp_path: Path, sparse: int | None) -> None:
    data = {number * MIB: noise(MIB, number) for number in range(0, 24, 2)}
    content = write_raw(tmp_path / "a", data, sparse=False)
    plan = CopyPlan(target_is_zero=True, sparse=sparse, workers=8)
    asyncio.run(convert(tmp_path / "a", tmp_path / "b", NewVhdx(size=SIZE, block_size=MIB), plan))
    seen, errors, blocks, fragmented = asyncio.run(looked_at(tmp_path / "b"))
    assert (seen, errors, fragmented) == (content, 0, 0)
    assert blocks == (24 if sparse == 0 else 12)


@pytest.mark.parametrize("name", ["plain", "sparse", "salvage", "any order", "offload", "all"])
def test_a_child_reads_as_the_source_and_holds_only_what_its_parent_does_not(
    tmp_path: Path, name: str
) -> None:
    base = {at * MIB: noise(300 * KIB, at) for at in (0, 4, 8, 12, 22)}
    write_raw(tmp_path / "base", base, sparse=True)
    zeros = {4 * MIB: bytes(300 * KIB), 16 * MIB: bytes(MIB)}
    mine = {**base, **zeros, 8 * MIB + 8 * KIB: noise(5000, 50), 18 * MIB + 4 * KIB: noise(4 * KIB, 51)}
    content = write_raw(tmp_path / "mine", mine, sparse=False)
    plan = {**PLANS, "all": CopyPlan(sparse=0)}[name]
    plan = CopyPlan(
        workers=plan.workers,
        out_of_order=plan.out_of_order,
        sparse=plan.sparse,
        offload=plan.offload,
        salvage=plan.salvage,
        differences=True,
    )
    new = NewVhdx(size=SIZE, block_size=2 * MIB)

    async def scenario() -> None:
        await convert(tmp_path / "base", tmp_path / "parent.vhdx", new, CopyPlan(target_is_zero=True))
        await convert(tmp_path / "mine", tmp_path / "child.vhdx", new, plan, tmp_path / "parent.vhdx")

    asyncio.run(scenario())
    seen, errors, blocks, _ = asyncio.run(looked_at(tmp_path / "child.vhdx"))
    assert seen == content
    assert errors == 0
    if name in ("offload", "all"):
        return
    assert blocks == 2  # at 8 MiB and at 18 MiB: the block that became zeros has no space
    own = asyncio.run(own_data(tmp_path / "child.vhdx"))
    assert own == [(8 * MIB + 8 * KIB, 8 * KIB), (18 * MIB + 4 * KIB, 4 * KIB)]


async def own_data(path: Path) -> list[tuple[int, int]]:
    """Return offset and length of what an image itself has data for."""
    async with vblk.open(path) as disk:
        spans = [span for span in await disk.extents() if span.depth == 0 and span.kind is vblk.Kind.DATA]
        return [(span.guest_offset, span.length) for span in spans]


def test_a_child_of_the_sources_own_base_holds_nothing_that_is_the_bases(tmp_path: Path) -> None:
    write_raw(tmp_path / "base", {0: noise(MIB, 1), 6 * MIB: noise(MIB, 2)}, sparse=True)
    new = NewVhdx(size=SIZE, block_size=2 * MIB)

    async def scenario() -> tuple[bytes, bytes]:
        await convert(tmp_path / "base", tmp_path / "base.vhdx", new, CopyPlan(target_is_zero=True))
        plan = CopyPlan(differences=True)
        await convert(tmp_path / "base.vhdx", tmp_path / "a.vhdx", new, plan, tmp_path / "base.vhdx")
        async with vblk.open(tmp_path / "a.vhdx", read_only=False) as disk:
            await disk.write(6 * MIB + 4 * KIB, b"mine" * KIB)
            await disk.write_zeroes(0, 2 * MIB, unmap=True)
        # nothing but the tables says that the rest is shared: offload never compares
        plan = CopyPlan(differences=True, offload=True)
        await convert(tmp_path / "a.vhdx", tmp_path / "b.vhdx", new, plan, tmp_path / "base.vhdx")
        return (await looked_at(tmp_path / "a.vhdx"))[0], (await looked_at(tmp_path / "b.vhdx"))[0]

    first, second = asyncio.run(scenario())
    assert first == second
    assert asyncio.run(own_data(tmp_path / "b.vhdx")) == [(6 * MIB + 4 * KIB, 4 * KIB)]
