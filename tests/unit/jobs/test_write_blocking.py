"""Copy mode `write-blocking`: what a guest was told to be written is on the target, too."""

import asyncio
import errno
import random
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.manual_clock import ManualClock
from tests.support.mirror_lab import SIZE, Lab, failing, in_lab
from tests.support.turns import turns
from vblk.graph.following import Followed
from vblk.jobs.block_job import OnError
from vblk.jobs.mirror_plan import CopyMode, Plan, Sync
from vblk.jobs.states import Status
from vblk.testing import PassingNode
from vblk.units import KIB, MIB

BLOCKING = Plan(granularity=64 * KIB, copy_mode=CopyMode.WRITE_BLOCKING)
CHANGES = replace(BLOCKING, sync=Sync.NONE)


class GatedNode(PassingNode):
    """A node whose writes wait until they may go on."""

    driver = "gated"

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, **options)
        self.gate = asyncio.Event()
        self.waiting = 0

    async def before(self, operation: str, offset: int, length: int) -> None:
        if operation in ("write", "write-zeroes"):
            self.waiting += 1
            try:
                await self.gate.wait()
            finally:
                self.waiting -= 1


def gated(room: Lab) -> GatedNode:
    """Let the target be one whose writes wait."""
    node = GatedNode("gated", room.target)
    node.put_over(room.graph)
    room.graph.keep(node)
    room.target = node
    return node


async def _write(room: Lab) -> None:
    await room.write(4000, b"w" * 200)


async def _write_much(room: Lab) -> None:
    await room.write(64 * KIB - 5, b"m" * (192 * KIB))


async def _zero(room: Lab) -> None:
    await room.guest.write_zeroes(100, 200 * KIB, unmap=True)


async def _discard(room: Lab) -> None:
    await room.guest.discard(128 * KIB, 700 * KIB)


async def _place(room: Lab) -> None:
    async with room.guest.node.place(300 * KIB, 1000) as spans:
        for span in spans:
            assert span.leaf is not None
            await span.leaf.write(span.leaf_offset, b"p" * span.length)


@pytest.mark.parametrize("change", [_write, _write_much, _zero, _discard, _place])
@pytest.mark.parametrize("source", ["raw", "vhdx", "qcow2"])
def test_a_change_is_on_the_target_when_it_is_answered(
    tmp_path: Path, source: str, change: Callable[[Lab], Coroutine[Any, Any, None]]
) -> None:
    async def scenario(room: Lab) -> None:
        job = await room.ready(BLOCKING)
        await change(room)
        assert await room.shown(room.target) == await room.shown(room.source)
        (bitmap,) = room.source.bitmaps.values()
        assert bitmap.count == 0, "nothing is left to be copied"
        await room.leave(job)
        assert not isinstance(room.source, Followed)

    in_lab(tmp_path, scenario, source=source, target="raw")


def test_a_guest_that_never_rests_is_no_reason_not_to_become_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vblk.jobs.mirror.HELD_MOST", 0)

    async def scenario(room: Lab) -> None:
        ended = False

        async def guest() -> None:
            while not ended:
                for offset in range(0, MIB, 64 * KIB):
                    await room.write(offset, random.randbytes(512))

        busy = asyncio.ensure_future(guest())
        job = await room.ready(BLOCKING)
        job.complete()
        await job.ended()
        ended = True
        await busy
        assert job.error is None
        assert await room.shows_all(room.target)

    in_lab(tmp_path, scenario)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("source", "target"), [("raw", "vhdx"), ("vhdx", "raw"), ("qcow2", "qcow2")])
def test_nothing_is_lost_while_the_copy_mode_changes_under_several_writers(
    tmp_path: Path, source: str, target: str, seed: int
) -> None:
    async def scenario(room: Lab) -> None:
        lot = random.Random(seed)
        ended = False

        async def guest(part: int) -> None:
            third = SIZE // 3 // 512 * 512
            while not ended:
                length = lot.choice((512, 4096, 70000))
                offset = part * third + lot.randrange(0, third - length)
                if lot.random() < 0.2:
                    await room.guest.write_zeroes(offset, length, unmap=lot.random() < 0.5)
                    room.content[offset : offset + length] = bytes(length)
                else:
                    await room.write(offset, lot.randbytes(length))
                await asyncio.sleep(0)

        guests = [asyncio.ensure_future(guest(part)) for part in range(3)]
        plan = Plan(granularity=4 * KIB, copy_mode=lot.choice(list(CopyMode)), target_is_zero=True)
        job = room.mirror(plan)
        for mode in lot.choices(list(CopyMode), k=8):
            await turns(lot.randrange(60))
            await job.change(mode, None)
        await room.until(job, Status.READY)
        for mode in lot.choices(list(CopyMode), k=4):
            await turns(lot.randrange(60))
            await job.change(mode, None)
        job.complete()
        await job.ended()
        ended = True
        await asyncio.gather(*guests)
        assert job.error is None
        assert room.guest.node is room.target
        assert await room.shows_all(room.guest.node)

    in_lab(tmp_path, scenario, source=source, target=target)


