"""The mirror job: the target becomes the disk, whatever its users and the storage do meanwhile."""

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import good
from tests.support.manual_clock import ManualClock
from tests.support.mirror_lab import SIZE, Lab, failing, in_lab, kept
from vblk.errors import JobError, StorageError
from vblk.filters.job_top import put_job_top
from vblk.graph.edge import WRITING
from vblk.jobs.block_job import OnError
from vblk.jobs.mirror import PAUSE
from vblk.jobs.mirror_plan import Plan
from vblk.jobs.mirror_target import MirrorTarget
from vblk.jobs.states import Status
from vblk.protocols.memory import MemoryNode
from vblk.units import KIB, MIB


@pytest.mark.parametrize("target", ["raw", "vhdx", "qcow2"])
@pytest.mark.parametrize("source", ["raw", "vhdx"])
def test_the_guest_goes_on_at_the_target_and_loses_nothing(tmp_path: Path, source: str, target: str) -> None:
    async def scenario(room: Lab) -> None:
        job = await room.ready(Plan(granularity=64 * KIB, target_is_zero=True))
        await room.write(5000, b"late" * 100)
        await room.guest.write_zeroes(64 * KIB, 128 * KIB)
        room.content[64 * KIB : 192 * KIB] = bytes(128 * KIB)
        job.complete()
        await job.ended()
        assert job.error is None
        assert room.guest.node is room.target
        await room.write(MIB + 77, b"on the new disk")
        assert await room.shows_all(room.guest.node)
        assert room.source.bitmaps == {}
        assert job.current == job.total >= SIZE
        assert room.told == [
            *("created", "running", "ready", "BLOCK_JOB_READY"),
            *("waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null"),
        ]

    in_lab(tmp_path, scenario, source=source, target=target)


@pytest.mark.parametrize("converge", [None, 0.0])
def test_a_failure_that_is_ignored_is_met_again_after_a_rest_and_holds_nobody(
    tmp_path: Path, converge: float | None
) -> None:
    async def scenario(room: Lab) -> None:
        clock = ManualClock()
        node = await failing(room.graph, tmp_path / "third", "write", errno.EIO, once=False)
        room.target = node
        plan = Plan(granularity=64 * KIB, on_target_error=OnError.IGNORE, converge=converge)
        job = room.mirror(plan, clock=clock)
        for _ in range(2000):
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            while PAUSE not in clock.slept:
                await room.write(0, b"the guest goes on")
        failures = room.told.count("BLOCK_JOB_ERROR")
        for _ in range(2000):
            await asyncio.sleep(0)
        assert room.told.count("BLOCK_JOB_ERROR") == failures, "it does not wait"
        job.cancel(force=True)
        await job.ended()

    (tmp_path / "third").write_bytes(bytes(SIZE))
    in_lab(tmp_path, scenario)


