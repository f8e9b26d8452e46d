"""What a crash may leave of a recorded run: every legal state, or a fair sample.

Owns: the rules of the medium and the enumeration of `CrashState`.

The medium: after a finished flush, everything that ended before the flush began
is there. Of all else that has begun, each sector of 512 bytes holds what any of
these operations, or none, made of it, each sector for itself; the length of the
file is any of those it had. A file that was cut and grew again shows no bytes
from before the cut: which length it has also says on which side of the cut its
bytes are from. A sector is never torn in itself.

Ordering rule: states come in the order of the recorded instants, and a state
that was seen since the last of the caller's `marks` is not seen again.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from math import prod

from vblk.testing.content import SECTOR, SECTORS_PER_PAGE, ZERO_SECTOR, Content
from vblk.testing.recording import Action, Event, Operation, Recorder, RecordingLeaf, SectorChange, is_covered

Patch = tuple[tuple[int, bytes], ...]
"""Sectors by number, and what they hold."""


@dataclass(frozen=True, slots=True, eq=False)
class CrashState:
    """The files as a crash at `at` (after that many events) may leave them.

    `choice` says how it was chosen, for whoever has to understand a failure.
    """

    at: int
    files: dict[str, Content]
    signature: int
    choice: str


@dataclass(frozen=True, slots=True)
class _Pending:
    operation: Operation
    change: SectorChange


@dataclass(slots=True)
class _Side:
    """One file at one length: what each of its open sectors may hold."""

    front: "_Front"
    length: int
    resized_by: frozenset[Operation]
    _candidates: dict[int, list[_Pending]] = field(default_factory=dict[int, list[_Pending]])

    def candidates(self, sector: int) -> list[_Pending]:
        """Return the changes of a sector that fit this side of all cuts, the oldest first.

        The first is there when no operation was kept.
        """
        known = self._candidates.get(sector)
        if known is None:
            known = self._candidates[sector] = self._find_candidates(sector)
        return known

    def _find_candidates(self, sector: int) -> list[_Pending]:
        ground = _Pending(_ALWAYS, SectorChange(sector, self.front.base.sector(sector), cut=False))
        found = [ground]
        for pending in self.front.open[sector]:
            if pending.change.cut:
                if pending.operation not in self.resized_by:
                    break
                found = []
            found.append(pending)
        return found

    def visible(self) -> list[int]:
        """Return the open sectors that the length does not take away."""
        return [sector for sector in self.front.open if sector * SECTOR < self.length]

    def by_sector(self) -> list[list[Patch]]:
        """Return what each open sector may hold, apart from the others."""
        return [
            [
                ((sector, data),)
                for data in dict.fromkeys(each.change.data for each in self.candidates(sector))
            ]
            for sector in self.visible()
        ]

    def by_page(self) -> list[list[Patch]]:
        """Return what each 4 KiB page with open sectors may hold when pages are not torn."""
        pages: dict[int, list[int]] = {}
        for sector in self.visible():
            pages.setdefault(sector // SECTORS_PER_PAGE, []).append(sector)
        units: list[list[Patch]] = []
        for sectors in pages.values():
            of_page = {sector: self.candidates(sector) for sector in sectors}
            instants = sorted({each.operation.began for found in of_page.values() for each in found})
            units.append(list(dict.fromkeys(_page_after(of_page, instant) for instant in instants)))
        return units

    def keeping(self, kept: set[Operation]) -> Patch:
        """Return the sectors that are not as before when of all operations just `kept` got through."""
        patch: list[tuple[int, bytes]] = []
        for sector in self.visible():
            found = self.candidates(sector)
            latest = next((each for each in reversed(found) if each.operation in kept), found[0])
            if latest.operation is not _ALWAYS:
                patch.append((sector, latest.change.data))
        return tuple(patch)


_ALWAYS = Operation("", Action.WRITE, 0, 0, -1, -1)


def _page_after(of_page: dict[int, list[_Pending]], instant: int) -> Patch:
    return tuple(
        (
            sector,
            [each for each in found if each.operation.began <= instant or each is found[0]][-1].change.data,
        )
        for sector, found in of_page.items()
    )


class _Front:
    """One file between its last flush and now: the durable ground and what is open above it."""

    def __init__(self, leaf: RecordingLeaf) -> None:
        self.leaf = leaf
        self.base = leaf.initial.copy()
        self.open: dict[int, list[_Pending]] = {}
        self.operations: list[Operation] = []
        self.lengths: list[tuple[Operation, int]] = []
        self.signature = 0

    def begin(self, operation: Operation) -> None:
        """Take in what an operation may from now on have done."""
        changes = self.leaf.changes.get(operation)
        if changes is None:
            return
        self.operations.append(operation)
        for change in changes.sectors:
            self.open.setdefault(change.sector, []).append(_Pending(operation, change))
        if changes.length != (self.lengths[-1][1] if self.lengths else self.base.length):
            self.lengths.append((operation, changes.length))

    def flushed(self, flush: Operation) -> None:
        """Make durable what a flush covers."""
        durable: dict[int, bytes] = {}
        for sector, pendings in list(self.open.items()):
            count = _covered([each.operation for each in pendings], flush)
            if count:
                durable[sector] = pendings[count - 1].change.data
                self.signature ^= self.token(sector, self.base.sector(sector)) ^ self.token(
                    sector, durable[sector]
                )
                del pendings[:count]
                if not pendings:
                    del self.open[sector]
        self.base.patch(durable)
        count = _covered([operation for operation, _ in self.lengths], flush)
        if count:
            self.base.length = self.lengths[count - 1][1]
            del self.lengths[:count]
        self.operations = [each for each in self.operations if not is_covered(each, flush)]

    def sides(self) -> list[_Side]:
        """Return the lengths that the file may have, the newest last."""
        resized = [operation for operation, _ in self.lengths]
        lengths = [self.base.length, *(length for _, length in self.lengths)]
        return [_Side(self, length, frozenset(resized[:number])) for number, length in enumerate(lengths)]

    def token(self, sector: int, data: bytes) -> int:
        """Return a number for the content of a sector, 0 for zeros."""
        return 0 if data == ZERO_SECTOR else hash((self.leaf.name, sector, data))


def _covered(operations: Sequence[Operation], flush: Operation) -> int:
    """Count the operations up to the last one that a flush covers."""
    for count in range(len(operations), 0, -1):
        if is_covered(operations[count - 1], flush):
            return count
    return 0


@dataclass(slots=True)
class Tally:
    """How much was explored: `exhaustive` and `sampled` count instants, the others states."""

    states: int = 0
    repeated: int = 0
    exhaustive: int = 0
    sampled: int = 0

    def __str__(self) -> str:
        return (
            f"{self.states} crash states ({self.repeated} more were equal to one of them) at "
            f"{self.exhaustive + self.sampled} instants, {self.exhaustive} of them exhausted"
        )


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of a run is explored.

    At an instant with at most `bound` states all are given. With more, all with
    whole 4 KiB pages, or else all sets of whole operations, if those are at most
    `bound`, or else what comes of losing, keeping and tearing `corners` of the
    operations alone; and `samples` drawn by lot. Of more than `instants` those
    to look at are drawn by lot, too.
    """

    bound: int = 256
    samples: int = 16
    corners: int = 48
    instants: int = 1 << 30


