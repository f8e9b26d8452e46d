"""Throttling: how much passes in which time, whose turn it is, and which limits make no sense."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.support.manual_clock import EagerClock, ManualClock
from tests.support.turns import turns
from vblk.errors import OptionError
from vblk.runtime.throttling import ThrottleGroup, ThrottleLimits, ThrottleMember


def elapsed(limits: ThrottleLimits, count: int, length: int, *, write: bool = False) -> float:
    """Return the seconds after which the last of so many requests passes, each asked for after the other."""

    async def main() -> float:
        clock = EagerClock()
        group = ThrottleGroup(clock, limits)
        member = group.join()
        start = clock.now()
        for _ in range(count):
            await group.pass_through(member, length, write=write)
        return clock.now() - start

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("limits", "count", "length", "write", "seconds"),
    [
        (ThrottleLimits(bps_total=1000), 101, 10, False, 0.9),
        (ThrottleLimits(bps_read=1000), 101, 10, False, 0.9),
        (ThrottleLimits(bps_read=1000), 101, 10, True, 0.0),
        (ThrottleLimits(bps_write=1000), 101, 10, True, 0.9),
        (ThrottleLimits(iops_total=10), 22, 10**9, True, 2.0),
        (ThrottleLimits(iops_total=10, iops_size=100), 22, 200, True, 4.1),
        (ThrottleLimits(iops_total=10, iops_size=100), 22, 50, True, 2.0),
        (ThrottleLimits(iops_total=10, bps_total=100), 22, 100, True, 20.9),
        (ThrottleLimits(bps_total=1000, bps_total_max=2000), 301, 10, False, 1.0),
        (ThrottleLimits(bps_total=1000, bps_total_max=2000, bps_total_max_length=3), 401, 10, False, 1.9),
        (ThrottleLimits(bps_total=1000, bps_total_max=2000, bps_total_max_length=3), 2001, 10, False, 14.0),
        (ThrottleLimits(), 1000, 10**9, True, 0.0),
    ],
)
def test_so_much_passes_in_such_a_time(
    limits: ThrottleLimits, count: int, length: int, write: bool, seconds: float
) -> None:
    assert elapsed(limits, count, length, write=write) == pytest.approx(seconds, abs=0.002)


def test_a_request_longer_than_the_bucket_passes_and_the_next_one_pays() -> None:
    limits = ThrottleLimits(bps_total=1000)
    assert elapsed(limits, 1, 5000) == 0
    assert elapsed(limits, 2, 5000) == pytest.approx(4.9)


def with_group(
    limits: ThrottleLimits, scenario: Callable[[ThrottleGroup, ManualClock], Awaitable[None]]
) -> None:
    async def main() -> None:
        clock = ManualClock()
        group = ThrottleGroup(clock, limits)
        await scenario(group, clock)
        await turns()
        assert len(asyncio.all_tasks()) == 1, "the pump runs on"

    asyncio.run(main())


async def asked(
    group: ThrottleGroup, member: ThrottleMember, name: str, order: list[str], *, write: bool = False
) -> None:
    await group.pass_through(member, 100, write=write)
    order.append(name)


async def run_down(clock: ManualClock, tasks: list["asyncio.Task[Any]"]) -> None:
    while not all(task.done() for task in tasks):
        await turns()
        clock.advance(0.1)


def test_members_have_their_turns_in_a_circle_and_each_keeps_its_order() -> None:
    async def scenario(group: ThrottleGroup, clock: ManualClock) -> None:
        first, second = group.join(), group.join()
        await group.pass_through(first, 1000, write=False)
        order: list[str] = []
        tasks = [
            asyncio.create_task(asked(group, member, f"{name}{number}", order))
            for member, name in ((first, "a"), (second, "b"))
            for number in range(3)
        ]
        await run_down(clock, tasks)
        assert order == ["a0", "b0", "a1", "b1", "a2", "b2"]

    with_group(ThrottleLimits(bps_total=1000), scenario)


def test_reads_do_not_starve_writes_that_share_a_limit() -> None:
    async def scenario(group: ThrottleGroup, clock: ManualClock) -> None:
        member = group.join()
        await group.pass_through(member, 1000, write=False)
        order: list[str] = []
        tasks = [
            asyncio.create_task(asked(group, member, name, order, write=name == "w"))
            for name in ("r", "r", "r", "w")
        ]
        await run_down(clock, tasks)
        assert order == ["r", "w", "r", "r"]

    with_group(ThrottleLimits(bps_total=1000), scenario)


def test_reads_pass_while_writes_wait_for_a_limit_of_their_own() -> None:
    async def scenario(group: ThrottleGroup, clock: ManualClock) -> None:
        member = group.join()
        await group.pass_through(member, 1000, write=True)
        order: list[str] = []
        write = asyncio.create_task(asked(group, member, "w", order, write=True))
        await turns()
        await asked(group, member, "r", order)
        assert not write.done()
        await run_down(clock, [write])
        assert order == ["r", "w"]

    with_group(ThrottleLimits(bps_write=1000), scenario)


def test_nobody_overtakes_those_who_wait() -> None:
    async def scenario(group: ThrottleGroup, clock: ManualClock) -> None:
        member, other = group.join(), group.join()
        await group.pass_through(member, 1000, write=False)
        order: list[str] = []
        first = asyncio.create_task(asked(group, member, "first", order))
        await turns()
        clock.time += 5  # there is room, and the pump does not know it yet
        assert not group.may_pass(other, write=False)
        second = asyncio.create_task(asked(group, other, "second", order))
        await run_down(clock, [first, second])
        assert order == ["first", "second"]

    with_group(ThrottleLimits(bps_total=1000), scenario)


def test_who_is_cancelled_while_it_waits_gives_its_place_up() -> None:
    async def scenario(group: ThrottleGroup, clock: ManualClock) -> None:
        member = group.join()
        await group.pass_through(member, 1000, write=False)
        order: list[str] = []
        tasks = [asyncio.create_task(asked(group, member, name, order)) for name in "abc"]
        await turns()
        tasks[1].cancel()
        await turns()
        await run_down(clock, tasks)
        assert order == ["a", "c"]
        last = asyncio.create_task(asked(group, member, "d", order))
        await turns()
        last.cancel()

    with_group(ThrottleLimits(bps_total=1000), scenario)


def test_a_member_in_a_hurry_passes_at_once_and_what_it_had_waiting_too() -> None:
    async def scenario(group: ThrottleGroup, clock: ManualClock) -> None:
        member, other = group.join(), group.join()
        await group.pass_through(member, 1000, write=False)
        order: list[str] = []
        tasks = [
            asyncio.create_task(asked(group, member, "a", order)),
            asyncio.create_task(asked(group, other, "b", order)),
            asyncio.create_task(asked(group, member, "c", order, write=True)),
        ]
        await turns()
        member.hurry()
        await turns()
        assert order == ["a", "c"]
        await asked(group, member, "d", order)
        member.heed()
        assert not group.may_pass(member, write=False)
        await run_down(clock, tasks)
        assert order == ["a", "c", "d", "b"]

    with_group(ThrottleLimits(bps_total=1000), scenario)


def test_other_limits_count_at_once_for_those_who_wait() -> None:
    async def scenario(group: ThrottleGroup, clock: ManualClock) -> None:
        member = group.join()
        await group.pass_through(member, 1000, write=False)
        order: list[str] = []
        waiting = asyncio.create_task(asked(group, member, "a", order))
        await turns()
        with pytest.raises(OptionError):
            group.configure(ThrottleLimits(bps_total=-1))
        assert group.limits.bps_total == 1
        group.configure(ThrottleLimits(bps_total=10**6))
        await waiting

    with_group(ThrottleLimits(bps_total=1), scenario)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (
            {"bps_total": 1000, "bps_read": 5},
            "bps/iops/max total values and read/write values cannot be used at the same time",
        ),
        (
            {"iops_total": 9, "iops_total_max": 9, "iops_write": 5, "iops_write_max": 5},
            "bps/iops/max total values and read/write values cannot be used at the same time",
        ),
        ({"bps_total_max": 1000}, "bps_max/iops_max require corresponding bps/iops values"),
        ({"bps_total": 1000, "bps_total_max": 10}, "bps_max/iops_max cannot be lower than bps/iops"),
        ({"bps_total": 1000, "bps_total_max_length": 10}, "burst length set without burst rate"),
        (
            {"bps_total": 1000, "bps_total_max": 2000, "bps_total_max_length": 0},
            "the burst length cannot be 0",
        ),
        ({"iops_size": 1000}, "iops size requires an iops value to be set"),
        ({"bps_total": -1}, r"bps/iops/max values must be within \[0, 1000000000000000\]"),
        ({"bps_total": 10**15 + 1}, r"bps/iops/max values must be within \[0, 1000000000000000\]"),
        (
            {"iops_total": 10, "iops_total_max": 2 * 10**9, "iops_total_max_length": 5 * 10**6},
            "burst length too high for this burst rate",
        ),
    ],
)
def test_limits_that_make_no_sense_are_refused_in_qemus_words(limits: dict[str, int], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        ThrottleLimits(**limits).check()
