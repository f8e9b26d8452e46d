"""The mirror of issue 5, sentence by sentence: each test is named after what one of them says."""

import asyncio
import errno
import json
import os
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import good
from tests.support.manual_clock import EagerClock, ManualClock
from tests.support.mirror_lab import SIZE, Lab, failing, in_lab, kept
from tests.support.turns import turns
from vblk.errors import NodeBusy
from vblk.graph.dirty_bitmap import DirtyBitmap
from vblk.graph.edge import WRITING, Role
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.jobs.block_job import OnError
from vblk.jobs.mirror import MirrorJob
from vblk.jobs.mirror_plan import CopyMode, Plan, Sync
from vblk.jobs.states import Status
from vblk.opening import open_image
from vblk.protocols.memory import MemoryNode
from vblk.runtime.throttling import ThrottleGroup, ThrottleLimits
from vblk.testing import PassingNode
from vblk.units import KIB, MIB


def test_phase_1_copies_everything_until_the_target_is_in_sync_and_offset_equals_length(
    tmp_path: Path,
) -> None:
    async def scenario(room: Lab) -> None:
        job = await room.ready()
        assert job.current == job.total == SIZE
        assert await room.shows_all(room.target)

    in_lab(tmp_path, scenario)


def _is_copied(job: MirrorJob, bitmap: DirtyBitmap, before: int) -> bool:
    return job.current > before and not bitmap.count


