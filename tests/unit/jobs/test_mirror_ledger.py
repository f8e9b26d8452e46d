"""A mirror that keeps a ledger: what it says at any moment is true, and the next goes on by it."""

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.manual_clock import ManualClock
from tests.support.mirror_lab import SIZE, Lab, in_lab
from vblk.aio.clock import Clock
from vblk.errors import BlockError, JobError
from vblk.jobs.ledger import Ledger
from vblk.jobs.mirror import MirrorJob
from vblk.jobs.mirror_ledger import PERIOD, MirrorLedger
from vblk.jobs.mirror_plan import CopyMode, Plan
from vblk.jobs.states import Status
from vblk.units import KIB, MIB

PAIRS = [("raw", "vhdx"), ("vhdx", "raw"), ("qcow2", "qcow2"), ("vhdx", "vhdx")]
REGIONS = -(-SIZE // MIB)


class Keeping:
    """A lab whose mirrors keep a ledger, on a clock that stands still."""

    def __init__(self, room: Lab, folder: Path) -> None:
        self.room = room
        self.clock = ManualClock()
        self.journal = folder / ".target.vblk-journal"
        self._target = folder / "target"
        self.keeper: MirrorLedger

    async def begun(
        self,
        *,
        how: str = "a mirror",
        mode: CopyMode = CopyMode.BACKGROUND,
        status: Status = Status.READY,
    ) -> MirrorJob:
        """Begin a mirror, or go on with one, and wait until it is ready, or in that state."""
        room = self.room
        ledger = Ledger(room.graph.engine, str(self._target))
        await ledger.claim()
        try:
            self.keeper = MirrorLedger(ledger, room.graph, how, room.source, room.target)
        except BlockError:
            ledger.close()
            raise
        clock: Clock = self.clock
        job = room.mirror(Plan(granularity=64 * KIB, copy_mode=mode), clock=clock, ledger=self.keeper)
        await room.until(job, status)
        return job

    async def look(self) -> None:
        """Let the ledger look for what is done, and wait until it has."""
        before = len(self.clock.slept)
        self.clock.advance(PERIOD)
        await self.room.came_true(lambda: self.clock.slept[before:].count(PERIOD) > 0)

    async def in_step(self, job: MirrorJob) -> None:
        """Let the job go on, without its rests, until nothing is marked."""

        def is_in_step() -> bool:
            job._kicked.set()
            return not (job.query_progress()["dirty-bytes"] or job._flying)

        await self.room.came_true(is_in_step)

    def permits(self, offset: int, length: int) -> bool:
        """Tell whether a change may begin at once."""
        ticket = self.keeper.enter(offset, length)
        if ticket is not None:
            self.keeper.leave(ticket)
        return ticket is not None

    def says(self) -> bytes:
        return self.journal.read_bytes()[4096 : 4096 + REGIONS]

    async def end(self, job: MirrorJob) -> None:
        job.cancel(force=True)
        await job.ended()

    async def died(self, job: MirrorJob) -> None:
        """Leave what a death at this moment would, as far as the ledger goes."""
        copy = self.journal.with_suffix(".copy")
        shutil.copy(self.journal, copy)
        await self.end(job)
        copy.replace(self.journal)


def keeping(
    folder: Path,
    scenario: Callable[[Keeping], Awaitable[None]],
    source: str = "raw",
    target: str = "raw",
) -> None:
    async def run(room: Lab) -> None:
        await scenario(Keeping(room, folder))

    in_lab(folder, run, source=source, target=target)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_what_is_done_is_not_copied_again_and_the_end_is_right(
    tmp_path: Path, source: str, target: str
) -> None:
    async def scenario(lab: Keeping) -> None:
        room = lab.room
        job = await lab.begun()
        await lab.look()
        assert lab.says() == b"\1" * REGIONS
        await room.write(MIB, b"changed")
        assert lab.says() == b"\1\0" + b"\1" * (REGIONS - 2), "durably, before it was written"
        await lab.end(job)
        job = await lab.begun()
        assert job.total == MIB
        job.complete()
        await job.ended()
        assert job.error is None
        assert room.guest.node is room.target
        assert await room.shows_all(room.target)
        assert not lab.journal.exists()

    keeping(tmp_path, scenario, source, target)


@pytest.mark.parametrize("mode", CopyMode)
def test_a_region_that_users_change_is_done_again_after_a_quiet_period(
    tmp_path: Path, mode: CopyMode
) -> None:
    async def scenario(lab: Keeping) -> None:
        room = lab.room
        job = await lab.begun(mode=mode)
        await lab.look()
        for byte in (b"1", b"2", b"3"):
            await room.write(0, byte)
            assert lab.says()[0] == 0
            await lab.in_step(job)
            await lab.look()
            assert lab.says()[0] == 0, "it was changed in this period"
        await lab.look()
        assert lab.says()[0] == 1
        await lab.end(job)
        assert await room.shows_all(room.target)

    keeping(tmp_path, scenario)


def test_users_wait_for_the_ledger_only_where_a_region_is_done(tmp_path: Path) -> None:
    async def scenario(lab: Keeping) -> None:
        room = lab.room
        job = await lab.begun()
        assert lab.permits(2 * MIB, 1)
        await lab.look()
        assert not lab.permits(2 * MIB, 1)
        assert not room.guest.try_write(2 * MIB, b"y")
        await asyncio.gather(*(room.write(2 * MIB + at * 512, b"z") for at in range(4)))
        assert lab.permits(2 * MIB, 1)
        assert not lab.permits(MIB, MIB + 1)
        await lab.end(job)

    keeping(tmp_path, scenario)


def test_a_ledger_that_cannot_be_written_goes_and_users_do_not_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(lab: Keeping) -> None:
        room = lab.room
        job = await lab.begun()
        await lab.look()
        assert job.query_progress()["resumable"] is True

        def fails(_: int) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fails)
            await asyncio.gather(room.write(0, b"x"), room.write(MIB, b"y"))
        assert job.query_progress()["resumable"] is False
        assert not lab.journal.exists()
        job.complete()
        lab.clock.advance(1)
        await job.ended()
        assert job.error is None
        assert await room.shows_all(room.guest.node)

    keeping(tmp_path, scenario)


