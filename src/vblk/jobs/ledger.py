"""The ledger of a job: which regions of its target are done, durably, whatever becomes of the process.

Owns: the file beside the target, its lock, and what it says. When a region is done,
and what must be done before one is changed, is the jobs' business.

The file has three parts, each of whole pages of 4096 bytes but the last:

    0        magic, offset of the third part; at 512: 1 when the target is whole;
             at 1024: the last changes of the source and of the target
    4096     a byte for each region: 1, it is done
    ...      JSON: what is copied into what, and by which job

The last changes are kept in memory that is the file's, so that a process that is
killed leaves them there. A file is made beside and takes its name when it is durable.

Ordering rule: what the file is to say of a region is true before it is written. It
goes when the job has come to its end, its users included.
"""

import errno
import mmap
import os
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

import msgspec

from vblk.aio.engine import Engine, storage_error
from vblk.aio.file_calls import hidden_beside, sync_folder
from vblk.errors import BlockError, JobError
from vblk.jobs.identity import Fact, LastChange, boot_id, difference
from vblk.jobs.journal_lock import open_locked
from vblk.jobs.region_map import PAGE, RegionMap
from vblk.runtime.flush_sequencer import FlushSequencer
from vblk.units import is_power_of_two

T = TypeVar("T")

REGIONS_MOST: Final = 1 << 22

_MAGIC: Final = b"vblk ledger 1\n\0\0"
_HEAD: Final = struct.Struct("=16sQ")
_WHOLE_AT: Final = 512
_SOURCE_AT: Final = 1024
_TARGET_AT: Final = 1536
_CHANGE: Final = struct.Struct("=QQQ")
_LENGTH_MAX: Final = PAGE + REGIONS_MOST + (1 << 20)


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is copied, and how. `size` and `region` in bytes; `boot` is the life of the system."""

    how: str
    size: int
    region: int
    source: tuple[Fact, ...]
    target: tuple[Fact, ...]
    boot: str = ""

    @property
    def regions(self) -> int:
        """How many there are."""
        return -(-self.size // self.region)


class Activity:
    """The changes of a disk: when the last one began or ended, and how many are under way."""

    def __init__(self, page: mmap.mmap, at: int) -> None:
        """Keep it in a page that outlives the process."""
        self._page: mmap.mmap | bytearray = page
        self._at = at
        self._under_way = 0
        self.moment = 0
        """When something was noted last, in nanoseconds of the system's time."""

    def begun(self) -> None:
        """Note a change that begins."""
        self._under_way += 1
        self.note()

    def ended(self) -> None:
        """Note that one has ended."""
        self._under_way -= 1
        self.note()

    def note(self, *, rests: bool = False) -> None:
        """Keep the time, and what is under way; `rests`: nothing more will be."""
        self.moment = time.time_ns()
        _CHANGE.pack_into(self._page, self._at, self.moment, self._under_way, rests)

    def forget(self) -> None:
        """Keep it nowhere any more."""
        self._page = bytearray(PAGE)


def region_for(size: int, least: int, most: int) -> int:
    """Return the least power of two, from `least` on, of which a disk has at most `most`."""
    region = least
    while size > region * most:
        region *= 2
    return region


