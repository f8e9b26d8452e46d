"""Comparing two images: where they first differ.

Owns: the side-by-side walk, what need not be read, and the bounded reading of
the rest. It prints nothing and knows no format.

Ordering rule: pieces are compared side by side and begun in order; after a
difference no further piece begins, those before it are finished, and the least
offset wins. So the answer is that of a comparison from the start.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

from vblk.errors import BlockError
from vblk.extent import Kind
from vblk.graph.handle import Handle
from vblk.graph.node import Leaf, Node, Span
from vblk.jobs.progress import Progress
from vblk.jobs.walk import SpanReader
from vblk.runtime.fan_out import fan_out
from vblk.units import MIB

PIECE = MIB
WORKERS = 4
SECTOR = 512


class CompareError(Exception):
    """One of the images could not be compared: `side` 0 or 1, `offset` in bytes, `cause`.

    `reading` tells a failed read of data from a failed look at the tables.
    """

    def __init__(self, side: int, offset: int, cause: BlockError, *, reading: bool) -> None:
        super().__init__(str(cause))
        self.side = side
        self.offset = offset
        self.cause = cause
        self.reading = reading


@dataclass(slots=True)
class Comparison:
    """The first difference, in bytes from the start: of content, or of what is allocated."""

    content: int | None = None
    status: int | None = None

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return self.content is None and self.status is None


@dataclass(slots=True)
class _Piece:
    offset: int
    length: int
    zero: tuple[bool, bool]


class ImageComparison:
    """The comparison of two images over one range.

    Args:
        images: Both; the second may be None, then the first is compared with zeros.
        offset: First byte, in both.
        length: Bytes; the range must lie within both.
        strict: Whether a difference of what is allocated counts too.
        progress: Told of bytes that need no more looking at.

    A difference of content is told by the first byte of its 512-byte sector.
    """

    def __init__(
        self,
        images: tuple[Handle, Handle | None],
        offset: int,
        length: int,
        *,
        strict: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._images = images
        self._offset = offset
        self._length = length
        self._strict = strict
        self._progress = progress
        self._found = Comparison()

    async def run(self) -> Comparison:
        """Compare, and return the first difference.

        Raises:
            CompareError: An image could not be read or mapped.
        """
        pieces = self._pieces()
        lock = asyncio.Lock()
        await fan_out((self._work(pieces, lock) for _ in range(WORKERS)), WORKERS)
        return self._verdict()

    def _verdict(self) -> Comparison:
        content, status = self._found.content, self._found.status
        if content is not None and status is not None:
            return Comparison(content=content) if content < status else Comparison(status=status)
        return self._found

    async def _work(self, pieces: AsyncIterator[_Piece], lock: asyncio.Lock) -> None:
        buffers = (bytearray(PIECE), bytearray(PIECE))
        while True:
            async with lock:
                piece = None if self._found.content is not None else await anext(pieces, None)
            if piece is None:
                return
            sides = [
                bytes(piece.length) if piece.zero[side] else await self._read(side, piece, buffers[side])
                for side in (0, 1)
            ]
            if sides[0] != sides[1]:
                offset = piece.offset + first_difference(sides[0], sides[1])
                earlier = self._found.content
                self._found.content = offset if earlier is None else min(offset, earlier)
            self._tell(piece.length)

    async def _read(self, side: int, piece: _Piece, buffer: bytearray) -> bytes | bytearray:
        image = self._images[side]
        assert image is not None
        try:
            if piece.length < PIECE:
                return await image.read(piece.offset, piece.length)
            await image.read_into(piece.offset, memoryview(buffer))
        except BlockError as error:
            raise CompareError(side, piece.offset, error, reading=True) from error
        return buffer

    def _tell(self, length: int) -> None:
        if self._progress is not None:
            self._progress.add(length)

    async def _pieces(self) -> AsyncIterator[_Piece]:
        """Yield what has to be read, in order; note the first difference of allocation."""
        end = self._offset + self._length
        readers = [
            SpanReader(image, self._offset, self._length) if image is not None else None
            for image in self._images
        ]
        offset = self._offset
        while offset < end:
            peeked = [await self._peek(side, readers[side], offset, end) for side in (0, 1)]
            length = min(span.length for span in peeked)
            spans = [
                reader.cut(length) if reader is not None else span
                for reader, span in zip(readers, peeked, strict=True)
            ]
            if self._strict and _status(spans[0]) != _status(spans[1]):
                self._found.status = offset
                return
            if surely_equal(spans[0], spans[1]):
                self._tell(length)
            else:
                zero = (spans[0].kind is Kind.ZERO, spans[1].kind is Kind.ZERO)
                for start in range(offset, offset + length, PIECE):
                    yield _Piece(start, min(PIECE, offset + length - start), zero)
            offset += length

    async def _peek(self, side: int, reader: SpanReader | None, offset: int, end: int) -> Span:
        if reader is None:
            return Span(Kind.ZERO, offset, end - offset, present=False)
        try:
            span = await reader.peek()
        except BlockError as error:
            raise CompareError(side, offset, error, reading=False) from error
        assert span is not None
        return span


def surely_equal(first: Span, second: Span) -> bool:
    """Tell, of spans of the same length, whether they hold the same for they are the same bytes or zeros."""
    if first.kind is Kind.ZERO and second.kind is Kind.ZERO:
        return True
    return (
        first.kind is Kind.DATA
        and second.kind is Kind.DATA
        and first.leaf_offset == second.leaf_offset
        and _same_storage(first.leaf, second.leaf)
    )


def _status(span: Span) -> tuple[Kind, bool]:
    return span.kind, span.present


def _same_storage(first: Node | None, second: Node | None) -> bool:
    """Tell whether two leaves are the same bytes."""
    if first is second:
        return first is not None
    return _identity(first) is not None and _identity(first) == _identity(second)


def _identity(node: Node | None) -> tuple[int, int] | None:
    descriptor = node.descriptor() if isinstance(node, Leaf) else None
    if descriptor is None:
        return None
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def first_difference(first: bytes | bytearray, second: bytes | bytearray) -> int:
    """Return where the first differing 512-byte sector of two unequal buffers begins."""
    low, high = 0, len(first)
    while high - low > SECTOR:
        middle = low + max(SECTOR, (high - low) // 2 // SECTOR * SECTOR)
        if first[low:middle] != second[low:middle]:
            high = middle
        else:
            low = middle
    return low


def differing_runs(first: bytes | bytearray, second: bytes | bytearray, unit: int) -> list[tuple[int, int]]:
    """Return (start, end) of each run of units in which two buffers of one length differ."""
    if first == second:
        return []
    runs: list[tuple[int, int]] = []
    views = memoryview(first), memoryview(second)
    for start in range(0, len(first), unit):
        end = min(start + unit, len(first))
        if views[0][start:end] != views[1][start:end]:
            if runs and runs[-1][1] == start:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((start, end))
    return runs
