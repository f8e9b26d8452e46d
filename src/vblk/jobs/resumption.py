"""How far a long copy is, durably: so that a later run goes on from there.

Owns: what the journal of a copy says (its file is `vblk.jobs.journal_file`'s), and the
name of the target while it is not whole; what tells whether a source has changed. What
is copied, and how, is not its business.

The first line says what is copied into which file, each further one that everything
before an offset of the target is there.

Ordering rule: what a line says is durable before the line is written. The journal goes
when the target has its name.
"""

import asyncio
import os
import stat
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Final, Protocol

import msgspec

from vblk.aio.clock import Clock
from vblk.aio.file_calls import hidden_beside
from vblk.errors import BlockError, Unsupported
from vblk.graph.edges import reachable
from vblk.graph.handle import Handle
from vblk.graph.node import Leaf, Node
from vblk.graph.registry import Graph
from vblk.jobs.job import woken
from vblk.jobs.journal_file import JournalFile
from vblk.runtime.uninterrupted import to_the_end

PERIOD: Final = 5.0
"""Seconds between two lines."""

_VERSION: Final = 1


class Trace(msgspec.Struct, frozen=True, array_like=True):
    """A file that is read: its name, its inode, its length in bytes and when it was last written."""

    name: str
    inode: int
    length: int
    modified: int


class Task(msgspec.Struct, frozen=True):
    """What is copied: the files that are read, in order, and the rest of the command."""

    sources: tuple[Trace, ...]
    how: str


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    task: Task
    part: int
    """The inode of the unfinished target."""


class _Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    done: int
    whole: int = 0
    """When the part was last written, in nanoseconds, if it is whole."""


def traces_of(nodes: Sequence[Node]) -> tuple[Trace, ...]:
    """Return what would tell that one of the disks has been written to.

    Raises:
        Unsupported: Of a file below them nobody can tell.
    """
    traces: list[Trace] = []
    for node in nodes:
        for leaf in reachable(node):
            if not isinstance(leaf, Leaf):
                continue
            descriptor = leaf.descriptor()
            status = None if descriptor is None else os.fstat(descriptor)
            if status is None or not stat.S_ISREG(status.st_mode):
                text = "a copy of it cannot be resumed: nobody can tell whether it has changed meanwhile"
                raise Unsupported(text, filename=leaf.filename)
            traces.append(Trace(leaf.filename, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(traces)


class Journal:
    """The journal of the copy to one target.

    Every method runs to completion, and may wait for the disk.
    """

    def __init__(self, target: str, task: Task) -> None:
        """Name the journal of a copy to `target`, a local path."""
        self._file = JournalFile(target)
        self.path = self._file.path
        self._target = self._file.target
        self.part = hidden_beside(self._target, "part")
        """Where the target is until it is whole."""
        self._task = task
        self.is_begun = False
        """Whether the part is there, and an image, though maybe of nothing."""
        self.is_whole = False
        """Whether the target has its name already, and all of its bytes."""
        self.done = 0
        """Everything before this offset of the target is there, durably."""

    @contextmanager
    def claimed(self) -> Generator[None]:
        """Hold the journal, and know what it says; it is kept if there is something to go on from.

        Raises:
            JobError: Somebody else holds it, or it is about something else.
            StorageError: It cannot be read or made.
        """
        self._file.open()
        try:
            self._read()  # what is not ours is left alone
            try:
                yield
            finally:
                if not self.is_begun:
                    self._file.remove()
        finally:
            self._file.close()

    def _read(self) -> None:
        said = self._file.read(_Head, _Mark)
        if said is not None:
            begun, marks = said
            self._judge(begun, marks[-1] if marks else _Mark(0))
        self._file.cut(keep=self.is_begun)

    def _judge(self, begun: _Head, last: _Mark) -> None:
        if begun.version != _VERSION:
            raise self._file.not_mine(f"it is of version {begun.version}")
        if _identity(self.part)[0] == begun.part:
            self._compare(begun.task)
            self.is_begun, self.done = True, last.done
        elif last.whole and _identity(self._target) == (begun.part, last.whole):
            self.is_whole = begun.task == self._task

    def _compare(self, begun: Task) -> None:
        if begun.how != self._task.how:
            raise self._file.not_mine(f"the copy was begun with other options: {begun.how}")
        for then, now in zip(begun.sources, self._task.sources, strict=False):
            if then != now:
                changed = "has changed" if then.name == now.name else f"stands where '{then.name}' was"
                raise self._file.not_mine(f"'{now.name}' {changed} since the copy was begun")
        if len(begun.sources) != len(self._task.sources):
            raise self._file.not_mine("the copy was begun with other sources")

    def begin(self) -> None:
        """Note what is copied; the part is there, durably.

        Raises:
            StorageError: The journal cannot be written; for the other methods too.
        """
        self._file.append(_Head(_VERSION, self._task, _identity(self.part)[0]))
        self.is_begun = True

    def note(self, done: int) -> None:
        """Note that everything before an offset of the target is durable."""
        self._file.append(_Mark(done))
        self.done = done

    def finish(self) -> None:
        """Note that the part is whole; it is not written any more."""
        self._file.append(_Mark(self.done, _identity(self.part)[1]))

    def end(self) -> None:
        """Forget the copy: the target has its name."""
        self.is_begun = False


def _identity(path: str) -> tuple[int, int]:
    """Return the inode of a file and when it was last written, or what no file has."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns


class Notes(Protocol):
    """Where it is noted how far a copy is."""

    @property
    def done(self) -> int:
        """Everything before this offset of the target is there, durably."""
        ...

    def note(self, done: int) -> None:
        """Note that everything before an offset of the target is durable."""
        ...


@asynccontextmanager
async def noted(
    journal: Notes, graph: Graph, target: Handle, copied_to: Callable[[], int], clock: Clock
) -> AsyncGenerator[None]:
    """Note every few seconds how far a copy is, while the block runs.

    Where that fails, the copy goes on without: what is wrong with the target it
    finds out by itself.
    """
    over = asyncio.Event()

    async def keep() -> None:
        with suppress(BlockError):
            while not await woken(over, clock.sleep(PERIOD)):
                if (done := copied_to()) > journal.done:
                    await target.flush()
                    await graph.engine.run(partial(journal.note, done))

    keeper = asyncio.ensure_future(keep())
    try:
        yield
    finally:
        over.set()
        await to_the_end(keeper)
