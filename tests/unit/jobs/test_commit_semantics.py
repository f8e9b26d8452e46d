"""Each sentence of what a commit promises, one test at least named after it.

What a crash leaves is tested by kills, in `tests/faults`.
"""

import asyncio
import errno
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.chain_lab import SIZE, ChainLab, in_chain_lab, let_fail, names_of, shown
from tests.support.command_line import good
from tests.support.commits import CHAINS, commit, completed, each_chain, each_top, held_back
from tests.support.manual_clock import EagerClock, ManualClock
from vblk.drivers import vhdx_links
from vblk.drivers.vhdx import VhdxNode
from vblk.graph.node import Node
from vblk.jobs.block_job import OnError
from vblk.jobs.live_commit import CommitJob
from vblk.jobs.states import Status
from vblk.jobs.sweep import PAUSE
from vblk.units import KIB

each_failure = pytest.mark.parametrize(
    ("formats", "side", "iotype"),
    [
        (["raw", "qcow2", "qcow2"], "base", "write"),
        (["raw", "qcow2", "qcow2"], "layer", "read"),
        (["vhdx"] * 3, "layer", "read"),
    ],
    ids=["raw base", "qcow2 layer", "vhdx layer"],
)


each_side = pytest.mark.parametrize(("side", "iotype"), [("base", "write"), ("layer", "read")])
two_chains = pytest.mark.parametrize(
    "formats", [["raw", "qcow2", "qcow2"], ["vhdx"] * 3], ids=["raw", "vhdx"]
)


def image_of(room: ChainLab, side: str) -> Node:
    """Return the base, or the layer above it."""
    return room.images[-1 if side == "base" else -2]


@each_chain
def test_intermediate_layers_go_down_into_the_base(tmp_path: Path, formats: list[str]) -> None:
    names = names_of(formats)

    async def scenario(room: ChainLab) -> None:
        async with room.busy():
            job = await commit(room)
            await job.ended()
        assert job.error is None
        assert room.chain() == [names[3], names[0]]
        assert (job.current, job.total) == (SIZE, SIZE)
        assert room.told == [
            *("created", "running", "waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null"),
        ]
        assert len(list(room.graph.nodes())) == 4, "two images, two files"

    in_chain_lab(tmp_path, formats, scenario)


@each_chain
def test_the_active_layer_goes_down_in_two_phases_and_then_the_guest_is_pivoted(
    tmp_path: Path, formats: list[str]
) -> None:
    names = names_of(formats)

    async def scenario(room: ChainLab) -> None:
        async with room.busy():
            job = await commit(room, 0)
            await room.until(job, Status.READY)
            job.complete()
            await job.ended()
        assert job.error is None
        assert room.told == [
            *("created", "running", "ready", "BLOCK_JOB_READY"),
            *("waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null"),
        ]
        assert room.chain() == [names[0]]
        assert not room.guest.node.read_only
        assert room.images[0].bitmaps == {}
        room.access = {}

    in_chain_lab(tmp_path, formats, scenario)


@each_chain
def test_base_and_top_say_which_layers_go_and_where(tmp_path: Path, formats: list[str]) -> None:
    names = names_of(formats)

    async def scenario(room: ChainLab) -> None:
        async with room.busy():
            job = await commit(room, 2, 3)
            await job.ended()
            assert job.error is None
            assert room.chain() == [names[3], names[2], names[0]]
            job = await commit(room, 1, 3)
            await job.ended()
        assert job.error is None
        assert room.chain() == [names[3], names[0]]

    in_chain_lab(tmp_path, formats, scenario)


def test_backing_file_is_the_text_in_the_file_of_the_image_above(tmp_path: Path) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await commit(room, 1, backing_file="./0.raw")
        await job.ended()
        assert job.error is None

    in_chain_lab(tmp_path, ["raw", "qcow2", "qcow2"], scenario)
    assert "backing file: ./0.raw" in good("info", tmp_path / "2.qcow2")
    assert "backing file format: raw" in good("info", tmp_path / "2.qcow2")


