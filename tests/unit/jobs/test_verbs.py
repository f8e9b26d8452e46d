"""Every verb at every state of a mirror: taken or refused as in QEMU's table, and the disk goes on."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.manual_clock import EagerClock, ManualClock
from tests.support.mirror_lab import Lab, in_lab
from vblk.errors import JobError
from vblk.graph.edge import READING, WRITING, Permission
from vblk.jobs.job import Transaction
from vblk.jobs.mirror import MirrorJob
from vblk.jobs.mirror_plan import CopyMode, Plan
from vblk.jobs.states import Status, Verb
from vblk.units import KIB

TAKEN = {
    #                  created running paused ready standby waiting pending aborting concluded null
    Verb.CANCEL:      (1,      1,      1,     1,    1,      1,      1,      0,       0,        0),
    Verb.PAUSE:       (1,      1,      0,     1,    0,      0,      0,      0,       0,        0),
    Verb.RESUME:      (0,      0,      1,     0,    1,      0,      0,      0,       0,        0),
    Verb.SET_SPEED:   (1,      1,      1,     1,    1,      0,      0,      0,       0,        0),
    Verb.COMPLETE:    (0,      0,      0,     1,    0,      0,      0,      0,       0,        0),
    Verb.FINALIZE:    (0,      0,      0,     0,    0,      0,      1,      0,       0,        0),
    Verb.DISMISS:     (0,      0,      0,     0,    0,      0,      0,      0,       1,        0),
    Verb.CHANGE:      (1,      1,      1,     1,    1,      0,      0,      0,       0,        0),
}  # fmt: skip
"""QEMU's table, with what a job that is paused, or not, says itself."""

STATES = tuple(status for status in Status if status is not Status.UNDEFINED)


class SlowToAbort(MirrorJob):
    """A mirror that is aborting until it is let go."""

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, **options)
        self._gate = asyncio.Event()
        self._gate.set()

    def hinder(self) -> None:
        """Let the abortion wait."""
        self._gate.clear()

    def let_go(self) -> None:
        """Let it go on."""
        self._gate.set()

    async def abort(self) -> None:
        await self._gate.wait()


class Room:
    """A mirror that is brought to any state."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.transaction = Transaction()
        self.jobs: list[SlowToAbort] = []

    def job(self, name: str = "m0", *, speed: int = 0) -> SlowToAbort:
        """Make a job, which does not begin yet."""
        lab = self.lab
        job = SlowToAbort(
            name,
            lab.graph,
            lab.graph.hold(lab.source, name, READING),
            lab.graph.hold(lab.target, name, WRITING, Permission.ALL),
            Plan(granularity=64 * KIB),
            listener=lab.listener,
            clock=ManualClock() if speed else EagerClock(),
            speed=speed,
            auto_finalize=False,
            auto_dismiss=False,
            transaction=self.transaction,
        )
        self.jobs.append(job)
        return job

    async def brought_to(self, status: Status) -> SlowToAbort:
        """Return a job in that state."""
        lab = self.lab
        job = self.job(speed=1 if status in (Status.RUNNING, Status.ABORTING) else 0)
        if status is Status.CREATED:
            return job
        if status is Status.WAITING:
            self.job("other", speed=1).start()
        job.start()
        if status is Status.PAUSED:
            job.pause()
        elif status is Status.ABORTING:
            await lab.until(job, Status.RUNNING)
            job.hinder()
            job.cancel()
        elif status is not Status.RUNNING:
            await lab.until(job, Status.READY)
            if status is Status.STANDBY:
                job.pause()
            elif status is not Status.READY:
                job.complete()
            if status in (Status.CONCLUDED, Status.NULL):
                await lab.until(job, Status.PENDING)
                job.finalize()
                await lab.until(job, Status.CONCLUDED)
                if status is Status.NULL:
                    job.dismiss()
        if status is not Status.NULL:
            await lab.until(job, status)
        return job

    async def end(self) -> None:
        """Let all jobs come to their ends."""
        for job in self.jobs:
            job.let_go()
            if job.status is Status.CREATED:
                job.start()
            if job.status not in (Status.CONCLUDED, Status.NULL):
                job.give_up()
                await asyncio.wait_for(job.ended(), 60)


async def _change(job: MirrorJob) -> None:
    await job.change(CopyMode.WRITE_BLOCKING, 5.0)


def _at_once(verb: Callable[[MirrorJob], None]) -> Callable[[MirrorJob], Awaitable[None]]:
    async def carry_out(job: MirrorJob) -> None:
        verb(job)

    return carry_out


VERBS: dict[Verb, Callable[[MirrorJob], Awaitable[None]]] = {
    Verb.CANCEL: _at_once(lambda job: job.cancel(force=True)),
    Verb.PAUSE: _at_once(lambda job: job.pause()),
    Verb.RESUME: _at_once(lambda job: job.resume()),
    Verb.SET_SPEED: _at_once(lambda job: job.set_speed(1 << 30)),
    Verb.COMPLETE: _at_once(lambda job: job.complete()),
    Verb.FINALIZE: _at_once(lambda job: job.finalize()),
    Verb.DISMISS: _at_once(lambda job: job.dismiss()),
    Verb.CHANGE: _change,
}


@pytest.mark.parametrize("verb", Verb, ids=lambda verb: verb.value)
@pytest.mark.parametrize("status", STATES, ids=lambda status: status.value)
def test_a_verb_is_taken_or_refused_and_the_disk_goes_on(tmp_path: Path, status: Status, verb: Verb) -> None:
    async def scenario(lab: Lab) -> None:
        room = Room(lab)
        job = await room.brought_to(status)
        if TAKEN[verb][STATES.index(status)]:
            await VERBS[verb](job)
        else:
            with pytest.raises(JobError):
                await VERBS[verb](job)
            assert job.status is status
        await room.end()
        assert lab.source.bitmaps == {}
        await lab.write(4096, b"the guest goes on")
        assert await lab.shows_all(lab.guest.node)

    in_lab(tmp_path, scenario)
