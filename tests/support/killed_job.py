"""Jobs on chains, with a guest that writes, that are killed with SIGKILL after so many function calls.

Owns: a process that imports vblk once and forks for every run, the runs, and what a
guest wrote. An instant is counted as in `tests.support.killed_call`.
"""

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, NamedTuple

from tests.support.killed_call import Killer, apply_settings
from vblk.aio.clock import LoopClock
from vblk.errors import JobError
from vblk.graph.edge import Role
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.jobs.commit_journal import CommitJournal, FinishedCommit
from vblk.jobs.job import Job
from vblk.jobs.live_chain import Grip, Stretch
from vblk.jobs.live_commit import ActiveCommitJob, CommitJob, FinishJob
from vblk.jobs.states import Status
from vblk.jobs.stream import Pull, StreamJob
from vblk.opening import open_image

WRITES = 200
"""The most writes of one run."""


def writes(seed: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield what the guest of a run writes, where and what."""
    lot = random.Random(seed)
    for _ in range(WRITES):
        length = lot.choice((512, 4096, 40960))
        yield lot.randrange(0, size - length, 512), lot.randbytes(length)


class Run(NamedTuple):
    """How a run ended: its exit status, negative for a signal, and a letter for each durable write.

    A write was in the top, "t", or in the base, "b". If it came to its end: how many functions it
    called, and how many bytes a commit moved.
    """

    status: int
    letters: str
    calls: int
    moved: int


class JobKiller(Killer):
    """Makes runs that are killed; use it in `with`."""

    module: ClassVar[str] = "tests.support.killed_job"

    def run(self, kind: str, top: Path, seed: int, after: int = 0) -> Run:
        """Run a job, and kill it after so many function calls; 0: never.

        It is a "commit", the same "resumed" (and deleting the layers), "active" or "stream".
        """
        status, said = self.ask([kind, str(top), seed, after])
        letters, *counts = said.split(" ")
        calls, moved = map(int, counts) if counts else (0, 0)
        return Run(status, letters, calls, moved)


async def _job(kind: str, path: Path, seed: int, report: int) -> int:
    """Run a job to its end; return how many bytes a commit moved."""
    async with Graph() as graph:
        guest = await open_image(graph, str(path), format=path.suffix[1:], read_only=False)
        graph.keep(guest.node)
        top = guest.node
        job = await _begun(kind, graph, top)
        if job is None:
            return 0

        async def live() -> None:
            for offset, data in writes(seed, guest.size):
                await guest.write(offset, data, fua=True)
                os.write(report, b"t" if guest.node is top else b"b")
                if job.status is Status.NULL:
                    return

        living = asyncio.ensure_future(live())
        await job.ended()
        await living
        assert job.error is None, job.error
        return sum(job.mover.moved.by_means.values()) if isinstance(job, CommitJob) else 0


async def _begun(kind: str, graph: Graph, top: Node) -> Job | None:
    chain = [top]
    while (below := chain[-1].child(Role.BACKING)) is not None:
        chain.append(below)
    if kind == "resumed":
        return await _resumed(graph, chain)
    if kind == "stream" or (kind == "commit" and len(chain) < 3):  # nothing is left of it
        pull = Pull(graph, Stretch.between(top, chain[-1]), "stream", "why")
        await pull.take()
        job: Job = StreamJob("j", pull, listener=_complete, clock=LoopClock())
    else:
        is_active = kind == "active"
        stretch = Stretch.between(chain[0 if is_active else 1], chain[-1])
        grip = Grip(graph, stretch, "commit", "why", is_active=is_active)
        await grip.take()
        kind_of = ActiveCommitJob if is_active else CommitJob
        job = kind_of("j", grip, listener=_complete, clock=LoopClock())
    job.start()
    return job


async def _resumed(graph: Graph, chain: list[Node]) -> Job | None:
    """Begin a commit of all below the top, or go on with it; None if nothing is left to be done."""
    job: Job
    if len(chain) == 2:
        try:
            finished = FinishedCommit(chain)
        except JobError:
            return None
        job = FinishJob("j", graph, finished, delete=True, listener=_complete, clock=LoopClock())
    else:
        stretch = Stretch.between(chain[1], chain[-1])
        journal = CommitJournal(stretch)
        journal.claim()
        grip = Grip(graph, stretch, "commit", "why")
        await grip.take()
        job = CommitJob("j", grip, delete=True, journal=journal, listener=_complete, clock=LoopClock())
    job.start()
    return job


def _complete(job: Job, event: str, _: Any) -> None:
    """Let a job that became ready come to its end."""
    if event == "BLOCK_JOB_READY":
        asyncio.get_running_loop().call_soon(job.complete)


def _run(kind: str, top: Path, seed: int, after: int, report: int) -> None:
    count = 0

    def counted(_frame: FrameType, _event: str, _argument: Any) -> None:
        nonlocal count
        count += 1
        if count == after:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(counted)
    moved = asyncio.run(_job(kind, top, seed, report))
    sys.setprofile(None)
    os.write(report, f" {count} {moved}".encode())


def _serve() -> None:
    apply_settings()
    for line in sys.stdin:
        kind, top, seed, after = json.loads(line)
        reading, report = os.pipe()
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_RDWR), 1)
            try:
                _run(kind, Path(top), seed, after, report)
            except BaseException as error:
                sys.stderr.write(f"{type(error).__name__}: {error}\n")
                os._exit(1)
            os._exit(0)
        os.close(report)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), said]), flush=True)


if __name__ == "__main__":
    _serve()
