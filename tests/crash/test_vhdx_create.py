"""A crash while an image is made leaves no image, one that is refused as unfinished, or all of it."""

import asyncio

import pytest

from tests.support.crash import COUNT, NIGHTLY, Seen, fresh, images, open_chain, see
from vblk.drivers.vhdx_create import NewVhdxImage, create_image
from vblk.errors import ImageError
from vblk.formats.vhdx.create import NewVhdx
from vblk.graph.creation import FileOptions
from vblk.graph.edge import Permission
from vblk.graph.registry import Graph
from vblk.jobs.target import filled_image
from vblk.testing import CrashState, Effort, Explorer, Recorder

MIB = 1 << 20
SIZE = 8 * MIB
OTHER = NewVhdx(size=20 * MIB, block_size=2 * MIB, fixed=True)
IMAGES = {
    "dynamic": NewVhdx(size=SIZE, block_size=MIB),
    "absent": NewVhdx(size=SIZE, block_size=MIB, block_state_zero=False),
    "fixed": NewVhdx(size=SIZE, block_size=MIB, fixed=True),
    "4096": NewVhdx(size=SIZE, block_size=MIB, logical_sector_size=4096),
}


async def outcome(state: CrashState) -> int | None:
    """Return the size of the disk in a state, or None if it is refused; assert that it is all zeros."""
    async with Graph() as graph:
        try:
            await open_chain(graph, images(state.files), ["new"], read_only=True)
        except ImageError:
            return None
    seen = await see(images(state.files), ["new"], clean=True)
    assert seen == Seen(seen.size, {})
    return seen.size


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("over_another", [False, True], ids=["new-file", "over-another"])
def test_a_crash_while_creating(name: str, over_another: bool) -> None:
    async def main() -> None:
        recorder = Recorder(seed=1)
        leaf = recorder.leaf("new", await fresh(OTHER) if over_another else None)
        await create_image(leaf, IMAGES[name])
        explorer = Explorer(recorder, Effort(bound=4096, samples=400) if NIGHTLY else Effort())
        outcomes: set[int | None] = set()
        created: set[int | None] = set()
        for state in explorer.states([recorder.now]):
            found = await outcome(state)
            outcomes.add(found)
            if state.at == recorder.now:
                created.add(found)
        assert outcomes == {None, SIZE, OTHER.size} if over_another else {None, SIZE}
        assert created == {SIZE}
        COUNT.add(explorer.tally)

    asyncio.run(main())


@pytest.mark.parametrize("name", IMAGES)
def test_a_crash_while_an_image_is_filled_leaves_none_that_opens_but_the_whole_one(name: str) -> None:
    async def main() -> None:
        recorder = Recorder(seed=1)
        leaf = recorder.leaf("new")
        async with Graph() as graph:
            graph.add(leaf)
            graph.hold(leaf, "the test", Permission.NONE)
            async with filled_image(graph, leaf, NewVhdxImage(IMAGES[name], FileOptions())) as made:
                for block in (0, 1, 5):
                    await made.handle.write(block * MIB + 8192, b"%d" % block * 4096)
            finished = recorder.now
        whole = await see(images({"new": leaf.content}), ["new"], clean=True)
        assert sorted(whole.pages) == [2, 258, 1282]
        explorer = Explorer(
            recorder, Effort(bound=4096, samples=400) if NIGHTLY else Effort(bound=64, samples=8)
        )
        opened = refused = 0
        for state in explorer.states([*range(0, recorder.now, 1 if NIGHTLY else 3), finished, recorder.now]):
            try:
                assert await see(images(state.files), ["new"], clean=True) == whole
                opened += 1
            except ImageError:
                assert state.at < finished
                refused += 1
        assert opened
        assert refused
        COUNT.add(explorer.tally)

    asyncio.run(main())
