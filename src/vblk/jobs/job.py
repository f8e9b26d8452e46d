"""A job: long work that can be paused, slowed, cancelled and watched.

Owns: the life of one job and of jobs that succeed or fail together. What is done
stands in the classes that inherit from `Job`; who is told of it listens.

Ordering rule: a state is published before the event that says more about it. The
end has a fixed order: all jobs of a transaction have done their work, then each
prepares, then each commits or aborts, cleans up, says how it ended, and is
concluded.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, ClassVar, Final, Required, TypedDict, Unpack

from vblk.aio.clock import Clock
from vblk.errors import BlockError, JobError
from vblk.jobs.rate import Meter, RateLimit
from vblk.jobs.states import AT_WORK, FOLLOWING, Status, Verb, require_accepted

Listener = Callable[["Job", str, Mapping[str, Any]], None]
"""Told of (job, QMP's name of the event, its data); it must be quick and not raise."""


class Life(TypedDict, total=False):
    """What every job is given beside its id.

    `listener` is told of its events, `clock` is for its speed, in bytes a second, 0
    for no limit. Without `auto_finalize` it waits for the user before it publishes
    its result, without `auto_dismiss` it stays until the user has seen how it ended.
    """

    listener: Required["Listener"]
    clock: Required[Clock]
    speed: int
    auto_finalize: bool
    auto_dismiss: bool
    transaction: "Transaction | None"


async def woken(event: asyncio.Event, pause: Coroutine[Any, Any, None]) -> bool:
    """Wait for the end of a pause, or for an event; tell whether the event came first."""
    waking = asyncio.ensure_future(event.wait())
    pausing = asyncio.ensure_future(pause)
    try:
        await asyncio.wait((waking, pausing), return_when=asyncio.FIRST_COMPLETED)
        return not pausing.done()
    finally:
        waking.cancel()
        pausing.cancel()


CANCELLED: Final = "Operation canceled"


_HINDRANCES: Final = {
    Status.CREATED: "it has not begun",
    Status.PAUSED: "it is paused: resume it",
    Status.STANDBY: "it is paused: resume it",
    Status.WAITING: "other jobs of its transaction are not done",
    Status.PENDING: "its result waits to be finalized",
    Status.ABORTING: "it is being taken back",
}


class Transaction:
    """Jobs that succeed together or fail together. The last one to end its work settles all."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self._finalize = asyncio.Event()
        self._settled = asyncio.Event()

    def give_up(self) -> None:
        """Cancel what the jobs do; nothing of it is published."""
        for job in self.jobs:
            job.cancel_work()
        self._finalize.set()

    async def abandon(self) -> None:
        """End all jobs, those that never began as well; nothing of them is published."""
        self.give_up()
        for job in self.jobs:
            if not job.begun:
                job.start()
        for job in self.jobs:
            await job.ended()

    def finalize(self) -> None:
        """Let the jobs, which have all done their work, publish it."""
        self._finalize.set()

    async def ended_work(self, ended: "Job") -> None:
        """Return when the job has ended as the others do."""
        if ended.error is not None:
            self.give_up()
        if any(job.at_work for job in self.jobs):
            await self._settled.wait()
            return
        try:
            await self._settle()
        finally:
            self._settled.set()

    async def _settle(self) -> None:
        if not any(job.cancelled or job.error for job in self.jobs):
            for job in self.jobs:
                job.pend()
            if not all(job.auto_finalize for job in self.jobs):
                await self._finalize.wait()
        if not any(job.cancelled or job.error for job in self.jobs):
            for job in self.jobs:
                if not await job.prepared():
                    break
        succeeded = not any(job.cancelled or job.error for job in self.jobs)
        for job in self.jobs:
            await job.conclude(succeeded=succeeded)


class Steps:
    """What happens at the turns of a job's life; a kind of job says what it needs."""

    async def prepare(self) -> None:
        """Make ready what `commit` publishes; the last step that may fail."""

    async def commit(self) -> None:
        """Publish the result; what fails here is told, and nothing of other jobs is taken back for it."""

    async def abort(self) -> None:
        """Take back what was done."""

    async def clean(self) -> None:
        """Let go of what the job held, however it ended."""

    def resumed(self) -> None:
        """Note that the user lets the job go on."""

    def said_pending(self) -> None:
        """Say that the job waits for `finalize`."""

    def said_end(self) -> None:
        """Say how the job ended."""


class Job(Steps, ABC):
    """One job on the running event loop.

    `current` and `total` are its progress in units of its own, bytes for block
    jobs.

    Concurrency: every verb runs to completion; the work goes on in a task.
    """

    type: ClassVar[str]

    def __init__(self, id: str, **life: Unpack[Life]) -> None:
        self.id = id
        self.status = Status.UNDEFINED
        self.current: int = 0
        self.total: int = 0
        self.error: str | None = None
        self.cause: BlockError | None = None
        """What the error says in words."""
        self.cancelled = False
        self.auto_finalize = life.get("auto_finalize", True)
        self.auto_dismiss = life.get("auto_dismiss", True)
        self.speed = 0
        self.clock = life["clock"]
        self._listener = life["listener"]
        self._transaction = life.get("transaction") or Transaction()
        self._transaction.jobs.append(self)
        self._limit: RateLimit | None = None
        self._moved = Meter(self.clock)
        self._speed_changed = asyncio.Event()
        self._go = asyncio.Event()
        self._go.set()
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._effort: asyncio.Task[None] | None = None
        self._set_speed(life.get("speed", 0))
        self._to(Status.CREATED)

    @abstractmethod
    async def run(self) -> None:
        """Do the work.

        Raises:
            BlockError: It cannot be done; the job fails with this message.
        """

    def ends_by_itself(self, *, force: bool) -> bool:
        """Tell whether a cancel only asks the work to come to an end that is a success."""
        return False

    def start(self) -> None:
        """Begin, and say so at once, unless it is cancelled. The job lives on until it is dismissed."""
        if not self.cancelled:
            self._to(Status.RUNNING)
        self._task = asyncio.get_running_loop().create_task(self._live(), name=f"job {self.id}")

    @property
    def begun(self) -> bool:
        """Whether the job was started."""
        return self._task is not None

    async def abandon(self) -> None:
        """End the job, and those that end with it, whether they began or not; return when they have."""
        await self._transaction.abandon()

    async def ended(self) -> None:
        """Return when the job is concluded; its `error` then says how it ended."""
        await self._ended.wait()

    def pause(self) -> None:
        """Stop working at the next point where that is possible.

        Raises:
            JobError: Not in this state, or paused already.
        """
        require_accepted(self.id, self.status, Verb.PAUSE)
        if self.paused:
            raise JobError("Job is already paused")
        self.hold()

    def resume(self) -> None:
        """Go on after a pause.

        Raises:
            JobError: Not in this state, or not paused.
        """
        require_accepted(self.id, self.status, Verb.RESUME)
        if not self.paused:
            raise JobError("Can't resume a job that was not paused")
        self.resumed()
        self._go.set()

    def cancel(self, *, force: bool = False) -> None:
        """End the job, without its result unless it `ends_by_itself`.

        Raises:
            JobError: Not in this state.
        """
        require_accepted(self.id, self.status, Verb.CANCEL)
        if self.paused and not force:
            raise JobError(f"The block job for device '{self.id}' is currently paused")
        if self.ends_by_itself(force=force):
            return
        self.give_up()

    def give_up(self) -> None:
        """End the job, and those that end with it, without a result, whatever its state."""
        self._transaction.give_up()

    def cancel_work(self) -> None:
        """Cancel the work at its next await; nothing of it is published."""
        if self.status in (Status.ABORTING, Status.CONCLUDED, Status.NULL):
            return
        self.cancelled = True
        self._go.set()
        if self._effort is not None:
            self._effort.cancel()

    def complete(self) -> None:
        """Ask a job that is ready to come to its end.

        Raises:
            JobError: Not in this state, or not this kind of job.
        """
        require_accepted(self.id, self.status, Verb.COMPLETE)
        raise JobError(f"The active block job '{self.id}' cannot be completed")

    def finalize(self) -> None:
        """Let a job, and those that end with it, publish the result.

        Raises:
            JobError: Not in this state.
        """
        require_accepted(self.id, self.status, Verb.FINALIZE)
        self._transaction.finalize()

    def dismiss(self) -> None:
        """Forget a job that is concluded.

        Raises:
            JobError: Not in this state.
        """
        require_accepted(self.id, self.status, Verb.DISMISS)
        self._to(Status.NULL)

    def set_speed(self, speed: int) -> None:
        """Limit the bytes a second; 0 lifts the limit. It counts from now on, for what waits too.

        Raises:
            JobError: Not in this state, or no speed.
        """
        require_accepted(self.id, self.status, Verb.SET_SPEED)
        self._set_speed(speed)

    def _set_speed(self, speed: int) -> None:
        if speed < 0:
            raise JobError("Parameter 'speed' expects a non-negative value")
        self.speed = speed
        self._limit = RateLimit(speed, self.clock) if speed else None
        self._speed_changed.set()
        self._speed_changed = asyncio.Event()

    async def pace(self, length: int) -> None:
        """Wait until `length` bytes may be moved, as fast as the speed of that moment allows."""
        while self._limit is not None and await woken(self._speed_changed, self._limit.take(length)):
            pass

    @property
    def paused(self) -> bool:
        """Whether the job is to pause, or does, until the user resumes it."""
        return not self._go.is_set()

    async def pause_point(self) -> None:
        """Stay here while the job is paused."""
        if not self.paused:
            return
        before = self.status
        self._to(Status.STANDBY if before is Status.READY else Status.PAUSED)
        try:
            await self._go.wait()
        finally:
            self._to(before)

    def hold(self) -> None:
        """Pause at the next pause point; the user resumes it."""
        self._go.clear()

    def _to(self, status: Status) -> None:
        assert status in FOLLOWING[self.status], (self.status, status)
        self.status = status
        self.tell("JOB_STATUS_CHANGE", {"status": status.value, "id": self.id})

    def tell(self, event: str, data: Mapping[str, Any]) -> None:
        """Tell the listener of an event."""
        self._listener(self, event, data)

    def became_ready(self) -> None:
        """Publish that the job may be completed."""
        self._to(Status.READY)

    @property
    def at_work(self) -> bool:
        """Whether the work has not come to an end yet."""
        return self.status in AT_WORK

    async def _live(self) -> None:
        try:
            await self._try(self._do_work)
            if self.error is None:
                self._to(Status.WAITING)
            else:
                self._to(Status.ABORTING)
            await self._transaction.ended_work(self)
        finally:
            self._ended.set()
        if self.auto_dismiss:
            self._to(Status.NULL)

    async def _try(self, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Carry out a step; what goes wrong becomes the job's `error`."""
        try:
            await step()
        except BlockError as error:
            self.error, self.cause = str(error), error
        except asyncio.CancelledError:
            self.error = CANCELLED
        except Exception as error:  # a defect must not leave a job that never ends
            self.error = f"internal error: {type(error).__name__}: {error}"

    async def _do_work(self) -> None:
        if self.cancelled:
            raise asyncio.CancelledError
        self._moved.note(self.current)
        self._effort = asyncio.ensure_future(self.run())
        try:
            await self._effort
        finally:
            self._effort.cancel()
            self._effort = None

    def pend(self) -> None:
        """Wait for `finalize`, when it is not automatic."""
        self._to(Status.PENDING)
        if not self.auto_finalize:
            self.said_pending()

    async def prepared(self) -> bool:
        """Make ready what will be published; tell whether that went well."""
        await self._try(self.prepare)
        return self.error is None

    async def conclude(self, *, succeeded: bool) -> None:
        """Publish the result or take it back, and say so."""
        if not succeeded:
            self.error = self.error or CANCELLED
            if self.status is not Status.ABORTING:
                self._to(Status.ABORTING)
        await self._try(self.commit if succeeded else self.abort)
        await self._try(self.clean)
        self.said_end()
        self._to(Status.CONCLUDED)

    @property
    def busy(self) -> bool:
        """Whether it moves something at this moment."""
        return self.status is Status.RUNNING

    def query(self) -> dict[str, Any]:
        """Return what `query-jobs` says of the job."""
        shown: dict[str, Any] = {
            "current-progress": self.current,
            "status": self.status.value,
            "total-progress": self.total,
            "type": self.type,
            "id": self.id,
        }
        if self.error is not None:
            shown["error"] = self.error
        return shown

    def hindrance(self) -> str | None:
        """Say in words why the job does not get on, or is not ready; None where there is nothing to say."""
        return _HINDRANCES.get(self.status)

    def query_progress(self) -> dict[str, Any]:
        """Return what `query-job-progress` says of the job: rates are in units of its progress a second."""
        self._moved.note(self.current)
        rate = self._moved.rate
        shown: dict[str, Any] = {
            "id": self.id,
            "type": self.type,
            "status": self.status.value,
            "offset": self.current,
            "length": self.total,
            "rate": round(rate),
        }
        if rate > 0:
            shown["seconds-left"] = round((self.total - self.current) / rate, 1)
        reason = self.hindrance()
        return shown if reason is None else shown | {"reason": reason}
