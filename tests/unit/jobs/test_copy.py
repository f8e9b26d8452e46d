"""The copy engine: every byte arrives, holes stay, order and limits hold."""

import asyncio
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.cancellation import sweep
from vblk.aio.clock import LoopClock
from vblk.drivers.raw_create import NewRawImage
from vblk.errors import BlockError, StorageError
from vblk.extent import Kind
from vblk.graph.handle import Handle
from vblk.graph.plane import Mover
from vblk.graph.registry import Graph
from vblk.jobs.copy import CopyJob, CopyPlan, Loss, Source, concatenated
from vblk.jobs.progress import Progress
from vblk.jobs.target import new_image
from vblk.opening import open_image
from vblk.units import KIB, MIB


def sparse_file(path: Path, size: int, seed: int, runs: int = 12) -> bytes:
    """Make a file with data at random places, and return what it holds."""
    dice = random.Random(seed)
    content = bytearray(size)
    with path.open("wb") as file:
        file.truncate(size)
        for _ in range(runs):
            start = dice.randrange(size // 512) * 512
            data = dice.randbytes(min(dice.randrange(1, 300) * 512, size - start))
            file.seek(start)
            file.write(data)
            content[start : start + len(data)] = data
    return bytes(content)


async def open_file(graph: Graph, path: Path, *, read_only: bool = True) -> Handle:
    return await open_image(graph, str(path), format="raw", read_only=read_only)


async def copy(
    graph: Graph, sources: Sequence[Source], target: Path, plan: CopyPlan, progress: Progress | None = None
) -> None:
    size = max(source.shift + source.handle.size for source in sources)
    async with new_image(graph, str(target), NewRawImage(size)) as made:
        job = CopyJob(sources, made.handle, plan, Mover(graph.engine), clock=LoopClock(), progress=progress)
        await job.run()


@pytest.mark.parametrize(
    "plan",
    [
        CopyPlan(target_is_zero=True),
        CopyPlan(target_is_zero=False),
        CopyPlan(target_is_zero=True, out_of_order=True, workers=16),
        CopyPlan(target_is_zero=True, sparse=0),
        CopyPlan(target_is_zero=True, sparse=512),
        CopyPlan(target_is_zero=False, sparse=64 * KIB, workers=3),
        CopyPlan(target_is_zero=True, salvage=True),
        CopyPlan(target_is_zero=True, rate=1 << 40),
    ],
    ids=str,
)
def test_the_target_holds_the_same_bytes(tmp_path: Path, plan: CopyPlan) -> None:
    content = sparse_file(tmp_path / "a", 9 * MIB + 512, 1)

    async def scenario() -> None:
        async with Graph() as graph:
            source = await open_file(graph, tmp_path / "a")
            await copy(graph, concatenated([source]), tmp_path / "b", plan)

    asyncio.run(scenario())
    assert (tmp_path / "b").read_bytes() == content


def test_several_sources_stand_behind_each_other(tmp_path: Path) -> None:
    contents = [sparse_file(tmp_path / name, 3 * MIB, seed) for seed, name in enumerate("ab")]

    async def scenario() -> None:
        async with Graph() as graph:
            sources = [await open_file(graph, tmp_path / name) for name in "ab"]
            await copy(graph, concatenated(sources), tmp_path / "t", CopyPlan(target_is_zero=True))

    asyncio.run(scenario())
    assert (tmp_path / "t").read_bytes() == b"".join(contents)


def test_a_range_of_an_image_moves_to_the_start_of_the_target(tmp_path: Path) -> None:
    content = sparse_file(tmp_path / "a", 4 * MIB, 5)

    async def scenario() -> None:
        async with Graph() as graph:
            handle = await open_file(graph, tmp_path / "a")
            async with new_image(graph, str(tmp_path / "t"), NewRawImage(MIB)) as made:
                source = Source(handle, -2 * MIB, 2 * MIB, MIB)
                plan = CopyPlan(target_is_zero=True)
                await CopyJob([source], made.handle, plan, Mover(graph.engine), clock=LoopClock()).run()

    asyncio.run(scenario())
    assert (tmp_path / "t").read_bytes() == content[2 * MIB : 3 * MIB]


def test_holes_stay_holes_without_reading(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"x" * 4096)

    async def scenario() -> None:
        async with Graph() as graph:
            source = await open_file(graph, tmp_path / "a")
            await copy(graph, concatenated([source]), tmp_path / "b", CopyPlan(target_is_zero=True))

    asyncio.run(scenario())
    assert (tmp_path / "b").stat().st_blocks * 512 <= 64 * KIB
    with (tmp_path / "b").open("rb") as copied:
        copied.seek(1 << 39)
        assert copied.read(5000) == b"x" * 4096 + bytes(904)


def test_sparse_zero_allocates_everything_and_sparse_n_makes_holes(tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(4 * MIB))
    (tmp_path / "holes").touch()
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(4 * MIB)

    async def scenario(name: str, sparse: int) -> None:
        async with Graph() as graph:
            source = await open_file(graph, tmp_path / name)
            plan = CopyPlan(target_is_zero=True, sparse=sparse)
            await copy(graph, concatenated([source]), tmp_path / "t", plan)

    asyncio.run(scenario("holes", 0))
    assert (tmp_path / "t").stat().st_blocks * 512 >= 4 * MIB
    asyncio.run(scenario("zeros", 4096))
    assert (tmp_path / "t").stat().st_blocks * 512 <= 64 * KIB


def test_progress_counts_the_data_and_ends_full(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(32 * MIB)
        file.write(b"x" * MIB)
    heard: list[tuple[int, int]] = []

    async def scenario() -> None:
        async with Graph() as graph:
            source = await open_file(graph, tmp_path / "a")
            progress = Progress(lambda now: heard.append((now.done, now.total)), LoopClock())
            plan = CopyPlan(target_is_zero=True)
            await copy(graph, concatenated([source]), tmp_path / "b", plan, progress)

    asyncio.run(scenario())
    assert heard[0] == (0, MIB)
    assert heard[-1] == (MIB, MIB)


FAULTY = (
    'json:{"driver": "blkdebug", "image": {"driver": "raw", "file": {"driver": "file", "filename": "%s"}},'
    ' "inject-error": [{"event": "none", "iotype": "read", "errno": 5, "sector": 100},'
    ' {"event": "none", "iotype": "block-status", "errno": 5, "sector": 7}]}'
)


def test_a_failed_read_ends_the_copy_and_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * MIB)

    async def scenario() -> None:
        async with Graph() as graph:
            name = FAULTY.replace(
                ', {"event": "none", "iotype": "block-status", "errno": 5, "sector": 7}', ""
            )
            source = await open_image(graph, name % (tmp_path / "a"))
            with pytest.raises(StorageError):
                await copy(graph, concatenated([source]), tmp_path / "b", CopyPlan(target_is_zero=True))

    asyncio.run(scenario())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_salvage_replaces_only_the_lost_sectors(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * MIB)
    lost: list[tuple[Loss, int, int]] = []

    async def scenario() -> None:
        async with Graph() as graph:
            source = await open_image(graph, FAULTY % (tmp_path / "a"))

            def salvaged(what: Loss, _: Source, offset: int, length: int, error: BlockError) -> None:
                lost.append((what, offset, length))

            async with new_image(graph, str(tmp_path / "b"), NewRawImage(MIB)) as made:
                job = CopyJob(
                    concatenated([source]),
                    made.handle,
                    CopyPlan(target_is_zero=True, salvage=True),
                    Mover(graph.engine),
                    clock=LoopClock(),
                    salvaged=salvaged,
                )
                await job.run()

    asyncio.run(scenario())
    expected = bytearray(b"x" * MIB)
    expected[100 * 512 : 101 * 512] = bytes(512)
    assert (tmp_path / "b").read_bytes() == expected
    status = (Loss.STATUS, 7 * 512, 512)
    assert lost == [status, status, (Loss.READ, 100 * 512, 512)]


def test_a_cancelled_copy_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * (8 * MIB))
    kept = tmp_path / "b"
    kept.write_bytes(b"kept")

    async def scenario() -> None:
        async with Graph() as graph:
            source = await open_file(graph, tmp_path / "a")
            task = asyncio.current_task()
            assert task is not None

            def stop(now: Progress) -> None:
                if now.done:
                    task.cancel()

            progress = Progress(stop, LoopClock())
            plan = CopyPlan(target_is_zero=True, rate=64 * MIB)
            await copy(graph, concatenated([source]), kept, plan, progress)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(scenario())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert kept.read_bytes() == b"kept"


def test_a_copied_hole_reads_as_a_zero_extent(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(64 * MIB)

    async def scenario() -> list[Kind]:
        async with Graph() as graph:
            source = await open_file(graph, tmp_path / "a")
            await copy(graph, concatenated([source]), tmp_path / "b", CopyPlan(target_is_zero=True))
            copied = await open_file(graph, tmp_path / "b")
            return [span.kind for span in await copied.allocation(MIB, 8 * MIB)]

    assert set(asyncio.run(scenario())) == {Kind.ZERO}


def test_wherever_a_copy_is_cancelled_nothing_is_left_of_it(tmp_path: Path) -> None:
    sparse_file(tmp_path / "a", MIB, 3, runs=4)

    async def convert() -> None:
        async with Graph() as graph:
            source = await open_file(graph, tmp_path / "a")
            plan = CopyPlan(target_is_zero=True, workers=3)
            await copy(graph, concatenated([source]), tmp_path / "b", plan)

    async def check() -> None:
        if (tmp_path / "b").exists():
            assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
            (tmp_path / "b").unlink()
        assert os.listdir(tmp_path) == ["a"]

    assert asyncio.run(sweep(convert, check)) > 10
