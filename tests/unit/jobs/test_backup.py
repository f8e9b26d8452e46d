"""The backup job: the target is the disk as it was when the job began, whatever happens meanwhile."""

import asyncio
import errno
import random
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import good
from tests.support.manual_clock import ManualClock
from tests.support.mirror_lab import failing, kept
from vblk.aio.clock import Clock, LoopClock
from vblk.errors import BlockError, JobError, NodeBusy, StorageError
from vblk.graph.handle import Handle
from vblk.graph.node import Node
from vblk.graph.recording import add_bitmap
from vblk.graph.registry import Graph
from vblk.jobs.backup import PAUSE, BackupJob, BitmapMode, Plan, Sync, prepare_backup
from vblk.jobs.block_job import OnError
from vblk.jobs.job import Job, Transaction
from vblk.jobs.states import Status
from vblk.opening import open_image
from vblk.units import KIB, MIB

SIZE = 6 * MIB + 512
UNIT = 64 * KIB


class Lab:
    """A guest's disk, a target of its size, and backups from one to the other."""

    def __init__(self, graph: Graph, guest: Handle, target: Node) -> None:
        self.graph = graph
        self.guest = guest
        self.target = target
        self.disk = guest.node
        self.told: list[str] = []
        self.news = asyncio.Event()
        self.content = bytearray(guest.size)
        self.old = b""

    async def backup(self, plan: Plan | None = None, *, clock: Clock | None = None, **life: Any) -> BackupJob:
        job = await self.prepared(plan, clock=clock, **life)
        job.start()
        return job

    async def prepared(
        self, plan: Plan | None = None, *, clock: Clock | None = None, **life: Any
    ) -> BackupJob:
        def listener(job: Job, event: str, data: Mapping[str, Any]) -> None:
            self.told.append(data["status"] if event == "JOB_STATUS_CHANGE" else event)
            self.news.set()

        self.old = bytes(self.content)
        life = {"listener": listener, "clock": clock or LoopClock(), **life}
        return await prepare_backup("b0", self.graph, self.disk, self.target, plan or Plan(), **life)

    async def write(self, offset: int, data: bytes) -> None:
        await self.guest.write(offset, data)
        self.content[offset : offset + len(data)] = data

    async def until(self, job: BackupJob, status: Status) -> None:
        async with asyncio.timeout(60):
            while job.status is not status:
                assert job.error is None, job.error
                self.news.clear()
                await self.news.wait()

    async def saved(self) -> bytes:
        return await self.target.read(0, SIZE)

    def is_as_before(self) -> bool:
        """Tell whether the job left nothing behind: no filter, no hold, no pin."""
        self.graph.require_unpinned(self.disk)
        users = [edge.user for edge in self.graph.users(self.disk)]
        return self.guest.node is self.disk and len(users) == 1 and not self.graph.users(self.target)


Scenario = Callable[[Lab], Awaitable[None]]


def in_lab(folder: Path, scenario: Scenario, *, source: str = "raw", target: str = "raw") -> None:
    """Open both disks, fill some of the source, and run the scenario."""
    good("create", "-q", "-f", source, folder / "source", str(SIZE))
    good("create", "-q", "-f", target, folder / "target", str(SIZE))

    async def main() -> None:
        async with Graph() as graph:
            guest = await open_image(graph, str(folder / "source"), format=source, read_only=False)
            graph.keep(guest.node)
            room = Lab(graph, guest, await kept(graph, folder / "target", target))
            await room.write(0, random.Random(1).randbytes(MIB))
            await room.write(3 * MIB + 100, random.Random(2).randbytes(MIB))
            await room.write(SIZE - 512, b"e" * 512)
            await scenario(room)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("source", "target"), [("raw", "raw"), ("qcow2", "vhdx"), ("vhdx", "qcow2"), ("raw", "qcow2")]
)
def test_the_target_is_the_disk_of_the_instant_at_which_the_job_began(
    tmp_path: Path, source: str, target: str
) -> None:
    async def scenario(room: Lab) -> None:
        lot = random.Random(3)
        ended = False

        async def guest() -> None:
            while not ended:
                offset = lot.randrange(0, SIZE - 8192, 512)
                kind = lot.randrange(8)
                length = lot.choice((512, 4096, 8192))
                if kind:
                    await room.write(offset, lot.randbytes(length))
                else:
                    await room.guest.write_zeroes(offset, length, unmap=lot.random() < 0.5)
                    room.content[offset : offset + length] = bytes(length)
                await asyncio.sleep(0)

        job = await room.backup(Plan(target_is_zero=True))
        busy = asyncio.ensure_future(guest())
        await job.ended()
        ended = True
        await busy
        assert job.error is None
        assert await room.saved() == room.old
        assert await room.guest.read(0, SIZE) == room.content
        assert room.old != room.content
        assert room.is_as_before()
        assert job.current == job.total == SIZE
        assert room.told == [
            *("created", "running", "waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null")
        ]

    in_lab(tmp_path, scenario, source=source, target=target)


