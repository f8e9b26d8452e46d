"""A crash while an image is made leaves no image, one that is refused as unfinished, or all of it."""

import asyncio

import pytest

from tests.support.crash import COUNT, NIGHTLY, Seen, fresh, images, open_chain, see
from vblk.drivers.vhdx_create import create_image
from vblk.errors import ImageError
from vblk.formats.vhdx.create import NewVhdx
from vblk.graph.registry import Graph
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
