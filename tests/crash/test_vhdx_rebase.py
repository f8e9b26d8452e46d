"""A commit or a rebase crashes anywhere: the disk reads the same, and it is done when it is run again."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.crash.test_vhdx_merge import chain_of
from tests.support.crash import COUNT, NIGHTLY, SEEDS, Seen, history
from tests.support.crash_chain import RecordedImages, crash_states, files_of, images_on, see_chain, seen_of
from vblk.codec.guid import Guid, new_guid
from vblk.drivers import vhdx_links
from vblk.drivers.vhdx import VhdxNode
from vblk.drivers.vhdx_links import keep_identity, make_empty, set_locator
from vblk.errors import BlockError
from vblk.formats.vhdx.linkage import reparented, settled
from vblk.graph.handle import Handle
from vblk.jobs.chain import Descent, vhdx_of
from vblk.jobs.commit import Commit
from vblk.jobs.rebase import Rebase
from vblk.testing import Content, Effort

EFFORT = Effort(bound=64, samples=12, corners=24) if NIGHTLY else Effort(1, 1, 1, instants=25)


@dataclass(frozen=True)
class Case:
    """Which level of the chain something is done to, and what shows in the end: level by level."""

    job: Callable[[RecordedImages], Awaitable[None]]
    top: int
    parents: tuple[str, ...]
    alive: tuple[int, ...]


async def commit(images: RecordedImages) -> None:
    job = Commit(images, "child2")
    await job.run(await job.members())


async def commit_into_base(images: RecordedImages) -> None:
    job = Commit(images, "child2", "base")
    await job.run(await job.members())


async def rebase(images: RecordedImages) -> None:
    await Rebase(images, "child2", "base").run()


async def flatten(images: RecordedImages) -> None:
    await Rebase(images, "child2", None).run()


async def reconnect(images: RecordedImages) -> None:
    await Rebase(images, "child2", "child1", unsafe=True).run()


CASES = {
    "commit": Case(commit, 2, ("child1", "base"), (0, 2, 3)),
    "commit_into_base": Case(commit_into_base, 2, ("child1", "base"), (2, 3)),
    "rebase": Case(rebase, 2, ("base",), (0, 1, 2, 3)),
    "flatten": Case(flatten, 2, (), (0, 1, 2, 3)),
    "reconnect": Case(reconnect, 2, ("child1", "base"), (0, 1, 2, 3)),
}
NAMES = ("base", "child1", "child2", "child3")


async def judge(files: dict[str, Content], disks: list[Seen], case: Case, *, clean: bool = False) -> None:
    """Assert that every image that must still be right is."""
    for level in case.alive:
        assert await see_chain(images_on(files), NAMES[level], clean=clean) == disks[level], NAMES[level]


async def explore(folder: Path, name: str, seed: int) -> int:
    """Record a job, and judge what crashes leave of it; return how many states there were."""
    chain = chain_of(folder, sector_size=4096 if name == "rebase" else 512)
    disks = [seen_of(level.model) for level in chain.levels]
    case = CASES[name]
    images = images_on(
        {level.path.stem: Content.load(level.path) for level in chain.levels}, recording=True, seed=seed
    )
    await case.job(images)
    await judge(files_of(images), disks, case, clean=True)
    assert await images.chain(NAMES[case.top]) == [NAMES[case.top], *case.parents]
    number = 0
    for state, files in crash_states(images, EFFORT, seed):
        COUNT.judged += 1
        number += 1
        try:
            await judge(files, disks, case)
            again = images_on(files)
            if name != "flatten" or (await again.load(NAMES[case.top])).has_parent:
                await case.job(again)
                after = files_of(again)
                assert await images_on(after).chain(NAMES[case.top]) == [NAMES[case.top], *case.parents]
                await judge(after, disks, case, clean=True)
        except (AssertionError, BlockError) as error:
            raise AssertionError(
                f"{type(error).__name__}: {error}\nafter a crash at {state.at} ({state.choice}), "
                f"seed {seed}\n" + history(images.recorder, state.at)
            ) from error
    return number


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CASES)
def test_no_crash_while_parents_change_loses_anything(tmp_path: Path, name: str, seed: int) -> None:
    assert asyncio.run(explore(tmp_path, name, seed)) > 10


def empties_before_the_parent_has_it(patch: pytest.MonkeyPatch) -> None:
    """Empty the image before what it holds is in the parent."""
    run = Descent.run

    async def early(self: Descent) -> None:
        async with self.images.opened(self.layers[0].name, read_only=False) as handle:
            await make_empty(vhdx_of(handle))
        await run(self)

    patch.setattr(Descent, "run", early)


def gives_the_child_another_identity(patch: pytest.MonkeyPatch) -> None:
    """Change the identity of an image whose disk stays the same."""

    def changed(node: VhdxNode) -> Guid:
        identity = node.image.data_write_guid
        node.writer.become(new_guid())
        return identity

    patch.setattr("vblk.jobs.rebase.keep_identity", changed)


def changes_the_parent_before_the_data(patch: pytest.MonkeyPatch) -> None:
    """Name the new parent before what it does not show is in the image."""
    copy = Rebase._copy  # pyright: ignore[reportPrivateUsage]

    async def early(self: Rebase, child: Handle, old: Handle, new: Handle | None) -> None:
        assert new is not None
        pairs = reparented(vhdx_of(new).image.data_write_guid, ".\\base")
        await set_locator(vhdx_of(child), pairs)
        await copy(self, child, old, new)

    patch.setattr(Rebase, "_copy", early)


def parts_before_blocks_are_whole(patch: pytest.MonkeyPatch) -> None:
    """Leave sectors to a parent that is not there any more."""

    async def nothing(_: VhdxNode) -> None:
        pass

    patch.setattr(vhdx_links, "complete_blocks", nothing)


def settles_too_early(patch: pytest.MonkeyPatch) -> None:
    """Let the child accept nothing but an identity that its parent does not have yet."""
    run = Descent.run

    async def early(self: Descent) -> None:
        assert self.coming is not None
        async with self.images.opened(self.layers[-1].name, read_only=False) as handle:
            node = vhdx_of(handle)
            keep_identity(node)
            assert node.image.locator is not None
            await set_locator(node, settled(node.image.locator, self.coming))
        await run(self)

    patch.setattr(Descent, "run", early)


BREAKS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    broken.__name__: (broken, name)
    for broken, name in (
        (empties_before_the_parent_has_it, "commit"),
        (settles_too_early, "commit"),
        (gives_the_child_another_identity, "rebase"),
        (changes_the_parent_before_the_data, "rebase"),
        (parts_before_blocks_are_whole, "flatten"),
    )
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_job_that_breaks_a_rule_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    broken, case = BREAKS[name]
    broken(monkeypatch)
    with pytest.raises((AssertionError, BlockError)):
        asyncio.run(explore(tmp_path, case, 0))
