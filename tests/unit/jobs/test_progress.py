"""Progress and rate: bytes, time and nothing else."""

import asyncio

from vblk.jobs.progress import Progress
from vblk.jobs.rate import RateLimit


class SetClock:
    """A clock that stands still until it is slept on or set."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += max(0.0, seconds)


def test_progress_tells_fraction_rate_and_time_left() -> None:
    clock = SetClock()
    heard: list[float] = []
    progress = Progress(lambda now: heard.append(now.fraction), clock)
    progress.start(1000)
    clock.time += 2
    progress.add(250)
    assert (progress.rate, progress.seconds_left) == (125.0, 6.0)
    progress.finish()
    assert heard == [0.0, 0.25, 1.0]


def test_the_rate_is_that_of_the_last_seconds() -> None:
    clock = SetClock()
    progress = Progress(None, clock)
    progress.start(10_000)
    clock.time += 10
    progress.add(100)
    clock.time += 4
    progress.add(4000)
    assert progress.rate == 1000.0


def test_nothing_to_do_is_done_only_when_it_is_finished() -> None:
    progress = Progress(None, SetClock())
    progress.start(0)
    assert progress.fraction == 0.0
    progress.finish()
    assert (progress.fraction, progress.finished) == (1.0, True)


def test_a_rate_limit_makes_bytes_wait_for_their_time() -> None:
    clock = SetClock()
    limit = RateLimit(1000, clock)

    async def scenario() -> None:
        for _ in range(5):
            await limit.take(1000)

    asyncio.run(scenario())
    assert 104.8 <= clock.time <= 105.0


def test_an_idle_time_is_no_credit_beyond_a_tenth_of_a_second() -> None:
    clock = SetClock()
    limit = RateLimit(1000, clock)
    clock.time += 60
    asyncio.run(limit.take(1000))
    assert clock.time == 160.9
