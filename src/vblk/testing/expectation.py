"""What every sector of a disk may hold after a crash, and the judgement of what it holds.

Owns: the history of a disk as its user made it, by sectors of 512 bytes, and
the rule of durability. It knows no format and no file: instants come from a
recorder's clock, content from whoever reads the disk.

The rule: what ended before a finished flush began is there, or something that
was written to the same sector later or at the same time. So the last write that
a flush covers is the floor; from it on everything that has begun is allowed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from vblk.testing.content import PAGE, SECTOR, SECTORS_PER_PAGE, ZERO_PAGE, ZERO_SECTOR, Content


class Violation(AssertionError):
    """A disk holds what it must not hold after this crash."""


@dataclass(slots=True, eq=False)
class Step:
    """One thing that the user did, with its instants; `ended` is None while it runs or if it failed.

    `failed`: it is over, and what it did is not known. `durable`: it was promised
    to be stable on its own. `weak`: it may as well not have happened, however
    often it is flushed, as a discard.
    """

    began: int
    ended: int | None = None
    durable: bool = False
    weak: bool = False
    failed: bool = False

    @property
    def under_way(self) -> bool:
        """Whether it may still do something."""
        return self.ended is None and not self.failed


@dataclass(frozen=True, slots=True)
class _Value:
    step: Step
    data: bytes


@dataclass(frozen=True, slots=True)
class _Size:
    step: Step
    size: int


_T = TypeVar("_T", _Value, _Size)


@dataclass(slots=True)
class Allowed:
    """The sizes, and the contents of sectors, that a disk may have after a crash at one instant.

    A sector that is not in `sectors` holds what it held at the beginning.
    """

    sizes: set[int]
    sectors: dict[int, set[bytes]]
    right_pages: dict[int, set[bytes]] = field(default_factory=dict[int, set[bytes]])


class Expectation:
    """A disk as its user made it: `content` is what it held at first, durably.

    What the user sees without a crash is `current`.
    """

    def __init__(self, content: Content) -> None:
        self.initial = content
        self.current = content.copy()
        self._first = Step(-1, -1)
        self._values: dict[int, list[_Value]] = {}
        self._zeroing: list[tuple[Step, range]] = []
        self._sizes = [_Size(self._first, content.length)]
        self._flushes: list[Step] = []
        self._durable: list[Step] = []

    def write(self, step: Step, offset: int, data: bytes) -> None:
        """Note that `data` was given to be written at `offset`."""
        self.current.write(offset, data)
        self._changed(step, range(offset // SECTOR, (offset + len(data) - 1) // SECTOR + 1))

    def zero(self, step: Step, offset: int, length: int) -> None:
        """Note that a range was to be zeros, or with a weak `step` may be."""
        first, last = offset // SECTOR, (offset + length - 1) // SECTOR
        self._zeroing = [each for each in self._zeroing if each[0].under_way]
        self._zeroing.append((step, range(first, last + 1)))
        if step.weak:
            self._weakly_zero(step, range(first, last + 1))
            return
        known = {*self.current.sectors(first), *self._values}
        self.current.clear(offset, length)
        self._changed(step, (number for number in known if first <= number <= last))

    def resize(self, step: Step, size: int) -> None:
        """Note that the disk was to have `size` bytes."""
        if size < self.current.length:
            self.zero(step, size, self.current.length - size)
        self.current.length = size
        self._sizes.append(_Size(step, size))

    def flush(self, step: Step) -> None:
        """Note a flush."""
        self._flushes.append(step)

    def forsake(self, at: int) -> None:
        """Note that the user was let down: what is not durable at `at` may never become so."""
        flushed = self._last_flush(at)
        self._zeroing.clear()
        steps = {value.step for values in self._values.values() for value in values}
        for step in steps | {each.step for each in self._sizes}:
            if not _covered(step, at, flushed):
                step.ended = None

    def marks(self) -> list[int]:
        """Return the instants from which on more is demanded than before."""
        steps = [*self._flushes, *self._durable]
        return sorted({step.ended + 1 for step in steps if step.ended is not None})

    def allowed(self, at: int) -> Allowed:
        """Return what the disk may hold after a crash when `at` events had happened."""
        flushed = self._last_flush(at)
        sizes = _allowed(self._sizes, at, flushed)
        sectors = {
            number: {each.data for each in _allowed(values, at, flushed)}
            for number, values in self._values.items()
            if values[1].step.began < at
        }
        return Allowed({each.size for each in sizes}, sectors)

    def judge(self, allowed: Allowed, size: int, pages: dict[int, bytes]) -> None:
        """Compare a disk of `size` bytes with what is allowed.

        Args:
            allowed: As `allowed` returned it.
            size: The size of the disk in bytes.
            pages: By number, the 4 KiB pages of the disk that are not zeros.

        Raises:
            Violation: A sector, or the size, is none of those that are allowed.
        """
        if size not in allowed.sizes:
            raise Violation(f"the disk has {size} bytes; allowed are {sorted(allowed.sizes)}")
        last = -(-size // PAGE)
        touched = {number // SECTORS_PER_PAGE for number in allowed.sectors}
        for index in sorted({*touched, *self.initial.pages, *pages}):
            page = pages.get(index, ZERO_PAGE)
            right = allowed.right_pages.setdefault(index, set())
            if index < last and page not in right:
                self._judge_page(allowed, size, index, page)
                right.add(page)

    def _judge_page(self, allowed: Allowed, size: int, index: int, page: bytes) -> None:
        for within in range(SECTORS_PER_PAGE):
            number = index * SECTORS_PER_PAGE + within
            data = page[within * SECTOR : (within + 1) * SECTOR]
            values = allowed.sectors.get(number) or {self.initial.sector(number)}
            if number * SECTOR < size and data not in values:
                raise Violation(
                    f"sector {number} (offset {number * SECTOR:#x}) holds {_show(data)}; "
                    f"allowed are {', '.join(sorted(_show(each) for each in values))}"
                )

    def _last_flush(self, at: int) -> int:
        return max((step.began for step in self._flushes if _ended(step, at)), default=-1)

    def _changed(self, step: Step, sectors: Iterable[int]) -> None:
        if step.durable and step not in self._durable:
            self._durable.append(step)
        for number in sectors:
            self._history(number).append(_Value(step, self.current.sector(number)))

    def _weakly_zero(self, step: Step, sectors: range) -> None:
        for number in {*self.current.sectors(sectors.start), *self._values}:
            if number in sectors:
                self._history(number).append(_Value(step, ZERO_SECTOR))

    def _history(self, number: int) -> list[_Value]:
        values = self._values.get(number)
        if values is None:
            # Zeros that are under way may still fall on what is written into zeros meanwhile.
            under_way = (step for step, where in self._zeroing if step.under_way and number in where)
            zeros = [_Value(step, ZERO_SECTOR) for step in under_way]
            values = self._values[number] = [_Value(self._first, self.initial.sector(number)), *zeros]
        return values


def _allowed(values: Sequence[_T], at: int, flushed: int) -> list[_T]:
    """Return those of a history's values that may be seen: the floor and what is not older.

    `flushed` is the instant at which the last finished flush began.
    """
    begun = [value for value in values if value.step.began < at]
    floor = max(number for number, value in enumerate(begun) if _covered(value.step, at, flushed))
    since = begun[floor].step.began
    return [
        value
        for number, value in enumerate(begun)
        if number >= floor or value.step.ended is None or value.step.ended > since
    ]


def _covered(step: Step, at: int, flushed: int) -> bool:
    if step.ended is None or step.weak:
        return False
    return step.began < 0 or step.ended < flushed or (step.durable and step.ended < at)


def _ended(step: Step, at: int) -> bool:
    return step.ended is not None and step.ended < at


def _show(data: bytes) -> str:
    return "zeros" if not any(data) else f"{data[:16].hex()}...{data[-4:].hex()}"