def test_a_target_that_fails_ends_the_job_and_not_the_guest(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        room.target = await failing(room.graph, tmp_path / "third", "write", errno.EIO)
        job = await room.ready(CHANGES)
        await room.write(4096, b"the guest knows nothing of it")
        await job.ended()
        assert job.error is not None
        assert "Input/output error" in job.error
        assert "BLOCK_JOB_ERROR" in room.told
        assert await room.shows_all(room.guest.node)

    (tmp_path / "third").write_bytes(bytes(SIZE))
    in_empty_lab(tmp_path, scenario)


def test_a_target_that_is_full_stops_the_job_which_catches_up_when_it_is_resumed(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        room.target = await failing(room.graph, tmp_path / "third", "write", errno.ENOSPC)
        job = await room.ready(replace(CHANGES, on_target_error=OnError.ENOSPC))
        await room.write(4096, b"first")
        await room.until(job, Status.STANDBY)
        assert job.io_status == "nospace"
        await room.write(70000, b"while it stands")
        job.resume()
        await room.until(job, Status.READY)
        await room.leave(job)
        assert job.error is None
        assert await room.shows_all(room.target)

    (tmp_path / "third").write_bytes(bytes(SIZE))
    in_empty_lab(tmp_path, scenario)


def test_a_failure_that_is_ignored_is_made_good_in_the_background(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        room.target = await failing(room.graph, tmp_path / "third", "write", errno.EIO)
        job = await room.ready(replace(CHANGES, on_target_error=OnError.IGNORE))
        await room.write(4096, b"lost at first")
        assert room.told.count("BLOCK_JOB_ERROR") == 1
        await room.leave(job)
        assert job.error is None
        assert await room.shows_all(room.target)

    (tmp_path / "third").write_bytes(bytes(SIZE))
    in_empty_lab(tmp_path, scenario)


def in_empty_lab(folder: Path, scenario: Callable[[Lab], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario with a source of zeros, as the target is."""

    async def emptied(room: Lab) -> None:
        await room.guest.write_zeroes(0, SIZE, unmap=True)
        room.content[:] = bytes(SIZE)
        await scenario(room)

    in_lab(folder, emptied)


@pytest.mark.parametrize("way", ["cancel", "background"])
def test_a_target_that_hangs_lets_the_guest_go_when_the_job_is_told_to(tmp_path: Path, way: str) -> None:
    async def scenario(room: Lab) -> None:
        gate = gated(room)
        job = await room.ready(CHANGES)
        writing = asyncio.ensure_future(room.write(4096, b"this hangs"))
        await room.came_true(lambda: gate.waiting)
        assert not writing.done()
        if way == "cancel":
            job.cancel(force=True)
            await asyncio.wait_for(writing, 60)
            await job.ended()
            return
        await asyncio.wait_for(job.change(CopyMode.BACKGROUND, None), 60)
        await writing
        gate.gate.set()
        await room.leave(job)
        assert await room.shows_all(room.target)

    in_empty_lab(tmp_path, scenario)


@pytest.mark.parametrize("both", [False, True])
def test_who_drains_the_target_waits_for_what_the_guest_has_under_way_and_holds_back_the_rest(
    tmp_path: Path, both: bool
) -> None:
    async def scenario(room: Lab) -> None:
        gate = gated(room)
        job = await room.ready(CHANGES)
        first = asyncio.ensure_future(room.write(4096, b"first"))
        await room.came_true(lambda: gate.waiting)
        drained = asyncio.Event()
        go_on = asyncio.Event()

        async def drain() -> None:
            async with room.graph.changing(gate, room.source) if both else room.graph.drained(gate):
                drained.set()
                await go_on.wait()

        draining = asyncio.ensure_future(drain())
        await turns(50)
        assert not drained.is_set()
        gate.gate.set()
        await asyncio.wait_for(drained.wait(), 60)
        assert first.done()
        second = asyncio.ensure_future(room.write(8192, b"second"))
        await turns(50)
        assert not second.done()
        go_on.set()
        await asyncio.gather(draining, second)
        await room.leave(job)
        assert await room.shows_all(room.target)

    in_empty_lab(tmp_path, scenario)


def test_a_guest_that_gives_up_waiting_leaves_a_mark(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        gate = gated(room)
        job = await room.ready(CHANGES)
        writing = asyncio.ensure_future(room.write(4096, b"given up"))
        await room.came_true(lambda: gate.waiting)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        gate.gate.set()
        await room.leave(job)
        assert await room.shown(room.target) == await room.shown(room.source)
        assert await room.guest.read(4096, 8) == b"given up"

    in_empty_lab(tmp_path, scenario)


def test_a_change_waits_for_a_copy_of_its_range_that_is_under_way(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        gate = gated(room)
        before = bytes(room.content[4096:4100])
        job = room.mirror(BLOCKING)
        await room.came_true(lambda: gate.waiting)
        writing = asyncio.ensure_future(room.write(4096, b"late"))
        for _ in range(20):
            await turns(50)
            assert await room.source.read(4096, 4) == before
        gate.gate.set()
        await writing
        await room.until(job, Status.READY)
        await room.leave(job)
        assert await room.shows_all(room.target)

    in_lab(tmp_path, scenario)


def test_a_change_of_a_part_leaves_the_mark_of_the_rest(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        job = await room.ready(CHANGES, clock=ManualClock())
        (bitmap,) = room.source.bitmaps.values()
        job.pause()
        await job.change(None, None)  # it looks up
        await room.until(job, Status.STANDBY)
        await room.write(4096, b"only marked")
        job.resume()
        await room.until(job, Status.READY)
        await room.write(8192, b"passed on")
        await room.write(64 * KIB, b"passed on, too")
        assert await room.target.read(8192, 9) == b"passed on"
        assert bitmap.count == 64 * KIB
        await room.write(0, b"p" * 64 * KIB)
        assert bitmap.count == 0
        await room.leave(job)
        assert await room.shows_all(room.target)

    in_empty_lab(tmp_path, scenario)
