"""A leaf in memory that remembers every change and when it began and ended.

Owns: the clock that several files share (`Recorder`), the leaves, and what each
change made of every sector. What a crash may leave of it is `vblk.testing.crash`.

Ordering rule: a change is in the volatile content as soon as it begins, so that
a crash in its middle may have kept any part of it; it is covered by a flush only
when it ended before the flush began.
"""

import asyncio
import enum
import errno
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vblk.errors import BlockError, OutOfRange, StorageError, Unsupported
from vblk.extent import Kind
from vblk.graph.node import Buffer, Leaf, Preallocation, Span, coalesce
from vblk.testing.content import PAGE, SECTOR, Content
from vblk.units import OFFSET_MAX


class Action(enum.Enum):
    """What an operation does to a file."""

    WRITE = "write"
    ZERO = "zero"
    DISCARD = "discard"
    RESIZE = "resize"
    FLUSH = "flush"


@dataclass(slots=True, eq=False)
class Operation:
    """One operation on the file `file`; offsets and lengths in bytes.

    `began` and `ended` are instants of the recorder's clock. `ended` is None
    while it runs, and for ever when a flush that should have covered it failed:
    what it changed may then be on the medium or not until something else
    overwrites it. For RESIZE `length` is the new length.
    """

    file: str
    action: Action
    offset: int
    length: int
    began: int
    ended: int | None = None

    def __str__(self) -> str:
        return (
            f"{self.action.value} {self.file} {self.offset:#x}+{self.length:#x} ({self.began}-{self.ended})"
        )


@dataclass(frozen=True, slots=True)
class SectorChange:
    """What an operation made of one sector; `cut` if a shorter length took it away."""

    sector: int
    data: bytes
    cut: bool


@dataclass(frozen=True, slots=True)
class Changes:
    """What an operation made of its file: the length after it, and the sectors it touched."""

    length: int
    sectors: list[SectorChange]


Apply = Callable[[int], Changes]
"""Applies so many bytes of an operation, and says what became of the file."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Let an operation fail with `error` after `kept` of its bytes were written."""

    error: BlockError
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """What happened at one instant: an operation began or ended, or else something outside."""

    operation: Operation | None = None
    ends: bool = False


