"""Live commits: the guest's disk reads the same throughout, and stands on the base in the end."""

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from tests.support.chain_lab import SIZE, ChainLab, in_chain_lab, let_fail, names_of, shown
from tests.support.command_line import good
from tests.support.manual_clock import ManualClock
from vblk.aio.clock import Clock, LoopClock
from vblk.errors import BlockError, NodeBusy, PermissionConflict
from vblk.graph.edge import READING, WRITING, Permission, Role
from vblk.graph.node import Node
from vblk.graph.reopening import NodeChange
from vblk.jobs.block_job import OnError
from vblk.jobs.live_chain import Grip, Stretch
from vblk.jobs.live_commit import ActiveCommitJob, CommitJob
from vblk.jobs.states import Status
from vblk.jobs.sweep import PAUSE

CHAINS = {
    "raw": ["raw", "qcow2", "qcow2", "qcow2"],
    "qcow2": ["qcow2"] * 4,
    "vhdx": ["vhdx"] * 4,
    "mixed": ["vhdx", "vhdx", "qcow2", "qcow2"],
}
each_chain = pytest.mark.parametrize("formats", CHAINS.values(), ids=CHAINS)
each_side = pytest.mark.parametrize(("side", "iotype"), [("base", "write"), ("layer", "read")])
two_chains = pytest.mark.parametrize(
    "formats", [["raw", "qcow2", "qcow2"], ["vhdx"] * 3], ids=["raw", "vhdx"]
)
each_top = pytest.mark.parametrize("top", [0, 1], ids=["active", "layer"])


async def commit(
    room: ChainLab, top: int = 1, base: int = -1, on_error: OnError = OnError.REPORT, **life: Any
) -> CommitJob | ActiveCommitJob:
    """Begin a commit of the images from `top`, which counts from the active one, into `base`."""
    stretch = Stretch.between(room.images[top], room.images[base])
    why = "block device is in use by block job: commit"
    grip = Grip(room.graph, stretch, "commit", why, is_active=top == 0)
    await grip.take()
    kind = CommitJob if top else ActiveCommitJob
    job = kind("c", grip, on_error, listener=room.listener, clock=life.pop("clock", LoopClock()), **life)
    job.start()
    return job


@each_chain
def test_the_layers_below_the_active_one_go_into_the_base_while_the_guest_writes(
    tmp_path: Path, formats: list[str]
) -> None:
    names = names_of(formats)

    async def scenario(room: ChainLab) -> None:
        async with room.busy():
            job = await commit(room)
            await job.ended()
        assert job.error is None
        assert room.chain() == [names[3], names[0]]
        assert (job.current, job.total) == (SIZE, SIZE)
        assert room.told == [
            *("created", "running", "waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null"),
        ]
        assert len(list(room.graph.nodes())) == 4, "two images, two files"

    in_chain_lab(tmp_path, formats, scenario)


@each_chain
def test_a_part_of_the_chain_is_committed_and_then_the_rest(tmp_path: Path, formats: list[str]) -> None:
    names = names_of(formats)

    async def scenario(room: ChainLab) -> None:
        async with room.busy():
            job = await commit(room, 2, 3)
            await job.ended()
            assert job.error is None
            assert room.chain() == [names[3], names[2], names[0]]
            job = await commit(room, 1, 3)
            await job.ended()
        assert job.error is None
        assert room.chain() == [names[3], names[0]]

    in_chain_lab(tmp_path, formats, scenario)


@each_chain
def test_the_active_layer_goes_into_the_base_and_the_guest_goes_on_there(
    tmp_path: Path, formats: list[str]
) -> None:
    names = names_of(formats)

    async def scenario(room: ChainLab) -> None:
        async with room.busy():
            job = await commit(room, 0)
            await room.until(job, Status.READY)
            job.complete()
            await job.ended()
        assert job.error is None
        assert room.told == [
            *("created", "running", "ready", "BLOCK_JOB_READY"),
            *("waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null"),
        ]
        assert room.chain() == [names[0]]
        assert not room.guest.node.read_only
        assert room.images[0].bitmaps == {}
        room.access = {}

    in_chain_lab(tmp_path, formats, scenario)


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


@two_chains
@pytest.mark.parametrize(
    "sizes",
    [(SIZE, 2 * SIZE, 2 * SIZE), (2 * SIZE, SIZE, 2 * SIZE), (2 * SIZE, SIZE, SIZE)],
    ids=["a small base", "a small layer", "a large base"],
)
@each_top
def test_images_of_other_sizes_show_the_same_before_and_after(
    tmp_path: Path, formats: list[str], sizes: tuple[int, ...], top: int
) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await commit(room, top)
        if top == 0:
            await room.until(job, Status.READY)
            job.complete()
            room.access = {}
        await job.ended()
        assert job.error is None
        assert room.images[-1].size == max(sizes[0], sizes[-1 if top == 0 else 1])

    in_chain_lab(tmp_path, formats, scenario, sizes)


