"""Work within a time: the first that ends wins, and nothing is left running."""

import asyncio

import pytest

from tests.support.nbd import VirtualClock
from vblk.runtime.time_limit import within


def test_work_that_ends_in_time_returns_its_result() -> None:
    async def scenario() -> None:
        async def work() -> int:
            await asyncio.sleep(0)
            return 7

        assert await within(VirtualClock(), 60, work()) == 7
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


def test_work_that_takes_too_long_is_cancelled_and_has_ended() -> None:
    async def scenario() -> None:
        clock, ended = VirtualClock(), asyncio.Event()

        async def work() -> None:
            try:
                clock.advance(60)
                await asyncio.Event().wait()
            finally:
                ended.set()

        waiting = asyncio.create_task(within(clock, 60, work()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        clock.advance(60)
        with pytest.raises(TimeoutError):
            await waiting
        assert ended.is_set()

    asyncio.run(scenario())


def test_what_the_work_raises_is_raised() -> None:
    async def work() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        asyncio.run(within(VirtualClock(), 60, work()))
