"""The thread engine answers every call, keeps buffers safe and leaves nothing behind."""

import asyncio
import errno
import gc
import os
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from vblk.aio.engine import storage_error
from vblk.aio.loops import run
from vblk.aio.threads import NICENESS_OF_BULK, ThreadEngine
from vblk.errors import NoSpace, StorageError


class Gate:
    """A blocking call that says when it has started and waits to be let through."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.open = threading.Event()
        self.ended = False

    def __call__(self) -> str:
        self.started.set()
        assert self.open.wait(60)
        self.ended = True
        return "through"


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for happens in a thread
        await asyncio.sleep(0)


def test_run_returns_the_result_and_raises_the_error() -> None:
    async def scenario() -> None:
        engine = ThreadEngine(2)
        assert await engine.run(lambda: 6 * 7) == 42
        with pytest.raises(ZeroDivisionError):
            await engine.run(lambda: 1 // 0)
        await engine.close()

    asyncio.run(scenario())


def test_calls_run_on_workers_and_never_on_the_default_executor() -> None:
    async def scenario() -> None:
        engine = ThreadEngine(2)
        name = await engine.run(lambda: threading.current_thread().name)
        assert name.startswith("vblk-io-")
        assert not any(t.name.startswith("asyncio") for t in threading.enumerate())
        await engine.close()

    asyncio.run(scenario())


def test_no_more_workers_than_needed_or_allowed_are_started() -> None:
    async def scenario() -> None:
        engine = ThreadEngine(3)
        assert engine._threads == []
        for _ in range(20):
            await engine.run(lambda: None)
        assert len(engine._threads) == 1
        await asyncio.gather(*(engine.run(lambda: None) for _ in range(50)))
        assert len(engine._threads) == 3
        await engine.close()

    asyncio.run(scenario())


def test_thousands_of_calls_in_flight_all_complete() -> None:
    async def scenario() -> None:
        engine = ThreadEngine(8)
        results = await asyncio.gather(*(engine.run(partial(int, number)) for number in range(5000)))
        assert results == list(range(5000))
        await engine.close()

    asyncio.run(scenario())


def test_a_cancelled_call_that_has_not_started_is_dropped() -> None:
    async def scenario() -> None:
        engine = ThreadEngine(1)
        gate = Gate()
        first = asyncio.create_task(engine.run(gate))
        await until(gate.started.is_set)
        ran: list[int] = []
        second = asyncio.create_task(engine.run(lambda: ran.append(1)))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert not gate.ended  # the cancellation did not wait for the worker
        gate.open.set()
        assert await first == "through"
        await engine.close()
        assert ran == []

    asyncio.run(scenario())


def test_a_cancelled_call_that_has_started_is_waited_for() -> None:
    async def scenario() -> None:
        engine = ThreadEngine(1)
        gate = Gate()
        task = asyncio.create_task(engine.run(gate))
        await until(gate.started.is_set)
        for _ in range(3):  # impatience does not help
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not task.done()
        gate.open.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gate.ended
        assert engine._in_flight == 0
        await engine.close()

    asyncio.run(scenario())


def test_a_cancellation_that_meets_the_completion_loses_nothing() -> None:
    async def scenario() -> None:
        engine = ThreadEngine(1)
        for _ in range(200):
            task = asyncio.create_task(engine.run(lambda: None))
            await asyncio.sleep(0)
            await until(lambda: bool(engine._completions) or not engine._in_flight)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await engine.run(lambda: 1) == 1
        await engine.close()
        assert engine._in_flight == 0

    asyncio.run(scenario())


def test_a_buffer_is_let_go_when_the_call_has_ended() -> None:
    async def scenario() -> None:
        engine = ThreadEngine(1)
        buffer = bytearray(100)

        def use(view: memoryview) -> int:
            return len(view)

        view = memoryview(buffer)
        await engine.run(lambda: use(view))
        view.release()
        await engine.run(lambda: None)
        gc.collect()
        buffer.clear()  # fails while anybody holds a view
        await engine.close()

    asyncio.run(scenario())


def test_close_waits_for_what_is_in_flight_and_joins_the_workers() -> None:
    async def scenario() -> None:
        before = threading.active_count()
        engine = ThreadEngine(4)
        gate = Gate()
        task = asyncio.create_task(engine.run(gate))
        await until(gate.started.is_set)
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="closed"):
            await engine.run(lambda: None)
        assert not closing.done()
        gate.open.set()
        await closing
        assert await task == "through"
        assert threading.active_count() == before
        await engine.close()

    asyncio.run(scenario())


def test_an_engine_serves_one_loop_after_another() -> None:
    engine = ThreadEngine(2)

    async def use() -> int:
        return await engine.run(lambda: 5)

    assert asyncio.run(use()) == 5
    assert asyncio.run(use()) == 5

    async def end() -> None:
        await engine.close()

    asyncio.run(end())


def test_an_engine_refuses_a_second_loop_while_it_is_busy() -> None:
    engine = ThreadEngine(2)
    gate = Gate()

    async def other() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            await engine.run(lambda: None)

    async def scenario() -> None:
        task = asyncio.create_task(engine.run(gate))
        await until(gate.started.is_set)
        thread = threading.Thread(target=lambda: asyncio.run(other()))
        thread.start()
        thread.join()
        gate.open.set()
        await task
        await engine.close()

    asyncio.run(scenario())


def test_an_engine_that_was_not_closed_warns_and_ends_its_workers() -> None:
    async def scenario() -> list[threading.Thread]:
        engine = ThreadEngine(2)
        await engine.run(lambda: None)
        engine._notifier.detach()  # type: ignore[union-attr]
        return engine._threads

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        workers = asyncio.run(scenario())
        gc.collect()
    assert [w.category for w in caught] == [ResourceWarning]
    for worker in workers:
        worker.join(30)
        assert not worker.is_alive()


def test_read_is_short_only_at_the_end_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * 40)
    real_read, real_fill = os.pread, os.preadv

    def short_read(fd: int, length: int, offset: int) -> bytes:
        return real_read(fd, min(length, 1000), offset)

    def short_fill(fd: int, views: list[memoryview], offset: int) -> int:
        return real_fill(fd, [views[0][:700]], offset)

    monkeypatch.setattr(os, "pread", short_read)
    monkeypatch.setattr(os, "preadv", short_fill)

    async def scenario() -> None:
        engine = ThreadEngine(1)
        fd = os.open(path, os.O_RDONLY)
        try:
            data = path.read_bytes()
            assert await engine.read(fd, 5, 5000) == data[5:5005]
            assert await engine.read(fd, 9000, 5000) == data[9000:]
            assert await engine.read(fd, 99999, 10) == b""
            buffer = bytearray(5000)
            assert await engine.read_into(fd, 7, memoryview(buffer)) == 5000
            assert buffer == data[7:5007]
            assert await engine.read_into(fd, 10000, memoryview(buffer)) == 240
        finally:
            os.close(fd)
            await engine.close()

    asyncio.run(scenario())


def test_write_goes_on_after_a_short_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite

    def short_write(fd: int, data: bytes | memoryview, offset: int) -> int:
        return real(fd, memoryview(data)[:300], offset)

    monkeypatch.setattr(os, "pwrite", short_write)

    async def scenario() -> None:
        engine = ThreadEngine(1)
        fd = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
        data = os.urandom(4321)
        try:
            await engine.write(fd, 10, data)
            await engine.write(fd, 10, memoryview(bytearray(data)))
            await engine.flush(fd)
            assert (tmp_path / "out").read_bytes() == bytes(10) + data
        finally:
            os.close(fd)
            await engine.close()

    asyncio.run(scenario())


def test_a_write_that_never_advances_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_nothing(*_: object) -> int:
        return 0

    monkeypatch.setattr(os, "pwrite", write_nothing)

    async def scenario() -> None:
        engine = ThreadEngine(1)
        try:
            with pytest.raises(StorageError):
                await engine.write(0, 0, b"x")
        finally:
            await engine.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EIO, StorageError),
        (errno.ENOSPC, NoSpace),
        (errno.EDQUOT, NoSpace),
        (errno.EACCES, StorageError),
    ],
)
def test_errors_of_the_system_become_typed(
    monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    for name in ("pread", "preadv", "pwrite", "fdatasync"):
        monkeypatch.setattr(os, name, fail)

    async def scenario() -> None:
        engine = ThreadEngine(1)
        try:
            with pytest.raises(kind) as read:
                await engine.read(0, 4096, 512)
            with pytest.raises(kind):
                await engine.read_into(0, 0, memoryview(bytearray(5)))
            with pytest.raises(kind):
                await engine.write(0, 0, b"x")
            with pytest.raises(kind):
                await engine.flush(0)
        finally:
            await engine.close()
        error = read.value
        assert isinstance(error, StorageError | NoSpace)
        assert (error.operation, error.offset, error.length) == ("read", 4096, 512)

    asyncio.run(scenario())


def test_an_error_without_a_number_counts_as_an_input_output_error() -> None:
    assert storage_error(OSError("odd")).errno == errno.EIO


def test_the_engine_works_on_uvloop_as_well(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = ThreadEngine(4)
        fd = os.open(tmp_path / "data", os.O_RDWR | os.O_CREAT)
        try:
            await asyncio.gather(*(engine.write(fd, n * 100, bytes([n]) * 100) for n in range(200)))
            parts = await asyncio.gather(*(engine.read(fd, n * 100, 100) for n in range(200)))
            assert parts == [bytes([n]) * 100 for n in range(200)]
        finally:
            os.close(fd)
            await engine.close()

    run(scenario(), sockets=True)


def test_work_in_bulk_gives_way_to_all_other_work() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    async def main() -> None:
        engine = ThreadEngine()
        bulk = engine.for_bulk()
        assert await bulk.run(niceness) == min(19, niceness() + NICENESS_OF_BULK)
        assert await engine.run(niceness) == niceness()
        await bulk.close()
        await engine.close()

    run(main())
