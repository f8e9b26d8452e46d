"""A disk that is mirrored: its guest, its target, and what the job told.

Owns: the nodes and the job; what the guest wrote is remembered.
"""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from tests.support.command_line import good
from vblk.aio.clock import Clock, LoopClock
from vblk.graph.edge import READING, WRITING, Permission
from vblk.graph.handle import Handle
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.jobs.job import Job
from vblk.jobs.mirror import MirrorJob
from vblk.jobs.mirror_plan import Plan
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

    def listener(self, job: Job, event: str, data: Mapping[str, Any]) -> None:
        self.told.append(data["status"] if event == "JOB_STATUS_CHANGE" else event)
        self.news.set()

    def mirror(self, plan: Plan | None = None, *, clock: Clock | None = None, **life: Any) -> MirrorJob:
        source = self.graph.hold(self.source, "mirror", READING)
        target = self.graph.hold(self.target, "mirror", WRITING, Permission.CONSISTENT_READ)
        job = MirrorJob(
            "m0",
            self.graph,
            source,
            target,
            plan or Plan(granularity=64 * KIB),
            listener=self.listener,
            clock=clock or LoopClock(),
            **life,
        )
        job.start()
        return job

    async def ready(self, plan: Plan | None = None, **life: Any) -> MirrorJob:
        """Begin a mirror, and wait until it is ready."""
        job = self.mirror(plan, **life)
        await self.until(job, Status.READY)
        return job

    async def leave(self, job: MirrorJob) -> None:
        """Cancel a job that is ready, and wait for its end."""
        job.cancel()
        await job.ended()

    async def write(self, offset: int, data: bytes) -> None:
        await self.guest.write(offset, data)
        self.content[offset : offset + len(data)] = data

    async def until(self, job: MirrorJob, status: Status) -> None:
        async with asyncio.timeout(60):
            while job.status is not status:
                assert job.error is None, job.error
                self.news.clear()
                await self.news.wait()

    async def came_true(self, condition: Callable[[], object]) -> None:
        """Let others go on until something is true."""
        async with asyncio.timeout(60):
            while True:
                if condition():
                    return
                await asyncio.sleep(0)

    async def shows_all(self, node: Node) -> bool:
        """Tell whether a node shows what the guest wrote; the bytes are never printed."""
        return await self.shown(node) == bytes(self.content)

    async def shown(self, node: Node) -> bytes:
        return await node.read(0, node.size)


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


async def failing(graph: Graph, path: Path, iotype: str, error_number: int, *, once: bool = True) -> Node:
    """Open a raw image whose first read or write fails, or all of them."""
    rule = {"event": "none", "iotype": iotype, "errno": error_number, "once": once}
    file = {"driver": "blkdebug", "image": {"driver": "file", "filename": str(path)}, "inject-error": [rule]}
    handle = await open_image(graph, "json:" + json.dumps({"driver": "raw", "file": file}), read_only=False)
    graph.keep(handle.node)
    node = handle.node
    await graph.release(handle)
    return node