class Ledger:
    """The ledger of a job that copies to one target, a local path.

    `is_begun`: there is something to go on from, of which `task` and `map` tell.
    """

    def __init__(self, engine: Engine, target: str) -> None:
        self._engine = engine
        self._target = os.path.realpath(target)
        self.path = hidden_beside(self._target, "journal")
        self._descriptor = -1
        self._page: mmap.mmap | None = None
        self.is_begun = False
        self.map = RegionMap(0)
        self.task: Task | None = None
        self._last: dict[str, LastChange] = {}
        self._stores = FlushSequencer(self._store, filename=self.path)
        self.source: Activity
        """What users change."""
        self.target: Activity
        """What the job changes."""

    async def claim(self) -> None:
        """Lock the ledger and read what it says.

        Raises:
            JobError: Somebody else works by it, or it is no ledger, or its target is whole.
            StorageError: It cannot be opened.
        """
        try:
            await self._blocking(self._claim)
        except BaseException:
            self.close()
            raise

    def _claim(self) -> None:
        self._descriptor = open_locked(self.path, self._target)
        data = os.pread(self._descriptor, _LENGTH_MAX + 1, 0)
        if not data:
            return
        if len(data) < PAGE or len(data) > _LENGTH_MAX or data[: len(_MAGIC)] != _MAGIC:
            raise self.refusal("it is not the journal of a job that goes on while a disk is in use")
        _, task_at = _HEAD.unpack_from(data)
        try:
            self.task = task = msgspec.json.decode(data[task_at:], type=Task)
        except msgspec.DecodeError as error:
            raise self.refusal(f"what it says of its job cannot be read: {error}") from error
        content = data[PAGE : PAGE + max(0, task.regions if task.region > 0 else 0)]
        if not _is_sound(task, content):
            raise self.refusal("its regions make no sense")
        if data[_WHOLE_AT]:
            raise self.refusal(
                f"everything was copied, and its users were being led to '{self._target}': go on with that"
            )
        self.map = RegionMap(task.regions, content)
        same_life = task.boot == boot_id()
        for name, at in (("source", _SOURCE_AT), ("target", _TARGET_AT)):
            moment, under_way, rests = _CHANGE.unpack_from(data, at)
            self._last[name] = LastChange(moment, same_life and not under_way, bool(rests))
        self.is_begun = True

    def refusal(self, why: str) -> JobError:
        """Return the error of a job that cannot go on by what is there."""
        return JobError(f"{why}; remove it to begin anew", filename=self.path)

    def require(self, now: Task) -> None:
        """Compare what was copied with what is to be.

        Raises:
            JobError: It is not the same, or was changed since.
        """
        then = self.task
        if not self.is_begun:
            return
        assert then is not None
        if (then.how, then.size) != (now.how, now.size):
            raise self.refusal(
                f"it is about another job: {then.how} of {then.size} bytes, not {now.how} of {now.size}"
            )
        for name in ("source", "target"):
            found = difference(getattr(then, name), getattr(now, name), self._last[name])
            if found is not None:
                raise self.refusal(f"{found} the job was begun")

    async def begin(self, task: Task) -> None:
        """Note what is copied, durably; of which regions are done it says what it said.

        Raises:
            BlockError: It cannot be written.
        """
        if not self.is_begun:
            self.map = RegionMap(task.regions)
        await self._blocking(partial(self._begin, msgspec.structs.replace(task, boot=boot_id())))
        self.is_begun = True

    def _begin(self, task: Task) -> None:
        new = hidden_beside(self._target, "journal-new")
        with suppress(FileNotFoundError):
            os.unlink(new)
        content = self.map.content()
        task_at = PAGE + -(-len(content) // PAGE) * PAGE
        descriptor = open_locked(new, self._target)
        try:
            _write(descriptor, _HEAD.pack(_MAGIC, task_at).ljust(PAGE, b"\0") + content, 0)
            _write(descriptor, msgspec.json.encode(task), task_at)
            page = mmap.mmap(descriptor, PAGE)
            source, target = Activity(page, _SOURCE_AT), Activity(page, _TARGET_AT)
            source.note()
            target.note()
            os.fsync(descriptor)
            os.rename(new, self.path)
            sync_folder(os.path.dirname(self.path))
        except BaseException:
            os.close(descriptor)
            with suppress(OSError):
                os.unlink(new)
            raise
        os.close(self._descriptor)
        self._descriptor, self._page = descriptor, page
        self.source, self.target = source, target

    async def store(self) -> None:
        """Return when the file says of the regions what it is to say, durably; many may share that.

        Raises:
            NodeFailed: It could not be written.
        """
        await self._stores.flush()

    async def _store(self) -> None:
        pages = self.map.changes()

        def write() -> None:
            for number, content in pages.items():
                _write(self._descriptor, content, PAGE + number * PAGE)
            os.fdatasync(self._descriptor)

        await self._blocking(write)
        self.map.stored()

    async def finish(self) -> None:
        """Note, durably, that the target is whole and that users will change it.

        Raises:
            StorageError: It cannot be written.
        """

        def write() -> None:
            _write(self._descriptor, b"\1", _WHOLE_AT)
            os.fdatasync(self._descriptor)

        await self._blocking(write)

    async def rest(self) -> None:
        """Leave it for a job to come. Nothing is under way, and later changes are later by any clock."""

        def write() -> None:
            self.source.note(rests=True)
            self.target.note(rests=True)
            os.fdatasync(self._descriptor)
            rested = time.time_ns()
            while os.fstat(self._descriptor).st_mtime_ns <= rested:  # the file system's clock has to go on
                time.sleep(0.001)
                os.utime(self._descriptor)

        with suppress(BlockError):
            await self._blocking(write)
        self.close()

    async def forget(self) -> None:
        """Remove it, durably as far as the system lets us."""

        def remove() -> None:
            os.unlink(self.path)
            sync_folder(os.path.dirname(self.path))

        with suppress(BlockError):
            await self._blocking(remove)
        self.close()

    def close(self) -> None:
        """Let go of the file; what was claimed and has nothing to go on from is removed. Idempotent."""
        if self._descriptor < 0:
            return
        if not os.fstat(self._descriptor).st_size:
            with suppress(OSError):
                os.unlink(self.path)
        if self._page is not None:
            self.source.forget()
            self.target.forget()
            self._page.close()  # it has the file open, too, and so the lock
            self._page = None
        os.close(self._descriptor)
        self._descriptor = -1

    async def _blocking(self, call: Callable[[], T]) -> T:
        try:
            return await self._engine.run(call)
        except OSError as error:
            raise storage_error(error, filename=self.path) from error


def _write(descriptor: int, data: bytes, at: int) -> None:
    """Write all of `data`, or raise OSError."""
    if os.pwrite(descriptor, data, at) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_sound(task: Task, content: bytes) -> bool:
    """Tell whether the regions of a file that somebody may have written to can be."""
    return (
        is_power_of_two(task.region)
        and task.size >= 0
        and task.regions <= REGIONS_MOST
        and len(content) == task.regions
        and not content.strip(b"\0\1")
    )
