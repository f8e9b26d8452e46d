"""Walking over the spans of an image in bounded steps.

Owns: the size of the steps. A disk of 64 TiB has millions of blocks; asking for
all of them at once would take memory by its size, asking for each would take
ages where the disk is empty. So the step grows over plain country and shrinks
where there is much to say.
"""

from collections.abc import AsyncIterator, Awaitable, Callable

from vblk.errors import BlockError, ImageError
from vblk.extent import Kind
from vblk.graph.handle import Handle
from vblk.graph.mapper import Mapper
from vblk.graph.node import Node, Span, coalesce, cut
from vblk.units import MIB, TIB, align_down, align_up

STEP_FIRST = 256 * MIB
STEP_LEAST = 16 * MIB
STEP_MOST = TIB
SECTOR = 512
SPANS_FEW = 64
SPANS_MANY = 4096


async def walk(handle: Handle, offset: int, length: int, *, refined: bool = True) -> AsyncIterator[Span]:
    """Yield the spans of a range in order, gapless, neighbours within a step joined.

    Args:
        handle: The image.
        offset: First byte.
        length: Bytes; the range must lie within the image.
        refined: Whether the storage is asked for its holes, which come as zeros.
    """
    ask = handle.allocation if refined else handle.resolve
    async for span in walk_by(ask, offset, length):
        yield span


async def walk_by(
    ask: Callable[[int, int], Awaitable[list[Span]]], offset: int, length: int
) -> AsyncIterator[Span]:
    """Yield what `ask` says of a range, (offset, length) in bytes, step by step."""
    end = offset + length
    step = STEP_FIRST
    while offset < end:
        piece = min(step, end - offset)
        spans = await ask(offset, piece)
        for span in coalesce(spans):
            yield span
        offset += piece
        if len(spans) < SPANS_FEW:
            step = min(step * 2, STEP_MOST)
        elif len(spans) > SPANS_MANY:
            step = max(step // 4, STEP_LEAST)


Lost = Callable[[int, int, BlockError], None]
"""Told of a range, (offset, length), about which nothing can be learnt, and why."""


async def walk_salvaging(handle: Handle, offset: int, length: int, lost: Lost) -> AsyncIterator[Span]:
    """As `walk`, and go on behind what cannot be read.

    What an image's damage hides is zeros: it is looked for in the units in which
    the image's format is damaged. Sectors about which nothing can be learnt for
    another reason count as data. `lost` is told of either.
    """
    end = offset + length
    unit = _damage_unit(handle.node)
    while offset < end:
        piece = min(STEP_FIRST, end - offset)
        async for span in _salvage(handle, offset, piece, unit, lost):
            yield span
        offset += piece


def _damage_unit(top: Node) -> int:
    """Return how many bytes of the disk, whose number is a power of two, one wrong entry spoils at least."""
    units: list[int] = []
    waiting = [top]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Mapper) and node.damage_unit is not None:
            units.append(node.damage_unit)
        waiting += [edge.node for edge in node.children.values()]
    return min(units, default=SECTOR)


async def _salvage(handle: Handle, offset: int, length: int, unit: int, lost: Lost) -> AsyncIterator[Span]:
    try:
        spans = coalesce(await handle.allocation(offset, length))
    except BlockError as error:
        damaged = isinstance(error, ImageError)
        step = unit if damaged else SECTOR
        middle = align_up(offset + length // 2, step)
        if middle >= offset + length:
            middle = align_down(offset + length - 1, step)
        if middle <= offset:
            lost(offset, length, error)
            yield Span(Kind.ZERO if damaged else Kind.DATA, offset, length)
            return
    else:
        for span in spans:
            yield span
        return
    for start, end in ((offset, middle), (middle, offset + length)):
        async for span in _salvage(handle, start, end - start, unit, lost):
            yield span


async def walk_joined(handle: Handle, offset: int, length: int) -> AsyncIterator[Span]:
    """As `walk`, with neighbours joined across steps too.

    Only for those who show spans: a joined span may be as long as the disk.
    """
    held: Span | None = None
    async for span in walk(handle, offset, length):
        if held is None:
            held = span
            continue
        joined = coalesce([held, span])
        if len(joined) == 2:
            yield held
            held = span
        else:
            held = joined[0]
    if held is not None:
        yield held


class SpanReader:
    """The spans of one image as a stream from which pieces are cut.

    For walking over two images side by side.
    """

    def __init__(self, handle: Handle, offset: int, length: int) -> None:
        self._spans = walk(handle, offset, length)
        self._current: Span | None = None

    async def peek(self) -> Span | None:
        """Return what is left of the present span; None at the end."""
        if self._current is None:
            self._current = await anext(self._spans, None)
        return self._current

    def cut(self, length: int) -> Span:
        """Take `length` bytes off the present span, which is at least as long."""
        span = self._current
        assert span is not None
        self._current = None if length == span.length else cut(span, length, span.length - length)
        return cut(span, 0, length)
