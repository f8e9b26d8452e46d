"""The thread engine: blocking system calls on a fixed pool of plain threads.

Owns: the workers, the submission queue and the completion queue. It must not
know what the calls do. Its ordering rule: a worker appends its job to the
completions before it sets the notifier, and the loop's callback runs after the
notifier was cleared, so every completion is collected; one wake-up collects all
that are there.
"""

import asyncio
import errno
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from vblk.aio.engine import Buffer, Engine, storage_error
from vblk.aio.notifier import EventNotifier, create_notifier

T = TypeVar("T")

WORKERS_DEFAULT = 8
NICENESS_OF_BULK = 10
"""Eight such threads together weigh less than one that serves a guest."""


class _Job:
    """One call on its way through the engine.

    `ticket` holds the call until someone takes it: the worker that starts it or
    the task that drops it. `list.pop` is atomic, so exactly one of the two does.
    All other fields but `result` and `error` belong to the loop's thread.
    """

    __slots__ = ("error", "finished", "future", "result", "ticket")

    def __init__(self, call: Callable[[], Any], future: asyncio.Future[None]) -> None:
        self.ticket = [call]
        self.future = future
        self.finished = False
        self.result: Any = None
        self.error: BaseException | None = None


_Submissions = SimpleQueue[_Job | None]


def _work(
    submissions: _Submissions, completions: deque[_Job], notifier: EventNotifier, niceness: int
) -> None:
    """Serve jobs until told to stop. Holds no reference to the engine."""
    if niceness:
        with suppress(OSError):  # on Linux this is about the calling thread alone
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
    while (job := submissions.get()) is not None:
        try:
            call = job.ticket.pop()
        except IndexError:
            pass  # dropped by a cancelled task
        else:
            try:
                job.result = call()
            except BaseException as error:
                job.error = error
            del call
        completions.append(job)
        del job  # a waiting worker must not keep the last buffer alive
        notifier.set()


async def _drop_or_wait(job: _Job) -> None:
    """Make sure that nothing runs for a cancelled job: it never starts, or has ended."""
    try:
        job.ticket.pop()
        return
    except IndexError:
        pass  # a worker has it
    while not job.finished:
        job.future = asyncio.get_running_loop().create_future()
        try:
            await job.future
        except asyncio.CancelledError:
            continue  # the first cancellation is raised as soon as the call ends


def _read(fd: int, offset: int, length: int) -> bytes:
    data = os.pread(fd, length, offset)
    if len(data) == length or not data:
        return data
    parts = [data]
    done = len(data)
    while done < length:
        data = os.pread(fd, length - done, offset + done)
        if not data:
            break
        parts.append(data)
        done += len(data)
    return b"".join(parts)


