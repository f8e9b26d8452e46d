"""The crash kit passes a store that keeps the rules, and catches each way of breaking one."""

import asyncio
from random import Random

import pytest

from tests.support.toy_journal import PAGE, PER_PAGE, Defect, ToyStore, Unopenable
from vblk.testing import Content, Effort, Explorer, Recorder, Violation, Witness


async def workload(witness: Witness, seed: int) -> None:
    """Write, overwrite, give back and flush blocks on both pages of the map."""
    lot = Random(seed)
    blocks = [0, 1, 2, PER_PAGE, PER_PAGE + 1]
    for _ in range(14):
        block = lot.choice(blocks)
        if lot.random() < 0.2:
            await witness.write_zeroes(block * PAGE, PAGE)
        else:
            await witness.write(block * PAGE, PAGE, fua=lot.random() < 0.1)
        if lot.random() < 0.35:
            await witness.flush()
    await witness.flush()


async def explore(defect: Defect, seed: int, *, bound: int = 512, samples: int = 12) -> Explorer:
    """Record a run of a store and open everything that a crash may leave of it."""
    recorder = Recorder(seed=seed)
    store = ToyStore(recorder.leaf("toy"), defect)
    witness = Witness(recorder, store, Content(store.size))
    await workload(witness, seed)
    explorer = Explorer(recorder, Effort(bound, samples), seed)
    for state in explorer.states(witness.expectation.marks()):
        file = Recorder(recording=False).leaf("toy", state.files["toy"])
        opened = await ToyStore.open(file)
        allowed = witness.expectation.allowed(state.at)
        witness.expectation.judge(allowed, opened.size, await opened.pages())
    return explorer


@pytest.mark.parametrize("seed", range(4))
def test_a_store_that_keeps_the_rules_loses_nothing(seed: int) -> None:
    tally = asyncio.run(explore(Defect.NONE, seed)).tally
    assert tally.states > 400
    assert tally.exhaustive > 10


@pytest.mark.parametrize("defect", list(Defect)[1:])
def test_a_store_that_breaks_a_rule_is_caught(defect: Defect) -> None:
    def caught(seed: int) -> bool:
        try:
            asyncio.run(explore(defect, seed))
        except (Violation, Unopenable):
            return True
        return False

    assert any(caught(seed) for seed in range(6))
