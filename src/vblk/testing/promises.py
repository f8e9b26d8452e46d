"""What the checks of conformance stand on: the subject, and how a promise is looked at.

Owns: the subject, the ranges worth trying, the comparison through every way of
reading, and the words in which a broken promise is told. It knows no kind of node.
"""

import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from vblk.errors import BlockError
from vblk.extent import Kind
from vblk.graph.edge import READING, WRITING
from vblk.graph.handle import Handle
from vblk.graph.node import Node, Span
from vblk.graph.registry import Graph


class ConformanceError(AssertionError):
    """A node breaks a promise; the sentence says which."""


@dataclass(slots=True)
class Subject:
    """One node under test, in a graph that closes with the factory's context.

    `content` is what a guest must read at first, all of it. A subject whose
    node is read-only is not written to. `keeps` is False for nodes that lose
    what is written (and read as before). `resizable`: its size can change, to
    any multiple of `size_unit` bytes.
    """

    graph: Graph
    node: Node
    content: bytes
    keeps: bool = True
    resizable: bool = True
    size_unit: int = 512


Factory = Callable[[], AbstractAsyncContextManager[Subject]]
Check = Callable[[Factory], Coroutine[Any, Any, None]]

_EDGES = (0, 1, 511, 512, 513, 4095, 4096, 4097, 65535, 65536, 65537)
_BLOCK = 1 << 20


def expect(condition: object, promise: str) -> None:
    """Raise ConformanceError unless a promise is kept."""
    if not condition:
        raise ConformanceError(promise)


def ranges(size: int, *, random_count: int = 24, seed: int = 1) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) that meet borders of sectors, pages and blocks, and random ones."""
    dice = random.Random(seed)
    borders = {edge for edge in _EDGES if edge <= size} | {size - edge for edge in _EDGES if edge <= size}
    borders |= {near for border in range(_BLOCK, size, _BLOCK) for near in (border - 1, border, border + 1)}
    places = sorted(border for border in borders if 0 <= border < size)
    for place in places:
        for length in (1, 512, 700, 4096):
            yield place, min(length, size - place)
    yield 1, size - 1
    for _ in range(random_count):
        place = dice.randrange(size)
        yield place, dice.randrange(1, min(size - place, 1 << 18) + 1)


def random_bytes(seed: int, length: int) -> bytes:
    """Return bytes that depend on nothing but the seed."""
    return random.Random(seed).randbytes(length)


def hold(subject: Subject) -> Handle:
    """Return a handle for all that the node allows."""
    return subject.graph.hold(
        subject.node, "the conformance suite", READING if subject.node.read_only else WRITING
    )


async def compare(handle: Handle, offset: int, wanted: bytes, when: str) -> None:
    """Read a range in each of the three ways and compare."""
    length = len(wanted)
    where = f"{length} bytes at {offset} {when}"
    at_once = handle.try_read(offset, length)
    expect(at_once is None or at_once == wanted, f"try_read of {where}: other bytes than were expected")
    expect(await handle.read(offset, length) == wanted, f"read of {where}: other bytes than were expected")
    expect(
        await handle.node.read(offset, length) == wanted,
        f"the node's own read of {where}: other bytes than were expected",
    )
    buffer = bytearray(b"\xa5" * (length + 2))
    with memoryview(buffer) as view:
        await handle.read_into(offset, view[1:-1])
    expect(bytes(buffer[1:-1]) == wanted, f"read_into of {where}: other bytes than were expected")
    expect((buffer[0], buffer[-1]) == (0xA5, 0xA5), f"read_into of {where} wrote outside of its buffer")


async def compare_all(handle: Handle, wanted: bytes | bytearray, when: str) -> None:
    """Compare the size and the whole content."""
    expect(handle.size == len(wanted), f"size {when}: {handle.size}, expected {len(wanted)}")
    await compare(handle, 0, bytes(wanted), when)


async def check_spans(spans: Sequence[Span], offset: int, wanted: bytes, verb: str) -> None:
    """Check that spans cover a range without gaps, and that the leaves hold what they say."""
    where = f"{verb} of {len(wanted)} bytes at {offset}"
    position = offset
    for span in spans:
        expect(span.length > 0, f"{where}: a span of {span.length} bytes")
        expect(span.guest_offset == position, f"{where}: a span at {span.guest_offset}, expected {position}")
        expect(span.kind is not Kind.ABSENT, f"{where}: an ABSENT span")
        position += span.length
        piece = wanted[span.guest_offset - offset : position - offset]
        if span.kind is Kind.ZERO:
            expect(not any(piece), f"{where}: {span.length} bytes at {span.guest_offset} are not zero")
        elif span.kind is Kind.DATA:
            expect(span.leaf is not None, f"{where}: data without a leaf")
            assert span.leaf is not None
            found = await span.leaf.read(span.leaf_offset, span.length)
            expect(found == piece, f"{where}: the leaf has other bytes for {span.guest_offset}")
    expect(position == offset + len(wanted), f"{where}: the spans end at {position}")


async def refused(
    request: Awaitable[object], error: type[BlockError] | tuple[type[BlockError], ...], what: str
) -> None:
    """Check that a request is refused with `error`, or one of them."""
    try:
        await request
    except error:
        return
    raise ConformanceError(f"{what}: this was not refused with {error}")
