"""Requests of any alignment over storage that takes aligned ones only.

Owns: padding, the read-modify-write of unaligned edges, and the locks that make
it safe. It knows neither files nor nodes: whoever needs it brings the aligned
storage. Its ordering rule: from the read of an edge to the write of its block
nobody else writes to that block.
"""

import enum
from collections.abc import Awaitable, Callable
from typing import Protocol

from vblk.graph.node import Buffer
from vblk.runtime.range_lock import RangeLock
from vblk.units import MIB, OFFSET_MAX, align_down, align_up, is_power_of_two

PIECE_MAX = MIB
"""The most bytes that pass through one bounce buffer."""


def whole_blocks(offset: int, length: int, alignment: int) -> tuple[int, int]:
    """Return the offset and the length of the whole blocks in a range; 0 if it has none."""
    start = align_up(offset, alignment)
    end = align_down(offset + length, alignment)
    return start, max(0, end - start)


class AlignedStorage(Protocol):
    """Storage that takes aligned requests only."""

    @property
    def size(self) -> int:
        """The logical length in bytes, of any alignment."""
        ...

    async def read_aligned(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`; beyond the end the bytes are zeros."""
        ...

    async def write_aligned(self, offset: int, data: memoryview) -> None:
        """Write all of `data`, which may reach beyond the end."""
        ...

    async def trim(self, size: int) -> None:
        """Cut off what padding added beyond `size`; nothing writes there meanwhile."""
        ...


class BufferSource(Protocol):
    """Where bounce buffers come from."""

    def take(self, length: int) -> memoryview:
        """Return a writable view of `length` bytes."""
        ...

    def give(self, view: memoryview) -> None:
        """Take a view back."""
        ...


class HeapBuffers:
    """Bounce buffers without any demand on their place in memory."""

    def take(self, length: int) -> memoryview:
        """Return a new view."""
        return memoryview(bytearray(length))

    def give(self, view: memoryview) -> None:
        """Let it go."""
        view.release()


class Moment(enum.Enum):
    """The moments of a read-modify-write, under the names that blkdebug gives them."""

    HEAD = "pwritev_rmw_head"
    AFTER_HEAD = "pwritev_rmw_after_head"
    TAIL = "pwritev_rmw_tail"
    AFTER_TAIL = "pwritev_rmw_after_tail"


Hook = Callable[[Moment], Awaitable[None]]


async def _no_hook(moment: Moment) -> None:
    """Let every moment pass."""


class Aligner:
    """Turns requests of any alignment into aligned ones.

    Concurrency: any number of requests at a time. Writes that pad their edges
    exclude every other write to the same blocks; others may overlap freely.

    Cancellation: locks and buffers are given back; the range of a cancelled
    write holds old and new blocks.
    """

    def __init__(
        self,
        storage: AlignedStorage,
        alignment: int,
        *,
        buffers: BufferSource | None = None,
        hook: Hook = _no_hook,
        overtaking: bool = False,
    ) -> None:
        """Serve `storage`, whose requests must be multiples of `alignment`.

        Args:
            storage: Where aligned requests go.
            alignment: Bytes, a power of two, at most `PIECE_MAX`.
            buffers: Where all memory for the storage must come from; without,
                the caller's own buffers are used for aligned requests.
            hook: Awaited at each moment of a read-modify-write, the locks held.
            overtaking: Let a write pass those that wait for a block: for a
                `hook` that stops requests, where whoever waits behind a waiting
                one could wait for itself.
        """
        assert is_power_of_two(alignment), "not a power of two"
        assert alignment <= PIECE_MAX, "beyond the bounce buffers"
        self.alignment = alignment
        self._storage = storage
        self._always_bounce = buffers is not None
        self._buffers = buffers if buffers is not None else HeapBuffers()
        self._hook = hook
        self._locks = RangeLock(overtaking=overtaking)

    def is_aligned(self, offset: int, length: int) -> bool:
        """Tell whether a range consists of whole blocks."""
        return (offset | length) & (self.alignment - 1) == 0

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, a view of bytes, from `offset`."""
        length = len(buffer)
        if not self._always_bounce and self.is_aligned(offset, length):
            await self._storage.read_aligned(offset, buffer)
            return
        end = offset + length
        position = align_down(offset, self.alignment)
        while position < end:
            piece = min(PIECE_MAX, align_up(end, self.alignment) - position)
            bounce = self._buffers.take(piece)
            try:
                await self._storage.read_aligned(position, bounce)
                first, last = max(position, offset), min(position + piece, end)
                buffer[first - offset : last - offset] = bounce[first - position : last - position]
            finally:
                self._buffers.give(bounce)
            position += piece

    async def write(self, offset: int, data: Buffer) -> None:
        """Write all of `data` at `offset`."""
        view = memoryview(data).cast("B")
        end = offset + len(view)
        if end == offset:
            return
        start, padded_end = align_down(offset, self.alignment), align_up(end, self.alignment)
        if (start, padded_end) == (offset, end):
            async with self._locks.shared(offset, end - offset):
                if self._always_bounce:
                    await self._write_pieces(start, b"", view, b"")
                else:
                    await self._storage.write_aligned(offset, view)
            return
        # What pads the end of the storage is cut off again, so nobody may grow it meanwhile.
        lock_end = padded_end if padded_end <= self._storage.size else OFFSET_MAX
        async with self._locks.exclusive(start, lock_end - start):
            before = reached = self._storage.size
            head, tail = await self._read_edges(start, offset, end, padded_end)
            try:
                await self._write_pieces(start, head, view, tail)
                reached = max(before, end)
            finally:
                if padded_end > max(before, end):
                    await self._storage.trim(reached)

    async def write_zeroes(
        self, offset: int, length: int, body: Callable[[int, int], Awaitable[None]]
    ) -> None:
        """Zero the unaligned edges by writing, and the whole blocks through `body`.

        `body` gets the offset and the length of the blocks, and is not called
        if there are none.
        """
        start, whole = whole_blocks(offset, length, self.alignment)
        if not whole:
            await self.write(offset, bytes(length))
            return
        await self.write(offset, bytes(start - offset))
        async with self._locks.shared(start, whole):
            await body(start, whole)
        await self.write(start + whole, bytes(offset + length - start - whole))

    async def _read_edges(self, start: int, offset: int, end: int, padded_end: int) -> tuple[bytes, bytes]:
        """Return the bytes before and after a write in its first and last block."""
        block = self.alignment
        head, tail = offset - start, padded_end - end
        if padded_end - start == block:
            if head:
                await self._hook(Moment.HEAD)
            if tail:
                await self._hook(Moment.TAIL)
            whole = await self._read_block(start)
            if head:
                await self._hook(Moment.AFTER_HEAD)
            if tail:
                await self._hook(Moment.AFTER_TAIL)
            return whole[:head], whole[block - tail :]
        before = after = b""
        if head:
            await self._hook(Moment.HEAD)
            before = (await self._read_block(start))[:head]
            await self._hook(Moment.AFTER_HEAD)
        if tail:
            await self._hook(Moment.TAIL)
            after = (await self._read_block(padded_end - block))[block - tail :]
            await self._hook(Moment.AFTER_TAIL)
        return before, after

    async def _read_block(self, offset: int) -> bytes:
        bounce = self._buffers.take(self.alignment)
        try:
            await self._storage.read_aligned(offset, bounce)
            return bytes(bounce)
        finally:
            self._buffers.give(bounce)

    async def _write_pieces(self, start: int, head: bytes, body: memoryview, tail: bytes) -> None:
        """Write head, body and tail, together whole blocks, in pieces."""
        first = len(head)
        last = first + len(body)
        total = last + len(tail)
        for position in range(0, total, PIECE_MAX):
            piece = min(PIECE_MAX, total - position)
            bounce = self._buffers.take(piece)
            try:
                filled = 0
                if position < first:
                    bounce[:first] = head
                    filled = first
                count = max(0, min(position + piece, last) - (position + filled))
                source = position + filled - first
                bounce[filled : filled + count] = body[source : source + count]
                filled += count
                if filled < piece:
                    bounce[filled:] = tail
                await self._storage.write_aligned(start + position, bounce)
            finally:
                self._buffers.give(bounce)
