"""Comparing copies at the end: nothing is read twice that was seen, and no difference passes."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support import chain_lab, mirror_lab
from tests.support.commits import commit
from tests.support.lying import let_lie
from tests.unit.jobs import test_backup as backups
from vblk.aio.clock import LoopClock
from vblk.drivers.raw_create import NewRawImage
from vblk.errors import CopyDiffers
from vblk.graph.edge import WRITING
from vblk.graph.handle import Handle
from vblk.graph.mapper import Mapper
from vblk.graph.plane import Mover
from vblk.graph.registry import Graph
from vblk.jobs.backup import Plan as BackupPlan
from vblk.jobs.copy import CopyJob, CopyPlan, concatenated
from vblk.jobs.mirror_plan import CopyMode, Plan
from vblk.jobs.states import Status
from vblk.jobs.target import new_image
from vblk.jobs.verify import Checker, check_copy
from vblk.opening import open_image
from vblk.protocols.memory import MemoryNode
from vblk.units import KIB, MIB

SIZE = 6 * MIB + 512
PLACES = ((0, MIB + 512), (3 * MIB, 2 * MIB), (SIZE - 512, 512))


class Counting(MemoryNode):
    """A disk in memory that counts what is read of it."""

    read_bytes = 0

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Read, and count."""
        self.read_bytes += len(buffer)
        await super().read_into(offset, buffer)


class Bench:
    """A source of some pieces of data and a target of its size."""

    def __init__(self, graph: Graph, source: Handle, target: Handle) -> None:
        self.graph = graph
        self.source = source
        self.target = target

    async def copy(self, plan: CopyPlan) -> Checker:
        mover = Mover(self.graph.engine)
        checker = Checker(self.target.node, mover, SIZE)
        await CopyJob(concatenated([self.source]), self.target, plan, mover, clock=LoopClock()).run()
        return checker

    async def check(self, checker: Checker) -> None:
        await check_copy(checker, concatenated([self.source]))


def on_bench(folder: Path, scenario: Callable[[Bench], Awaitable[None]], *, in_memory: bool = False) -> None:
    lot = random.Random(1)
    with (folder / "source").open("wb") as file:
        for offset, length in PLACES:
            file.seek(offset)
            file.write(lot.randbytes(length))
    with (folder / "target").open("wb") as file:
        file.truncate(SIZE)

    async def main() -> None:
        async with Graph() as graph:
            if in_memory:
                node = Counting("source", size=SIZE)
                graph.add(node)
                source = graph.hold(node, "the test", WRITING)
                for offset, length in PLACES:
                    await source.write(offset, lot.randbytes(length))
            else:
                source = await open_image(graph, str(folder / "source"), format="raw")
            target = await open_image(graph, str(folder / "target"), format="raw", read_only=False)
            await scenario(Bench(graph, source, target))

    asyncio.run(main())


