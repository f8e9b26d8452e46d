"""How far a job is: bytes done, bytes in all, how fast, how long still.

Owns: the counting. Who shows it, and where, is not its business.
"""

from collections.abc import Callable

from vblk.aio.clock import Clock

_WINDOW_SECONDS = 3.0
"""The rate is that of about the last seconds, so that a slow start does not spoil it."""


class Progress:
    """Counts bytes, and tells a listener after each change.

    Args:
        listener: Called with this object after every change; it must be quick.
        clock: Where the time comes from.
    """

    def __init__(self, listener: "Callable[[Progress], None] | None", clock: Clock) -> None:
        self.done = 0
        self.total = 0
        self.finished = False
        self._listener = listener
        self._clock = clock
        self._started: float | None = None
        self._mark = (0.0, 0)
        self._rate: float | None = None

    def start(self, total: int) -> None:
        """Begin with `total` bytes to do."""
        self.total = total
        self._started = self._clock.now()
        self._mark = (self._started, 0)
        self._tell()

    def add(self, length: int) -> None:
        """Count `length` bytes as done."""
        self.done += length
        now = self._clock.now()
        since, bytes_then = self._mark
        if now - since >= _WINDOW_SECONDS:
            self._rate = (self.done - bytes_then) / (now - since)
            self._mark = (now, self.done)
        self._tell()

    def reach(self, done: int, total: int) -> None:
        """Say how far it is by now, of how much."""
        if self._started is None:
            self.start(total)
        self.total = total
        self.add(max(0, done - self.done))

    def finish(self) -> None:
        """Say that all is done, even if less turned up than was expected."""
        self.total = self.done = max(self.total, self.done)
        self.finished = True
        self._tell()

    @property
    def fraction(self) -> float:
        """What is done of the whole, from 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else float(self.finished)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return 0.0 if self._started is None else self._clock.now() - self._started

    @property
    def rate(self) -> float:
        """Bytes a second, lately."""
        if self._rate is not None:
            return self._rate
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest will take at this rate; None while nobody knows."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None

    def _tell(self) -> None:
        if self._listener is not None:
            self._listener(self)
