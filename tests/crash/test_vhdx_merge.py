"""A merge crashes anywhere: the chain opens and reads the same, and the merge goes on to the right end."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.crash import COUNT, NIGHTLY, SEEDS, Seen, history
from tests.support.crash_chain import RecordedImages, crash_states, files_of, images_on, see_chain, seen_of
from tests.support.vhdx.chain import Chain
from vblk.codec.guid import Guid, new_guid
from vblk.drivers.vhdx_links import keep_identity, set_locator
from vblk.errors import BlockError
from vblk.formats.vhdx.linkage import announced
from vblk.jobs.chain import Descent, announce, vhdx_of
from vblk.jobs.merge import Merge, MergePlan
from vblk.testing import Content, Effort

KIB, MIB = 1 << 10, 1 << 20
EFFORT = Effort(bound=64, samples=12, corners=24) if NIGHTLY else Effort(1, 1, 1, instants=30)
AGAIN = Effort(bound=4, samples=1, corners=2, instants=12 if NIGHTLY else 4)
AGAIN_EVERY = 40


@dataclass(frozen=True)
class Case:
    """Files of a chain, and which image is merged into which."""

    files: dict[str, Content]
    top: str
    target: str
    disk: Seen
    lower: tuple[str, ...] = ()
    child: str | None = None
    child_disk: Seen | None = None


def chain_of(folder: Path, *, sector_size: int = 512) -> Chain:
    """Build four levels of mixed block sizes that hide, zero and pass on what is below them."""
    chain = Chain(folder)
    chain.base([(0, 2 * MIB), (5 * MIB, 64 * KIB)], size=8 * MIB, sector_size=sector_size)
    chain.child([(64 * KIB, 8 * KIB), (3 * MIB, 12 * KIB)], states={6: 2}, block_size=MIB)
    chain.child([(MIB - 8 * KIB, 16 * KIB), (6 * MIB, 4 * KIB)], states={2: 2}, block_size=2 * MIB)
    chain.child([(4 * KIB, 4 * KIB), (7 * MIB, 64 * KIB)], states={1: 3}, block_size=MIB)
    return chain


def case_of(chain: Chain, top: int, target: int, *, child: bool = False) -> Case:
    """Return the merge of one level into another; with `child` the level above the top is there, too."""
    last = top + 1 if child else top
    levels = chain.levels[: last + 1]
    names = [level.path.stem for level in levels]
    return Case(
        {level.path.stem: Content.load(level.path) for level in levels},
        names[top],
        names[target],
        seen_of(levels[top].model),
        tuple(reversed(names[:target])),
        names[last] if child else None,
        seen_of(levels[last].model) if child else None,
    )


def one_level(folder: Path) -> Case:
    return case_of(chain_of(folder), 1, 0)


def two_levels(folder: Path) -> Case:
    return case_of(chain_of(folder), 2, 0)


def into_the_middle(folder: Path) -> Case:
    return case_of(chain_of(folder, sector_size=4096), 3, 1)


def a_middle_range(folder: Path) -> Case:
    return case_of(chain_of(folder), 2, 0, child=True)


def grown(folder: Path) -> Case:
    """Merge a larger child over a smaller one into the base, which loses what the smaller one hid."""
    chain = Chain(folder)
    chain.base([(0, 128 * KIB), (7 * MIB, 64 * KIB)], size=8 * MIB)
    chain.child([(MIB, 8 * KIB)], size=6 * MIB + 512 * KIB, block_size=MIB)
    chain.child([(10 * MIB, 8 * KIB)], size=11 * MIB, block_size=2 * MIB)
    return case_of(chain, 2, 0)


def shrunk(folder: Path) -> Case:
    chain = Chain(folder)
    chain.base([(0, 128 * KIB), (7 * MIB, 64 * KIB)], size=8 * MIB)
    chain.child([(7 * MIB + 4 * KIB, 8 * KIB)], size=8 * MIB)
    chain.child([(MIB, 8 * KIB)], size=5 * MIB + 64 * KIB)
    return case_of(chain, 2, 0)


CASES: dict[str, Callable[[Path], Case]] = {
    each.__name__: each for each in (one_level, two_levels, into_the_middle, a_middle_range, grown, shrunk)
}


async def merge(images: RecordedImages, case: Case) -> None:
    """Merge, as the command does."""
    job = Merge(images, case.top, case.target)
    await job.run(await job.plan())
    assert job.left == []


async def judge_end(images: RecordedImages, case: Case) -> None:
    """Assert that a merge has come to its end."""
    assert images.present == {case.target, *case.lower, *({case.child} if case.child else ())}
    assert await see_chain(images, case.target, clean=True) == case.disk
    assert await images.chain(case.target) == [case.target, *case.lower]
    if case.child is not None:
        assert await images.chain(case.child) == [case.child, case.target, *case.lower]
        assert await see_chain(images, case.child, clean=True) == case.child_disk


async def judge(files: dict[str, Content], case: Case, number: int) -> None:
    """Assert that a crash state reads right, and that the merge goes on from it to its end."""
    top = case.top if case.top in files else case.target
    assert await see_chain(images_on(files), top) == case.disk
    if case.child is not None:
        assert await see_chain(images_on(files), case.child) == case.child_disk
    again = number % AGAIN_EVERY == 0
    images = images_on(files, recording=again)
    if case.top in files:
        await merge(images, case)
    await judge_end(images_on(files_of(images)), case)
    if again:
        for _, left in crash_states(images, AGAIN, number):
            COUNT.crashed_again += 1
            await judge(left, case, 1)


async def explore(case: Case, seed: int, effort: Effort = EFFORT) -> int:
    """Record a merge and judge what crashes leave of it; return how many states there were."""
    images = images_on(case.files, recording=True, seed=seed)
    await merge(images, case)
    await judge_end(images_on(files_of(images)), case)
    number = 0
    for number, (state, files) in enumerate(crash_states(images, effort, seed), 1):
        COUNT.judged += 1
        try:
            await judge(files, case, number)
        except (AssertionError, BlockError) as error:
            raise AssertionError(
                f"{type(error).__name__}: {error}\nafter a crash at {state.at} ({state.choice}), "
                f"seed {seed}, with the files {sorted(files)}\n" + history(images.recorder, state.at)
            ) from error
    return number


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CASES)
def test_no_crash_while_merging_loses_anything(tmp_path: Path, name: str, seed: int) -> None:
    assert asyncio.run(explore(CASES[name](tmp_path), seed)) > 20


def announces_nothing(patch: pytest.MonkeyPatch) -> None:
    """Give the target another identity that its child has never heard of."""

    async def silent(*_: object) -> Guid:
        return new_guid()

    patch.setattr("vblk.jobs.merge.announce", silent)


def changes_the_target_first(patch: pytest.MonkeyPatch) -> None:
    """Let the child accept the target's new identity when the target has it already."""
    coming = new_guid()

    async def later(*_: object) -> Guid:
        return coming

    async def run(self: Descent) -> None:
        await descend(self)
        locator = self.layers[-1].locator
        assert locator is not None
        assert self.target.identity is not None
        async with self.images.opened(self.layers[-1].name, read_only=False) as handle:
            node = vhdx_of(handle)
            keep_identity(node)
            await set_locator(node, announced(locator, self.target.identity, coming))

    descend = Descent.run
    patch.setattr("vblk.jobs.merge.announce", later)
    patch.setattr(Descent, "run", run)


