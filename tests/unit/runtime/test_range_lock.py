"""Range locks exclude what overlaps, are fair, and survive cancellation anywhere."""

import asyncio

import pytest

from tests.support.cancellation import cancel_after, sweep
from vblk.runtime.range_lock import RangeLock


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_readers_share_and_a_writer_excludes() -> None:
    lock = RangeLock()
    first, second = lock.try_shared(0, 10), lock.try_shared(5, 10)
    assert first is not None
    assert second is not None
    assert lock.try_exclusive(9, 1) is None
    assert lock.try_exclusive(15, 1) is not None
    first.release()
    second.release()
    assert lock.try_exclusive(9, 1) is not None
    assert lock.try_shared(0, 20) is None


def test_a_range_may_be_shared_exactly_when_a_guard_would_be_held_at_once() -> None:
    async def scenario() -> None:
        lock = RangeLock()
        assert lock.may_share(0, 100)
        reader, writer = lock.try_shared(0, 10), lock.try_exclusive(20, 10)
        assert reader is not None
        assert writer is not None
        assert lock.may_share(0, 20)
        assert lock.may_share(30, 1)
        assert not lock.may_share(19, 2)
        waiting = asyncio.create_task(lock.exclusive(0, 5).acquire())
        await turns()
        assert not lock.may_share(4, 1)
        assert lock.may_share(5, 1)
        reader.release()
        await waiting

    asyncio.run(scenario())


def test_ranges_that_only_touch_do_not_conflict() -> None:
    lock = RangeLock()
    assert lock.try_exclusive(0, 10) is not None
    assert lock.try_exclusive(10, 10) is not None


def test_release_is_idempotent() -> None:
    lock = RangeLock()
    guard = lock.try_exclusive(0, 1)
    assert guard is not None
    guard.release()
    guard.release()
    assert lock.idle


def test_a_guard_of_try_releases_with_the_block() -> None:
    lock = RangeLock()
    guard = lock.try_exclusive(0, 1)
    assert guard is not None
    with guard:
        assert not lock.idle
    assert lock.idle


def test_a_late_reader_does_not_overtake_a_waiting_writer() -> None:
    async def scenario() -> None:
        lock = RangeLock()
        order: list[str] = []

        async def use(name: str, exclusive: bool) -> None:
            guard = lock.exclusive(0, 10) if exclusive else lock.shared(0, 10)
            async with guard:
                order.append(name)
                await turns()

        held = lock.try_shared(0, 10)
        assert held is not None
        writer = asyncio.create_task(use("writer", True))
        await turns()
        readers = [asyncio.create_task(use(f"reader {n}", False)) for n in range(3)]
        await turns()
        assert lock.try_shared(0, 1) is None
        held.release()
        await asyncio.gather(writer, *readers)
        assert order == ["writer", "reader 0", "reader 1", "reader 2"]
        assert lock.idle

    asyncio.run(scenario())


def test_a_request_without_conflict_overtakes_those_that_wait() -> None:
    async def scenario() -> None:
        lock = RangeLock()
        held = lock.try_exclusive(0, 10)
        assert held is not None
        waiting = asyncio.create_task(lock.exclusive(0, 10).acquire())
        await turns()
        async with lock.exclusive(10, 10):
            assert not waiting.done()
        held.release()
        await waiting

    asyncio.run(scenario())


def test_a_cancelled_waiter_lets_those_behind_it_go_on() -> None:
    async def scenario() -> None:
        lock = RangeLock()
        held = lock.try_shared(0, 10)
        assert held is not None
        writer = asyncio.create_task(lock.exclusive(0, 10).acquire())
        await turns()
        reader = asyncio.create_task(lock.shared(0, 10).acquire())
        await turns()
        assert not reader.done()
        writer.cancel()
        await turns()
        assert reader.done()

    asyncio.run(scenario())


def test_a_waiter_that_is_granted_and_cancelled_at_once_releases() -> None:
    async def scenario() -> None:
        lock = RangeLock()
        held = lock.try_exclusive(0, 10)
        assert held is not None
        waiter = asyncio.create_task(lock.exclusive(0, 10).acquire())
        await turns()
        held.release()  # granted now, and resumed in the next turn
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert lock.idle

    asyncio.run(scenario())


def test_cancellation_at_every_turn_leaves_no_lock() -> None:
    async def scenario() -> None:
        lock = RangeLock()

        async def use() -> None:
            async with lock.shared(0, 5), lock.exclusive(10, 5):
                await turns()
                async with lock.exclusive(20, 5):
                    await turns()

        async def contended() -> None:
            await asyncio.gather(use(), use(), use())

        async def check() -> None:
            await turns()
            assert lock.idle

        assert await sweep(contended, check) > 5

    asyncio.run(scenario())


def test_an_error_inside_the_block_releases() -> None:
    async def scenario() -> None:
        lock = RangeLock()
        with pytest.raises(KeyError):
            async with lock.exclusive(0, 1):
                raise KeyError
        assert lock.idle
        assert not await cancel_after(lock.exclusive(0, 1).acquire(), 5)

    asyncio.run(scenario())


def test_who_may_overtake_passes_those_that_wait_and_not_those_that_hold() -> None:
    async def scenario() -> None:
        lock = RangeLock(overtaking=True)
        held = lock.try_exclusive(0, 10)
        assert held is not None
        order: list[str] = []

        async def wide() -> None:
            async with lock.exclusive(0, 30):
                order.append("wide")

        waiting = asyncio.create_task(wide())
        await turns()
        overtaker = lock.try_exclusive(20, 5)
        assert overtaker is not None
        assert lock.try_exclusive(5, 1) is None
        assert lock.try_exclusive(22, 1) is None
        held.release()
        await turns()
        assert order == []
        overtaker.release()
        await waiting
        assert order == ["wide"]
        assert lock.idle

    asyncio.run(scenario())


def test_a_cancelled_waiter_that_was_overtaken_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        lock = RangeLock(overtaking=True)
        held = lock.try_exclusive(0, 10)
        assert held is not None
        waiting = asyncio.create_task(lock.exclusive(0, 30).acquire())
        await turns()
        overtaker = lock.try_exclusive(20, 5)
        assert overtaker is not None
        waiting.cancel()
        await asyncio.wait([waiting])
        overtaker.release()
        held.release()
        assert lock.idle

    asyncio.run(scenario())