def _read_into(fd: int, offset: int, buffer: memoryview) -> int:
    length = buffer.nbytes
    done = os.preadv(fd, [buffer], offset)
    if done == length or done == 0:
        return done
    rest = buffer.cast("B")
    while done < length:
        count = os.preadv(fd, [rest[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def _write(fd: int, offset: int, data: Buffer) -> None:
    length = data.nbytes if isinstance(data, memoryview) else len(data)
    done = os.pwrite(fd, data, offset)
    if done == length:
        return
    rest = memoryview(data).cast("B")
    while done < length:
        count = os.pwrite(fd, rest[done:], offset + done)
        if count == 0:
            raise OSError(errno.EIO, "The system wrote nothing and gave no reason")
        done += count


class ThreadEngine(Engine):
    """The engine for every system: `workers` threads, started when first needed.

    It never uses the event loop's default executor. It serves one event loop at
    a time: that of its first request, until it is idle again.
    """

    def __init__(self, workers: int = WORKERS_DEFAULT, *, niceness: int = 0) -> None:
        """Prepare an engine of at most `workers` threads, 1 or more, by `niceness` nicer than others."""
        if workers < 1:
            raise ValueError("an engine needs at least one worker")
        self._workers_max = workers
        self._niceness = niceness
        self._threads: list[threading.Thread] = []
        self._submissions: _Submissions = SimpleQueue()
        self._completions: deque[_Job] = deque()
        self._notifier: EventNotifier | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._in_flight = 0
        self._idle: asyncio.Future[None] | None = None
        self._closed = False

    def for_bulk(self) -> "ThreadEngine":
        """Return an engine whose threads give way; see `Engine.for_bulk`."""
        return ThreadEngine(self._workers_max, niceness=NICENESS_OF_BULK)

    async def run(self, call: Callable[[], T]) -> T:
        """Call `call` on a worker; see `Engine.run`."""
        job = _Job(call, self._submit_future())
        self._submissions.put(job)
        try:
            await job.future
        except asyncio.CancelledError:
            await _drop_or_wait(job)
            raise
        if job.error is not None:
            try:
                raise job.error
            finally:
                del job  # the traceback refers to this frame: no cycle, please
        result: T = job.result
        return result

    def _submit_future(self) -> asyncio.Future[None]:
        """Count a new job in, with a loop to wake and a worker to serve it."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._bind(loop)
        if self._in_flight >= len(self._threads) and len(self._threads) < self._workers_max:
            self._start_worker()
        self._in_flight += 1
        return loop.create_future()

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._closed:
            raise RuntimeError("the engine is closed")
        if self._in_flight and self._loop is not None and not self._loop.is_closed():
            raise RuntimeError("the engine is busy for another event loop")
        if self._notifier is None:
            self._notifier = create_notifier()
        self._notifier.detach()
        self._notifier.attach(loop, self._collect)
        self._loop = loop

    def _start_worker(self) -> None:
        assert self._notifier is not None
        thread = threading.Thread(
            target=_work,
            args=(self._submissions, self._completions, self._notifier, self._niceness),
            name=f"vblk-io-{len(self._threads)}",
            daemon=True,
        )
        thread.start()
        self._threads.append(thread)

    def _collect(self) -> None:
        """Resolve the futures of everything that has completed."""
        completions = self._completions
        while completions:
            job = completions.popleft()
            self._in_flight -= 1
            job.finished = True
            if not job.future.done() and not job.future.get_loop().is_closed():
                job.future.set_result(None)
        if not self._in_flight and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def read(self, fd: int, offset: int, length: int) -> bytes:
        """Read bytes; see `Engine.read`."""
        try:
            return await self.run(lambda: _read(fd, offset, length))
        except OSError as error:
            raise storage_error(error, operation="read", offset=offset, length=length) from error

    async def read_into(self, fd: int, offset: int, buffer: memoryview) -> int:
        """Fill a buffer; see `Engine.read_into`."""
        try:
            return await self.run(lambda: _read_into(fd, offset, buffer))
        except OSError as error:
            raise storage_error(error, operation="read", offset=offset, length=buffer.nbytes) from error

    async def write(self, fd: int, offset: int, data: Buffer) -> None:
        """Write all bytes; see `Engine.write`."""
        try:
            await self.run(lambda: _write(fd, offset, data))
        except OSError as error:
            raise storage_error(error, operation="write", offset=offset, length=len(data)) from error

    async def flush(self, fd: int) -> None:
        """Reach stable storage; see `Engine.flush`."""
        try:
            await self.run(lambda: os.fdatasync(fd))
        except OSError as error:
            raise storage_error(error, operation="flush") from error

    async def close(self) -> None:
        """Wait for what is in flight and join the workers. Idempotent."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        bound, self._loop = self._loop, None  # every later request finds the engine closed
        self._closed = True
        try:
            while self._in_flight and loop is bound:
                self._idle = loop.create_future()
                await self._idle
        finally:
            self._stop_workers()
            if not self._in_flight:
                # Nobody is inside a call, so this takes microseconds.
                for thread in self._threads:
                    thread.join()
            if self._notifier is not None:
                self._notifier.close()

    def _stop_workers(self) -> None:
        for _ in self._threads:
            self._submissions.put(None)

    def __del__(self) -> None:
        if getattr(self, "_threads", None) and not self._closed:
            text = f"engine of {len(self._threads)} workers was not closed"
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)
            self._stop_workers()