def test_completing_before_ready_is_refused(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        job = room.mirror(clock=ManualClock(), speed=1)
        await room.until(job, Status.RUNNING)
        with pytest.raises(JobError, match="cannot accept command verb 'complete'"):
            job.complete()
        await room.leave(job)

    in_lab(tmp_path, scenario)


@pytest.mark.parametrize("size", [SIZE - 512, SIZE + 512])
def test_a_target_of_another_size_is_refused(tmp_path: Path, size: int) -> None:
    async def scenario(room: Lab) -> None:
        writer = room.graph.hold(room.target, "the test", WRITING)
        await writer.resize(size)
        await room.graph.release(writer)
        job = room.mirror()
        await job.ended()
        assert job.error == "Source and target image have different sizes"

    in_lab(tmp_path, scenario)


@pytest.mark.parametrize("granularity", [256, 3 * KIB, 128 * MIB])
def test_a_granularity_that_cannot_be_is_refused(tmp_path: Path, granularity: int) -> None:
    async def scenario(room: Lab) -> None:
        with pytest.raises(JobError, match="Parameter 'granularity' expects"):
            room.mirror(Plan(granularity=granularity))

    in_lab(tmp_path, scenario)


def test_a_pause_holds_the_copy_and_a_resume_ends_it(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        job = room.mirror()
        job.pause()
        await room.until(job, Status.PAUSED)
        assert job.current == 0
        job.resume()
        await room.until(job, Status.READY)
        job.pause()
        await room.until(job, Status.STANDBY)
        job.resume()
        await room.until(job, Status.READY)
        job.complete()
        await job.ended()
        assert job.error is None

    in_lab(tmp_path, scenario)


def test_zeros_are_written_only_where_the_target_shows_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeroed: list[tuple[int, int]] = []
    write_zeroes = MemoryNode.write_zeroes

    async def noted(self: MemoryNode, offset: int, length: int, **how: Any) -> None:
        zeroed.append((offset, length))
        await write_zeroes(self, offset, length, **how)

    monkeypatch.setattr(MemoryNode, "write_zeroes", noted)

    async def scenario(room: Lab) -> None:
        room.target = MemoryNode("target", size=SIZE)
        room.graph.add(room.target)
        room.graph.keep(room.target)
        await room.target.write(2 * MIB + 64 * KIB, b"x" * 64 * KIB)
        job = await room.ready(Plan(granularity=128 * KIB))
        assert zeroed == [(2 * MIB, 128 * KIB)]
        await room.leave(job)
        assert await room.shows_all(room.target)

    in_lab(tmp_path, scenario)


def test_users_go_on_though_the_source_cannot_be_flushed_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(room: Lab) -> None:
        filter = await put_job_top(room.graph, room.source, "top")

        async def flush() -> None:
            raise StorageError(errno.EIO)

        job = await room.ready(filter=filter, replaces=room.source)
        monkeypatch.setattr(filter, "flush", flush)
        await room.leave(job)
        await room.write(0, b"goes on")
        assert room.source.bitmaps == {}
        assert [edge.user for edge in room.graph.users(room.target)] == []

    in_lab(tmp_path, scenario)


@pytest.mark.parametrize(
    ("data", "length", "verify", "at_once"),
    [
        (b"d", 64 * KIB, False, True),
        (b"d", 128 * KIB, False, False),
        (b"\0", 64 * KIB, False, False),
        (b"d", 64 * KIB, True, False),
    ],
    ids=["data", "too long", "zeros", "to be verified"],
)
def test_short_data_in_memory_is_copied_at_once(
    tmp_path: Path, data: bytes, length: int, verify: bool, at_once: bool
) -> None:
    async def scenario(room: Lab) -> None:
        await room.write(MIB, data * length)
        goal = MirrorTarget(room.graph.engine, room.target, SIZE, 64 * KIB, Plan(verify=verify))
        holder = room.graph.hold(room.target, "the test", WRITING)
        await holder.write(MIB, b"old" * length)
        assert goal.try_copy(room.source, MIB, length) is at_once
        assert (await room.target.read(MIB, length) == data * length) is at_once
        await room.graph.release(holder)

    in_lab(tmp_path, scenario)


@pytest.mark.parametrize("target", ["vhdx", "qcow2"])
def test_zeros_are_not_left_out_where_the_targets_file_holds_something_else(
    tmp_path: Path, target: str
) -> None:
    """A process that died has left bytes in the file that nothing names; they are used for space anew."""

    path = tmp_path / "late"
    options = ["-o", "block_size=1M"] if target == "vhdx" else []
    good("create", "-q", "-f", target, *options, path, str(SIZE))
    with path.open("ab") as file:
        file.write(b"\xee" * 2 * SIZE)

    async def scenario(room: Lab) -> None:
        data = b"data" * KIB + bytes(56 * KIB) + b"data" * KIB
        for start in range(0, SIZE - 64 * KIB, 64 * KIB):
            await room.write(start, data[: 64 * KIB])
        room.target = await kept(room.graph, path, target)
        job = await room.ready(Plan(granularity=64 * KIB))
        await room.leave(job)
        assert await room.shows_all(room.target)

    in_lab(tmp_path, scenario)
