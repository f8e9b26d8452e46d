"""Streams: the guest's disk reads the same throughout, and stands on fewer images in the end."""

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from tests.support.chain_lab import SIZE, ChainLab, in_chain_lab, let_fail, names_of
from tests.support.command_line import good
from tests.support.manual_clock import ManualClock
from vblk.aio.clock import LoopClock
from vblk.errors import NodeBusy, PermissionConflict
from vblk.graph.edge import READING, Permission, Role
from vblk.graph.reopening import NodeChange
from vblk.jobs.block_job import OnError
from vblk.jobs.live_chain import Grip, Stretch
from vblk.jobs.states import Status
from vblk.jobs.stream import Pull, StreamJob
from vblk.units import KIB, MIB

CHAINS = {
    "raw": ["raw", "qcow2", "qcow2", "qcow2"],
    "vhdx": ["vhdx"] * 4,
    "mixed": ["vhdx", "vhdx", "qcow2", "qcow2"],
}
each_chain = pytest.mark.parametrize("formats", CHAINS.values(), ids=CHAINS)
each_base = pytest.mark.parametrize("base", [None, 3, 2], ids=["whole", "to the base", "one layer"])


async def stream(
    room: ChainLab, base: int | None = None, top: int = 0, on_error: OnError = OnError.REPORT, **life: Any
) -> StreamJob:
    """Begin a stream into an image; both count from the active one."""
    stretch = Stretch.between(room.images[top], None if base is None else room.images[base])
    pull = Pull(room.graph, stretch, "stream", "block device is in use by block job: stream")
    await pull.take()
    clock = life.pop("clock", LoopClock())
    job = StreamJob("s", pull, on_error, listener=room.listener, clock=clock, **life)
    job.start()
    return job


@each_chain
@each_base
def test_the_guest_writes_while_its_image_takes_in_what_it_stands_on(
    tmp_path: Path, formats: list[str], base: int | None
) -> None:
    names = names_of(formats)

    async def scenario(room: ChainLab) -> None:
        async with room.busy():
            job = await stream(room, base)
            await job.ended()
        await room.write()
        assert job.error is None
        assert room.chain() == names[3:] + ([] if base is None else names[3 - base :: -1])
        assert (job.current, job.total) == (SIZE, SIZE)
        assert room.told == [
            *("created", "running", "waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null"),
        ]
        assert len(list(room.graph.nodes())) == 2 * len(room.chain())

    in_chain_lab(tmp_path, formats, scenario)


@each_chain
def test_a_write_to_a_range_that_is_being_filled_waits_and_others_do_not(
    tmp_path: Path, formats: list[str]
) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await stream(room, clock=ManualClock(), speed=1)
        filler = job.filler
        async with filler.alone(64 * KIB, 64 * KIB):
            waiting = asyncio.ensure_future(room.guest.write(100 * KIB, b"w" * 512))
            await room.guest.write(MIB, b"o" * 512)
            assert not waiting.done()
            old = await room.guest.read(100 * KIB, 512)
            await filler.write(100 * KIB, old)
        await waiting
        room.content[100 * KIB : 100 * KIB + 512] = b"w" * 512
        room.content[MIB : MIB + 512] = b"o" * 512
        job.set_speed(0)
        await job.ended()
        assert job.error is None

    in_chain_lab(tmp_path, formats, scenario)


@each_chain
def test_a_stream_into_an_image_below_leaves_the_one_above_as_it_is(
    tmp_path: Path, formats: list[str]
) -> None:
    names = names_of(formats)

    async def scenario(room: ChainLab) -> None:
        async with room.busy():
            job = await stream(room, 3, 1)
            await job.ended()
        assert job.error is None
        assert room.chain() == [names[3], names[2], names[0]]

    in_chain_lab(tmp_path, formats, scenario)


