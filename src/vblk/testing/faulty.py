"""Storage that fails, or whose user is cancelled, at the operation that one names.

Owns: the plan, which counts operations, and the node and the engine that follow
it. One plan may be followed by several at a time; it counts all of them.
"""

import asyncio
import errno
from collections.abc import Callable
from typing import ClassVar, TypeVar

from vblk.aio.engine import Buffer, Engine
from vblk.errors import StorageError
from vblk.filters.passing import PassingNode
from vblk.graph.node import Node

T = TypeVar("T")


class FaultPlan:
    """Counts operations from 1 and says at which one what happens.

    Args:
        fail_at: The operation that fails with EIO; None: none does.
        forever: All operations after it fail too.
        cancel_at: The operation at which the task given to `watch` is cancelled.
        stop_at: The operation that stops until `go_on` is set.
        only: The operations that count; all when empty.

    `count` is how many came so far; `reached` tells whether the plan's moment
    has come; `stopped` is set when an operation has stopped.
    """

    def __init__(
        self,
        *,
        fail_at: int | None = None,
        forever: bool = False,
        cancel_at: int | None = None,
        stop_at: int | None = None,
        only: frozenset[str] = frozenset(),
    ) -> None:
        self._fail_at = fail_at
        self._forever = forever
        self._cancel_at = cancel_at
        self._stop_at = stop_at
        self._only = only
        self._victim: asyncio.Task[object] | None = None
        self.count = 0
        self.reached = False
        self.stopped = asyncio.Event()
        self.go_on = asyncio.Event()

    def watch(self, task: "asyncio.Task[object]") -> None:
        """Let `task` be the one that is cancelled."""
        self._victim = task

    def disarm(self) -> None:
        """Let everything from now on go well."""
        self._fail_at = self._cancel_at = self._stop_at = None
        self.go_on.set()

    async def step(self, operation: str, offset: int = 0, length: int = 0) -> None:
        """Count one operation, and let happen to it what the plan says.

        Raises:
            StorageError: It is this operation's turn to fail.

        Concurrency: suspends at least once, so that a cancellation can arrive.
        """
        if self._only and operation not in self._only:
            return
        self.count += 1
        turn = self.count
        if turn == self._cancel_at and self._victim is not None:
            self.reached = True
            self._victim.cancel()
        if turn == self._stop_at:
            self.reached = True
            self.stopped.set()
            await self.go_on.wait()
        await asyncio.sleep(0)
        if self._fail_at is not None and (turn == self._fail_at or (self._forever and turn > self._fail_at)):
            self.reached = True
            raise StorageError(
                errno.EIO,
                f"operation {turn} fails by plan",
                operation=operation,
                offset=offset,
                length=length,
            )


class FaultyNode(PassingNode):
    """A filter whose requests are the operations of a plan.

    Each request counts twice: on its way down, and on its way back, when the
    child has done it already. `try_read` never answers, so that reads count.
    """

    driver: ClassVar[str] = "faulty"

    def __init__(self, name: str, file: Node, plan: FaultPlan) -> None:
        """Stand over `file` and follow `plan`."""
        super().__init__(name, file)
        self.plan = plan

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Never answer at once."""
        return None

    async def before(self, operation: str, offset: int, length: int) -> None:
        """Count the way down."""
        await self.plan.step(operation, offset, length)

    async def after(self, operation: str, offset: int, length: int) -> None:
        """Count the way back."""
        await self.plan.step(operation, offset, length)


class FaultyEngine(Engine):
    """An engine whose calls are the operations of a plan, and that otherwise uses another engine.

    Each call counts before it runs. `run` is called `run` whatever the call
    does; what fails by plan then fails with OSError, as calls do.
    """

    def __init__(self, engine: Engine, plan: FaultPlan) -> None:
        """Use `engine`, which is closed together with this one."""
        self._engine = engine
        self.plan = plan

    async def run(self, call: Callable[[], T]) -> T:
        """Run a call; see `Engine.run`."""
        try:
            await self.plan.step("run")
        except StorageError as error:
            raise OSError(error.errno, error.message) from error
        return await self._engine.run(call)

    async def read(self, fd: int, offset: int, length: int) -> bytes:
        """Read; see `Engine.read`."""
        await self.plan.step("read", offset, length)
        return await self._engine.read(fd, offset, length)

    async def read_into(self, fd: int, offset: int, buffer: memoryview) -> int:
        """Read into a buffer; see `Engine.read_into`."""
        await self.plan.step("read", offset, len(buffer))
        return await self._engine.read_into(fd, offset, buffer)

    async def write(self, fd: int, offset: int, data: Buffer) -> None:
        """Write; see `Engine.write`."""
        await self.plan.step("write", offset, len(data))
        await self._engine.write(fd, offset, data)

    async def flush(self, fd: int) -> None:
        """Flush; see `Engine.flush`."""
        await self.plan.step("flush")
        await self._engine.flush(fd)

    async def close(self) -> None:
        """Close the engine that is used; this always works."""
        await self._engine.close()
