"""A VHDX writer that breaks one rule of order is caught: so the crash tests are worth what they say."""

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.crash import Session as Run
from tests.support.crash import explore
from tests.support.crash_workloads import MAKE, WORKLOADS, reuse_bitmaps
from vblk.codec.guid import ZERO_GUID
from vblk.drivers.vhdx_session import Level, Session
from vblk.drivers.vhdx_writer import VhdxWriter
from vblk.formats.edits import Batch, EditedPages, Range
from vblk.formats.space import Place
from vblk.formats.vhdx import writing
from vblk.formats.vhdx.journal import Journal, Lengths
from vblk.formats.vhdx.plan import Plan
from vblk.formats.vhdx.planner import Planner
from vblk.formats.vhdx.space import Space
from vblk.formats.vhdx.writing import BlockWriter
from vblk.testing import Effort
from vblk.units import MIB, align_up

EFFORT = Effort(bound=16, samples=4, corners=6, instants=60)
EXPLORED = 4
"""Runs of which the crash states are explored too."""
RUNS = 40
"""Runs in all: what shows without a crash needs luck, and costs little to look for."""
Break = Callable[[pytest.MonkeyPatch], None]


def do_nothing(*_: object) -> None:
    """Leave out what should be done."""


def ignores_barriers(patch: pytest.MonkeyPatch) -> None:
    """Log a mapping before the data behind it is durable."""
    freeze = EditedPages.freeze

    def without(self: EditedPages) -> Batch:
        return replace(freeze(self), barrier=False)

    patch.setattr(EditedPages, "freeze", without)


def frees_space_early(patch: pytest.MonkeyPatch) -> None:
    """Let others have a block's space before the block's loss of it is durable."""
    commit = BlockWriter.commit

    def at_once(self: BlockWriter, plan: Plan) -> None:
        released, plan.released = plan.released, []
        commit(self, plan)
        for file_offset, length in released:
            self.space.free(file_offset, length)

    patch.setattr(BlockWriter, "commit", at_once)


def takes_used_space_for_new(patch: pytest.MonkeyPatch) -> None:
    """Take it that free space holds zeros."""
    try_take = Space.try_take

    def as_fresh(self: Space, length: int) -> Place | None:
        place = try_take(self, length)
        return None if place is None else replace(place, fresh=True)

    patch.setattr(Space, "try_take", as_fresh)


def leaves_the_rest_of_a_block(patch: pytest.MonkeyPatch) -> None:
    """Write into used space without zeroing what the write leaves out."""
    patch.setattr(Planner, "_fill", do_nothing)


def keeps_old_bits(patch: pytest.MonkeyPatch) -> None:
    """Let a block become partially present with the bits that it had before."""
    patch.setattr(writing, "clear_bits", do_nothing)


def publishes_an_empty_log(patch: pytest.MonkeyPatch) -> None:
    """Name a log in the headers that has no entry."""

    async def pretend(self: Any) -> None:
        self._journal.park(self._lengths())
        self._journal.settle()

    patch.setattr(Session, "_park", pretend)


def parks_before_pages_are_home(patch: pytest.MonkeyPatch) -> None:
    """Say that a pass is in place before it is durable there."""

    async def early(self: Any) -> None:
        await self._park()
        await self._bring_home()

    patch.setattr(Session, "_finish_pass", early)


def clears_the_log_early(patch: pytest.MonkeyPatch) -> None:
    """End a session before its pages are in their places."""

    async def end(self: Any) -> None:
        await self.flush()
        if self.level is not Level.NONE:
            await self._publish(self.header._replace(log_guid=ZERO_GUID))
            await self._bring_home()

    patch.setattr(Session, "end", end)


def promises_a_length_early(patch: pytest.MonkeyPatch) -> None:
    """Log that the file is durably as long as it was just made."""

    def lengths(self: Any) -> Lengths:
        size = align_up(self.file.size, MIB)
        return Lengths(size, size)

    patch.setattr(Session, "_lengths", lengths)


def cuts_the_file_early(patch: pytest.MonkeyPatch) -> None:
    """Cut the file while the log says how long it must be."""

    async def close(self: Any) -> None:
        await self._session.flush()
        await self._cut()
        await self._session.end()

    patch.setattr(VhdxWriter, "close", close)


def forgets_readers(patch: pytest.MonkeyPatch) -> None:
    """Use space anew that somebody is reading."""

    @contextmanager
    def nothing(_: VhdxWriter) -> Generator[None]:
        yield

    patch.setattr(VhdxWriter, "reading", nothing)


def reuses_what_the_log_knows(patch: pytest.MonkeyPatch) -> None:
    """Let blocks have the space of tables of which the log still has pages."""

    def never(_: Session, __: Range) -> bool:
        return False

    patch.setattr(Session, "_may_be_replayed", never)


def numbers_entries_anew(patch: pytest.MonkeyPatch) -> None:
    """Let the parked entry and the next pass be one sequence, whose tail is already overwritten."""
    compose = Journal.compose

    def tailed(self: Any, pages: Any, lengths: Any) -> Any:
        if not self.pass_is_empty:
            self._sequence += 1  # a gap: the entries of a pass are no run any more
        return compose(self, pages, lengths)

    patch.setattr(Journal, "compose", tailed)


ALL = {**WORKLOADS, "reuse_bitmaps": reuse_bitmaps}
CASES: dict[str, tuple[Break, str, str]] = {
    f"{broken.__name__}-{make}": (broken, make, workload)
    for broken, make, workload in (
        (ignores_barriers, "littered", "reuse"),
        (ignores_barriers, "child", "allocate"),
        (frees_space_early, "dynamic", "reuse"),
        (takes_used_space_for_new, "littered", "allocate"),
        (leaves_the_rest_of_a_block, "littered", "allocate"),
        (keeps_old_bits, "child", "reuse"),
        (publishes_an_empty_log, "dynamic", "allocate"),
        (parks_before_pages_are_home, "dynamic", "reuse"),
        (clears_the_log_early, "dynamic", "allocate"),
        (promises_a_length_early, "dynamic", "allocate"),
        (cuts_the_file_early, "dynamic", "reuse"),
        (forgets_readers, "dynamic", "read_beside"),
        (numbers_entries_anew, "dynamic", "reuse"),
        (reuses_what_the_log_knows, "child", "reuse_bitmaps"),
    )
}


@pytest.mark.parametrize("case", CASES)
def test_a_writer_that_breaks_a_rule_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    broken, make, workload = CASES[case]

    async def run(seed: int) -> None:
        image = await MAKE[make](tmp_path)
        session = Run(image.files, image.chain, image.disk, seed=seed)
        await session.run(ALL[workload])
        if seed < EXPLORED:
            await explore(session, tmp_path, effort=EFFORT, seed=seed)

    monkeypatch.setattr("vblk.formats.vhdx.journal.PASS_SIZE_MAX", 6 * 4096)
    broken(monkeypatch)
    for seed in range(RUNS):
        try:
            asyncio.run(run(seed))
        except AssertionError:
            return
    pytest.fail("nobody noticed")
