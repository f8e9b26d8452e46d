"""Flushes that many callers share.

Owns: which flush answers whom. A caller must not be answered by a flush that
started before it called, for that one may have missed its writes; it is
answered by the first that starts afterwards. So at most one flush runs and at
most one waits behind it, whatever the number of callers. It does not know what
a flush is.
"""

import asyncio
from collections.abc import Awaitable, Callable

from vblk.errors import NodeFailed


class FlushPostponed(Exception):
    """Raised by a flush that could not be done now, and lost nothing: the next may succeed.

    Its cause, a `BlockError`, is raised to all whom the flush would have answered.
    """


class FlushSequencer:
    """Runs `flush` for all who ask, never twice at once.

    A failed flush poisons: nobody can say which writes survived, and the kernel
    forgets that it failed. Everyone afterwards gets NodeFailed.

    Concurrency: belongs to one event loop's thread.
    """

    def __init__(self, flush: Callable[[], Awaitable[None]], *, filename: str | None = None) -> None:
        """Share `flush` among callers; `filename` is for the errors."""
        self._flush = flush
        self._filename = filename
        self._next: asyncio.Future[BaseException | None] | None = None
        self._runner: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None

    @property
    def failed(self) -> bool:
        """True once a flush has failed."""
        return self._failure is not None

    def check_healthy(self) -> None:
        """Raise NodeFailed once a flush has failed."""
        if self._failure is not None:
            raise NodeFailed(
                f"A flush failed, and what was written before it may be lost: {self._failure}",
                filename=self._filename,
                operation="flush",
            ) from self._failure

    def poison(self, error: BaseException) -> None:
        """Fail everything from now on, for a reason found elsewhere. The first reason stays."""
        if self._failure is None:
            self._failure = error

    async def flush(self) -> None:
        """Await the first flush that starts after this call.

        Raises:
            NodeFailed: This flush or an earlier one failed.
            BlockError: This flush was postponed for that reason.

        Cancellation: the flush goes on for the others, or for nobody.
        """
        self.check_healthy()
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        answer = self._next
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        postponed = await asyncio.shield(answer)
        self.check_healthy()
        if postponed is not None:
            raise postponed

    async def _run(self) -> None:
        """Flush for as long as somebody has asked since the last one started."""
        try:
            while (answer := self._next) is not None:
                self._next = None  # from here on callers need the flush after this one
                postponed: BaseException | None = None
                try:
                    if self._failure is None:
                        await self._flush()
                except FlushPostponed as error:
                    postponed = error.__cause__
                except BaseException as error:
                    self.poison(error)
                    if not isinstance(error, Exception):
                        raise
                finally:
                    answer.set_result(postponed)
        finally:
            self._runner = None
            if self._next is not None:  # the runner was cancelled
                self._next.set_result(None)
                self._next = None

    async def drain(self) -> None:
        """Wait until no flush runs. Does not raise for a failed one."""
        while self._runner is not None:
            await asyncio.wait([self._runner])