def spoil(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(1)
        file.seek(offset)
        file.write(bytes([old[0] ^ 1]))


PLANS = {
    "kernel": CopyPlan(target_is_zero=True, offload=True),
    "looked-through": CopyPlan(target_is_zero=True),
    "memory": CopyPlan(sparse=4 * KIB, target_is_zero=True),
}


def test_what_passed_memory_is_read_once_of_the_source(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        checker = await bench.copy(CopyPlan(target_is_zero=True))
        source = bench.source.node
        assert isinstance(source, Counting)
        once = source.read_bytes
        await bench.check(checker)
        assert source.read_bytes == once
        assert checker.verified >= sum(length for _, length in PLACES)
        assert checker.read_twice == 0
        assert checker.summary().startswith("verified ")

    on_bench(tmp_path, scenario, in_memory=True)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_what_was_not_seen_is_read_of_both_sides(tmp_path: Path, plan: CopyPlan) -> None:
    unseen = plan.offload

    async def scenario(bench: Bench) -> None:
        checker = await bench.copy(plan)
        await bench.check(checker)
        assert checker.read_twice == (checker.verified if unseen else 0)
        assert ("by reading both sides" in checker.summary()) is unseen

    on_bench(tmp_path, scenario)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("offset", [0, MIB + 700, 2 * MIB + 5, 4 * MIB - 1, SIZE - 1])
def test_a_difference_is_told_by_the_sector_where_it_begins(
    tmp_path: Path, plan: CopyPlan, offset: int
) -> None:
    async def scenario(bench: Bench) -> None:
        checker = await bench.copy(plan)
        spoil(tmp_path / "target", offset)
        with pytest.raises(CopyDiffers, match="the copy differs from its source") as caught:
            await bench.check(checker)
        assert caught.value.offset == offset // 512 * 512

    on_bench(tmp_path, scenario)


def test_a_source_that_changed_since_it_was_seen_is_a_difference(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        checker = await bench.copy(PLANS["memory"])
        for path in ("source", "target"):  # both show the same now, and not what was copied
            spoil(tmp_path / path, 3 * MIB)
        with pytest.raises(CopyDiffers):
            await bench.check(checker)

    on_bench(tmp_path, scenario)


def test_a_new_image_that_differs_is_kept_beside_its_name(tmp_path: Path) -> None:
    async def main() -> None:
        async with Graph() as graph, new_image(graph, str(tmp_path / "copy"), NewRawImage(512)) as made:
            await made.handle.write(0, b"x" * 512)
            raise CopyDiffers("copy", 0)

    with pytest.raises(CopyDiffers) as caught:
        asyncio.run(main())
    (kept,) = tmp_path.iterdir()
    assert kept.read_bytes() == b"x" * 512
    assert caught.value.__notes__ == [f"what was copied is kept as '{kept}'"]


# Mirrors


@pytest.mark.parametrize("mode", CopyMode)
@pytest.mark.parametrize(("source", "target"), [("raw", "raw"), ("vhdx", "qcow2"), ("qcow2", "vhdx")])
def test_a_mirror_is_verified_while_the_guest_writes(
    tmp_path: Path, source: str, target: str, mode: CopyMode
) -> None:
    async def scenario(room: mirror_lab.Lab) -> None:
        lot = random.Random(4)
        ended = False

        async def guest() -> None:
            while not ended:
                await room.write(lot.randrange(0, mirror_lab.SIZE - 4096, 512), lot.randbytes(4096))
                await asyncio.sleep(0)

        busy = asyncio.ensure_future(guest())
        job = await room.ready(Plan(granularity=64 * KIB, target_is_zero=True, copy_mode=mode, verify=True))
        assert job.query_progress()["verified-bytes"] >= MIB
        job.complete()
        await job.ended()
        ended = True
        await busy
        assert job.error is None
        assert await room.shows_all(room.target)

    mirror_lab.in_lab(tmp_path, scenario, source=source, target=target)


@pytest.mark.parametrize("target", ["raw", "vhdx", "qcow2"])
def test_a_mirror_whose_target_differs_fails_before_it_is_ready(tmp_path: Path, target: str) -> None:
    async def scenario(room: mirror_lab.Lab) -> None:
        let_lie(room.target, 700 * KIB)
        job = room.mirror(Plan(granularity=64 * KIB, verify=True))
        await job.ended()
        assert isinstance(job.cause, CopyDiffers)
        assert job.cause.offset == 700 * KIB
        assert "ready" not in room.told
        assert await room.shows_all(room.guest.node)
        assert room.source.bitmaps == {}

    mirror_lab.in_lab(tmp_path, scenario, target=target)


def test_what_a_guest_wrote_after_ready_is_verified_before_the_end(tmp_path: Path) -> None:
    async def scenario(room: mirror_lab.Lab) -> None:
        job = await room.ready(Plan(granularity=64 * KIB, verify=True))
        let_lie(room.target, 2 * MIB + 1)
        await room.write(2 * MIB, b"late" * 200)
        job.complete()
        await job.ended()
        assert isinstance(job.cause, CopyDiffers)
        assert job.cause.offset == 2 * MIB
        assert room.guest.node is room.source

    mirror_lab.in_lab(tmp_path, scenario)


# Backups


@pytest.mark.parametrize("target", ["raw", "vhdx", "qcow2"])
def test_a_backup_is_verified_while_the_guest_writes(tmp_path: Path, target: str) -> None:
    async def scenario(room: backups.Lab) -> None:
        lot = random.Random(5)
        job = await room.backup(BackupPlan(verify=True))
        while job.at_work:
            await room.write(lot.randrange(0, backups.SIZE - 4096, 512), lot.randbytes(4096))
            await asyncio.sleep(0)
        await job.ended()
        assert job.error is None
        assert job.query_progress()["verified-bytes"] == backups.SIZE
        assert await room.saved() == room.old

    backups.in_lab(tmp_path, scenario, target=target)


@pytest.mark.parametrize("target", ["raw", "qcow2"])
def test_a_backup_whose_target_differs_fails(tmp_path: Path, target: str) -> None:
    async def scenario(room: backups.Lab) -> None:
        let_lie(room.target, 3 * MIB + 4000)
        job = await room.backup(BackupPlan(verify=True))
        await job.ended()
        assert isinstance(job.cause, CopyDiffers)
        assert room.is_as_before()

    backups.in_lab(tmp_path, scenario, target=target)


# Commits


@pytest.mark.parametrize("formats", [["raw", "qcow2", "qcow2"], ["vhdx"] * 3], ids=["raw", "vhdx"])
@pytest.mark.parametrize("top", [0, 1])
def test_a_commit_is_verified_while_the_guest_writes(tmp_path: Path, formats: list[str], top: int) -> None:
    async def scenario(room: chain_lab.ChainLab) -> None:
        if not top:
            room.access = {}
        async with room.busy():
            job = await commit(room, top, verify=True)
            if not top:
                await room.until(job, Status.READY)
                job.complete()
            await job.ended()
        assert job.error is None
        assert job.query_progress()["verified-bytes"] > 0
        await room.check()

    chain_lab.in_chain_lab(tmp_path, formats, scenario)


@pytest.mark.parametrize("formats", [["raw", "qcow2", "qcow2"], ["vhdx"] * 3], ids=["raw", "vhdx"])
@pytest.mark.parametrize("top", [0, 1])
def test_a_commit_whose_base_differs_fails_and_lets_nothing_go(
    tmp_path: Path, formats: list[str], top: int
) -> None:
    async def scenario(room: chain_lab.ChainLab) -> None:
        before = room.chain()
        layer = room.images[1]
        assert isinstance(layer, Mapper)
        held = await layer.changes(0, chain_lab.SIZE)
        let_lie(room.images[-1], held[0].guest_offset)
        job = await commit(room, top, verify=True)
        await job.ended()
        assert isinstance(job.cause, CopyDiffers)
        assert room.chain() == before
        assert room.access_is_as_before()

    chain_lab.in_chain_lab(tmp_path, formats, scenario)
