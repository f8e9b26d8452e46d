"""Fan-out and work that is not cut in half: nothing is left running, errors arrive as themselves."""

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from tests.support.turns import turns
from vblk.runtime.fan_out import fan_out
from vblk.runtime.uninterrupted import to_the_end


def test_all_calls_run_at_most_so_many_at_once() -> None:
    running = most = done = 0

    async def call() -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await turns(3)
        running -= 1
        done += 1

    asyncio.run(fan_out((call() for _ in range(20)), 4))
    assert (most, done) == (4, 20)


def test_calls_are_made_only_when_it_is_their_turn() -> None:
    made = 0

    async def main() -> None:
        gate = asyncio.Event()

        async def call() -> None:
            await gate.wait()

        def calls() -> Iterator[Coroutine[Any, Any, None]]:
            nonlocal made
            for _ in range(100):
                made += 1
                yield call()

        task = asyncio.create_task(fan_out(calls(), 3))
        await turns(5)
        assert made == 3
        gate.set()
        await task
        assert made == 100

    asyncio.run(main())


def test_the_first_error_is_raised_as_itself_after_the_others_have_ended() -> None:
    ended: list[str] = []

    async def failing() -> None:
        await turns(2)
        raise KeyError("first") from ValueError("why")

    async def waiting() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await turns(3)
            ended.append("waiting")

    async def main() -> None:
        before = asyncio.all_tasks()
        with pytest.raises(KeyError) as caught:
            await fan_out((call() for call in (waiting, failing, waiting)), 3)
        assert isinstance(caught.value.__cause__, ValueError)
        assert ended == ["waiting", "waiting"]
        assert asyncio.all_tasks() == before

    asyncio.run(main())


def test_nothing_new_starts_after_an_error() -> None:
    started: list[int] = []

    async def call(number: int) -> None:
        started.append(number)
        await turns(1)
        if number == 2:
            raise KeyError("second")

    with pytest.raises(KeyError, match="second"):
        asyncio.run(fan_out((call(number) for number in range(50)), 2))
    assert len(started) <= 5


@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_cancellation_however_often_waits_for_what_runs(times: int) -> None:
    ended = 0

    async def stubborn() -> None:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            await to_the_end(turns(20))
            ended += 1

    async def main() -> None:
        before = asyncio.all_tasks()
        task = asyncio.get_running_loop().create_task(fan_out((stubborn() for _ in range(3)), 3))
        await turns(3)
        for _ in range(times):
            task.cancel()
            await turns(2)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == 3
        assert asyncio.all_tasks() == before

    asyncio.run(main())


def test_a_call_that_was_cancelled_from_within_does_not_count_as_done() -> None:
    async def cancelled() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError):
            await fan_out((cancelled() for _ in range(1)), 2)

    asyncio.run(main())


def test_work_that_may_not_be_cut_ends_before_its_cancellation_is_raised() -> None:
    ended = False

    async def work() -> int:
        nonlocal ended
        await turns(10)
        ended = True
        return 7

    async def main() -> None:
        assert await to_the_end(work()) == 7
        task = asyncio.create_task(to_the_end(work()))
        await turns(2)
        task.cancel()
        await turns(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended

    asyncio.run(main())


def test_the_failure_of_cancelled_work_is_the_cause_of_the_cancellation() -> None:
    async def work() -> None:
        await turns(5)
        raise OSError("disk")

    async def main() -> None:
        task = asyncio.create_task(to_the_end(work()))
        await turns(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert isinstance(caught.value.__cause__, OSError)

    asyncio.run(main())
