"""Any sequence of requests: no two holders conflict, nobody is passed unfairly or forgotten."""

import asyncio
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vblk.runtime.range_lock import RangeGuard, RangeLock

OFFSETS = st.integers(0, 12)
LENGTHS = st.integers(1, 6)


@dataclass
class Request:
    """One request as the model sees it."""

    guard: RangeGuard
    task: "asyncio.Task[None]"
    order: int

    @property
    def granted(self) -> bool:
        return self.task.done() and not self.task.cancelled() and self.task.exception() is None


@dataclass
class Model:
    """All requests that are held or waiting, the oldest first."""

    requests: list[Request] = field(default_factory=list[Request])
    arrivals: int = 0


class RangeLockMachine(RuleBasedStateMachine):
    """Takes, cancels and releases, and compares with the definition of fairness."""

    @initialize()
    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.lock = RangeLock()
        self.model = Model()

    def settle(self) -> None:
        async def turns() -> None:
            for _ in range(4):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    @rule(offset=OFFSETS, length=LENGTHS, exclusive=st.booleans())
    def take(self, offset: int, length: int, exclusive: bool) -> None:
        guard = self.lock.exclusive(offset, length) if exclusive else self.lock.shared(offset, length)
        self.model.arrivals += 1
        task = self.loop.create_task(guard.acquire())
        self.model.requests.append(Request(guard, task, self.model.arrivals))
        self.settle()

    @rule(offset=OFFSETS, length=LENGTHS, exclusive=st.booleans())
    def try_take(self, offset: int, length: int, exclusive: bool) -> None:
        make = self.lock.try_exclusive if exclusive else self.lock.try_shared
        probe = RangeGuard(self.lock, offset, offset + length, exclusive)
        free = not any(probe.conflicts(request.guard) for request in self.model.requests)
        guard = make(offset, length)
        assert (guard is not None) == free
        if guard is not None:
            guard.release()

    @precondition(lambda self: bool(self.model.requests))
    @rule(data=st.data(), cancel=st.booleans())
    def release(self, data: st.DataObject, cancel: bool) -> None:
        request = data.draw(st.sampled_from(self.model.requests))
        if request.granted:
            request.guard.release()
        else:
            request.task.cancel()
        if cancel:  # somebody else gives up in the very turn in which it may be granted
            waiting = [other for other in self.model.requests if not other.task.done()]
            if waiting:
                data.draw(st.sampled_from(waiting)).task.cancel()
        self.settle()
        self.model.requests = [
            other for other in self.model.requests if other.guard.held or not other.task.done()
        ]

    @invariant()
    def each_is_granted_exactly_when_nothing_older_conflicts(self) -> None:
        if not hasattr(self, "model"):
            return
        requests = self.model.requests
        for request in requests:
            older = [other for other in requests if other.order < request.order]
            held = [other for other in requests if other is not request and other.granted]
            in_the_way = any(request.guard.conflicts(other.guard) for other in (*older, *held))
            if request.granted:
                assert not any(request.guard.conflicts(other.guard) for other in held)
            else:
                assert in_the_way

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            for request in self.model.requests:
                request.task.cancel()
                request.guard.release()
            self.settle()
            for request in self.model.requests:
                request.guard.release()
            assert self.lock.idle
            self.loop.close()


TestRangeLock = RangeLockMachine.TestCase
TestRangeLock.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
