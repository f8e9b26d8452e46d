"""How far a long copy is, durably: so that a later run goes on from there.

Owns: the journal of a copy, a file beside its target, and the name of the target
while it is not whole; what tells whether a source has changed. What is copied, and
how, is not its business.

The journal is lines of JSON: the first says what is copied into which file, each
further one that everything before an offset of the target is there. A line that a
crash has torn counts for nothing. Whoever has the journal open holds a lock on it.

Ordering rule: what a line says is durable before the line is written, and the line
before the next begins. The journal goes when the target has its name.
"""

import asyncio
import errno
import fcntl
import os
import stat
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Final

import msgspec

from vblk.aio.clock import Clock
from vblk.aio.engine import storage_error
from vblk.aio.file_calls import sync_folder
from vblk.errors import BlockError, JobError, Unsupported
from vblk.graph.edges import reachable
from vblk.graph.handle import Handle
from vblk.graph.node import Leaf, Node
from vblk.graph.registry import Graph
from vblk.jobs.job import woken
from vblk.runtime.uninterrupted import to_the_end

PERIOD: Final = 5.0
"""Seconds between two lines."""

_LENGTH_MAX: Final = 16 << 20
_VERSION: Final = 1
_NAME_MAX: Final = 180


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
        self._target = os.path.realpath(target)
        folder, base = os.path.split(self._target)
        self.part = os.path.join(folder, f".{base[:_NAME_MAX]}.vblk-part")
        """Where the target is until it is whole."""
        self.path = os.path.join(folder, f".{base[:_NAME_MAX]}.vblk-journal")
        self._task = task
        self._descriptor = -1
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
        with self._opened():
            self._read()  # what is not ours is left alone
            try:
                yield
            finally:
                if not self.is_begun:
                    with suppress(OSError):
                        os.unlink(self.path)

    @contextmanager
    def _opened(self) -> Generator[None]:
        try:
            self._open()
        except OSError as error:
            raise storage_error(error, filename=self.path) from error
        try:
            yield
        finally:
            os.close(self._descriptor)

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            self._descriptor = os.open(self.path, flags, 0o600)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._descriptor)
                raise JobError("somebody copies to this target now", filename=self._target) from None
            if os.fstat(self._descriptor).st_nlink:
                return
            os.close(self._descriptor)  # whoever held it has come to the end

    def _read(self) -> None:
        data = os.pread(self._descriptor, _LENGTH_MAX + 1, 0)
        if len(data) > _LENGTH_MAX:
            raise JobError(f"a journal has at most {_LENGTH_MAX} bytes", filename=self.path)
        head, *marks = data.split(b"\n")
        length = 0
        if marks:
            try:
                begun = msgspec.json.decode(head, type=_Head)
            except msgspec.DecodeError as error:
                raise self._not_mine(f"its first line is no journal's: {error}") from error
            last = _Mark(0)
            length = len(head) + 1
            for line in marks[:-1]:
                try:
                    last = msgspec.json.decode(line, type=_Mark)
                except msgspec.DecodeError:
                    break
                length += len(line) + 1
            self._judge(begun, last)
        if not self.is_begun:
            length = 0
        os.ftruncate(self._descriptor, length)
        os.lseek(self._descriptor, length, os.SEEK_SET)

    def _judge(self, begun: _Head, last: _Mark) -> None:
        if begun.version != _VERSION:
            raise self._not_mine(f"it is of version {begun.version}")
        if _identity(self.part)[0] == begun.part:
            self._compare(begun.task)
            self.is_begun, self.done = True, last.done
        elif last.whole and _identity(self._target) == (begun.part, last.whole):
            self.is_whole = begun.task == self._task

    def _compare(self, begun: Task) -> None:
        if begun.how != self._task.how:
            raise self._not_mine(f"the copy was begun with other options: {begun.how}")
        for then, now in zip(begun.sources, self._task.sources, strict=False):
            if then != now:
                changed = "has changed" if then.name == now.name else f"stands where '{then.name}' was"
                raise self._not_mine(f"'{now.name}' {changed} since the copy was begun")
        if len(begun.sources) != len(self._task.sources):
            raise self._not_mine("the copy was begun with other sources")

    def _not_mine(self, why: str) -> JobError:
        return JobError(f"{why}; remove it to begin anew", filename=self.path)

    def begin(self) -> None:
        """Note what is copied; the part is there, durably.

        Raises:
            StorageError: The journal cannot be written; for the other methods too.
        """
        self._append(_Head(_VERSION, self._task, _identity(self.part)[0]))
        self.is_begun = True

    def note(self, done: int) -> None:
        """Note that everything before an offset of the target is durable."""
        self._append(_Mark(done))
        self.done = done

    def finish(self) -> None:
        """Note that the part is whole; it is not written any more."""
        self._append(_Mark(self.done, _identity(self.part)[1]))

    def _append(self, line: msgspec.Struct) -> None:
        data = msgspec.json.encode(line) + b"\n"
        try:
            if os.write(self._descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(self._descriptor)
            if not self.is_begun:
                sync_folder(os.path.dirname(self.path))
        except OSError as error:
            raise storage_error(error, filename=self.path) from error

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


@asynccontextmanager
async def noted(
    journal: Journal, graph: Graph, target: Handle, copied_to: Callable[[], int], clock: Clock
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
