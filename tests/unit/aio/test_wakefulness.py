"""Wakefulness: a loop goes round behind an answer whose client asks again at once, and else sleeps."""

import asyncio
from collections.abc import Awaitable, Callable

from tests.support.turns import turns
from vblk.aio.wakefulness import PATIENCE, Wakefulness


class Rhythm:
    """A client on a clock of the test's own, which counts how often it is looked at."""

    def __init__(self) -> None:
        self._time = 0
        self._looked = 0
        self.wakefulness = Wakefulness(self._now)

    def _now(self) -> int:
        self._looked += 1
        return self._time

    def wait(self, nanoseconds: int) -> None:
        self._time += nanoseconds

    def ask(self, *, after: int) -> None:
        self.wait(after)
        self.wakefulness.asked()
        self.wakefulness.answered()

    async def keeps_awake(self) -> bool:
        """Tell whether the loop goes round though nobody asks for anything."""
        await turns()
        looked = self._looked
        await turns()
        return self._looked > looked


def with_rhythm(scenario: Callable[[Rhythm], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario(Rhythm())

    asyncio.run(main())


def test_a_client_that_asks_again_at_once_keeps_the_loop_awake_and_one_that_does_not_lets_it_sleep() -> None:
    async def scenario(rhythm: Rhythm) -> None:
        rhythm.ask(after=0)
        assert not await rhythm.keeps_awake(), "nobody knows the client yet"
        for _ in range(3):
            rhythm.ask(after=PATIENCE - 1)
            assert await rhythm.keeps_awake()
        rhythm.ask(after=PATIENCE)
        assert not await rhythm.keeps_awake()

    with_rhythm(scenario)


def test_patience_ends() -> None:
    async def scenario(rhythm: Rhythm) -> None:
        for _ in range(2):
            rhythm.ask(after=1)
        rhythm.wait(PATIENCE - 1)
        assert await rhythm.keeps_awake()
        rhythm.wait(1)
        assert not await rhythm.keeps_awake()

    with_rhythm(scenario)


def test_a_client_that_goes_is_not_waited_for() -> None:
    async def scenario(rhythm: Rhythm) -> None:
        for _ in range(2):
            rhythm.ask(after=1)
        assert await rhythm.keeps_awake()
        rhythm.wakefulness.sleep()
        assert not await rhythm.keeps_awake()

    with_rhythm(scenario)
