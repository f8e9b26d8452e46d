"""Limits on bytes and requests a second, for one or several who share them.

Owns: the account (leaky buckets), whose turn it is, and what limits make no
sense. It knows neither nodes nor bytes: who asks says how long a request is.

Ordering rule: a request passes when every bucket that it concerns has room, and
fills them then; so one request may overfill a bucket, and the next one waits.
Among those who wait each member of the group has its turn, in a circle; requests
of one member keep their order.

Source: QEMU's documentation, "The QEMU throttling infrastructure", and its QAPI
reference, ThrottleLimits.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from vblk.aio.clock import Clock
from vblk.errors import OptionError

VALUE_MAX: Final = 10**15

ADVANCE: Final = 0.1
"""Seconds' worth of an average that passes at once where no burst is allowed."""

_SHORTEST: Final = 1e-9
"""Seconds that are not worth waiting for: what is left by rounding."""

_KINDS: Final = ("total", "read", "write")


@dataclass(slots=True)
class ThrottleLimits:
    """Limits as QMP has them: a second's bytes or requests; 0 is no limit.

    `*_max` is what a burst may have a second, for `*_max_length` seconds.
    `iops_size` in bytes: longer requests count as several.
    """

    iops_total: int = 0
    iops_total_max: int = 0
    iops_total_max_length: int = 1
    iops_read: int = 0
    iops_read_max: int = 0
    iops_read_max_length: int = 1
    iops_write: int = 0
    iops_write_max: int = 0
    iops_write_max_length: int = 1
    bps_total: int = 0
    bps_total_max: int = 0
    bps_total_max_length: int = 1
    bps_read: int = 0
    bps_read_max: int = 0
    bps_read_max_length: int = 1
    bps_write: int = 0
    bps_write_max: int = 0
    bps_write_max_length: int = 1
    iops_size: int = 0

    def of(self, unit: str, kind: str) -> tuple[int, int, int]:
        """Return average, burst rate and burst length of "bps" or "iops", "total", "read" or "write"."""
        name = f"{unit}_{kind}"
        return getattr(self, name), getattr(self, f"{name}_max"), getattr(self, f"{name}_max_length")

    def check(self) -> None:
        """Refuse limits that make no sense together.

        Raises:
            OptionError: In QEMU's words.
        """
        for unit in ("bps", "iops"):
            for total, read, write in tuple(zip(*(self.of(unit, kind) for kind in _KINDS), strict=True))[:2]:
                if total and (read or write):
                    raise OptionError(
                        "bps/iops/max total values and read/write values cannot be used at the same time"
                    )
        if self.iops_size and not (self.iops_total or self.iops_read or self.iops_write):
            raise OptionError("iops size requires an iops value to be set")
        for unit in ("bps", "iops"):
            for kind in _KINDS:
                _check(*self.of(unit, kind))


def _check(average: int, burst: int, seconds: int) -> None:
    if not (0 <= average <= VALUE_MAX and 0 <= burst <= VALUE_MAX):
        raise OptionError(f"bps/iops/max values must be within [0, {VALUE_MAX}]")
    if seconds < 1:
        raise OptionError("the burst length cannot be 0")
    if seconds > 1 and not burst:
        raise OptionError("burst length set without burst rate")
    if burst and seconds > VALUE_MAX // burst:
        raise OptionError("burst length too high for this burst rate")
    if burst and not average:
        raise OptionError("bps_max/iops_max require corresponding bps/iops values")
    if burst and burst < average:
        raise OptionError("bps_max/iops_max cannot be lower than bps/iops")


_Queue = deque[tuple[int, "asyncio.Future[None]"]]
"""Requests that wait: their lengths, and what wakes them."""


class _Bucket:
    """What passed, less what has leaked out since; with a burst rate, a second one for its pace."""

    __slots__ = ("_average", "_burst", "_level", "_pace", "_pace_room", "_room", "_time")

    def __init__(self, average: int, burst: int, seconds: int, now: float) -> None:
        self._average = average
        self._burst = burst if seconds > 1 else 0
        self._room = burst * seconds if burst else average * ADVANCE
        self._pace_room = burst * ADVANCE
        self._pace = 0.0
        self._level = 0.0
        self._time = now

    def wait(self, now: float) -> float:
        """Return the seconds until there is room."""
        passed, self._time = now - self._time, now
        self._level = max(0.0, self._level - passed * self._average)
        seconds = max(0.0, (self._level - self._room) / self._average)
        if self._burst:
            self._pace = max(0.0, self._pace - passed * self._burst)
            seconds = max(seconds, (self._pace - self._pace_room) / self._burst)
        return seconds

    def fill(self, amount: float) -> None:
        """Let something pass."""
        self._level += amount
        self._pace += amount


