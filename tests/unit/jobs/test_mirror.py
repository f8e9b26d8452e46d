"""The mirror job: the target becomes the disk, whatever its users and the storage do meanwhile."""

import asyncio
import errno
import json
import os
import random
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import good
from tests.support.manual_clock import ManualClock
from vblk.aio.clock import Clock, LoopClock
from vblk.errors import JobError
from vblk.graph.edge import READING, WRITING, Permission
from vblk.graph.handle import Handle
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.jobs.block_job import OnError
from vblk.jobs.job import Job
from vblk.jobs.mirror import PAUSE, MirrorJob, Plan, Sync
from vblk.jobs.states import Status
from vblk.opening import open_image
from vblk.units import KIB, MIB

SIZE = 3 * MIB + 512


class Lab:
    """A guest's disk, a target, and a mirror from one to the other."""

    def __init__(self, graph: Graph, guest: Handle, target: Node) -> None:
        self.graph = graph
        self.guest = guest
        self.target = target
        self.source = guest.node
        self.told: list[str] = []
        self.news = asyncio.Event()
        self.content = bytearray(guest.size)

    def mirror(self, plan: Plan | None = None, *, clock: Clock | None = None, **life: Any) -> MirrorJob:
        def listener(job: Job, event: str, data: Mapping[str, Any]) -> None:
            self.told.append(data["status"] if event == "JOB_STATUS_CHANGE" else event)
            self.news.set()

        source = self.graph.hold(self.source, "mirror", READING)
        target = self.graph.hold(self.target, "mirror", WRITING, Permission.CONSISTENT_READ)
        job = MirrorJob(
            "m0",
            self.graph,
            source,
            target,
            plan or Plan(granularity=64 * KIB),
            listener=listener,
            clock=clock or LoopClock(),
            **life,
        )
        job.start()
        return job

    async def write(self, offset: int, data: bytes) -> None:
        await self.guest.write(offset, data)
        self.content[offset : offset + len(data)] = data

    async def until(self, job: MirrorJob, status: Status) -> None:
        async with asyncio.timeout(60):
            while job.status is not status:
                assert job.error is None, job.error
                self.news.clear()
                await self.news.wait()

    async def shown(self, node: Node) -> bytes:
        return await node.read(0, node.size)


def silent(job: Job, event: str, data: Mapping[str, Any]) -> None:
    """Listen to nothing."""


Scenario = Callable[[Lab], Awaitable[None]]


def in_lab(folder: Path, scenario: Scenario, *, source: str = "raw", target: str = "raw") -> None:
    """Open both disks, fill the first MiB of the source and a piece at its end, and run the scenario."""
    good("create", "-q", "-f", source, folder / "source", str(SIZE))
    good("create", "-q", "-f", target, folder / "target", str(SIZE))

    async def main() -> None:
        async with Graph() as graph:
            guest = await open_image(graph, str(folder / "source"), format=source, read_only=False)
            graph.keep(guest.node)
            room = Lab(graph, guest, await kept(graph, folder / "target", target))
            await room.write(0, random.Random(1).randbytes(MIB))
            await room.write(SIZE - 512, b"e" * 512)
            await scenario(room)

    asyncio.run(main())


async def kept(graph: Graph, path: Path, format: str) -> Node:
    """Open an image that nobody uses."""
    handle = await open_image(graph, str(path), format=format, read_only=False)
    node = handle.node
    graph.keep(node)
    await graph.release(handle)
    return node


@pytest.mark.parametrize("target", ["raw", "vhdx", "qcow2"])
@pytest.mark.parametrize("source", ["raw", "vhdx"])
def test_the_guest_goes_on_at_the_target_and_loses_nothing(tmp_path: Path, source: str, target: str) -> None:
    async def scenario(room: Lab) -> None:
        job = room.mirror(Plan(granularity=64 * KIB, target_is_zero=True))
        await room.until(job, Status.READY)
        await room.write(5000, b"late" * 100)
        await room.guest.write_zeroes(64 * KIB, 128 * KIB)
        room.content[64 * KIB : 192 * KIB] = bytes(128 * KIB)
        job.complete()
        await job.ended()
        assert job.error is None
        assert room.guest.node is room.target
        await room.write(MIB + 77, b"on the new disk")
        assert await room.guest.read(0, room.guest.size) == room.content
        assert room.source.bitmaps == {}
        assert job.current == job.total >= SIZE
        assert room.told == [
            *("created", "running", "ready", "BLOCK_JOB_READY"),
            *("waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null"),
        ]

    in_lab(tmp_path, scenario, source=source, target=target)


