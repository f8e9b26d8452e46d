"""A write session of one VHDX file: headers, log, and pages brought to their places.

Owns: the one coroutine that makes metadata durable, and when the headers change.
It moves no payload and plans nothing: it is told which pages were edited.

Ordering rules, each step durable before the next:
- The first change of the file: a flush; the log is parked; the header gets a new file
  write GUID, the log's GUID and, if a guest can see the change, a new data write
  GUID, in both copies, one after the other. Only then anything else changes.
- A flush: payload, if the batch has a barrier; the log entry, and with it all
  payload that was written before. Then it is answered.
- A full pass of the log: all pages of the pass in their places; the parked log.
- Space that held metadata: free only after the pass that logged any of it, for
  until then a replay writes the old pages there.
- A cut: the length that will be, in a log entry; then the file is cut.
- The end: all pages in their places; both headers without a log GUID.
A flush or a header that fails poisons: what is on the medium is not known any
more. A log entry for which there is no room does not: nothing was promised yet.

Source: [MS-VHDX] "Headers", "Log", "Log Replay".
"""

import asyncio
import enum
from collections.abc import Awaitable, Callable
from typing import TypeVar

from vblk.codec.guid import ZERO_GUID, Guid, new_guid
from vblk.errors import NoSpace
from vblk.formats.edits import Batch, EditedPages, Range
from vblk.formats.vhdx.encode import encode_header
from vblk.formats.vhdx.header import LOG_VERSION, Header
from vblk.formats.vhdx.journal import Journal, Lengths, LogWrite
from vblk.formats.vhdx.layout import HEADER_OFFSETS, PAGE_SIZE
from vblk.graph.node import Node
from vblk.runtime.fan_out import fan_out
from vblk.runtime.flush_sequencer import FlushPostponed, FlushSequencer
from vblk.runtime.uninterrupted import to_the_end
from vblk.units import MIB, align_down, align_up

T = TypeVar("T")

PAGES_AT_ONCE = 8
"""How many runs of pages are brought to their places side by side."""


class Level(enum.IntEnum):
    """What a session has changed so far."""

    NONE = 0
    FILE = 1
    """Bytes of the file that no guest can see."""
    DATA = 2
    """What a guest sees."""


async def publish_header(file: Node, header: Header) -> Header:
    """Make `header` current, in both copies, and return it as it then stands.

    `header.file_offset` and `header.sequence_number` are those of the current one.
    """
    for _ in range(2):
        place = HEADER_OFFSETS[header.file_offset == HEADER_OFFSETS[0]]
        header = header._replace(file_offset=place, sequence_number=header.sequence_number + 1)
        await file.write(place, encode_header(header))
        await file.flush()
    return header


