"""Commits of a chain in the lab: how they begin and come to their end.

Owns: the chains that all tests of commits share.
"""

from typing import Any

import pytest

from tests.support.chain_lab import ChainLab
from vblk.aio.clock import Clock, LoopClock
from vblk.jobs.block_job import OnError
from vblk.jobs.live_chain import Grip, Stretch
from vblk.jobs.live_commit import ActiveCommitJob, CommitJob
from vblk.jobs.states import Status

CHAINS = {
    "raw": ["raw", "qcow2", "qcow2", "qcow2"],
    "qcow2": ["qcow2"] * 4,
    "vhdx": ["vhdx"] * 4,
    "mixed": ["vhdx", "vhdx", "qcow2", "qcow2"],
}
each_chain = pytest.mark.parametrize("formats", CHAINS.values(), ids=CHAINS)
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


async def completed(room: ChainLab, job: CommitJob | ActiveCommitJob) -> None:
    """Wait until a commit has come to its end."""
    if isinstance(job, ActiveCommitJob):
        await room.until(job, Status.READY)
        job.complete()
        room.access = {}
    await job.ended()


async def held_back(
    room: ChainLab, top: int, on_error: OnError, clock: Clock | None = None
) -> CommitJob | ActiveCommitJob:
    """Begin a commit that copies next to nothing before its speed is set."""
    job = await commit(room, top, on_error=on_error, clock=clock or LoopClock(), speed=1)
    while not job.total:
        await room.guest.flush()
    return job