def test_phase_2_keeps_the_target_in_sync_until_told_to_stop(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        job = await room.ready(clock=EagerClock())
        (bitmap,) = room.source.bitmaps.values()
        for _ in range(2):
            copied = job.current
            await room.write(2 * MIB, os.urandom(4096))
            await room.came_true(partial(_is_copied, job, bitmap, copied))
            assert await room.shows_all(room.target)
        await room.leave(job)

    in_lab(tmp_path, scenario)


@pytest.mark.parametrize("kind", ["raw", "vhdx", "qcow2", "file", "memory", "throttled", "quorum"])
def test_the_target_is_a_black_box_of_any_format_or_protocol(tmp_path: Path, kind: str) -> None:
    async def scenario(room: Lab) -> None:
        room.target = await black_box(room.graph, tmp_path / "box", kind)
        job = await room.ready()
        await room.write(MIB, b"in both")
        job.complete()
        await job.ended()
        assert job.error is None
        assert room.guest.node is room.target
        assert await room.shows_all(room.guest.node)

    if kind in ("raw", "vhdx", "qcow2"):
        good("create", "-q", "-f", kind, tmp_path / "box", str(SIZE))
    in_lab(tmp_path, scenario)


async def black_box(graph: Graph, path: Path, kind: str) -> Node:
    """Return a new target of that kind."""
    if kind == "memory":
        memory = MemoryNode("box", size=SIZE)
        graph.add(memory)
        graph.keep(memory)
        return memory
    if kind in ("raw", "vhdx", "qcow2"):
        return await kept(graph, path, kind)
    for number in range(3):
        path.with_suffix(f".{number}").write_bytes(bytes(SIZE))
    files: list[dict[str, Any]] = [
        {"driver": "file", "filename": str(path.with_suffix(f".{number}"))} for number in range(3)
    ]
    options: dict[str, dict[str, Any]] = {
        "file": files[0],
        "throttled": {"driver": "throttle", "throttle-group": "g", "file": files[0]},
        "quorum": {"driver": "quorum", "vote-threshold": 2, "children": files},
    }
    if kind == "throttled":
        graph.objects.add("g", ThrottleGroup(graph.clock, ThrottleLimits()))
    handle = await open_image(graph, "json:" + json.dumps(options[kind]), read_only=False)
    graph.keep(handle.node)
    node = handle.node
    await graph.release(handle)
    return node


def test_sync_mode_full_copies_the_backing_too(tmp_path: Path) -> None:
    base, top, target = tmp_path / "base.raw", tmp_path / "top.qcow2", tmp_path / "target.raw"
    base.write_bytes(b"b" * MIB)
    good("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top)
    good("create", "-q", "-f", "raw", target, "1M")

    async def main() -> None:
        async with Graph() as graph:
            guest = await open_image(graph, str(top), format="qcow2", read_only=False)
            room = Lab(graph, guest, await kept(graph, target, "raw"))
            job = await room.ready(Plan(sync=Sync.FULL))
            await room.leave(job)
            assert await room.shown(room.target) == b"b" * MIB

    asyncio.run(main())


def test_sync_mode_top_leaves_the_backing_out(tmp_path: Path) -> None:
    base, top, target = tmp_path / "base.raw", tmp_path / "top.qcow2", tmp_path / "target.raw"
    base.write_bytes(b"b" * 4 * MIB)
    good("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top)
    good("create", "-q", "-f", "raw", target, "4M")

    async def main() -> None:
        async with Graph() as graph:
            guest = await open_image(graph, str(top), format="qcow2", read_only=False)
            await guest.write(MIB, b"t" * 64 * KIB)
            room = Lab(graph, guest, await kept(graph, target, "raw"))
            job = await room.ready(Plan(sync=Sync.TOP))
            await room.leave(job)
            shown = await room.shown(room.target)
            assert shown[MIB : MIB + 64 * KIB] == b"t" * 64 * KIB
            assert shown.count(b"b") == 0

    asyncio.run(main())


def test_sync_mode_none_copies_only_what_changes(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        job = await room.ready(Plan(sync=Sync.NONE, granularity=4096))
        await room.write(8192, b"n" * 4096)
        await room.leave(job)
        right = bytearray(SIZE)
        right[8192:12288] = b"n" * 4096
        assert await room.shown(room.target) == right

    in_lab(tmp_path, scenario)


@pytest.mark.parametrize("granularity", [512, 64 * KIB, MIB])
def test_granularity_is_the_unit_in_which_changes_are_copied(tmp_path: Path, granularity: int) -> None:
    async def scenario(room: Lab) -> None:
        job = await room.ready(Plan(sync=Sync.NONE, granularity=granularity))
        before = job.current
        await room.guest.write(MIB + 100, b"x")
        await room.leave(job)
        assert job.current - before == granularity

    in_lab(tmp_path, scenario)


@pytest.mark.parametrize("buffer", [64 * KIB, 256 * KIB])
def test_buffer_size_bounds_what_passes_through_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffer: int
) -> None:
    held = most = 0
    write = MemoryNode.write

    async def counted(self: MemoryNode, offset: int, data: Any, *, fua: bool = False) -> None:
        nonlocal held, most
        held += len(data)
        most = max(most, held)
        await turns()
        await write(self, offset, data, fua=fua)
        held -= len(data)

    monkeypatch.setattr(MemoryNode, "write", counted)

    async def scenario(room: Lab) -> None:
        room.target = await black_box(room.graph, tmp_path / "box", "memory")
        job = await room.ready(Plan(granularity=64 * KIB, buffer=buffer))
        assert 0 < most <= buffer
        await room.leave(job)
        assert await room.shows_all(room.target)

    in_lab(tmp_path, scenario)


def test_speed_is_what_is_copied_in_a_second(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        clock, speed = EagerClock(), 256 * KIB
        start = clock.now()
        job = await room.ready(Plan(granularity=64 * KIB), clock=clock, speed=speed)
        assert -0.5 <= clock.now() - start - SIZE / speed <= 0.5
        await room.leave(job)

    in_lab(tmp_path, scenario)


def test_a_dirty_bitmap_on_the_source_knows_what_is_left(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        job = await room.ready(Plan(sync=Sync.NONE, granularity=64 * KIB))
        (bitmap,) = room.source.bitmaps.values()
        job.pause()
        await room.until(job, Status.STANDBY)
        await room.write(MIB - 1, b"xx")
        assert bitmap.count == 2 * 64 * KIB
        job.resume()
        await room.leave(job)
        assert room.source.bitmaps == {}

    in_lab(tmp_path, scenario)


def test_copy_modes_are_switched_while_the_job_runs(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        clock = ManualClock()
        job = await room.ready(clock=clock)
        await room.write(MIB, b"background")
        assert await room.shown(room.target) != room.content
        await job.change(CopyMode.WRITE_BLOCKING, None)
        await room.write(2 * MIB, b"write-blocking")
        assert await room.target.read(2 * MIB, 14) == b"write-blocking"
        rests = len(clock.slept)
        await job.change(CopyMode.BACKGROUND, None)
        async with asyncio.timeout(60):
            while len(clock.slept) == rests:  # the change has woken it
                await turns(1)
        await room.write(2 * MIB, b"background")
        assert await room.target.read(2 * MIB, 14) == b"write-blocking"
        job.complete()
        await job.ended()
        assert await room.shows_all(room.guest.node)

    in_lab(tmp_path, scenario)


@pytest.mark.parametrize("unmap", [True, False])
def test_unmap_says_whether_zeros_take_space_in_the_target(tmp_path: Path, unmap: bool) -> None:
    async def scenario(room: Lab) -> None:
        writer = room.graph.hold(room.target, "before", WRITING)
        await writer.write(0, b"x" * SIZE)
        await room.graph.release(writer)
        job = await room.ready(Plan(granularity=64 * KIB, unmap=unmap))
        await room.leave(job)
        assert await room.shows_all(room.target)

    in_lab(tmp_path, scenario)
    taken = (tmp_path / "target").stat().st_blocks * 512
    assert taken < 2 * MIB if unmap else taken > 3 * MIB


POLICIES = [
    (OnError.REPORT, errno.EIO, "ends"),
    (OnError.IGNORE, errno.EIO, "goes on"),
    (OnError.STOP, errno.EIO, "pauses"),
    (OnError.ENOSPC, errno.ENOSPC, "pauses"),
    (OnError.ENOSPC, errno.EIO, "ends"),
]


@pytest.mark.parametrize(("policy", "number", "then"), POLICIES)
@pytest.mark.parametrize("side", ["source", "target"])
def test_on_error_reports_ignores_or_stops_until_it_is_resumed(
    tmp_path: Path, side: str, policy: OnError, number: int, then: str
) -> None:
    async def scenario(room: Lab) -> None:
        node = await failing(room.graph, tmp_path / "third", "read" if side == "source" else "write", number)
        setattr(room, side, node)
        plan = Plan(granularity=64 * KIB, on_source_error=policy)
        if side == "target":
            plan = Plan(granularity=64 * KIB, on_target_error=policy)
        job = room.mirror(plan)
        if then == "ends":
            await job.ended()
            assert job.error == os.strerror(number)
            assert room.source.bitmaps == {}
            return
        if then == "pauses":
            await room.until(job, Status.PAUSED)
            assert job.io_status == ("nospace" if number == errno.ENOSPC else "failed")
            job.resume()
        await room.until(job, Status.READY)
        assert room.told.count("BLOCK_JOB_ERROR") == 1
        await room.leave(job)
        assert await room.shown(room.target) == await room.shown(room.source)

    (tmp_path / "third").write_bytes(bytes(SIZE) if side == "target" else b"third" * (SIZE // 5 + 1))
    os.truncate(tmp_path / "third", SIZE)
    in_lab(tmp_path, scenario)


def test_cancel_in_phase_1_is_a_cancel(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        job = room.mirror(clock=ManualClock(), speed=1)
        await room.until(job, Status.RUNNING)
        await room.leave(job)
        assert room.told[-4:] == ["aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]
        assert room.guest.node is room.source
        assert room.source.bitmaps == {}
        await room.write(0, b"still here")

    in_lab(tmp_path, scenario)


def test_cancel_in_phase_2_reports_completion_and_leaves_a_consistent_past_state(
    tmp_path: Path,
) -> None:
    async def scenario(room: Lab) -> None:
        job = await room.ready()
        await room.write(4096, b"before the end")
        await room.leave(job)
        assert "BLOCK_JOB_COMPLETED" in room.told
        assert room.guest.node is room.source
        assert await room.shows_all(room.target)

    in_lab(tmp_path, scenario)


def test_cancel_in_phase_2_runs_until_the_source_is_clean_and_quiescent(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        job = await room.ready(auto_finalize=False)
        (bitmap,) = room.source.bitmaps.values()
        await room.write(0, b"last")
        job.cancel()
        await room.until(job, Status.PENDING)
        assert bitmap.count == 0
        late = asyncio.ensure_future(room.guest.write(0, b"late"))
        await turns(50)
        assert not late.done(), "the source is quiescent"
        with pytest.raises(NodeBusy, match="in use by block job: mirror"):
            room.graph.require_unpinned(
                room.source
            )  # or a resize would wait for a finalize that waits for it
        job.finalize()
        await job.ended()
        await late
        room.graph.require_unpinned(room.source)
        assert await room.shows_all(room.target)

    in_lab(tmp_path, scenario)


def test_force_makes_a_cancel_in_phase_2_a_cancel(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        job = await room.ready()
        job.cancel(force=True)
        await job.ended()
        assert "BLOCK_JOB_CANCELLED" in room.told

    in_lab(tmp_path, scenario)


def test_complete_pivots_the_guest_to_the_target_without_losing_a_request(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        lot = random.Random(3)
        ended = False

        async def guest() -> None:
            while not ended:
                offset = lot.randrange(0, SIZE - 8192, 512)
                await room.write(offset, lot.randbytes(lot.choice((512, 4096, 8192))))
                await asyncio.sleep(0)

        busy = asyncio.ensure_future(guest())
        job = await room.ready()
        job.complete()
        await job.ended()
        for _ in range(20):
            await asyncio.sleep(0)
        ended = True
        await busy
        assert job.error is None
        assert room.guest.node is room.target
        assert await room.shows_all(room.guest.node)

    in_lab(tmp_path, scenario, source="vhdx", target="vhdx")


def test_a_node_in_the_middle_of_a_graph_is_replaced(tmp_path: Path) -> None:
    base, copy = tmp_path / "base.raw", tmp_path / "copy.raw"
    base.write_bytes(b"b" * MIB)
    copy.write_bytes(bytes(MIB))
    good("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", tmp_path / "top.qcow2")

    async def main() -> None:
        async with Graph() as graph:
            guest = await open_image(graph, str(tmp_path / "top.qcow2"), format="qcow2", read_only=False)
            middle = guest.node.child(Role.BACKING)
            assert middle is not None
            room = Lab(graph, guest, await kept(graph, copy, "raw"))
            room.source = middle
            job = await room.ready()
            job.complete()
            await job.ended()
            assert job.error is None
            assert guest.node.child(Role.BACKING) is room.target
            assert await guest.read(0, MIB) == b"b" * MIB

    asyncio.run(main())


def test_replaces_names_whose_users_go_to_the_target(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        below = room.source
        filter = PassingNode("filter", below)
        filter.put_over(room.graph)
        await room.graph.insert_filter(below, filter)
        room.source = filter
        job = await room.ready(replaces=below)
        await room.write(0, b"through the filter")
        job.complete()
        await job.ended()
        assert job.error is None
        assert room.guest.node is filter
        assert filter.file is room.target
        assert room.graph.users(below) == []
        assert await room.shows_all(room.guest.node)

    in_lab(tmp_path, scenario)


def test_converge_blocks_writes_when_the_guest_outruns_the_copy_and_says_so(
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
        job = await room.ready(Plan(granularity=64 * KIB, converge=0.05))
        job.complete()
        await job.ended()
        ended = True
        await busy
        assert room.told.count("BLOCK_JOB_CONVERGING") == 1
        assert await room.shows_all(room.target)

    in_lab(tmp_path, scenario)
