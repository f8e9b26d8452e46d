"""Random chains, merged, committed and rebased: every disk reads as its model, and every image is sound."""

import asyncio
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.crash import Seen
from tests.support.crash_chain import RecordedImages, files_of, images_on, see_chain, seen_of
from tests.support.vhdx.chain import Chain
from vblk.graph.mapper import Mapper
from vblk.jobs.commit import Commit
from vblk.jobs.merge import Merge
from vblk.jobs.rebase import Rebase
from vblk.testing import Content

KIB, MIB = 1 << 10, 1 << 20
BLOCKS = (MIB, 2 * MIB, 4 * MIB)


@dataclass(frozen=True)
class Level:
    """One level: its size, blocks, writes in 4 KiB units, and states of whole blocks."""

    size: int
    block_size: int
    writes: tuple[tuple[int, int], ...]
    states: tuple[tuple[int, int], ...]


LEVELS = st.builds(
    Level,
    size=st.integers(1, 9 * 64).map(lambda units: units * 16 * KIB),
    block_size=st.sampled_from(BLOCKS),
    writes=st.lists(st.tuples(st.integers(0, 9 * 256 - 1), st.sampled_from((1, 2, 16, 256))), max_size=4).map(
        tuple
    ),
    states=st.lists(st.tuples(st.integers(0, 8), st.sampled_from((1, 2, 3))), max_size=3).map(tuple),
)


def built(levels: list[Level], sector_size: int) -> tuple[dict[str, Content], list[Seen]]:
    """Build a chain, the base first; return its files and what each level shows."""
    with tempfile.TemporaryDirectory() as folder:
        chain = Chain(Path(folder))
        for number, level in enumerate(levels):
            writes = [
                (at * 4 * KIB, min(count * 4 * KIB, level.size - at * 4 * KIB))
                for at, count in level.writes
                if at * 4 * KIB < level.size
            ]
            own: dict[str, Any] = {
                "size": level.size,
                "block_size": level.block_size,
                "sector_size": sector_size,
            }
            if not number:
                chain.base(writes, **own)
                continue
            blocks = -(-level.size // level.block_size)
            states = {block: state for block, state in level.states if block < blocks}
            chain.child(writes, states=states, **own)
        files = {level.path.stem: Content.load(level.path) for level in chain.levels}
        return files, [seen_of(level.model) for level in chain.levels]


def names_of(files: dict[str, Content]) -> list[str]:
    return ["base", *(f"child{number}" for number in range(1, len(files)))]


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def on_chains(least: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a test be given random chains, and where in them something is to be done."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        given_chains = given(
            levels=st.lists(LEVELS, min_size=least, max_size=5),
            sector_size=st.sampled_from((512, 4096)),
            lot=st.integers(0, 1 << 20),
        )
        limits = settings(
            max_examples=20,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        return limits(given_chains(test))

    return decorate


@on_chains(2)
def test_a_merge_into_any_ancestor_leaves_the_disk(levels: list[Level], sector_size: int, lot: int) -> None:
    files, disks = built(levels, sector_size)
    names = names_of(files)
    top = 1 + lot % (len(names) - 1)
    into = lot // 7 % top

    async def main() -> None:
        images = images_on(files)
        merge = Merge(images, names[top], names[into])
        await merge.run(await merge.plan())
        assert images.present == set(names[: into + 1] + names[top + 1 :])
        after = files_of(images)
        assert await see_chain(images_on(after), names[into], clean=True) == disks[top]
        for above in range(top + 1, len(names)):
            assert await see_chain(images_on(after), names[above], clean=True) == disks[above]

    run(main())


@on_chains(2)
def test_a_commit_leaves_the_disk_and_empties_the_image(
    levels: list[Level], sector_size: int, lot: int
) -> None:
    files, disks = built(levels, sector_size)
    names = names_of(files)
    top = len(names) - 1

    async def main() -> None:
        images = images_on(files)
        base = None if lot % 2 else names[lot // 2 % top]
        commit = Commit(images, names[top], base, drop=lot % 3 == 0)
        await commit.run(await commit.members())
        after = files_of(images)
        assert await see_chain(images_on(after), names[top], clean=True) == disks[top]
        target = names[top - 1] if base is None else base
        below = await see_chain(images_on(after), target, clean=True)
        assert below.size >= disks[top].size
        assert {at: page for at, page in below.pages.items() if at * 4096 < disks[top].size} == disks[
            top
        ].pages
        if base is None and lot % 3:
            async with images_on(after).opened(names[top]) as handle:
                assert isinstance(handle.node, Mapper)
                assert await handle.node.changes(0, handle.size) == []

    run(main())


@on_chains(2)
def test_a_rebase_onto_anything_leaves_every_disk(levels: list[Level], sector_size: int, lot: int) -> None:
    files, disks = built(levels, sector_size)
    names = names_of(files)
    child = 1 + lot % (len(names) - 1)
    parent = None if lot % 3 == 0 else names[lot // 5 % child]

    async def main() -> None:
        images = images_on(files)
        await Rebase(images, names[child], parent).run()
        after = files_of(images)
        chain = await RecordedImages(images.recorder).chain(names[child])
        assert chain[1:2] == ([] if parent is None else [parent])
        for number, disk in enumerate(disks):
            assert await see_chain(images_on(after), names[number], clean=True) == disk

    run(main())
