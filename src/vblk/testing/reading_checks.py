"""The checks of conformance that change nothing.

Owns: reading in every way, spans, ranges and closing.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable

from vblk.errors import GraphError, OutOfRange
from vblk.graph.handle import Handle
from vblk.testing.promises import (
    ConformanceError,
    Factory,
    check_spans,
    compare,
    compare_all,
    expect,
    hold,
    ranges,
    refused,
)
from vblk.units import OFFSET_MAX


async def reads_agree_at_any_alignment(factory: Factory) -> None:
    """Check that `read`, `read_into` and `try_read` give the same, right bytes."""
    async with factory() as subject:
        handle = hold(subject)
        await compare_all(handle, subject.content, "at first")
        for offset, length in ranges(len(subject.content)):
            await compare(handle, offset, subject.content[offset : offset + length], "at first")


async def empty_requests_do_nothing(factory: Factory) -> None:
    """Check that requests of no bytes work everywhere up to the end, and change nothing."""
    async with factory() as subject:
        handle = hold(subject)
        for offset in (0, 1, handle.size):
            expect(await handle.read(offset, 0) == b"", "an empty read returned something")
            expect(handle.try_read(offset, 0) in (b"", None), "an empty try_read returned something")
            await handle.read_into(offset, memoryview(bytearray()))
            expect(not await handle.resolve(offset, 0), "an empty range has a span")
            expect(not await handle.allocation(offset, 0), "an empty range has a span")
            if not handle.read_only:
                await handle.write(offset, b"")
                await handle.write_zeroes(offset, 0)
                await handle.discard(offset, 0)
        await compare_all(handle, subject.content, "after empty requests")


async def what_is_out_of_range_is_refused(factory: Factory) -> None:
    """Check that every request that does not lie within the node raises OutOfRange and changes nothing."""
    async with factory() as subject:
        handle = hold(subject)
        size = handle.size
        for offset, length in ((size, 1), (size - 1, 2), (-1, 1), (0, size + 1), (OFFSET_MAX, 512)):
            for request in _requests(handle):
                await refused(request(offset, length), OutOfRange, f"{length} bytes at {offset}")
            try:
                handle.try_read(offset, length)
            except OutOfRange:
                continue
            raise ConformanceError(f"try_read took {length} bytes at {offset} of {size}")
        await compare_all(handle, subject.content, "after refused requests")


def _requests(handle: Handle) -> list[Callable[[int, int], Awaitable[object]]]:
    """Return the requests that have a range, as functions of offset and length."""

    async def read_into(offset: int, length: int) -> None:
        await handle.read_into(offset, memoryview(bytearray(min(length, 1 << 24))))

    async def write(offset: int, length: int) -> None:
        await handle.write(offset, bytes(min(length, 1 << 24)))

    reading: list[Callable[[int, int], Awaitable[object]]] = [
        handle.read, read_into, handle.resolve, handle.allocation
    ]  # fmt: skip
    return reading if handle.read_only else [*reading, write, handle.write_zeroes, handle.discard]


async def spans_are_gapless_and_true(factory: Factory) -> None:
    """Check that `resolve` and `allocation` cover the range, and the leaves hold what they say."""
    async with factory() as subject:
        handle = hold(subject)
        size = len(subject.content)
        for offset, length in [(0, size), *ranges(size, random_count=12)]:
            wanted = subject.content[offset : offset + length]
            await check_spans(await handle.resolve(offset, length), offset, wanted, "resolve")
            await check_spans(await handle.allocation(offset, length), offset, wanted, "allocation")


async def reads_side_by_side_do_not_disturb_each_other(factory: Factory) -> None:
    """Check that many reads in flight at once give each its own bytes."""
    async with factory() as subject:
        handle = hold(subject)
        wanted = list(ranges(len(subject.content), seed=2))
        found = await asyncio.gather(*(handle.node.read(offset, length) for offset, length in wanted))
        for (offset, length), data in zip(wanted, found, strict=True):
            expect(
                data == subject.content[offset : offset + length],
                f"read of {length} bytes at {offset} among others: other bytes than were expected",
            )


async def facts_are_plain(factory: Factory) -> None:
    """Check that a node tells its name, its driver and facts that can be told as JSON."""
    async with factory() as subject:
        node = subject.node
        expect(node.driver, "a node without a driver's name")
        expect(node.name, "a node without a name")
        expect(node.alignment >= 1, f"an alignment of {node.alignment}")
        expect(json.dumps(dict(node.info()), default=str), "info cannot be told as JSON")


async def closing_twice_is_closing_once(factory: Factory) -> None:
    """Check that closing is idempotent, and a closed handle says so."""
    async with factory() as subject:
        handle = hold(subject)
        await handle.read(0, 1)
        await subject.graph.release(handle)
        await subject.graph.release(handle)
        await subject.node.close()
        await subject.node.close()
        await refused(handle.read(0, 1), GraphError, "a read through a closed handle")
        await subject.graph.close()
        await subject.graph.close()