@each_chain
def test_a_cancel_leaves_the_chain_as_it_was(tmp_path: Path, formats: list[str]) -> None:
    names = names_of(formats)

    async def scenario(room: ChainLab) -> None:
        job = await stream(room, clock=ManualClock(), speed=1)
        await room.until(job, Status.RUNNING)
        async with room.busy():
            for _ in range(100):
                await asyncio.sleep(0)
            job.cancel()
            await job.ended()
        assert room.told[-4:] == ["aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]
        assert room.chain() == names[::-1]
        job = await stream(room)
        await job.ended()
        assert job.error is None, "it can be done again"

    in_chain_lab(tmp_path, formats, scenario)


@pytest.mark.parametrize("formats", [["raw", "qcow2", "qcow2"], ["vhdx"] * 3], ids=["raw", "vhdx"])
@pytest.mark.parametrize(
    "sizes",
    [(SIZE, 2 * SIZE, 2 * SIZE), (2 * SIZE, SIZE, 2 * SIZE), (2 * SIZE, 2 * SIZE, SIZE)],
    ids=["a small base", "a small layer", "a small top"],
)
@pytest.mark.parametrize("base", [None, 2], ids=["whole", "to the base"])
def test_images_of_other_sizes_show_the_same_before_and_after(
    tmp_path: Path, formats: list[str], sizes: tuple[int, ...], base: int | None
) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await stream(room, base)
        await job.ended()
        assert job.error is None

    in_chain_lab(tmp_path, formats, scenario, sizes)


async def held_back(room: ChainLab, on_error: OnError) -> StreamJob:
    """Begin a stream that copies nothing before its speed is set."""
    job = await stream(room, 2, on_error=on_error, clock=ManualClock(), speed=1)
    while not job.total:
        await room.guest.flush()
    return job


@pytest.mark.parametrize("formats", [["raw", "qcow2", "qcow2"], ["vhdx"] * 3], ids=["raw", "vhdx"])
@pytest.mark.parametrize("policy", [OnError.REPORT, OnError.IGNORE, OnError.STOP, OnError.ENOSPC])
def test_a_layer_that_cannot_be_read_is_dealt_with_as_the_policy_says(
    tmp_path: Path, formats: list[str], policy: OnError
) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await held_back(room, policy)
        await let_fail(room, room.images[1], "read", errno.EIO)
        job.set_speed(0)
        if policy is OnError.STOP:
            await room.until(job, Status.PAUSED)
            assert job.io_status == "failed"
            job.resume()
        await job.ended()
        assert "BLOCK_JOB_ERROR" in room.told
        if policy is OnError.STOP:
            assert job.error is None
            return
        assert job.error is not None
        assert "Input/output error" in job.error
        assert room.chain() == names_of(formats)[::-1], "with data left out it stands on the others"
        if policy is OnError.IGNORE:
            assert job.current == job.total

    in_chain_lab(tmp_path, formats, scenario)


@pytest.mark.parametrize("formats", [["raw", "qcow2", "qcow2"], ["vhdx"] * 3], ids=["raw", "vhdx"])
def test_a_full_storage_stops_the_job_which_goes_on_later(tmp_path: Path, formats: list[str]) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await held_back(room, OnError.ENOSPC)
        await let_fail(room, room.images[0], "write", errno.ENOSPC)
        job.set_speed(0)
        await room.until(job, Status.PAUSED)
        assert job.io_status == "nospace"
        job.resume()
        await job.ended()
        assert job.error is None

    in_chain_lab(tmp_path, formats, scenario)


def test_the_file_takes_the_text_that_is_given(tmp_path: Path) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await stream(room, 2, backing_file="./0.raw")
        await job.ended()
        assert job.error is None

    in_chain_lab(tmp_path, ["raw", "qcow2", "qcow2"], scenario)
    assert "backing file: ./0.raw" in good("info", tmp_path / "2.qcow2")


def test_a_stream_has_its_images_to_itself_but_the_base_may_go(tmp_path: Path) -> None:
    names = names_of(CHAINS["raw"])

    async def scenario(room: ChainLab) -> None:
        job = await stream(room, 2, clock=ManualClock(), speed=1)
        await room.until(job, Status.RUNNING)
        active, layer, bottom, base = room.images
        stretch = Stretch.between(active, bottom)
        assert not layer.children[Role.BACKING.value].frozen
        with pytest.raises(NodeBusy, match="is busy: block device is in use by block job: stream"):
            await Pull(room.graph, stretch, "another", "why").take()
        with pytest.raises(NodeBusy, match="Cannot change frozen 'backing' link from"):
            await room.graph.change([NodeChange(active, read_only=False, children={"backing": base})])
        with pytest.raises(PermissionConflict):
            room.graph.hold(layer, "who lets nobody read", READING, Permission.NONE)
        job.cancel()
        await job.ended()
        assert room.chain() == names[::-1]

    in_chain_lab(tmp_path, CHAINS["raw"], scenario)


def test_several_streams_shorten_one_chain_at_a_time(tmp_path: Path) -> None:
    formats = ["raw", "qcow2", "qcow2", "qcow2", "qcow2"]
    names = names_of(formats)

    async def scenario(room: ChainLab) -> None:
        async with room.busy():
            jobs = [await stream(room, 2, 0), await stream(room, 4, 2)]
            for job in jobs:
                await job.ended()
                assert job.error is None
        assert room.chain() == [names[4], names[2], names[0]]

    in_chain_lab(tmp_path, formats, scenario)


def test_a_commit_and_a_stream_into_the_image_above_exclude_each_other(tmp_path: Path) -> None:
    async def scenario(room: ChainLab) -> None:
        _, overlay, top, base = room.images
        job = await stream(room, 2, clock=ManualClock(), speed=1)
        with pytest.raises(NodeBusy, match=f"Node '{overlay.name}' is busy"):
            await Grip(room.graph, Stretch.between(top, base), "commit", "why").take()
        job.cancel()
        await job.ended()
        grip = Grip(room.graph, Stretch.between(top, base), "commit", "why")
        await grip.take()
        with pytest.raises(NodeBusy, match=f"Node '{overlay.name}' is busy"):
            await stream(room, 2)
        await grip.release()

    in_chain_lab(tmp_path, CHAINS["raw"], scenario)


def test_an_image_that_stands_on_nothing_has_nothing_to_stream(tmp_path: Path) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await stream(room)
        await job.ended()
        assert (job.error, job.current, job.total) == (None, 0, 0)

    in_chain_lab(tmp_path, ["qcow2"], scenario)
