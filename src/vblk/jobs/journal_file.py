"""A journal of lines: what a job does, and how far that is durable.

Owns: how lines are added and read. What they say is the business of the jobs; the name
of the file and its lock are `vblk.jobs.journal_lock`'s.

The lines are JSON: the first says what is done, each further one how far it is. A line
that a crash has torn counts for nothing, nor do those behind it.

Ordering rule: a line is durable before the next is written.
"""

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, TypeVar

import msgspec

from vblk.aio.engine import storage_error
from vblk.aio.file_calls import hidden_beside, sync_folder
from vblk.errors import JobError
from vblk.jobs.journal_lock import open_locked

_LENGTH_MAX: Final = 16 << 20

H = TypeVar("H")
M = TypeVar("M")


class JournalFile:
    """One such file.

    Every method runs to completion, and may wait for the disk.
    """

    def __init__(self, target: str) -> None:
        """Name the file for `target`, a local path."""
        self.target = os.path.realpath(target)
        self.path = hidden_beside(self.target, "journal")
        self._descriptor = -1
        self._length = 0

    def open(self) -> None:
        """Open it, or make it, and lock it.

        Raises:
            JobError: Somebody else holds it.
            StorageError: It cannot be opened or made.
        """
        try:
            self._descriptor = open_locked(self.path, self.target)
        except OSError as error:
            raise storage_error(error, filename=self.path) from error

    def close(self) -> None:
        """Let go of it. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read(self, head: type[H], mark: type[M]) -> tuple[H, Sequence[M]] | None:
        """Return what its lines say; None if there is not even a first.

        Raises:
            JobError: It is no journal of this kind.
            StorageError: It cannot be read.
        """
        try:
            data = os.pread(self._descriptor, _LENGTH_MAX + 1, 0)
        except OSError as error:
            raise storage_error(error, filename=self.path) from error
        if len(data) > _LENGTH_MAX:
            raise JobError(f"a journal has at most {_LENGTH_MAX} bytes", filename=self.path)
        first, *lines = data.split(b"\n")
        self._length = 0
        if not lines:
            return None
        try:
            begun = msgspec.json.decode(first, type=head)
        except msgspec.DecodeError as error:
            raise self.not_mine(f"its first line is no journal's: {error}") from error
        self._length = len(first) + 1
        marks: list[M] = []
        for line in lines[:-1]:
            try:
                marks.append(msgspec.json.decode(line, type=mark))
            except msgspec.DecodeError:
                break
            self._length += len(line) + 1
        return begun, marks

    def not_mine(self, why: str) -> JobError:
        """Return what to raise where the journal is about something else."""
        return JobError(f"{why}; remove it to begin anew", filename=self.path)

    def cut(self, *, keep: bool) -> None:
        """Take off what was torn, or all; lines are added behind what is left."""
        self._length = self._length if keep else 0
        os.ftruncate(self._descriptor, self._length)
        os.lseek(self._descriptor, self._length, os.SEEK_SET)

    def append(self, line: msgspec.Struct) -> None:
        """Add a line, durably; the name of the file is durable with the first.

        Raises:
            StorageError: That failed.
        """
        data = msgspec.json.encode(line) + b"\n"
        try:
            if os.write(self._descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(self._descriptor)
            if not self._length:
                sync_folder(os.path.dirname(self.path))
        except OSError as error:
            raise storage_error(error, filename=self.path) from error
        self._length += len(data)

    def touch(self) -> None:
        """Let the time of its last change be now; that needs not be durable."""
        with suppress(OSError):
            os.utime(self._descriptor)

    @property
    def touched(self) -> int:
        """When it was last changed or touched, in nanoseconds since the epoch."""
        return os.fstat(self._descriptor).st_mtime_ns

    def remove(self) -> None:
        """Remove it; it may be gone already."""
        with suppress(OSError):
            os.unlink(self.path)