@pytest.mark.parametrize("source", ["raw", "vhdx", "qcow2"])
@pytest.mark.parametrize("ending", ["rested", "died"])
def test_a_source_that_was_changed_meanwhile_is_refused(tmp_path: Path, source: str, ending: str) -> None:
    async def scenario(lab: Keeping) -> None:
        room = lab.room
        await room.write(0, b"before")
        job = await lab.begun()
        await lab.look()
        await (lab.end(job) if ending == "rested" else lab.died(job))
        kept = lab.journal.read_bytes()
        await room.write(0, b"after")
        with pytest.raises(JobError, match="source' has changed since the job was begun; remove it to begin"):
            await lab.begun()
        assert lab.journal.read_bytes() == kept
        lab.journal.unlink()
        job = await lab.begun()
        assert job.total == SIZE
        await room.leave(job)
        assert await room.shows_all(room.target)

    keeping(tmp_path, scenario, source)


def test_another_target_and_another_job_are_refused(tmp_path: Path) -> None:
    async def scenario(lab: Keeping) -> None:
        job = await lab.begun()
        await lab.look()
        await lab.end(job)
        with pytest.raises(JobError, match="it is about another job: a mirror of"):
            await lab.begun(how="a backup")
        kept = lab.journal.read_bytes()
        inode = os.stat(tmp_path / "target").st_ino
        lab.journal.write_bytes(kept.replace(f'"inode":{inode}'.encode(), b'"inode":1'))
        with pytest.raises(JobError, match="is another file than"):
            await lab.begun()

    keeping(tmp_path, scenario)


def test_a_death_after_the_pivot_does_not_let_the_target_be_copied_to(tmp_path: Path) -> None:
    async def scenario(lab: Keeping) -> None:
        room = lab.room

        ready = await lab.begun()
        ready.auto_finalize = False
        ready.complete()
        lab.clock.advance(1)
        await room.until(ready, Status.PENDING)
        await ready.prepare()
        whole = lab.journal.read_bytes()
        ready.finalize()
        await ready.ended()
        assert not lab.journal.exists()
        lab.journal.write_bytes(whole)
        with pytest.raises(JobError, match="go on with that; remove it to begin anew"):
            await Ledger(room.graph.engine, str(tmp_path / "target")).claim()

    keeping(tmp_path, scenario)


def test_a_job_that_is_cancelled_before_anything_is_done_leaves_nothing(tmp_path: Path) -> None:
    async def scenario(lab: Keeping) -> None:
        job = await lab.begun(status=Status.RUNNING)
        await lab.end(job)
        assert job.error is not None
        assert not lab.journal.exists()

    keeping(tmp_path, scenario)


def test_what_was_done_when_the_job_was_cancelled_is_noted(tmp_path: Path) -> None:
    async def scenario(lab: Keeping) -> None:
        job = await lab.begun()
        assert lab.says() == b"\0" * REGIONS
        await lab.end(job)
        assert lab.says() == b"\1" * REGIONS

    keeping(tmp_path, scenario)


def test_both_disks_are_flushed_before_a_region_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    flush = os.fdatasync

    def watched(descriptor: int) -> None:
        flush(descriptor)
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    async def scenario(lab: Keeping) -> None:
        job = await lab.begun()
        await lab.room.write(0, b"x")
        await lab.in_step(job)
        flushed.clear()
        await lab.look()
        assert sorted(flushed[:-1]) == ["source", "target"]
        assert flushed[-1] == lab.journal.name
        assert lab.says()[0] == 1
        await lab.end(job)

    monkeypatch.setattr(os, "fdatasync", watched)
    keeping(tmp_path, scenario)
