"""Images on web servers as leaves, for reading.

Owns: what was read of late, in blocks of the read-ahead's length, and which blocks are
asked for in advance. How a range is had is `http_source`'s.

Ordering rule: a block is asked for once, whoever waits for it, and whoever loses
patience; a reader that goes through the image in order finds the next blocks under way.
"""

import asyncio
from collections import OrderedDict
from typing import ClassVar, Final

from vblk.errors import BlockError
from vblk.extent import Kind
from vblk.graph.node import Span
from vblk.graph.unwritable import Unwritable
from vblk.protocols.cache_mode import WRITEBACK
from vblk.protocols.http_source import Source
from vblk.protocols.remote_leaf import RemoteLeaf
from vblk.runtime.fan_out import in_pieces
from vblk.units import MIB

MEMORY_MAX: Final = 32 * MIB
"""What the blocks that are kept may take."""

LARGE: Final = MIB
"""Reads of so many bytes are asked for as they are, and not kept."""

PIECE: Final = 4 * MIB
"""The most bytes of one request."""

PIECES_AT_ONCE: Final = 4

AHEAD: Final = 4
"""So many blocks are asked for in advance of a reader that goes through the image in order."""


class HttpNode(Unwritable, RemoteLeaf):
    """An image on a web server."""

    driver: ClassVar[str] = "http"

    def __init__(self, name: str, filename: str, driver: str, source: Source, block: int) -> None:
        """Take over an open `source`; blocks have `block` bytes. `driver` is its URL's scheme."""
        super().__init__(name, filename, read_only=True, cache=WRITEBACK)
        if driver == "https":
            self.driver = driver  # type: ignore[misc] # one class, two names
        self._source = source
        self._block = block
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._kept_max = max(AHEAD + 1, MEMORY_MAX // block)
        self._coming: dict[int, asyncio.Task[bytes]] = {}
        self._expected = 0
        """The block that a reader would ask for next who goes through the image in order."""
        if len(source.head) >= min(block, source.size):
            self._kept[0] = source.head[:block]

    @property
    def size(self) -> int:
        """The length in bytes."""
        return self._source.size

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Read what is kept of a single block."""
        number, start = divmod(offset, self._block)
        block = self._kept.get(number)
        if block is None or start + length > len(block):
            return None
        self._kept.move_to_end(number)
        return block[start : start + length]

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer; see `Node.read_into`. What lies past the end is zeros."""
        inside = max(0, min(len(buffer), self.size - offset))
        buffer[inside:] = bytes(len(buffer) - inside)
        if inside >= LARGE:
            await in_pieces(
                inside,
                PIECE,
                lambda at, count: self._fetch(offset + at, buffer[at : at + count]),
                PIECES_AT_ONCE,
            )
        elif inside:
            await self._read_blocks(offset, buffer[:inside])

    async def _read_blocks(self, offset: int, buffer: memoryview) -> None:
        first, last = offset // self._block, (offset + len(buffer) - 1) // self._block
        is_in_order = first == self._expected
        self._expected = last + 1
        wanted = [self._get(number) for number in range(first, last + 1)]
        if is_in_order:
            for number in range(last + 1, min(last + 1 + AHEAD, -(-self.size // self._block))):
                self._get(number)
        at = offset
        for number, each in enumerate(wanted, first):
            block = each if isinstance(each, bytes) else await asyncio.shield(each)
            start = at - number * self._block
            piece = block[start : start + len(buffer) - (at - offset)]
            buffer[at - offset : at - offset + len(piece)] = piece
            at += len(piece)

    def _get(self, number: int) -> "bytes | asyncio.Task[bytes]":
        """Return a block, or the task that brings it."""
        block = self._kept.get(number)
        if block is not None:
            self._kept.move_to_end(number)
            return block
        task = self._coming.get(number)
        if task is None:
            task = self._coming[number] = asyncio.ensure_future(self._bring(number))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # who waits hears of it
        return task

    async def _bring(self, number: int) -> bytes:
        start = number * self._block
        room = bytearray(min(self._block, self.size - start))
        try:
            await self._fetch(start, memoryview(room))
        finally:
            del self._coming[number]
        block = self._kept[number] = bytes(room)
        while len(self._kept) > self._kept_max:
            self._kept.popitem(last=False)
        return block

    async def _fetch(self, offset: int, buffer: memoryview) -> None:
        try:
            await self._source.fetch(offset, buffer)
        except BlockError as error:
            error.filename = error.filename or self.filename
            raise

    async def allocation(self, offset: int, length: int) -> list[Span]:
        """Call everything data: the protocol does not tell holes."""
        inside = max(0, min(length, self.size - offset))
        spans: list[Span] = []
        if inside:
            spans.append(Span(Kind.DATA, offset, inside, self, offset))
        if inside < length:
            spans.append(Span(Kind.ZERO, offset + inside, length - inside, self, offset + inside))
        return spans

    async def reopen(self, *, read_only: bool) -> None:
        """Stay as it is."""
        if not read_only:
            self.require_writable()

    async def _flush_server(self) -> None:
        """There is nothing to flush."""

    async def _leave(self) -> None:
        for task in list(self._coming.values()):
            task.cancel()
        await asyncio.gather(*self._coming.values(), return_exceptions=True)
        await self._source.close()