@dataclass(slots=True)
class Explorer:
    """Enumerates the crash states of a recorded run.

    The flushes in `ignored` are taken to have done nothing: so it can be shown
    that a flush is needed.
    """

    recorder: Recorder
    effort: Effort = Effort()
    seed: int = 0
    ignored: frozenset[Operation] = frozenset()
    tally: Tally = field(default_factory=Tally)

    def states(
        self, marks: Sequence[int] = (), *, since: int = 0, until: int | None = None
    ) -> Iterator[CrashState]:
        """Yield crash states at every instant that can differ from the one before.

        Args:
            marks: Instants at which the caller's demands grow: states are given
                afresh there.
            since: The first instant that is of interest.
            until: The last.
        """
        fronts = {name: _Front(leaf) for name, leaf in self.recorder.leaves.items()}
        seen: set[int] = set()
        demands = set(marks)
        last = self.recorder.now if until is None else min(until, self.recorder.now)
        chosen = self._choose_instants(demands, since, last)
        for at in range(last + 1):
            event = self.recorder.events[at - 1] if at else Event()
            if event.operation is not None and event.operation not in self.ignored:
                _advance(fronts[event.operation.file], event.operation, event.ends)
            if at in demands:
                seen.clear()
            if at in chosen:
                yield from self._states_at(at, list(fronts.values()), seen)

    def _choose_instants(self, demands: set[int], since: int, last: int) -> set[int]:
        """Return the instants to look at: what can be there, or what must be, is not as before."""
        instants = [
            at
            for at in range(since, last + 1)
            if at in (0, since) or at in demands or _matters(self.recorder.events[at - 1])
        ]
        if len(instants) > self.effort.instants:
            instants = random.Random(self.seed).sample(instants, self.effort.instants)
        return set(instants)

    def _states_at(self, at: int, fronts: list[_Front], seen: set[int]) -> Iterator[CrashState]:
        sides = [list(each) for each in product(*(front.sides() for front in fronts))]
        for choice, files in self._choices(at, fronts, sides):
            signature = 0
            for side, patch in files:
                signature ^= side.front.signature ^ hash((side.front.leaf.name, side.length))
                for sector, data in patch:
                    before = side.front.base.sector(sector)
                    signature ^= side.front.token(sector, before) ^ side.front.token(sector, data)
            if signature in seen:
                self.tally.repeated += 1
                continue
            seen.add(signature)
            self.tally.states += 1
            contents = {side.front.leaf.name: _content(side, patch) for side, patch in files}
            yield CrashState(at, contents, signature, choice)

    def _choices(
        self, at: int, fronts: list[_Front], sides: list[list[_Side]]
    ) -> Iterator[tuple[str, list[tuple[_Side, Patch]]]]:
        lot = random.Random(f"{self.seed}/{at}")
        for name, units_of in (("sectors", _Side.by_sector), ("pages", _Side.by_page)):
            units = [[units_of(side) for side in each] for each in sides]
            if sum(prod(len(unit) for file in each for unit in file) for each in units) <= self.effort.bound:
                for each, of_files in zip(sides, units, strict=True):
                    yield from _all_of(name, each, of_files)
                if name == "sectors":
                    self.tally.exhaustive += 1
                    return
                break
        else:
            operations = [operation for front in fronts for operation in front.operations]
            yield from _corners(operations, sides, lot, self.effort)
        self.tally.sampled += 1
        yield from self._drawn(fronts, sides, lot)

    def _drawn(
        self, fronts: list[_Front], sides: list[list[_Side]], lot: random.Random
    ) -> Iterator[tuple[str, list[tuple[_Side, Patch]]]]:
        operations = [operation for front in fronts for operation in front.operations]
        for number in range(self.effort.samples):
            chosen = sides[-1] if lot.random() < 0.5 else lot.choice(sides)
            bias = lot.choice((0.03, 0.2, 0.5, 0.8, 0.97))
            if number % 3 == 0:
                kept = {each for each in operations if lot.random() < bias}
                yield "operations by lot", [(side, side.keeping(kept)) for side in chosen]
                continue
            units_of = _Side.by_sector if number % 3 == 1 else _Side.by_page
            pick = partial(_pick, lot, bias)
            yield (
                "sectors by lot" if number % 3 == 1 else "pages by lot",
                [(side, tuple(piece for unit in units_of(side) for piece in pick(unit))) for side in chosen],
            )


