"""A backup that keeps a ledger: users change nothing before its old bytes are noted, and the next goes on."""

import asyncio
import os
import random
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.command_line import good
from tests.support.manual_clock import ManualClock
from tests.support.mirror_lab import kept
from vblk.errors import BlockError, JobError
from vblk.filters.once_copier import unit_for
from vblk.graph.handle import Handle
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.jobs.backup import BackupJob, Plan, Sync, prepare_backup
from vblk.jobs.backup_ledger import PERIOD, BackupLedger
from vblk.jobs.ledger import Ledger
from vblk.opening import open_image
from vblk.units import KIB, MIB

UNIT = 64 * KIB
SIZE = 2 * MIB + 512
UNITS = SIZE // UNIT + 1
PAIRS = [("raw", "vhdx"), ("vhdx", "raw"), ("qcow2", "qcow2")]


class Lab:
    """A guest's disk, a target, and backups that keep a ledger, on a clock that stands still."""

    def __init__(self, graph: Graph, guest: Handle, target: Node, folder: Path) -> None:
        self.graph = graph
        self.guest = guest
        self.disk = guest.node
        self.target = target
        self.clock = ManualClock()
        self.journal = folder / ".target.vblk-journal"
        self._path = str(folder / "target")

    async def prepared(self, sync: Sync = Sync.FULL) -> BackupJob:
        """Make a backup that has not begun to copy by itself."""
        ledger = Ledger(self.graph.engine, self._path)
        await ledger.claim()
        try:
            keeper = BackupLedger(
                ledger, self.graph, f"a backup, {sync.value}", self.disk, self.target, unit_for(self.target)
            )
            return await prepare_backup(
                "b",
                self.graph,
                self.disk,
                self.target,
                Plan(sync),
                ledger=keeper,
                listener=lambda job, event, data: None,
                clock=self.clock,
            )
        except BlockError:
            ledger.close()
            raise

    async def end(self, job: BackupJob) -> None:
        job.cancel()
        if not job.begun:
            job.start()
        await job.ended()

    async def died(self, job: BackupJob) -> None:
        """Leave what a death at this moment would, as far as the ledger goes."""
        copy = self.journal.with_suffix(".copy")
        shutil.copy(self.journal, copy)
        await self.end(job)
        copy.replace(self.journal)

    async def saved(self, old: bytes) -> bool:
        """Tell whether the target is what the disk was; the bytes are never printed."""
        return await self.target.read(0, SIZE) == old

    def done(self) -> list[int]:
        says = self.journal.read_bytes()[4096 : 4096 + UNITS]
        return [unit for unit, done in enumerate(says) if done]


def in_lab(
    folder: Path, scenario: Callable[[Lab], Awaitable[None]], source: str = "raw", target: str = "raw"
) -> None:
    good("create", "-q", "-f", source, folder / "source", str(SIZE))
    good("create", "-q", "-f", target, folder / "target", str(SIZE))

    async def main() -> None:
        async with Graph() as graph:
            guest = await open_image(graph, str(folder / "source"), format=source, read_only=False)
            graph.keep(guest.node)
            await guest.write(0, random.Random(1).randbytes(MIB))
            await scenario(Lab(graph, guest, await kept(graph, folder / "target", target), folder))

    asyncio.run(main())


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_what_users_change_is_in_the_target_durably_before_and_the_next_copies_the_rest(
    tmp_path: Path, source: str, target: str
) -> None:
    async def scenario(lab: Lab) -> None:
        old = await lab.guest.read(0, SIZE)
        job = await lab.prepared()
        assert not lab.guest.try_write(3 * UNIT, b"x")
        await asyncio.gather(*(lab.guest.write(at * UNIT, b"new") for at in (3, 5, 6, 20)))
        assert lab.done() == [3, 5, 6, 20]
        await (lab.died(job) if source == "vhdx" else lab.end(job))
        job = await lab.prepared()
        assert job.query_progress()["length"] == SIZE - 4 * UNIT
        assert job.query_progress()["resumable"] is True
        await lab.guest.write(4 * UNIT - 1, b"in a unit that is done, and in one that is not")
        job.start()
        await job.ended()
        assert job.error is None
        assert await lab.saved(old)
        assert not lab.journal.exists()

    in_lab(tmp_path, scenario, source, target)


def test_what_the_job_copies_is_noted_after_a_period(tmp_path: Path) -> None:
    async def scenario(lab: Lab) -> None:
        job = await lab.prepared()
        job.set_speed(MIB)
        job.start()
        while not job.current:
            lab.clock.advance(0.001)
            await asyncio.sleep(0)
        copied = job.current
        assert lab.done() == []
        lab.clock.advance(PERIOD)
        async with asyncio.timeout(60):
            while len(lab.done()) < copied // UNIT:  # noqa: ASYNC110 -- it is a file that says so
                await asyncio.sleep(0)
        await lab.end(job)

    in_lab(tmp_path, scenario)


@pytest.mark.parametrize("source", ["raw", "vhdx", "qcow2"])
def test_a_disk_that_was_changed_since_is_refused(tmp_path: Path, source: str) -> None:
    async def scenario(lab: Lab) -> None:
        job = await lab.prepared()
        await lab.guest.write(0, b"new")
        await lab.end(job)
        await lab.guest.write(0, b"newer")
        with pytest.raises(JobError, match="source' has changed since the job was begun; remove it to begin"):
            await lab.prepared()
        lab.graph.require_unpinned(lab.disk)
        assert lab.guest.node is lab.disk

    in_lab(tmp_path, scenario, source)


def test_a_ledger_that_cannot_be_written_goes_and_users_do_not_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(lab: Lab) -> None:
        old = await lab.guest.read(0, SIZE)
        job = await lab.prepared()
        stable = os.fdatasync

        def fails(descriptor: int) -> None:
            if os.readlink(f"/proc/self/fd/{descriptor}") == str(lab.journal):
                raise OSError(5, "Input/output error")
            stable(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fails)
            await asyncio.gather(lab.guest.write(0, b"x"), lab.guest.write(UNIT, b"y"))
        assert job.query_progress()["resumable"] is False
        assert not lab.journal.exists()
        await lab.guest.write(2 * UNIT, b"z")
        job.start()
        await job.ended()
        assert job.error is None
        assert await lab.saved(old)

    in_lab(tmp_path, scenario)


def test_what_the_top_image_does_not_hold_is_left_out_by_the_next_as_well(tmp_path: Path) -> None:
    good("create", "-q", "-f", "raw", tmp_path / "base", str(SIZE))
    good("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", tmp_path / "top", str(SIZE))
    good("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", tmp_path / "target", str(SIZE))

    async def main() -> None:
        async with Graph() as graph:
            guest = await open_image(graph, str(tmp_path / "top"), format="qcow2", read_only=False)
            graph.keep(guest.node)
            await guest.write(UNIT, b"held")
            old = await guest.read(0, SIZE)
            lab = Lab(graph, guest, await kept(graph, tmp_path / "target", "qcow2"), tmp_path)
            job = await lab.prepared(Sync.TOP)
            await lab.end(job)
            job = await lab.prepared(Sync.TOP)
            await guest.write(9 * UNIT, b"new")
            await lab.end(job)
            job = await lab.prepared(Sync.TOP)
            job.start()
            await job.ended()
            assert job.error is None
            assert await lab.saved(old)

    asyncio.run(main())