@dataclass(eq=False)
class ThrottleMember:
    """One who shares a group's limits. While `free` is not 0 its requests pass at once."""

    group: "ThrottleGroup"
    free: int = 0

    def hurry(self) -> None:
        """Let requests pass at once, those that wait as well, until the matching `heed`."""
        self.free += 1
        self.group.release(self)

    def heed(self) -> None:
        """Heed the limits again."""
        self.free -= 1


@dataclass(eq=False)
class ThrottleGroup:
    """Limits that all members share.

    Concurrency: belongs to one event loop's thread. A request that is cancelled
    while it waits gives its place up.
    """

    clock: Clock
    limits: ThrottleLimits = field(default_factory=ThrottleLimits)
    members: list[ThrottleMember] = field(default_factory=list[ThrottleMember])

    def __post_init__(self) -> None:
        self._waiting: dict[tuple[ThrottleMember, bool], _Queue] = {}
        self._pump_task: asyncio.Task[None] | None = None
        self.configure(self.limits)

    def configure(self, limits: ThrottleLimits) -> None:
        """Have other limits from now on; what passed before is forgotten.

        Raises:
            OptionError: They make no sense; the old ones stay.
        """
        limits.check()
        self.limits = limits
        now = self.clock.now()
        reads: list[tuple[_Bucket, bool]] = []
        writes: list[tuple[_Bucket, bool]] = []
        for unit in ("bps", "iops"):
            for kind, sides in (("total", (reads, writes)), ("read", (reads,)), ("write", (writes,))):
                average, burst, seconds = limits.of(unit, kind)
                if average:
                    bucket = _Bucket(average, burst, seconds, now)
                    for side in sides:
                        side.append((bucket, unit == "bps"))
        self._buckets = (reads, writes)
        if self._pump_task is not None:  # it sleeps as long as the old limits said
            self._pump_task.cancel()
            self._pump_task = asyncio.create_task(self._pump())

    def join(self) -> ThrottleMember:
        """Become a member."""
        member = ThrottleMember(self)
        self.members.append(member)
        return member

    def leave(self, member: ThrottleMember) -> None:
        """End being one; nothing of the member may be waiting. Idempotent."""
        if member in self.members:
            self.members.remove(member)

    def may_pass(self, member: ThrottleMember, *, write: bool) -> bool:
        """Tell whether a request would pass without waiting; it counts when `passed` says that it did."""
        if member.free:
            return True
        return not any(is_write == write for _, is_write in self._waiting) and not self._wait(write)

    def passed(self, length: int, *, write: bool) -> None:
        """Count a request of `length` bytes."""
        size = self.limits.iops_size
        requests = length / size if 0 < size < length else 1.0
        for bucket, in_bytes in self._buckets[write]:
            bucket.fill(length if in_bytes else requests)

    async def pass_through(self, member: ThrottleMember, length: int, *, write: bool) -> None:
        """Return when a request of `length` bytes may go on, and count it."""
        if self.may_pass(member, write=write):
            self.passed(length, write=write)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((member, write), deque()).append((length, turn))
        if self._pump_task is None:
            self._pump_task = asyncio.create_task(self._pump())
        try:
            await turn
        finally:
            if turn.cancelled():
                self._forget(member, write, (length, turn))

    def _forget(self, member: ThrottleMember, write: bool, entry: "tuple[int, asyncio.Future[None]]") -> None:
        queue = self._waiting.get((member, write))
        if queue is not None and entry in queue:
            queue.remove(entry)
            if not queue:
                del self._waiting[member, write]
        self._rest()

    def _rest(self) -> None:
        """End the pump when nobody waits."""
        if not self._waiting and self._pump_task is not None:
            self._pump_task.cancel()
            self._pump_task = None

    def release(self, member: ThrottleMember) -> None:
        """Let everything of a member go on that waits."""
        for write in (False, True):
            for length, turn in self._waiting.pop((member, write), ()):
                self._let(turn, length, write=write)
        self._rest()

    def _let(self, turn: "asyncio.Future[None]", length: int, *, write: bool) -> None:
        if not turn.done():
            self.passed(length, write=write)
            turn.set_result(None)

    def _wait(self, write: bool) -> float:
        """Return the seconds until a read or a write may pass."""
        now = self.clock.now()
        seconds = max((bucket.wait(now) for bucket, _ in self._buckets[write]), default=0.0)
        return seconds if seconds > _SHORTEST else 0.0

    async def _pump(self) -> None:
        """Let one after the other pass, until nobody waits."""
        while self._waiting:
            waits = (self._wait(False), self._wait(True))
            key = next((key for key in self._waiting if not waits[key[1]]), None)
            if key is None:
                await self.clock.sleep(min(waits[write] for _, write in self._waiting))
                continue
            queue = self._waiting.pop(key)
            length, turn = queue.popleft()
            if queue:
                self._waiting[key] = queue  # behind the others
            self._let(turn, length, write=key[1])
        self._pump_task = None