def test_two_disks_of_a_transaction_are_saved_at_one_instant_and_fail_together(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        together = Transaction()
        third = await failing(room.graph, tmp_path / "third", "write", errno.EIO)
        job = await room.prepared(transaction=together)
        room.target = third
        other = await kept(room.graph, tmp_path / "other", "raw")
        second = await prepare_backup(
            "b1",
            room.graph,
            other,
            third,
            Plan(),
            listener=lambda job, event, data: None,
            clock=LoopClock(),
            transaction=together,
        )
        job.start()
        second.start()
        await asyncio.gather(job.ended(), second.ended())
        assert "Input/output error" in str(second.error)
        assert job.cancelled
        assert room.is_as_before()

    for name in ("third", "other"):
        (tmp_path / name).write_bytes(bytes(SIZE))
    in_lab(tmp_path, scenario)


def test_sync_none_saves_only_what_is_about_to_change(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        job = await room.backup(Plan(sync=Sync.NONE))
        await room.until(job, Status.RUNNING)
        assert "until it is cancelled" in str(job.query_progress())
        await room.write(UNIT + 8192, b"n" * 4096)
        job.pause()
        await room.until(job, Status.PAUSED)
        await room.write(3 * UNIT, b"while the job is paused")
        job.resume()
        await room.until(job, Status.RUNNING)
        job.cancel()
        await job.ended()
        right = bytearray(SIZE)
        for unit in (1, 3):
            right[unit * UNIT : (unit + 1) * UNIT] = room.old[unit * UNIT : (unit + 1) * UNIT]
        assert await room.saved() == right
        assert (job.current, job.total) == (2 * UNIT, SIZE)
        assert room.told[-4:] == ["aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]
        assert room.is_as_before()

    in_lab(tmp_path, scenario)


def test_sync_top_leaves_the_backing_out(tmp_path: Path) -> None:
    base, top, target = tmp_path / "base.raw", tmp_path / "top.qcow2", tmp_path / "target.raw"
    base.write_bytes(b"b" * SIZE)
    good("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top)
    good("create", "-q", "-f", "raw", target, str(SIZE))

    async def main() -> None:
        async with Graph() as graph:
            guest = await open_image(graph, str(top), format="qcow2", read_only=False)
            await guest.write(MIB, b"t" * UNIT)
            room = Lab(graph, guest, await kept(graph, target, "raw"))
            job = await room.backup(Plan(sync=Sync.TOP))
            await job.ended()
            right = bytearray(SIZE)
            right[MIB : MIB + UNIT] = b"t" * UNIT
            assert await room.saved() == right
            assert job.current == UNIT

    asyncio.run(main())


async def marked(room: Lab) -> Any:
    """Give the disk a bitmap, and change two places."""
    bitmap = await add_bitmap(room.graph, room.disk, "marks", granularity=4 * KIB)
    await room.write(UNIT, b"first")
    await room.write(4 * MIB, b"second")
    return bitmap


@pytest.mark.parametrize("mode", list(BitmapMode))
def test_what_a_bitmap_marks_is_copied_and_unmarked_as_its_mode_says(
    tmp_path: Path, mode: BitmapMode
) -> None:
    async def scenario(room: Lab) -> None:
        bitmap = await marked(room)
        job = await room.backup(Plan(Sync.BITMAP, bitmap, mode))
        assert bitmap.info()["count"] == 8 * KIB
        assert bitmap.busy
        await room.write(2 * MIB, b"during the job")
        await job.ended()
        right = bytearray(SIZE)
        for at in (UNIT, 4 * MIB):
            right[at : at + UNIT] = room.old[at : at + UNIT]
        assert await room.saved() == right
        assert not bitmap.busy
        assert [bitmap.is_dirty(at) for at in (UNIT, 2 * MIB, 4 * MIB)] == (
            [True, True, True] if mode is BitmapMode.NEVER else [False, True, False]
        )

    in_lab(tmp_path, scenario)


@pytest.mark.parametrize("mode", list(BitmapMode))
@pytest.mark.parametrize("cancelled", [True, False])
def test_a_bitmap_loses_nothing_that_was_not_copied(
    tmp_path: Path, mode: BitmapMode, cancelled: bool
) -> None:
    async def scenario(room: Lab) -> None:
        bitmap = await marked(room)
        if not cancelled:
            room.target = await failing(room.graph, tmp_path / "third", "write", errno.EIO)
        job = await room.backup(Plan(Sync.BITMAP, bitmap, mode), clock=ManualClock(), speed=int(cancelled))
        if cancelled:
            await room.write(UNIT, b"changed, so it is copied first")
            job.cancel()
        await job.ended()
        assert job.error is not None
        assert not bitmap.busy
        assert bitmap.is_dirty(4 * MIB)
        assert bitmap.is_dirty(UNIT)
        assert room.is_as_before()

    (tmp_path / "third").write_bytes(bytes(SIZE))
    in_lab(tmp_path, scenario)


@pytest.mark.parametrize(("iotype", "side"), [("write", "target"), ("read", "disk")])
def test_a_failure_that_stops_the_job_is_made_good_after_the_resume(
    tmp_path: Path, iotype: str, side: str
) -> None:
    async def scenario(room: Lab) -> None:
        setattr(room, side, await failing(room.graph, tmp_path / "third", iotype, errno.ENOSPC))
        job = await room.backup(Plan(on_source_error=OnError.STOP, on_target_error=OnError.ENOSPC))
        await room.until(job, Status.PAUSED)
        assert job.io_status == "nospace"
        assert room.told.count("BLOCK_JOB_ERROR") == 1
        job.resume()
        await job.ended()
        assert job.error is None
        assert await room.saved() == (room.old if side == "target" else await room.disk.read(0, SIZE))

    (tmp_path / "third").write_bytes(bytes(SIZE) if side == "target" else random.Random(4).randbytes(SIZE))
    in_lab(tmp_path, scenario)


def test_a_failure_that_is_reported_ends_the_job_and_leaves_the_guest(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        room.target = await failing(room.graph, tmp_path / "third", "write", errno.EIO, once=False)
        job = await room.backup()
        with pytest.raises(StorageError):
            await room.guest.write(0, b"lost")  # the old bytes cannot be kept, so they stay
        await job.ended()
        assert "Input/output error" in str(job.error)
        assert room.is_as_before()
        assert await room.guest.read(0, SIZE) == room.content
        await room.write(0, b"as ever")

    (tmp_path / "third").write_bytes(bytes(SIZE))
    in_lab(tmp_path, scenario)


def test_a_failure_that_is_ignored_is_met_again_after_a_rest(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        clock = ManualClock()
        room.target = await failing(room.graph, tmp_path / "third", "write", errno.EIO)
        job = await room.backup(Plan(on_target_error=OnError.IGNORE), clock=clock)
        async with asyncio.timeout(60):
            while PAUSE not in clock.slept:
                await room.guest.flush()
        clock.advance(PAUSE)
        await job.ended()
        assert job.error is None
        assert await room.saved() == room.old

    (tmp_path / "third").write_bytes(bytes(SIZE))
    in_lab(tmp_path, scenario)


@pytest.mark.parametrize("status", [Status.CREATED, Status.RUNNING, Status.PAUSED, Status.PENDING])
def test_a_cancel_leaves_the_guest_where_it_is_whenever_it_comes(tmp_path: Path, status: Status) -> None:
    async def scenario(room: Lab) -> None:
        slow = status is not Status.PENDING
        job = await room.backup(clock=ManualClock(), speed=int(slow), auto_finalize=slow)
        if status is Status.PAUSED:
            job.pause()
            job.set_speed(0)
        if status is not Status.CREATED:
            await room.until(job, status)
        job.cancel(force=True)
        await job.ended()
        assert room.told[-4:] == ["aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]
        assert room.is_as_before()
        await room.write(0, b"still here")

    in_lab(tmp_path, scenario)


def test_a_write_comes_before_what_the_job_waits_for(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        job = await room.backup(clock=ManualClock(), speed=1)
        await room.until(job, Status.RUNNING)
        async with asyncio.timeout(60):
            await room.write(5 * MIB, b"a job that is slow on purpose holds nobody back")
        job.cancel()
        await job.ended()

    in_lab(tmp_path, scenario)


def test_what_cannot_be_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        with pytest.raises(JobError, match="arameter 'speed'"):
            await room.backup(speed=-1)
        assert room.is_as_before()
        job = await room.backup(clock=ManualClock(), speed=1)
        with pytest.raises(NodeBusy, match="block device is in use by block job: backup"):
            await room.backup()
        with pytest.raises(BlockError):
            await room.guest.resize(SIZE * 2)
        job.cancel()
        await job.ended()
        assert room.is_as_before()
        await room.guest.resize(SIZE * 2)
        with pytest.raises(JobError, match="Source and target image have different sizes"):
            await room.backup()

    in_lab(tmp_path, scenario)