def leads_the_top_early(patch: pytest.MonkeyPatch) -> None:
    """Say that all data is in the target before it is."""

    async def run(self: Merge, plan: MergePlan) -> None:
        layers = (plan.top, *plan.between)
        coming = await announce(self._images, layers[-1], plan.target)  # pyright: ignore[reportPrivateUsage]
        await self._lead_top(plan, coming)  # pyright: ignore[reportPrivateUsage]
        descent = Descent(self._images, layers, plan.target, coming, exact=True)  # pyright: ignore[reportPrivateUsage]
        await descent.run()

    patch.setattr(Merge, "_descend", run)


def keeps_the_targets_identity(patch: pytest.MonkeyPatch) -> None:
    """Delete the top without letting the target take its place for the top's children."""

    async def nothing(*_: object) -> None:
        pass

    patch.setattr(Merge, "_let_target_replace_top", nothing)


def deletes_the_top_first(patch: pytest.MonkeyPatch) -> None:
    """Delete the image that bears the note before those that it names."""
    remove = RecordedImages.remove

    async def first(self: RecordedImages, names: Sequence[str]) -> None:
        top = max(self.present)
        await remove(self, [top])
        await remove(self, [name for name in names if name != top])

    patch.setattr(RecordedImages, "remove", first)


def leads_children_after_the_top_is_gone(patch: pytest.MonkeyPatch) -> None:
    """Delete what a child still names."""
    delete, lead = Merge._delete, Merge._lead  # pyright: ignore[reportPrivateUsage]

    async def nothing(*_: object) -> None:
        pass

    async def both(self: Merge, plan: MergePlan) -> None:
        await delete(self, plan)
        for child in plan.children:
            await lead(self, child, plan)

    patch.setattr(Merge, "_lead", nothing)
    patch.setattr(Merge, "_delete", both)


def copies_the_top_alone(patch: pytest.MonkeyPatch) -> None:
    """Leave out what the images between hold."""
    run = Descent.run

    async def alone(self: Descent) -> None:
        await run(self._replace(layers=self.layers[:1]))

    patch.setattr(Descent, "run", alone)


def forgets_who_is_superfluous(patch: pytest.MonkeyPatch) -> None:
    """Note nothing for those who come after a crash."""

    def nothing(_: object) -> None:
        pass

    patch.setattr("vblk.jobs.merge.merge_note", nothing)


BREAKS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    broken.__name__: (broken, name)
    for broken, name in (
        (announces_nothing, "one_level"),
        (changes_the_target_first, "two_levels"),
        (leads_the_top_early, "two_levels"),
        (keeps_the_targets_identity, "a_middle_range"),
        (deletes_the_top_first, "two_levels"),
        (leads_children_after_the_top_is_gone, "a_middle_range"),
        (copies_the_top_alone, "two_levels"),
        (forgets_who_is_superfluous, "two_levels"),
    )
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_merge_that_breaks_a_rule_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    broken, case = BREAKS[name]
    made = CASES[case](tmp_path)
    broken(monkeypatch)
    with pytest.raises((AssertionError, BlockError)):
        asyncio.run(explore(made, 0))