def _pick(lot: random.Random, bias: float, unit: list[Patch]) -> Patch:
    return unit[-1] if lot.random() < bias else lot.choice(unit)


def _matters(event: Event) -> bool:
    """Tell whether the possible states after an event are others than before."""
    if event.operation is None:
        return False
    return event.ends == (event.operation.action is Action.FLUSH)


def _advance(front: _Front, operation: Operation, ends: bool) -> None:
    """Take in that an operation began or ended."""
    if operation.action is Action.FLUSH:
        if ends:
            front.flushed(operation)
    elif not ends:
        front.begin(operation)


def _all_of(
    name: str, sides: list[_Side], of_files: list[list[list[Patch]]]
) -> Iterator[tuple[str, list[tuple[_Side, Patch]]]]:
    """Yield every combination of what the units of all files may hold."""
    of_each = [product(*units) for units in of_files]
    for number, combination in enumerate(product(*of_each)):
        files = [
            (side, tuple(piece for patch in patches for piece in patch))
            for side, patches in zip(sides, combination, strict=True)
        ]
        yield f"all {name}, number {number} at lengths {[side.length for side in sides]}", files


def _corners(
    operations: list[Operation], sides: list[list[_Side]], lot: random.Random, effort: Effort
) -> Iterator[tuple[str, list[tuple[_Side, Patch]]]]:
    """Yield all sets of operations if few; else none, all, each alone, missing or torn."""
    chosen = sides[-1]
    if len(sides) << len(operations) <= effort.bound:
        for each in sides:
            for bits in range(1 << len(operations)):
                kept = {operation for number, operation in enumerate(operations) if bits >> number & 1}
                yield f"operations {bits:#b}", [(side, side.keeping(kept)) for side in each]
    else:
        everything = set(operations)
        for each in sides:
            yield "nothing", [(side, side.keeping(set())) for side in each]
            yield "everything", [(side, side.keeping(everything)) for side in each]
        few = operations
        if len(few) > effort.corners:
            few = sorted(lot.sample(few, effort.corners), key=lambda operation: operation.began)
        for operation in few:
            yield f"all but {operation}", [(side, side.keeping(everything - {operation})) for side in chosen]
            yield f"only {operation}", [(side, side.keeping({operation})) for side in chosen]
        operations = few
    for operation in operations:
        yield f"torn {operation}", [(side, _torn(side, operation, lot)) for side in chosen]


def _torn(side: _Side, operation: Operation, lot: random.Random) -> Patch:
    """Keep everything but a part of one operation's sectors, cut at one place."""
    everything = set(side.front.operations)
    whole, without = dict(side.keeping(everything)), dict(side.keeping(everything - {operation}))
    own = [sector for sector, data in whole.items() if without.get(sector) != data]
    if len(own) > 1:
        split = lot.randrange(1, len(own))
        for sector in own[split:] if lot.random() < 0.5 else own[:split]:
            whole[sector] = without.get(sector, side.front.base.sector(sector))
    return tuple(whole.items())


def _content(side: _Side, patch: Patch) -> Content:
    content = side.front.base.copy()
    content.patch(dict(patch))
    content.truncate(side.length)
    return content