def test_a_guest_that_never_rests_is_moved_without_losing_a_write(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        lot = random.Random(3)
        ended = False

        async def guest() -> None:
            while not ended:
                offset = lot.randrange(0, SIZE - 8192, 512)
                await room.write(offset, lot.randbytes(lot.choice((512, 4096, 8192))))
                await asyncio.sleep(0)

        busy = asyncio.ensure_future(guest())
        job = room.mirror()
        await room.until(job, Status.READY)
        job.complete()
        await job.ended()
        for _ in range(20):
            await asyncio.sleep(0)
        ended = True
        await busy
        assert job.error is None
        assert room.guest.node is room.target
        assert await room.guest.read(0, room.guest.size) == room.content

    in_lab(tmp_path, scenario, source="vhdx", target="vhdx")


def test_a_cancel_before_ready_leaves_the_guest_where_it_is(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        job = room.mirror(clock=ManualClock(), speed=1)
        await room.until(job, Status.RUNNING)
        job.cancel()
        await job.ended()
        assert room.told[-4:] == ["aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]
        assert room.guest.node is room.source
        assert room.source.bitmaps == {}
        await room.write(0, b"still here")

    in_lab(tmp_path, scenario)


def test_a_cancel_after_ready_ends_with_a_copy_of_one_instant(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        job = room.mirror()
        await room.until(job, Status.READY)
        await room.write(4096, b"before the end")
        job.cancel()
        await job.ended()
        assert "BLOCK_JOB_COMPLETED" in room.told
        assert room.guest.node is room.source
        assert await room.shown(room.target) == room.content

    in_lab(tmp_path, scenario)


def test_a_forced_cancel_after_ready_is_a_cancel(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        job = room.mirror()
        await room.until(job, Status.READY)
        job.cancel(force=True)
        await job.ended()
        assert "BLOCK_JOB_CANCELLED" in room.told

    in_lab(tmp_path, scenario)


def test_sync_none_copies_only_what_changes(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        job = room.mirror(Plan(sync=Sync.NONE, granularity=4096))
        await room.until(job, Status.READY)
        await room.write(8192, b"n" * 4096)
        job.cancel()
        await job.ended()
        right = bytearray(SIZE)
        right[8192:12288] = b"n" * 4096
        assert await room.shown(room.target) == right

    in_lab(tmp_path, scenario)


def test_sync_top_leaves_the_backing_out(tmp_path: Path) -> None:
    base, top, target = tmp_path / "base.raw", tmp_path / "top.qcow2", tmp_path / "target.raw"
    base.write_bytes(b"b" * 4 * MIB)
    good("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top)
    good("create", "-q", "-f", "raw", target, "4M")

    async def main() -> None:
        async with Graph() as graph:
            guest = await open_image(graph, str(top), format="qcow2", read_only=False)
            await guest.write(MIB, b"t" * 64 * KIB)
            room = Lab(graph, guest, await kept(graph, target, "raw"))
            job = room.mirror(Plan(sync=Sync.TOP))
            await room.until(job, Status.READY)
            job.cancel()
            await job.ended()
            shown = await room.shown(room.target)
            assert shown[MIB : MIB + 64 * KIB] == b"t" * 64 * KIB
            assert shown.count(b"b") == 0

    asyncio.run(main())


async def failing(graph: Graph, path: Path, iotype: str, error_number: int, *, once: bool = True) -> Node:
    """Open a raw image whose first read or write fails, or all of them."""
    rule = {"event": "none", "iotype": iotype, "errno": error_number, "once": once}
    file = {"driver": "blkdebug", "image": {"driver": "file", "filename": str(path)}, "inject-error": [rule]}
    handle = await open_image(graph, "json:" + json.dumps({"driver": "raw", "file": file}), read_only=False)
    graph.keep(handle.node)
    node = handle.node
    await graph.release(handle)
    return node


@pytest.mark.parametrize(("iotype", "side"), [("write", "target"), ("read", "source")])
def test_a_failure_that_stops_the_job_is_made_good_after_the_resume(
    tmp_path: Path, iotype: str, side: str
) -> None:
    async def scenario(room: Lab) -> None:
        node = await failing(room.graph, tmp_path / "third", iotype, errno.ENOSPC)
        setattr(room, side, node)
        job = room.mirror(
            Plan(granularity=64 * KIB, on_source_error=OnError.STOP, on_target_error=OnError.ENOSPC)
        )
        await room.until(job, Status.PAUSED)
        assert job.io_status == "nospace"
        assert "BLOCK_JOB_ERROR" in room.told
        job.resume()
        await room.until(job, Status.READY)
        job.cancel()
        await job.ended()
        assert await room.shown(room.target) == await room.shown(room.source)

    (tmp_path / "third").write_bytes(bytes(SIZE) if side == "target" else b"third" * (SIZE // 5 + 1))
    os.truncate(tmp_path / "third", SIZE)
    in_lab(tmp_path, scenario)


def test_a_failure_that_is_reported_ends_the_job_and_leaves_the_guest(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        room.target = await failing(room.graph, tmp_path / "third", "write", errno.EIO)
        job = room.mirror()
        await job.ended()
        assert job.error is not None
        assert "Input/output error" in job.error
        assert room.guest.node is room.source
        assert room.source.bitmaps == {}

    (tmp_path / "third").write_bytes(bytes(SIZE))
    in_lab(tmp_path, scenario)


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


def test_after_its_deadline_a_mirror_lets_the_guest_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vblk.jobs.mirror.HELD_MOST", 0)

    async def scenario(room: Lab) -> None:
        ended = False

        async def guest() -> None:
            while not ended:
                for offset in range(0, MIB, 64 * KIB):
                    await room.write(offset, os.urandom(512))
                await asyncio.sleep(0)

        busy = asyncio.ensure_future(guest())
        job = room.mirror(Plan(granularity=64 * KIB, converge=0.05))
        await room.until(job, Status.READY)
        job.complete()
        await job.ended()
        ended = True
        await busy
        assert await room.shown(room.target) == room.content

    in_lab(tmp_path, scenario)


def test_completing_before_ready_is_refused(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        job = room.mirror(clock=ManualClock(), speed=1)
        await room.until(job, Status.RUNNING)
        with pytest.raises(JobError, match="cannot accept command verb 'complete'"):
            job.complete()
        job.cancel()
        await job.ended()

    in_lab(tmp_path, scenario)


def test_a_small_target_is_refused(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        source = room.graph.hold(room.target, "mirror", READING)
        await room.guest.resize(4096)
        target = room.graph.hold(room.source, "mirror", READING)
        with pytest.raises(JobError, match="4096"):
            MirrorJob("m", room.graph, source, target, Plan(), listener=silent, clock=LoopClock())

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
