"""A write session of one qcow2 file: tables brought to their places in an order that a crash survives.

Owns: the one coroutine that makes tables durable, and the header's changes. It
moves no payload and plans nothing: it is told which pages were edited.

Ordering rules, each step durable before the next:
- The first change of the file: a flush, for what it was opened by may not be
  durable; then features are cleared that only those may keep who know them.
- A flush: payload; the pages of each rank (`vblk.formats.qcow2.writing`), what is
  named before who names it; then the space that nothing names any more loses its
  references, in memory: those counts are written by the next flush, or the close.
- A header names a new table when that is durable.
A flush that fails poisons, and so does a write of a table, but for one that found
no room: the pages are then written again by the next flush.

Source: docs/interop/qcow2.txt, "Header", "Host cluster management".
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from vblk.errors import NoSpace
from vblk.formats.edits import Batch, EditedPages, Range
from vblk.formats.qcow2.header import Header, encode_header
from vblk.formats.qcow2.layout import BITMAPS
from vblk.formats.qcow2.writing import Rank
from vblk.graph.node import Node
from vblk.runtime.fan_out import fan_out
from vblk.runtime.flush_sequencer import FlushPostponed, FlushSequencer
from vblk.runtime.uninterrupted import to_the_end

T = TypeVar("T")

PAGES_AT_ONCE = 8
"""How many runs of pages are written side by side."""


class Session:
    """The session of one file that is open for writing.

    Args:
        file: The node that stores the image.
        header: The current header.
        edits: The edited pages.
        rank: Tells the rank of a page.
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
        rank: Callable[[int], Rank],
        filename: str,
        durable: Callable[[list[Range]], None],
        header_changed: Callable[[Header], None],
    ) -> None:
        self.begun = False
        self.header = header
        self.file = file
        self._edits = edits
        self._rank = rank
        self._durable = durable
        self._header_changed = header_changed
        self._beginning = asyncio.Lock()
        self._flusher = FlushSequencer(self._flush_once, filename=filename)

    def check_healthy(self) -> None:
        """Raise NodeFailed once anything has failed that poisons."""
        self._flusher.check_healthy()

    @property
    def failed(self) -> bool:
        """Whether the session is poisoned."""
        return self._flusher.failed

    async def begin(self) -> None:
        """Return when the file may be changed.

        Raises:
            NodeFailed: A flush failed, now or earlier.

        Cancellation: raised when what was begun has ended.
        """
        self.check_healthy()
        if not self.begun:
            await to_the_end(self._begin())

    async def _begin(self) -> None:
        async with self._beginning:
            self.check_healthy()
            if self.begun:
                return
            await self._poisoning(self.file.flush())
            if self.header.autoclear & ~BITMAPS:  # bitmaps are known, and marked
                await self._publish(self.header._replace(autoclear=self.header.autoclear & BITMAPS))
            self.begun = True

    async def flush(self) -> None:
        """Make everything durable that was written and edited before this call.

        Raises:
            NodeFailed: This flush or an earlier one failed.
            NoSpace: There is no room for a table; nothing is lost.
        """
        await self._flusher.flush()

    async def publish(self, header: Header) -> None:
        """Let the fields of a header become current; what they name is durable.

        Cancellation: raised when that has ended.
        """
        self.check_healthy()
        await to_the_end(self._publish(header))

    async def _publish(self, header: Header) -> None:
        """Write the fields, which lie in the file's first sector, so that they change at once.

        What is behind them may be written in part: no bitmaps count meanwhile.
        """
        old, kept = self.header, ~BITMAPS
        same_rest = (header.extensions, header.backing_file) == (old.extensions, old.backing_file)
        if not same_rest and (header.autoclear | old.autoclear) & BITMAPS:
            if old.autoclear & BITMAPS:
                await self._publish(old._replace(autoclear=old.autoclear & kept))
            await self._publish(header._replace(autoclear=header.autoclear & kept))
            same_rest = True
        data = encode_header(header)
        if same_rest:
            data = data[: header.header_length]
            # Where the name stands is as it was, wherever an extension left a gap.
            data = data[:8] + (await self.file.read(8, 12)) + data[20:]
        else:
            data = data.ljust(1 << header.cluster_bits, b"\0")
        await self._poisoning(self._write_header(data))
        self.header = header
        self._header_changed(header)

    async def _write_header(self, data: bytes) -> None:
        await self.file.write(0, data)
        await self.file.flush()

    async def _poisoning(self, work: Awaitable[T]) -> T:
        """Await what must not fail; when it does, nothing is known of the medium any more."""
        try:
            return await work
        except BaseException as error:
            self._flusher.poison(error)
            raise

    async def _flush_once(self) -> None:
        if not self._edits.is_dirty:
            await self.file.flush()
            return
        batch = self._edits.freeze()
        try:
            await self._write_ranks(batch)
        except NoSpace as error:
            self._edits.thaw(batch)
            raise FlushPostponed from error
        self._edits.logged(batch)
        self._edits.applied(batch.pages)
        self._durable(batch.released)

    async def _write_ranks(self, batch: Batch) -> None:
        ranks: dict[Rank, dict[int, bytes]] = {}
        for at, page in batch.pages.items():
            ranks.setdefault(self._rank(at), {})[at] = page
        for rank in Rank:
            pages = ranks.get(rank, {})
            if pages:
                await fan_out((self.file.write(at, data) for at, data in _runs(pages)), PAGES_AT_ONCE)
            if pages or rank is Rank.COUNTS:  # with the first of them goes the payload
                await self.file.flush()


def _runs(pages: dict[int, bytes]) -> list[tuple[int, bytes]]:
    """Join pages that follow each other, for fewer and longer writes."""
    runs: list[tuple[int, list[bytes]]] = []
    end = -1
    for at in sorted(pages):
        if at == end:
            runs[-1][1].append(pages[at])
        else:
            runs.append((at, [pages[at]]))
        end = at + len(pages[at])
    return [(at, b"".join(parts)) for at, parts in runs]
