"""The notifier loses no wake-up, blocks nobody and survives every order of closing."""

import asyncio
import os
import signal
import threading
from collections import deque
from collections.abc import Callable

import pytest

from vblk.aio.notifier import DescriptorNotifier, _eventfd_notifier, _pipe_notifier, create_notifier

MAKERS = [_eventfd_notifier, _pipe_notifier]
Maker = Callable[[], DescriptorNotifier]


@pytest.fixture(params=MAKERS, ids=["eventfd", "pipe"])
def make(request: pytest.FixtureRequest) -> Maker:
    maker: Maker = request.param
    return maker


def test_a_new_notifier_is_clear(make: Maker) -> None:
    notifier = make()
    assert not notifier.test_and_clear()
    notifier.close()


def test_sets_coalesce_into_one_event(make: Maker) -> None:
    notifier = make()
    for _ in range(1000):
        notifier.set()
    assert notifier.test_and_clear()
    assert not notifier.test_and_clear()
    notifier.close()


def test_a_full_pipe_does_not_block_set() -> None:
    notifier = _pipe_notifier()
    for _ in range(200_000):
        notifier._pending = False  # as if every set came just after a clear
        notifier.set()
    assert notifier.test_and_clear()
    assert not notifier.test_and_clear()
    notifier.close()


def test_attach_calls_back_for_an_event_that_was_pending_before(make: Maker) -> None:
    async def scenario() -> None:
        notifier = make()
        called = asyncio.Event()
        notifier.set()
        notifier.attach(asyncio.get_running_loop(), called.set)
        await called.wait()
        assert not notifier.test_and_clear()
        notifier.close()

    asyncio.run(scenario())


def test_detach_keeps_a_pending_event(make: Maker) -> None:
    async def scenario() -> None:
        notifier = make()
        calls: list[int] = []
        notifier.attach(asyncio.get_running_loop(), lambda: calls.append(1))
        notifier.set()
        notifier.detach()
        notifier.detach()
        await asyncio.sleep(0)
        assert calls == []
        assert notifier.test_and_clear()
        notifier.close()

    asyncio.run(scenario())


def test_no_wake_up_is_lost_under_many_threads(make: Maker) -> None:
    threads, sets = 8, 40_000

    async def scenario() -> None:
        notifier = make()
        published: deque[int] = deque()
        seen = 0
        done = asyncio.Event()

        def collect() -> None:
            nonlocal seen
            while published:
                published.popleft()
                seen += 1
            if seen == threads * sets:
                done.set()

        def produce() -> None:
            for number in range(sets):
                published.append(number)
                notifier.set()

        notifier.attach(asyncio.get_running_loop(), collect)
        producers = [threading.Thread(target=produce) for _ in range(threads)]
        for producer in producers:
            producer.start()
        await asyncio.wait_for(done.wait(), 60)
        for producer in producers:
            producer.join()
        notifier.close()

    asyncio.run(scenario())


def test_no_wake_up_is_lost_when_each_is_waited_for(make: Maker) -> None:
    async def scenario() -> None:
        notifier = make()
        turn = threading.Semaphore(0)
        arrived = asyncio.Event()
        notifier.attach(asyncio.get_running_loop(), arrived.set)

        def produce() -> None:
            for _ in range(5000):
                turn.acquire()
                notifier.set()

        producer = threading.Thread(target=produce)
        producer.start()
        for _ in range(5000):
            arrived.clear()
            turn.release()
            await asyncio.wait_for(arrived.wait(), 30)
        producer.join()
        notifier.close()

    asyncio.run(scenario())


def test_set_in_a_signal_handler_wakes_the_loop(make: Maker) -> None:
    async def scenario() -> None:
        notifier = make()
        arrived = asyncio.Event()
        notifier.attach(asyncio.get_running_loop(), arrived.set)

        def on_signal(number: int, frame: object) -> None:
            notifier.set()

        before = signal.signal(signal.SIGUSR1, on_signal)
        try:
            for _ in range(100):
                arrived.clear()
                os.kill(os.getpid(), signal.SIGUSR1)
                await asyncio.wait_for(arrived.wait(), 30)
        finally:
            signal.signal(signal.SIGUSR1, before)
            notifier.close()

    asyncio.run(scenario())


def test_a_signal_handler_inside_set_does_not_deadlock(make: Maker) -> None:
    notifier = make()
    with notifier._lock:  # where `set` is when the signal arrives
        notifier.set()
    assert notifier.test_and_clear()
    notifier.close()


def test_set_after_close_is_harmless(make: Maker) -> None:
    notifier = make()
    read_fd, write_fd = notifier._read_fd, notifier._write_fd
    notifier.close()
    # The descriptors' numbers now belong to somebody else.
    other_read, other_write = os.pipe()
    assert {other_read, other_write} & {read_fd, write_fd}
    os.set_blocking(other_read, False)
    notifier.set()
    assert not notifier.test_and_clear()
    with pytest.raises(BlockingIOError):
        os.read(other_read, 1)
    os.close(other_read)
    os.close(other_write)


def test_close_may_come_in_any_order(make: Maker) -> None:
    async def attached() -> DescriptorNotifier:
        notifier = make()
        notifier.attach(asyncio.get_running_loop(), lambda: None)
        return notifier

    async def closed_inside() -> None:
        notifier = await attached()
        notifier.close()
        notifier.detach()
        notifier.close()

    asyncio.run(closed_inside())
    notifier = asyncio.run(attached())  # the loop is gone, the notifier attached
    notifier.set()
    notifier.close()
    notifier.close()


def test_close_while_threads_set_is_harmless(make: Maker) -> None:
    for _ in range(50):
        notifier = make()
        go = threading.Barrier(5)

        def produce(notifier: DescriptorNotifier = notifier, go: threading.Barrier = go) -> None:
            go.wait()
            for _ in range(200):
                notifier.set()
                notifier._pending = False

        producers = [threading.Thread(target=produce) for _ in range(4)]
        for producer in producers:
            producer.start()
        go.wait()
        notifier.close()
        for producer in producers:
            producer.join()


def test_no_descriptor_is_left_behind(make: Maker) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(100):
        notifier = make()
        notifier.set()
        notifier.close()
    make().set()  # dropped without close
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_system_without_eventfd_gets_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "eventfd", refuse)
    notifier = create_notifier()
    notifier.set()
    assert notifier.test_and_clear()
    notifier.close()
