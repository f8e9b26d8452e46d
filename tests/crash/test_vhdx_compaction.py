"""A crash while an image is compacted leaves the same disk, with the same identity for its children."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.support.crash import NIGHTLY, SEED, Session, Workload, explore, images, open_chain
from tests.support.crash_workloads import BLOCK, KIB, Image, content_of
from tests.support.worn_vhdx import worn
from vblk.drivers.vhdx import VhdxNode
from vblk.drivers.vhdx_session import Level
from vblk.drivers.vhdx_session import Session as WriteSession
from vblk.drivers.vhdx_worksite import LiveSite
from vblk.drivers.vhdx_writer import VhdxWriter
from vblk.formats.edits import Batch, EditedPages
from vblk.formats.vhdx.plan import Plan
from vblk.formats.vhdx.writing import BlockWriter
from vblk.graph.registry import Graph
from vblk.testing import Content, Effort, Explorer

MIB = 1 << 20
SEEDS = range(SEED, SEED + (6 if NIGHTLY else 3))
FEW = Effort(bound=8, samples=2, corners=4, instants=60)
EFFORT = Effort(bound=16, samples=4, corners=6, instants=80)


def image(seed: int) -> Image:
    """Draw an image: every second is a child."""
    lot = Random(seed)
    drawn = worn(
        lot,
        size=8 * MIB,
        block_size=lot.choice((MIB, MIB, 2 * MIB)),
        sector_size=lot.choice((512, 4096)),
        parent=seed % 2 == 1,
    )
    names = ["disk"] if len(drawn.files) == 1 else ["base", "disk"]
    files: dict[str, Content] = {}
    for name, data in zip(names, drawn.contents(), strict=True):
        files[name] = Content()
        files[name].write(0, data)
    return Image(files, tuple(reversed(names)), content_of(drawn.model))


async def compact(session: Session) -> None:
    """Compact, and nothing else."""
    await session.compact()


async def write_and_compact(session: Session) -> None:
    """Compact when nothing of what was written is in its place yet."""
    for block in range(8):
        await session.disk.write(block * BLOCK + 64 * KIB, 4 * KIB)
    await session.compact()


async def compact_and_reuse(session: Session) -> None:
    """Fill blocks behind the cut, empty them, and compact again."""
    disk = session.disk
    await session.compact()
    for block in range(6):
        await disk.write(block * BLOCK + 64 * KIB, 4 * KIB)
    await disk.flush()
    await disk.write_zeroes(BLOCK, 3 * BLOCK)
    await session.compact()
    await disk.write(2 * BLOCK, 4 * KIB)
    await disk.flush()


async def compact_beside(session: Session) -> None:
    """Compact while the disk is written, zeroed and trimmed."""
    disk, lot = session.disk, session.lot

    async def use() -> None:
        for _ in range(30):
            block = lot.randrange(8) * BLOCK
            kind = lot.random()
            if kind < 0.5:
                await disk.write(block + lot.choice((0, 4 * KIB, 900 * KIB)), 4 * KIB)
            elif kind < 0.7:
                await disk.write_zeroes(block, BLOCK, unmap=kind < 0.6)
            elif kind < 0.8:
                await disk.discard(block, BLOCK)
            elif kind < 0.9:
                await disk.flush()
            else:
                await asyncio.sleep(0)

    await asyncio.gather(session.compact(), use(), use())
    await session.compact()


WORKLOADS: dict[str, Workload] = {
    workload.__name__: workload
    for workload in (compact, write_and_compact, compact_and_reuse, compact_beside)
}


async def explored(folder: Path, seed: int, workload: Workload, effort: Effort | None = None) -> Session:
    """Run a workload on an image, and judge what crashes leave of it."""
    start = image(seed)
    session = Session(start.files, start.chain, start.disk, seed=seed)
    await session.run(workload)
    if effort is None:
        await explore(session, folder, seed=seed)
    else:
        await explore(session, folder, seed=seed, effort=effort)
    return session


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_no_crash_changes_the_disk(tmp_path: Path, workload: str, seed: int) -> None:
    asyncio.run(explored(tmp_path, seed, WORKLOADS[workload]))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_crash_meets_a_full_log_at_a_bad_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    # As many pages as two region tables have, for the BAT region may move.
    monkeypatch.setattr("vblk.formats.vhdx.journal.PASS_SIZE_MAX", 36 * 4096)
    asyncio.run(explored(tmp_path, seed, compact_beside))


async def assert_identity_stays(session: Session) -> None:
    """Assert that no crash state has another data write GUID than the image had at first."""
    start = {name: leaf.initial for name, leaf in session.recorder.leaves.items()}
    guids = set[Any]()
    for files in (start, *(state.files for state in Explorer(session.recorder, FEW).states())):
        async with Graph() as graph:
            handle = await open_chain(graph, images(files), session.chain, read_only=True)
            assert isinstance(handle.node, VhdxNode)
            guids.add(handle.node.image.data_write_guid)
    assert len(guids) == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_no_crash_makes_children_invalid(tmp_path: Path, seed: int) -> None:
    async def main() -> None:
        await assert_identity_stays(await explored(tmp_path, seed, compact, FEW))

    asyncio.run(main())


# Mutants


def ignores_barriers(patch: pytest.MonkeyPatch) -> None:
    """Log where a block is now before its bytes are there."""
    freeze = EditedPages.freeze

    def without(self: EditedPages) -> Batch:
        return replace(freeze(self), barrier=False)

    patch.setattr(EditedPages, "freeze", without)


def moves_onto_space_in_use(patch: pytest.MonkeyPatch) -> None:
    """Let blocks move to what others gave back, before that is durable."""
    commit = BlockWriter.commit

    def at_once(self: BlockWriter, plan: Plan) -> None:
        released, plan.released = plan.released, []
        commit(self, plan)
        for file_offset, length in released:
            self.space.free(file_offset, length)

    async def nothing(_: LiveSite) -> None:
        """Wait for nothing."""

    patch.setattr(BlockWriter, "commit", at_once)
    patch.setattr(LiveSite, "checkpoint", nothing)


def cuts_before_it_says_so(patch: pytest.MonkeyPatch) -> None:
    """Cut the file while the log says that it is longer."""
    shorten = WriteSession.shorten

    async def early(self: Any, length: int) -> None:
        await self.checkpoint()
        await self.file.resize(length)
        await self.file.flush()
        await shorten(self, length)

    patch.setattr(WriteSession, "shorten", early)


def holds_no_gates(patch: pytest.MonkeyPatch) -> None:
    """Move blocks while they are written."""

    @asynccontextmanager
    async def alone(_: VhdxWriter, __: int, ___: int) -> AsyncGenerator[None]:
        yield

    patch.setattr(VhdxWriter, "alone", alone)


def forgets_what_the_log_knows(patch: pytest.MonkeyPatch) -> None:
    """Let blocks have the space of tables and bitmaps that a replay still writes to."""

    async def flush_only(self: LiveSite) -> None:
        await self.flush()
        await asyncio.sleep(0)

    def never(_: WriteSession, __: tuple[int, int]) -> bool:
        return False

    patch.setattr(WriteSession, "_may_be_replayed", never)
    patch.setattr(LiveSite, "checkpoint", flush_only)


def takes_a_new_identity(patch: pytest.MonkeyPatch) -> None:
    """Tell the children that the disk has changed."""
    carried_out = VhdxWriter.carried_out

    def as_data(self: VhdxWriter, *arguments: Any, **more: Any) -> Any:
        return carried_out(self, *arguments, **{**more, "level": Level.DATA})

    patch.setattr(VhdxWriter, "carried_out", as_data)


Break = Callable[[pytest.MonkeyPatch], None]
MUTANTS: dict[str, tuple[Break, Workload, int]] = {
    broken.__name__: (broken, workload, seed)
    for broken, workload, seed in (
        (ignores_barriers, compact, 0),
        (moves_onto_space_in_use, compact, 0),
        (cuts_before_it_says_so, compact, 0),
        (holds_no_gates, compact_beside, 1),
        (forgets_what_the_log_knows, compact_and_reuse, 17),
        (takes_a_new_identity, compact, 0),
    )
}
"""Each with a run in which it matters."""


@pytest.mark.parametrize("name", MUTANTS)
def test_a_compaction_that_breaks_a_rule_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    broken, workload, seed = MUTANTS[name]

    async def run() -> None:
        session = await explored(tmp_path, seed, workload, EFFORT)
        if broken is takes_a_new_identity:
            await assert_identity_stays(session)

    asyncio.run(run())
    broken(monkeypatch)
    with pytest.raises(AssertionError):
        asyncio.run(run())
