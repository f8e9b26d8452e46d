"""Whatever is done to a VHDX image and wherever it crashes: nothing that was flushed is lost.

And nothing that was not written is there; the image opens, its check is clean,
and its log replays, even when the replay crashes.
"""

import asyncio
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.support.crash import (
    EFFORT,
    NIGHTLY,
    SEED,
    SEEDS,
    Session,
    Workload,
    explore,
    images,
    see,
)
from tests.support.crash_workloads import (
    MAKE,
    WORKLOADS,
    busy,
    fill_log,
    grow_much,
    killed_while_closing,
    resize,
    reuse,
    reuse_bitmaps,
    reuse_table,
    wide,
)
from vblk.testing import Action, Content, Effort, Explorer

FEW = Effort(bound=16, samples=4, corners=8)
"""Enough to see that something is wrong near an instant."""


def crash(folder: Path, make: str, workload: Workload, seed: int, effort: Effort = EFFORT) -> None:
    async def main() -> None:
        image = await (wide if make == "wide" else MAKE[make])(folder)
        session = Session(image.files, image.chain, image.disk, seed=seed)
        await session.run(workload)
        await explore(session, folder, seed=seed, effort=effort)

    asyncio.run(main())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_no_crash_loses_or_shows_anything(tmp_path: Path, make: str, workload: str, seed: int) -> None:
    crash(tmp_path, make, WORKLOADS[workload], seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("make", [make for make in MAKE if make != "child_4096"])
def test_no_crash_mixes_sizes(tmp_path: Path, make: str, seed: int) -> None:
    crash(tmp_path, make, resize, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("make", ["dynamic", "child"])
def test_no_crash_mixes_an_old_and_a_new_block_table(tmp_path: Path, make: str, seed: int) -> None:
    crash(tmp_path, make, grow_much, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("make", "workload"), [("dynamic", reuse_table), ("child", reuse_bitmaps)])
def test_no_crash_replays_old_tables_over_new_blocks(
    tmp_path: Path, make: str, workload: Workload, seed: int
) -> None:
    crash(tmp_path, make, workload, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("make", ["littered", "child", "fixed"])
@pytest.mark.parametrize("workload", ["reuse", "busy", "reopened", "resize"])
def test_no_crash_meets_a_full_log_at_a_bad_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: str, workload: str, seed: int
) -> None:
    monkeypatch.setattr("vblk.formats.vhdx.journal.PASS_SIZE_MAX", 6 * 4096)
    crash(tmp_path, make, resize if workload == "resize" else WORKLOADS[workload], seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_crash_meets_a_log_that_went_round_too_early(tmp_path: Path, seed: int) -> None:
    crash(tmp_path, "wide", fill_log, seed, replace(EFFORT, instants=100 if NIGHTLY else 12))


def test_no_crash_finds_the_log_gone_that_a_killed_process_was_done_with(tmp_path: Path) -> None:
    async def main() -> None:
        image = await MAKE["dynamic"](tmp_path)
        session = Session(image.files, image.chain, image.disk, seed=None)
        await session.run(killed_while_closing)
        await explore(session, tmp_path, effort=Effort(bound=8, samples=1, corners=1))

    asyncio.run(main())


@pytest.mark.parametrize("make", ["littered", "child"])
def test_what_is_written_after_a_crash_survives_the_next(tmp_path: Path, make: str) -> None:
    async def main() -> None:
        image = await MAKE[make](tmp_path)
        first = Session(image.files, image.chain, image.disk, seed=SEED)
        await first.run(reuse)
        states = list(Explorer(first.recorder, Effort(bound=16, samples=2, corners=4), SEED).states())
        for number, state in enumerate(Random(SEED).sample(states, 3 * len(SEEDS))):
            seen = await see(images(state.files), image.chain, clean=False)
            disk = Content(seen.size, dict(seen.pages))
            second = Session(state.files, image.chain, disk, seed=SEED + number)
            await second.run(busy)
            await explore(second, tmp_path, seed=SEED + number)

    asyncio.run(main())


@pytest.mark.parametrize("make", ["littered", "child"])
def test_the_judge_notices_when_flushes_do_nothing(tmp_path: Path, make: str) -> None:
    async def main() -> None:
        image = await MAKE[make](tmp_path)
        session = Session(image.files, image.chain, image.disk, seed=SEED)
        await session.run(reuse)
        flushes = [
            event.operation
            for event in session.recorder.events
            if event.ends and event.operation is not None and event.operation.action is Action.FLUSH
        ]
        needed = 0
        for flush in flushes:
            assert flush.ended is not None
            since, until = flush.ended + 1, flush.ended + 24
            try:
                await explore(
                    session, tmp_path, effort=FEW, since=since, until=until, ignored=frozenset([flush])
                )
            except AssertionError:
                needed += 1
        assert needed > len(flushes) // 3, "others only repeat what the next flush does"

    asyncio.run(main())