def image_of(room: ChainLab, side: str) -> Node:
    """Return the base, or the layer above it."""
    return room.images[-1 if side == "base" else -2]


async def held_back(
    room: ChainLab, top: int, on_error: OnError, clock: Clock | None = None
) -> CommitJob | ActiveCommitJob:
    """Begin a commit that copies next to nothing before its speed is set."""
    job = await commit(room, top, on_error=on_error, clock=clock or LoopClock(), speed=1)
    while not job.total:
        await room.guest.flush()
    return job


async def completed(room: ChainLab, job: CommitJob | ActiveCommitJob) -> None:
    """Wait until a commit has come to its end."""
    if isinstance(job, ActiveCommitJob):
        await room.until(job, Status.READY)
        job.complete()
        room.access = {}
    await job.ended()


each_failure = pytest.mark.parametrize(
    ("formats", "side", "iotype"),
    [
        (["raw", "qcow2", "qcow2"], "base", "write"),
        (["raw", "qcow2", "qcow2"], "layer", "read"),
        (["vhdx"] * 3, "layer", "read"),
    ],
    ids=["raw base", "qcow2 layer", "vhdx layer"],
)


@each_failure
@each_top
def test_a_failure_that_stops_the_job_is_made_good_after_the_resume(
    tmp_path: Path, formats: list[str], top: int, side: str, iotype: str
) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await held_back(room, top, OnError.STOP)
        await let_fail(room, image_of(room, side), iotype, errno.EIO)
        job.set_speed(0)
        await room.until(job, Status.PAUSED)
        assert job.io_status == "failed"
        assert "BLOCK_JOB_ERROR" in room.told
        job.resume()
        await completed(room, job)
        assert job.error is None

    in_chain_lab(tmp_path, formats, scenario)


@each_failure
@each_top
def test_a_failure_that_is_reported_ends_the_job_and_leaves_the_chain(
    tmp_path: Path, formats: list[str], top: int, side: str, iotype: str
) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await held_back(room, top, OnError.REPORT)
        await let_fail(room, image_of(room, side), iotype, errno.EIO)
        job.set_speed(0)
        await job.ended()
        assert job.error is not None
        assert "Input/output error" in job.error
        assert job.current < job.total, "what failed is not behind it"
        assert room.chain() == names_of(formats)[::-1]

    in_chain_lab(tmp_path, formats, scenario)


@each_side
@each_top
def test_a_failure_that_is_ignored_is_met_again_after_a_rest(
    tmp_path: Path, top: int, side: str, iotype: str
) -> None:
    async def scenario(room: ChainLab) -> None:
        clock = ManualClock()
        job = await held_back(room, top, OnError.IGNORE, clock)
        await let_fail(room, image_of(room, side), iotype, errno.EIO)
        job.set_speed(0)
        async with asyncio.timeout(60):
            while PAUSE not in clock.slept:
                await room.write()
        clock.advance(PAUSE)
        await completed(room, job)
        assert job.error is None
        assert room.told.count("BLOCK_JOB_ERROR") == 1

    in_chain_lab(tmp_path, ["raw", "qcow2", "qcow2"], scenario)


@each_top
@pytest.mark.parametrize(("number", "stops"), [(errno.ENOSPC, True), (errno.EIO, False)])
def test_enospc_stops_where_the_base_is_full_and_only_there(
    tmp_path: Path, top: int, number: int, stops: bool
) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await held_back(room, top, OnError.ENOSPC)
        await let_fail(room, room.images[-1], "write", number)
        job.set_speed(0)
        if stops:
            await room.until(job, Status.PAUSED)
            assert job.io_status == "nospace"
            job.resume()
            await completed(room, job)
        else:
            await job.ended()
        assert (job.error is None) is stops

    in_chain_lab(tmp_path, ["raw", "qcow2", "qcow2"], scenario)


def test_the_file_of_an_image_above_takes_the_text_that_is_given(tmp_path: Path) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await commit(room, 1, backing_file="./0.raw")
        await job.ended()
        assert job.error is None

    in_chain_lab(tmp_path, ["raw", "qcow2", "qcow2"], scenario)
    assert "backing file: ./0.raw" in good("info", tmp_path / "2.qcow2")
    assert "backing file format: raw" in good("info", tmp_path / "2.qcow2")


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
