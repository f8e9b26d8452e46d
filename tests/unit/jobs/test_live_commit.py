"""Live commits: the guest's disk reads the same throughout, and stands on the base in the end."""

import asyncio
from pathlib import Path

import pytest

from tests.support.chain_lab import ChainLab, in_chain_lab, names_of, shown
from tests.support.commits import CHAINS, commit, completed, each_chain, each_top, held_back
from tests.support.manual_clock import ManualClock
from vblk.errors import BlockError, NodeBusy, PermissionConflict
from vblk.graph.edge import READING, WRITING, Permission, Role
from vblk.graph.reopening import NodeChange
from vblk.jobs.block_job import OnError
from vblk.jobs.live_chain import Grip, Stretch
from vblk.jobs.states import Status


@each_chain
def test_a_cancel_of_a_ready_commit_leaves_the_guest_where_it_is(tmp_path: Path, formats: list[str]) -> None:
    names = names_of(formats)

    async def scenario(room: ChainLab) -> None:
        async with room.busy():
            job = await commit(room, 0)
            await room.until(job, Status.READY)
            job.cancel()
            await job.ended()
        assert "BLOCK_JOB_COMPLETED" in room.told
        assert room.chain() == names[::-1]

    in_chain_lab(tmp_path, formats, scenario)


@each_chain
@each_top
def test_a_cancel_before_the_end_leaves_the_chain_as_it_was(
    tmp_path: Path, formats: list[str], top: int
) -> None:
    names = names_of(formats)

    async def scenario(room: ChainLab) -> None:
        job = await commit(room, top, clock=ManualClock(), speed=1)
        await room.until(job, Status.RUNNING)
        async with room.busy():
            for _ in range(100):
                await asyncio.sleep(0)
            job.cancel()
            await job.ended()
        assert room.told[-4:] == ["aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]
        assert room.chain() == names[::-1]
        job = await commit(room, 1)
        await job.ended()
        assert job.error is None, "it can be done again"

    in_chain_lab(tmp_path, formats, scenario)


def test_a_commit_has_its_images_to_itself(tmp_path: Path) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await held_back(room, 1, OnError.REPORT)
        _, top, layer, base = room.images
        for first, last in ((0, 2), (1, 2), (2, 3)):
            stretch = Stretch.between(room.images[first], room.images[last])
            with pytest.raises(NodeBusy, match="is busy: block device is in use by block job: commit"):
                await Grip(room.graph, stretch, "another", "why").take()
        with pytest.raises(NodeBusy, match="Cannot change frozen 'backing' link from"):
            await room.graph.change([NodeChange(top, read_only=True, children={"backing": base})])
        with pytest.raises(PermissionConflict):
            room.graph.hold(layer, "a reader of what is not whole", READING)
        with pytest.raises(PermissionConflict):
            room.graph.hold(base, "a reader of what stays", READING, Permission.CONSISTENT_READ)
        with pytest.raises(PermissionConflict):
            room.graph.hold(base, "a writer", WRITING, Permission.ALL)
        job.cancel()
        await job.ended()
        await room.graph.release(room.graph.hold(layer, "a reader", READING))

    in_chain_lab(tmp_path, CHAINS["qcow2"], scenario)


def test_an_image_that_somebody_reads_below_the_top_is_not_committed(tmp_path: Path) -> None:
    async def scenario(room: ChainLab) -> None:
        for image in room.images[2:]:
            reader = room.graph.hold(image, "a reader", READING, Permission.CONSISTENT_READ)
            with pytest.raises(PermissionConflict, match="a reader"):
                await commit(room)
            assert room.access_is_as_before()
            await room.graph.release(reader)

    in_chain_lab(tmp_path, CHAINS["vhdx"], scenario)


def test_a_base_that_does_not_open_for_writing_is_left_as_it_was(tmp_path: Path) -> None:
    async def scenario(room: ChainLab) -> None:
        base = room.images[-1]
        room.graph.keep(base.below or base)  # a file with a name of its own, open for reading only
        with pytest.raises(BlockError, match="read-only"):
            await commit(room)

    in_chain_lab(tmp_path, CHAINS["raw"], scenario)


def test_readers_of_the_top_follow_to_the_base(tmp_path: Path) -> None:
    async def scenario(room: ChainLab) -> None:
        top, base = room.images[1], room.images[-1]
        reader = room.graph.hold(top, "a reader", READING)
        before = await reader.read(0, reader.size)
        job = await commit(room)
        await job.ended()
        assert job.error is None
        assert reader.node is base
        assert await reader.read(0, reader.size) == before

    in_chain_lab(tmp_path, CHAINS["vhdx"], scenario)


def test_layers_that_somebody_keeps_stay_open(tmp_path: Path) -> None:
    async def scenario(room: ChainLab) -> None:
        top, layer = room.images[1:3]
        room.graph.keep(top)
        job = await commit(room)
        await job.ended()
        assert job.error is None
        assert {top, layer} < set(room.graph.nodes())
        assert layer.children[Role.BACKING.value].permissions == READING
        await room.graph.let_go(top)
        assert layer not in set(room.graph.nodes())

    in_chain_lab(tmp_path, CHAINS["qcow2"], scenario)


def test_what_the_guest_writes_to_a_vhdx_base_makes_it_another_for_the_layer_left_behind(
    tmp_path: Path,
) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await commit(room, 0)
        await completed(room, job)
        await room.write()

    in_chain_lab(tmp_path, ["vhdx", "vhdx"], scenario)
    with pytest.raises(BlockError, match="parent linkage mismatch"):
        asyncio.run(shown(tmp_path / "1.vhdx", "vhdx"))


def test_a_layer_left_behind_opens_as_long_as_nobody_writes_to_the_base(tmp_path: Path) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await commit(room, 0)
        await completed(room, job)

    in_chain_lab(tmp_path, ["vhdx", "vhdx"], scenario)
    layer = asyncio.run(shown(tmp_path / "1.vhdx", "vhdx"))
    assert layer == asyncio.run(shown(tmp_path / "0.vhdx", "vhdx"))
