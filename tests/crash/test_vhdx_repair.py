"""A crash while an image is repaired leaves one that reads as before, and whose repair can be made again."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.crash import COUNT, NIGHTLY, SEEDS
from tests.support.damaged import DAMAGES, Damage, content_of, look, repair
from vblk.drivers import vhdx_repair
from vblk.drivers.vhdx_repair import repair_image
from vblk.drivers.vhdx_session import Level, Session
from vblk.errors import BlockError
from vblk.formats.edits import Batch
from vblk.testing import Content, Effort, Explorer, Recorder

FEW = ("H4", "H12-and-blocks", "L29-and-header", "L2", "T1", "M26", "B6", "B9", "B17-and-B5", "many")
NAMES = tuple(DAMAGES) if NIGHTLY else FEW
EFFORT = Effort() if NIGHTLY else Effort(bound=32, samples=6, corners=12)


@pytest.mark.parametrize("name", NAMES)
def test_no_crash_while_repairing_loses_anything(name: str) -> None:
    case = DAMAGES[name]

    for seed in SEEDS:
        asyncio.run(explore(case, seed))


async def explore(case: Damage, seed: int) -> None:
    """Repair a file, and judge every state that a crash may leave on the way."""
    content = content_of(case.small)
    before = await look(content)
    recorder = Recorder(seed=seed)
    leaf = recorder.leaf("image", content)
    await repair_image(leaf, "damaged.vhdx")
    final = await look(leaf.content)
    explorer = Explorer(recorder, EFFORT, seed)
    for state in explorer.states([recorder.now]):
        await judge(state.files["image"], before, final, case.left)
    COUNT.add(explorer.tally)


async def judge(
    content: Content, before: dict[int, bytes | str], final: dict[int, bytes | str], left: tuple[str, ...]
) -> None:
    """See that what was sound is there, that the rest is as before or mended, and mend it."""
    read = await look(content)
    for offset, old in before.items():
        assert read[offset] in (old, final[offset])
    repaired, after = await repair(content)
    assert set(repaired.after.counts) == set(left)
    assert await look(after) == final


def loses_copies(patch: pytest.MonkeyPatch) -> None:
    """Let a block be mapped to its copy before that is durable."""
    entry = vhdx_repair._Changes.entry

    async def early(self: Any, index: int, value: int, level: Level, *, barrier: bool = False) -> None:
        await entry(self, index, value, level)

    patch.setattr(vhdx_repair._Changes, "entry", early)


def forgets_the_log(patch: pytest.MonkeyPatch) -> None:
    """Write tables to their places while no log has them."""

    async def park(self: Any) -> None:
        self._journal.park(self._lengths())
        self._journal.settle()

    async def log(self: Any, batch: Batch) -> None:
        pass

    patch.setattr(Session, "_park", park)
    patch.setattr(Session, "_log", log)


@pytest.mark.parametrize(("broken", "name"), [(loses_copies, "B9"), (forgets_the_log, "many")])
def test_a_repair_that_breaks_a_rule_is_caught(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[[pytest.MonkeyPatch], None], name: str
) -> None:
    broken(monkeypatch)
    for seed in range(4):
        try:
            asyncio.run(explore(DAMAGES[name], seed))
        except (AssertionError, BlockError):
            return
    pytest.fail("nobody noticed")