@two_chains
@pytest.mark.parametrize(
    "sizes",
    [(SIZE, 2 * SIZE, 2 * SIZE), (2 * SIZE, SIZE, 2 * SIZE), (2 * SIZE, SIZE, SIZE)],
    ids=["a small base", "a small layer", "a large base"],
)
@each_top
def test_a_base_smaller_than_the_top_is_grown_and_images_of_other_sizes_show_the_same(
    tmp_path: Path, formats: list[str], sizes: tuple[int, ...], top: int
) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await commit(room, top)
        if top == 0:
            await room.until(job, Status.READY)
            job.complete()
            room.access = {}
        await job.ended()
        assert job.error is None
        assert room.images[-1].size == max(sizes[0], sizes[-1 if top == 0 else 1])

    in_chain_lab(tmp_path, formats, scenario, sizes)


@each_failure
@each_top
def test_a_failure_that_stops_the_job_is_made_good_after_the_resume(
    tmp_path: Path, formats: list[str], top: int, side: str, iotype: str
) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await held_back(room, top, OnError.STOP)
        await let_fail(room, image_of(room, side), iotype, errno.EIO)
        job.set_speed(0)
        await room.until(job, Status.PAUSED)
        assert job.io_status == "failed"
        assert "BLOCK_JOB_ERROR" in room.told
        job.resume()
        await completed(room, job)
        assert job.error is None

    in_chain_lab(tmp_path, formats, scenario)


@each_failure
@each_top
def test_a_failure_that_is_reported_ends_the_job_and_leaves_the_chain(
    tmp_path: Path, formats: list[str], top: int, side: str, iotype: str
) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await held_back(room, top, OnError.REPORT)
        await let_fail(room, image_of(room, side), iotype, errno.EIO)
        job.set_speed(0)
        await job.ended()
        assert job.error is not None
        assert "Input/output error" in job.error
        assert job.current < job.total, "what failed is not behind it"
        assert room.chain() == names_of(formats)[::-1]

    in_chain_lab(tmp_path, formats, scenario)


@each_side
@each_top
def test_a_failure_that_is_ignored_is_met_again_after_a_rest(
    tmp_path: Path, top: int, side: str, iotype: str
) -> None:
    async def scenario(room: ChainLab) -> None:
        clock = ManualClock()
        job = await held_back(room, top, OnError.IGNORE, clock)
        await let_fail(room, image_of(room, side), iotype, errno.EIO)
        job.set_speed(0)
        async with asyncio.timeout(60):
            while PAUSE not in clock.slept:
                await room.write()
        clock.advance(PAUSE)
        await completed(room, job)
        assert job.error is None
        assert room.told.count("BLOCK_JOB_ERROR") == 1

    in_chain_lab(tmp_path, ["raw", "qcow2", "qcow2"], scenario)


@each_top
@pytest.mark.parametrize(("number", "stops"), [(errno.ENOSPC, True), (errno.EIO, False)])
def test_enospc_stops_where_the_base_is_full_and_only_there(
    tmp_path: Path, top: int, number: int, stops: bool
) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await held_back(room, top, OnError.ENOSPC)
        await let_fail(room, room.images[-1], "write", number)
        job.set_speed(0)
        if stops:
            await room.until(job, Status.PAUSED)
            assert job.io_status == "nospace"
            job.resume()
            await completed(room, job)
        else:
            await job.ended()
        assert (job.error is None) is stops

    in_chain_lab(tmp_path, ["raw", "qcow2", "qcow2"], scenario)


@each_chain
def test_the_overlays_backing_is_rewritten_to_base(tmp_path: Path, formats: list[str]) -> None:
    async def scenario(room: ChainLab) -> None:
        await completed(room, await commit(room))

    in_chain_lab(tmp_path, formats, scenario)
    names = names_of(formats)
    said = json.loads(good("info", "--output", "json", "--backing-chain", tmp_path / names[-1]))
    assert [Path(each["filename"]).name for each in said] == [names[-1], names[0]]