class Recorder:
    """The clock and the files of one recorded run.

    With a `seed` operations take a random number of turns of the event loop, so
    that their ends come in another order than their beginnings; without one
    each takes one turn. `fault` may make an operation fail. Recording can be
    turned off for leaves that are only to be read or repaired. While `dead` is
    set nothing can be done to the files, as by a process that was killed; what
    it had begun is still done.

    Concurrency: belongs to one event loop's thread.
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        fault: Callable[[Operation], Fault | None] | None = None,
        recording: bool = True,
    ) -> None:
        self.events: list[Event] = []
        self.leaves: dict[str, RecordingLeaf] = {}
        self.fault = fault
        self.recording = recording
        self.dead = False
        self._random = None if seed is None else random.Random(seed)

    @property
    def now(self) -> int:
        """The number of events so far; a crash "at" this instant comes after all of them."""
        return len(self.events)

    def note(self) -> int:
        """Let an instant pass, as for something outside the files, and return its number."""
        self.events.append(Event())
        return len(self.events) - 1

    def leaf(self, name: str, content: Content | None = None, *, read_only: bool = False) -> "RecordingLeaf":
        """Add a file; what it holds at first is durable."""
        leaf = RecordingLeaf(
            name, self, Content() if content is None else content.copy(), read_only=read_only
        )
        self.leaves[name] = leaf
        return leaf

    def begin(self, file: str, action: Action, offset: int, length: int) -> Operation:
        """Note that an operation begins."""
        if self.dead:
            raise StorageError(errno.EIO, "the process was killed", filename=file)
        operation = Operation(file, action, offset, length, len(self.events))
        if self.recording:
            self.events.append(Event(operation))
        return operation

    def end(self, operation: Operation) -> None:
        """Note that an operation has ended well."""
        if self.recording:
            operation.ended = len(self.events)
            self.events.append(Event(operation, ends=True))

    def fault_of(self, operation: Operation) -> Fault | None:
        """Return how an operation is to fail, or None."""
        return None if self.fault is None else self.fault(operation)

    def would_block(self) -> bool:
        """Tell whether a read that must not wait has to give up this time."""
        return self._random is not None and self._random.random() < 0.5

    async def take_time(self, *, reading: bool = False) -> None:
        """Let some turns of the event loop pass; a read may be overtaken by a whole flush."""
        choices = (0, 1, 2, 5, 80) if reading else (0, 1, 1, 2, 3, 7)
        turns = 1 if self._random is None else self._random.choice(choices)
        for _ in range(turns if self.recording else 0):
            await asyncio.sleep(0)


class RecordingLeaf(Leaf):
    """A file in memory, every change of which is recorded.

    `initial` is its durable content at first, `content` what readers see now,
    `changes` what each operation did on the way. Where changes overlap, the one
    that began later wins.
    """

    driver: ClassVar[str] = "recording"

    def __init__(self, name: str, recorder: Recorder, content: Content, *, read_only: bool) -> None:
        super().__init__(name, f"recording:{name}", read_only=read_only)
        self.recorder = recorder
        self.initial = content.copy() if recorder.recording else content
        self.content = content
        self.changes: dict[Operation, Changes] = {}
        self._size = content.length
        self._ever: set[int] = set()
        self._uncovered: list[Operation] = []

    @property
    def size(self) -> int:
        """The length in bytes, as the operations left it that have ended."""
        return self._size

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Read bytes, unless the recorder wants it to take longer."""
        return None if self.recorder.would_block() else self.content.read(offset, length)

    async def read(self, offset: int, length: int) -> bytes:
        """Read bytes; see `Node.read`."""
        await self.recorder.take_time(reading=True)
        return self.content.read(offset, length)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer; see `Node.read_into`."""
        buffer[:] = await self.read(offset, len(buffer))

    def try_write(self, offset: int, data: Buffer) -> bool:
        """Write bytes, unless the recorder wants it to take longer or may let it fail."""
        self.require_writable()
        recorder, end = self.recorder, offset + len(data)
        if recorder.dead or recorder.fault is not None or end > OFFSET_MAX or recorder.would_block():
            return False
        operation = recorder.begin(self.name, Action.WRITE, offset, len(data))
        self._note(operation, self._store(offset, memoryview(data)))
        recorder.end(operation)
        self._size = max(self._size, end)
        return True

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write bytes, growing the file where they pass its end; see `Node.write`."""
        view = memoryview(data).cast("B")
        if offset + len(view) > OFFSET_MAX:
            raise OutOfRange("a file cannot be that long", filename=self.filename, offset=offset)
        await self._change(Action.WRITE, offset, len(view), lambda kept: self._store(offset, view[:kept]))
        if fua:
            await self.flush()

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Zero a range, growing the file where it passes the end; see `Node.write_zeroes`."""
        await self._change(Action.ZERO, offset, length, lambda kept: self._clear(offset, kept, grow=True))
        if fua:
            await self.flush()

    async def discard(self, offset: int, length: int) -> None:
        """Zero a range inside the file; see `Node.discard`."""
        inside = min(length, max(0, self.size - offset))
        await self._change(Action.DISCARD, offset, inside, lambda kept: self._clear(offset, kept))

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        """Change the length; space is never preallocated in memory, and never short."""
        if preallocation is Preallocation.METADATA:
            raise Unsupported(
                f"Unsupported preallocation mode: {preallocation.value}", filename=self.filename
            )
        await self._change(Action.RESIZE, 0, size, self._set_length)

    async def flush(self) -> None:
        """Make what ended before now durable; see `Node.flush`.

        A flush that fails leaves all bytes written before it uncertain for ever,
        as a kernel does that drops the pages it could not write. The file's
        length is not bytes: a file system that loses its journal stops.
        """
        operation = self.recorder.begin(self.name, Action.FLUSH, 0, 0)
        fault = self.recorder.fault_of(operation)
        await self.recorder.take_time()
        if fault is not None:
            for earlier in self._uncovered:
                if is_covered(earlier, operation) and earlier.action is not Action.RESIZE:
                    earlier.ended = None
            raise fault.error
        self.recorder.end(operation)
        self._uncovered = [each for each in self._uncovered if not is_covered(each, operation)]

    async def _change(self, action: Action, offset: int, length: int, apply: Apply) -> None:
        self.require_writable()
        operation = self.recorder.begin(self.name, action, offset, length)
        fault = self.recorder.fault_of(operation)
        kept = length if fault is None else fault.kept
        end = 0 if action is Action.DISCARD else offset + length
        if fault is None or kept:
            self._note(operation, apply(kept))
        try:
            await self.recorder.take_time()
        finally:  # whatever its caller is told, or waits for: what was done is done
            self.recorder.end(operation)
        if fault is not None:
            raise fault.error
        self._size = length if action is Action.RESIZE else max(self._size, end)

    def _note(self, operation: Operation, changes: Changes) -> None:
        if self.recorder.recording:
            self.changes[operation] = changes
            self._uncovered.append(operation)

    def _store(self, offset: int, data: memoryview) -> Changes:
        self.content.write(offset, data)
        first, last = offset // SECTOR, (offset + len(data) - 1) // SECTOR
        return self._noted(range(first, last + 1) if len(data) else ())

    def _clear(self, offset: int, length: int, *, grow: bool = False) -> Changes:
        if not length:
            return self._noted(())
        first, last = offset // SECTOR, (offset + length - 1) // SECTOR
        sectors = [number for number in self._known_sectors(first) if number <= last]
        self.content.clear(offset, length)
        if grow:
            self.content.length = max(self.content.length, offset + length)
        return self._noted(sectors)

    def _set_length(self, length: int) -> Changes:
        whole = -(-length // SECTOR)
        sectors = self._known_sectors(length // SECTOR) if length < self.content.length else []
        self.content.truncate(length)
        return self._noted(sectors, cut_from=whole)

    def _known_sectors(self, first: int) -> list[int]:
        """Return the sectors from `first` on that hold something, or ever did."""
        if not self.recorder.recording:
            return []
        return sorted({*self.content.sectors(first), *(each for each in self._ever if each >= first)})

    def _noted(self, sectors: Iterable[int], cut_from: int = OFFSET_MAX) -> Changes:
        """Say what the content is now that it has changed in `sectors`."""
        if not self.recorder.recording:
            return Changes(self.content.length, [])
        content = self.content
        changed = [SectorChange(each, content.sector(each), each >= cut_from) for each in sectors]
        self._ever.update(each.sector for each in changed)
        return Changes(content.length, changed)

    async def allocation(self, offset: int, length: int) -> list[Span]:
        """Tell pages from holes."""
        spans: list[Span] = []
        end = offset + length
        here = range(offset // PAGE, -(-end // PAGE))
        pages = self.content.pages
        few = (index for index in here if index in pages) if len(here) < len(pages) else sorted(pages)
        for index in few:
            start, stop = max(offset, index * PAGE), min(end, (index + 1) * PAGE)
            if start < stop:
                if start > offset:
                    spans.append(Span(Kind.ZERO, offset, start - offset, self, offset))
                spans.append(Span(Kind.DATA, start, stop - start, self, start))
                offset = stop
        if offset < end:
            spans.append(Span(Kind.ZERO, offset, end - offset, self, offset))
        return coalesce(spans)

    async def allocated_bytes(self) -> int | None:
        """Return the bytes of all pages."""
        return len(self.content.pages) * PAGE

    async def reopen(self, *, read_only: bool) -> None:
        """Take on the new access."""
        self.read_only = read_only

    def info(self) -> Mapping[str, Any]:
        """Nothing is special to memory."""
        return {}

    async def close(self) -> None:
        """Keep everything: the record outlives the node."""


def is_covered(operation: Operation, flush: Operation) -> bool:
    """Tell whether a flush, if it ends, makes an operation durable."""
    return operation.ended is not None and operation.ended < flush.began