class Session:
    """The session of one file that is open for writing.

    Args:
        file: The node that stores the image.
        header: The current header; its log is empty.
        edits: The edited pages.
        filename: For errors.
        durable: Told which space nothing names any more, durably.
        header_changed: Told the header that is current from now on.

    Concurrency: belongs to one event loop's thread; any number of callers.
    """

    def __init__(
        self,
        file: Node,
        header: Header,
        edits: EditedPages,
        *,
        filename: str,
        durable: Callable[[list[Range]], None],
        header_changed: Callable[[Header], None],
    ) -> None:
        self.level = Level.NONE
        self.header = header
        self.file = file
        self._edits = edits
        self._durable = durable
        self._header_changed = header_changed
        self._data_write_guid: Guid | None = None
        self._journal = self._new_journal()
        self._flushed_length = align_down(file.size, MIB)
        self._pass_mibs: set[int] = set()
        self._held: list[Range] = []
        self._beginning = asyncio.Lock()
        self._turn = asyncio.Lock()
        self._flusher = FlushSequencer(self._flush_once, filename=filename)
        self.check_healthy = self._flusher.check_healthy
        """Raise NodeFailed once anything has failed that poisons."""

    @property
    def failed(self) -> bool:
        """Whether the session is poisoned."""
        return self._flusher.failed

    def become(self, data_write_guid: Guid) -> None:
        """Set the GUID for the first change that a guest can see, in place of a new one."""
        assert self.level is not Level.DATA, "the session has its data write GUID"
        self._data_write_guid = data_write_guid

    def forget_identity(self) -> None:
        """Let the next change that a guest can see give the image another GUID; nothing is under way."""
        if self.level is Level.DATA:
            self.level = Level.FILE
        self._data_write_guid = None

    async def begin(self, level: Level) -> None:
        """Return when the file may be changed as far as `level` says.

        Raises:
            NoSpace: The log cannot be written; nothing has changed.
            NodeFailed: A flush failed, now or earlier.

        Cancellation: raised when what was begun has ended.
        """
        self.check_healthy()
        if self.level < level:
            await to_the_end(self._begin(level))

    async def _begin(self, level: Level) -> None:
        async with self._beginning:
            self.check_healthy()
            if self.level >= level:
                return
            header = self.header
            if self.level is Level.NONE:
                # What the file was opened by may be what a killed process wrote last. Before
                # the log is overwritten that an older header still names, it must be durable.
                await self._poisoning(self._sync())
                self._journal = self._new_journal()
                await self._park()
                header = header._replace(
                    file_write_guid=new_guid(),
                    log_guid=self._journal.guid,
                    log_version=LOG_VERSION,
                )
            if level is Level.DATA:
                header = header._replace(data_write_guid=self._data_write_guid or new_guid())
            await self._publish(header)
            self.level = level

    def _new_journal(self) -> Journal:
        journal = Journal(self.header.log_offset, self.header.log_length, new_guid())
        self._edits.batch_max = journal.pages_max
        return journal

    async def flush(self) -> None:
        """Make everything durable that was written and edited before this call.

        Raises:
            NodeFailed: This flush or an earlier one failed.
            NoSpace: There is no room for the log entry; nothing is lost.
        """
        await self._flusher.flush()

    async def settle(self) -> None:
        """Bring every edited page to its place in the file, durably.

        Cancellation: raised when that has ended.
        """
        await self.flush()
        await to_the_end(self._settle())

    async def _settle(self) -> None:
        async with self._turn:
            self.check_healthy()
            await self._poisoning(self._bring_home())

    async def checkpoint(self) -> None:
        """As `settle`, and leave nothing in the log: what was released is free then, metadata too.

        Cancellation: raised when that has ended.
        """
        await self.flush()
        await to_the_end(self._checkpoint())

    async def _checkpoint(self) -> None:
        async with self._turn:
            self.check_healthy()
            if not self._journal.pass_is_empty:
                await self._poisoning(self._finish_pass())

    async def shorten(self, length: int) -> None:
        """Log that the file needs no more than `length` bytes, durably; then cut it there.

        The session has begun, and nothing names what is behind.

        Cancellation: raised when that has ended.
        """
        await self.checkpoint()
        await to_the_end(self._shorten(length))

    async def _shorten(self, length: int) -> None:
        async with self._turn:
            self.check_healthy()
            if not self._journal.fits(0):
                await self._poisoning(self._finish_pass())
            lengths = Lengths(min(self._flushed_length, length), length)
            await self._write_log(self._journal.compose({}, lengths))
            await self.file.resize(length, exact=False)  # a device stays as long as it is
            self._flushed_length = lengths.flushed

    async def end(self) -> None:
        """End the session: the file is as if it had never had a log.

        Nothing may be edited meanwhile. A poisoned session leaves the log for
        the next to replay.

        Raises:
            NodeFailed: The session is poisoned, now or earlier.
        """
        await self.settle()
        if self.level is not Level.NONE:
            await self._publish(self.header._replace(log_guid=ZERO_GUID))
            self.level = Level.NONE
            self._let_go()

    async def _publish(self, header: Header) -> None:
        self.header = await self._poisoning(publish_header(self.file, header))
        self._header_changed(self.header)

    async def _poisoning(self, work: Awaitable[T]) -> T:
        """Await what must not fail; when it does, nothing is known of the medium any more."""
        try:
            return await work
        except BaseException as error:
            self._flusher.poison(error)
            raise

    async def _flush_once(self) -> None:
        async with self._turn:
            if not self._edits.is_dirty:
                await self._sync()
                return
            batch = self._edits.freeze()
            try:
                await self._log(batch)
            except NoSpace as error:
                self._edits.thaw(batch)
                raise FlushPostponed from error
            self._edits.logged(batch)
            self._pass_mibs.update(at // MIB for at in batch.pages)
            self._held += [place for place in batch.released if self._may_be_replayed(place)]
            self._durable([place for place in batch.released if not self._may_be_replayed(place)])

    def _may_be_replayed(self, place: Range) -> bool:
        """Tell whether the log has pages for a place: what comes there next would be lost by a replay."""
        first, last = place[0] // MIB, (place[0] + place[1] - 1) // MIB
        return any(first <= mib <= last for mib in self._pass_mibs)

    def _let_go(self) -> None:
        """Hand over the space that only the log still knew: it knows it no more."""
        self._pass_mibs.clear()
        held, self._held = self._held, []
        self._durable(held)

    async def _log(self, batch: Batch) -> None:
        if batch.barrier:
            await self._poisoning(self._sync())
        if not self._journal.fits(len(batch.pages)):
            await self._poisoning(self._finish_pass())
        await self._write_log(self._journal.compose(batch.pages, self._lengths()))

    async def _finish_pass(self) -> None:
        await self._bring_home()
        await self._park()

    async def _park(self) -> None:
        await self._write_log(self._journal.park(self._lengths()))
        self._let_go()

    async def _write_log(self, write: LogWrite) -> None:
        if not self.file.try_write(write.file_offset, write.data):
            await self.file.write(write.file_offset, write.data)
        await self._poisoning(self._sync())
        self._journal.settle()

    async def _bring_home(self) -> None:
        """Write the pages that the log holds to their places, durably."""
        pages = self._edits.unapplied
        if not pages:
            return
        await fan_out((self.file.write(at, data) for at, data in page_runs(pages)), PAGES_AT_ONCE)
        await self._sync()
        self._edits.applied(pages)

    async def _sync(self) -> None:
        length = align_down(self.file.size, MIB)
        await self.file.flush()
        self._flushed_length = max(self._flushed_length, length)

    def _lengths(self) -> Lengths:
        return Lengths(self._flushed_length, align_up(self.file.size, MIB))


def page_runs(pages: dict[int, bytes]) -> list[tuple[int, bytes]]:
    """Join pages that follow each other, for fewer and longer writes."""
    runs: list[tuple[int, list[bytes]]] = []
    for at in sorted(pages):
        if runs and runs[-1][0] + len(runs[-1][1]) * PAGE_SIZE == at:
            runs[-1][1].append(pages[at])
        else:
            runs.append((at, [pages[at]]))
    return [(at, b"".join(parts)) for at, parts in runs]