@each_chain
def test_intermediate_images_are_dropped(tmp_path: Path, formats: list[str]) -> None:
    async def scenario(room: ChainLab) -> None:
        dropped = {each for layer in room.images[1:-1] for each in (layer, layer.below)}
        await completed(room, await commit(room))
        assert not dropped & set(room.graph.nodes())

    in_chain_lab(tmp_path, formats, scenario)
    assert sorted(path.name for path in tmp_path.iterdir()) == names_of(formats), "closed, not deleted"


ENDS = [(0, "cancelled"), (0, "failed"), (1, "well"), (1, "cancelled"), (1, "failed")]


@pytest.mark.parametrize(("top", "end"), ENDS)
@pytest.mark.parametrize("formats", [CHAINS["raw"], CHAINS["vhdx"]], ids=["qcow2", "vhdx"])
def test_every_image_is_back_to_the_flags_it_was_opened_with_on_failure_too(
    tmp_path: Path, formats: list[str], end: str, top: int
) -> None:
    async def scenario(room: ChainLab) -> None:
        before = {node: node.read_only for node in room.graph.nodes()}
        job = await held_back(room, top, OnError.REPORT)
        assert not room.images[-1].read_only
        if end == "failed":
            await let_fail(room, room.images[-2], "read", errno.EIO)
        if end == "cancelled":
            job.cancel()
        else:
            job.set_speed(0)
        await job.ended()
        assert (job.error is None) is (end == "well")
        there = [node for node in room.graph.nodes() if node in before]
        assert [node.read_only for node in there] == [before[node] for node in there]

    in_chain_lab(tmp_path, formats, scenario)


@each_top
def test_a_base_that_was_open_for_writing_stays_so(tmp_path: Path, top: int) -> None:
    async def scenario(room: ChainLab) -> None:
        base = room.images[-1]
        await room.graph.reopen(base, read_only=False)
        room.access[base.name] = False
        await completed(room, await commit(room, top))
        assert not base.read_only

    in_chain_lab(tmp_path, CHAINS["qcow2"], scenario)


def test_speed_is_what_is_committed_in_a_second(tmp_path: Path) -> None:
    async def scenario(room: ChainLab) -> None:
        clock, speed = EagerClock(), 64 * KIB
        start = clock.now()
        job = await commit(room, clock=clock, speed=speed)
        await job.ended()
        assert isinstance(job, CommitJob)
        moved = sum(job.mover.moved.by_means.values())
        assert moved > speed
        assert moved / speed - 0.5 <= clock.now() - start <= SIZE / speed, "zeros count as well"

    in_chain_lab(tmp_path, CHAINS["qcow2"], scenario)


def test_parent_locator_and_linkage_are_rewritten(tmp_path: Path) -> None:
    async def scenario(room: ChainLab) -> None:
        await completed(room, await commit(room))
        above, base = room.images[0], room.images[-1]
        assert isinstance(above, VhdxNode)
        assert isinstance(base, VhdxNode)
        locator = above.image.locator
        assert locator is not None
        assert locator.pairs["relative_path"].endswith("0.vhdx")
        assert locator.accepts(base.image.data_write_guid)
        assert locator.linkage2 is None

    in_chain_lab(tmp_path, CHAINS["vhdx"], scenario)


def test_links_are_rewritten_in_an_order_that_a_crash_survives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "chain"
    folder.mkdir()
    copies: list[Path] = []

    def copy() -> None:
        copies.append(tmp_path / f"copy {len(copies)}")
        shutil.copytree(folder, copies[-1])

    def watched(step: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def watch(*arguments: Any, **named: Any) -> Any:
            copy()
            done = await step(*arguments, **named)
            copy()
            return done

        return watch

    step = watched(vhdx_links.set_locator)
    for module in ("vblk.jobs.live_chain", "vblk.drivers.vhdx_links"):
        monkeypatch.setattr(f"{module}.set_locator", step)
    wanted = b""

    async def scenario(room: ChainLab) -> None:
        nonlocal wanted
        wanted = bytes(room.content)
        await completed(room, await commit(room))

    in_chain_lab(folder, CHAINS["vhdx"], scenario)
    assert len(copies) >= 4, "the child of the base, and the image above"
    for place in copies:
        assert asyncio.run(shown(place / "3.vhdx", "vhdx")) == wanted
