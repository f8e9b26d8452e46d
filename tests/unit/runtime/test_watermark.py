"""The watermark rises, wakes who waited for as much, and forgets who left."""

import asyncio

import pytest

from vblk.runtime.watermark import Watermark


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_what_is_reached_already_is_not_waited_for() -> None:
    async def scenario() -> None:
        mark = Watermark(5)
        await mark.reached(5)
        await mark.reached(1)

    asyncio.run(scenario())


def test_exactly_those_who_waited_for_as_much_wake() -> None:
    async def scenario() -> None:
        mark = Watermark()
        waiters = {value: asyncio.create_task(mark.reached(value)) for value in (7, 3, 5, 3)}
        await turns()
        mark.advance(5)
        await turns()
        assert {value for value, task in waiters.items() if task.done()} == {3, 5}
        mark.advance(7)
        await asyncio.gather(*waiters.values())

    asyncio.run(scenario())


def test_the_mark_never_falls() -> None:
    mark = Watermark()
    mark.advance(9)
    mark.advance(4)
    assert mark.value == 9


def test_a_failure_reaches_those_above_the_mark_only() -> None:
    async def scenario() -> None:
        mark = Watermark(2)
        waiter = asyncio.create_task(mark.reached(3))
        await turns()
        mark.fail(OSError("gone"))
        mark.fail(OSError("again"))
        with pytest.raises(OSError, match="gone"):
            await waiter
        with pytest.raises(OSError, match="gone"):
            await mark.reached(4)
        await mark.reached(2)

    asyncio.run(scenario())


def test_cancelled_waiters_leave_nothing_behind() -> None:
    async def scenario() -> None:
        mark = Watermark()
        tasks = [asyncio.create_task(mark.reached(value)) for value in range(1, 50)]
        await turns()
        for task in tasks[::2]:
            task.cancel()
        await turns()
        assert len(mark._waiters) == len(tasks) // 2
        mark.advance(100)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert mark._waiters == []

    asyncio.run(scenario())


def test_a_waiter_that_is_woken_and_cancelled_at_once_is_cancelled() -> None:
    async def scenario() -> None:
        mark = Watermark()
        task = asyncio.create_task(mark.reached(1))
        await turns()
        mark.advance(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
