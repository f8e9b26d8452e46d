"""The checks of conformance that write, resize, reopen or cancel.

Owns: what must be there afterwards, kept in a model as plain bytes. A node that
is read-only passes those that it cannot be asked.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from vblk.errors import GraphError, OutOfRange, ReadOnly, Unsupported
from vblk.graph.handle import Handle
from vblk.testing.promises import (
    Factory,
    Subject,
    check_spans,
    compare,
    compare_all,
    expect,
    hold,
    random_bytes,
    ranges,
    refused,
)
from vblk.units import OFFSET_MAX


async def writes_are_seen_through_every_path(factory: Factory) -> None:
    """Check that what was written is read back in every way, and nothing around it changes."""
    async with factory() as subject:
        handle = hold(subject)
        if handle.read_only:
            return
        model = bytearray(subject.content)
        for number, (offset, length) in enumerate(ranges(len(model), random_count=12, seed=3)):
            data = bytearray(random_bytes(number, length))
            sent = (bytes(data), data, memoryview(data))[number % 3]
            await handle.write(offset, sent, fua=number % 5 == 0)
            if subject.keeps:
                model[offset : offset + length] = data
            data[:] = bytes(length)  # the caller's buffer is the caller's again
            start, end = max(0, offset - 600), min(len(model), offset + length + 600)
            await compare(handle, start, bytes(model[start:end]), f"after a write at {offset}")
        await handle.flush()
        await compare_all(handle, model, "after all writes")
        spans = await handle.allocation(0, len(model))
        await check_spans(spans, 0, bytes(model), "allocation after writes")


async def writes_side_by_side_all_arrive(factory: Factory) -> None:
    """Check that small writes in flight at once, in the same sectors and blocks, do not undo each other."""
    async with factory() as subject:
        handle = hold(subject)
        if handle.read_only or not subject.keeps:
            return
        model = bytearray(subject.content)
        pieces: list[tuple[int, bytes]] = []
        offset = 3
        for number in range(60):
            data = random_bytes(number, 1 + number * 37 % 900)
            if offset + len(data) > len(model):
                break
            pieces.append((offset, data))
            model[offset : offset + len(data)] = data
            offset += len(data)
        random.Random(4).shuffle(pieces)
        await asyncio.gather(*(handle.write(at, data) for at, data in pieces))
        await compare_all(handle, model, "after writes side by side")


async def reads_during_a_write_see_old_or_new(factory: Factory) -> None:
    """Check that a read beside a write gives each byte as it was or as it will be, never a third."""
    async with factory() as subject:
        handle = hold(subject)
        if handle.read_only:
            return
        length = min(len(subject.content), 20_000)
        old, new = subject.content[:length], random_bytes(5, length)
        write = asyncio.create_task(handle.write(0, new))
        seen = [await handle.read(0, length) for _ in range(8)]
        await write
        for data in seen:
            odd = [at for at in range(length) if data[at] not in (old[at], new[at])]
            expect(not odd, f"a read during a write found a third value at {odd[:1]}")


async def write_zeroes_reads_as_zeros(factory: Factory) -> None:
    """Check that every flavour of write-zeroes makes its range zero, and only that."""
    async with factory() as subject:
        handle = hold(subject)
        if handle.read_only:
            return
        model = bytearray(subject.content)
        for number, (offset, length) in enumerate(ranges(len(model), random_count=12, seed=6)):
            unmap, no_fallback, fua = bool(number & 1), number % 7 == 3, number % 5 == 0
            start, end = await _refill(handle, subject, model, offset, length, number)
            try:
                await handle.write_zeroes(offset, length, unmap=unmap, no_fallback=no_fallback, fua=fua)
            except Unsupported:
                expect(no_fallback, "write_zeroes is unsupported although it may write zeros out")
                await handle.write_zeroes(offset, length)
            if subject.keeps:
                model[offset : offset + length] = bytes(length)
            await compare(handle, start, bytes(model[start:end]), f"after write_zeroes at {offset}")
        await compare_all(handle, model, "after write_zeroes")


async def _refill(
    handle: Handle, subject: Subject, model: bytearray, offset: int, length: int, seed: int
) -> tuple[int, int]:
    """Write other bytes to a range and around it, so that what happens to them can be seen."""
    start, end = max(0, offset - 600), min(len(model), offset + length + 600)
    data = random_bytes(seed, end - start)
    await handle.write(start, data)
    if subject.keeps:
        model[start:end] = data
    return start, end


async def discard_reads_as_before_or_as_zeros(factory: Factory) -> None:
    """Check that a discarded range reads as before or as zeros, and nothing around it changes."""
    async with factory() as subject:
        handle = hold(subject)
        if handle.read_only:
            return
        model = bytearray(subject.content)
        for number, (offset, length) in enumerate(ranges(len(model), random_count=12, seed=7)):
            start, end = await _refill(handle, subject, model, offset, length, number)
            await handle.discard(offset, length)
            found = await handle.read(offset, length)
            before = bytes(model[offset : offset + length])
            expect(
                found == before or all(new in (0, old) for new, old in zip(found, before, strict=True)),
                f"discard of {length} bytes at {offset} put other bytes there",
            )
            model[offset : offset + length] = found
            await compare(handle, start, bytes(model[start:end]), f"after a discard at {offset}")
        await compare_all(handle, model, "after discards")


async def a_flush_keeps_everything(factory: Factory) -> None:
    """Check that flush works before, after and between writes, and side by side."""
    async with factory() as subject:
        handle = hold(subject)
        await handle.flush()
        model = bytearray(subject.content)
        if not handle.read_only:
            data = random_bytes(8, min(5000, len(model)))
            await handle.write(0, data)
            if subject.keeps:
                model[: len(data)] = data
        await asyncio.gather(*(handle.flush() for _ in range(4)))
        await compare_all(handle, model, "after flushes")


async def growth_reads_as_zeros(factory: Factory) -> None:
    """Check that new space is zeros, also where there were bytes before the node shrank."""
    async with factory() as subject:
        handle = hold(subject)
        if handle.read_only or not subject.resizable:
            return
        size, unit = len(subject.content), subject.size_unit
        await handle.resize(size + 70 * unit)
        model = bytearray(subject.content) + bytes(70 * unit)
        await compare_all(handle, model, "after growing")
        await handle.write(size, b"\xee" * 1024)
        if subject.keeps:
            model[size : size + 1024] = b"\xee" * 1024
        await compare_all(handle, model, "after writing to new space")
        await handle.resize(unit)
        await compare_all(handle, model[:unit], "after shrinking")
        await handle.resize(size + unit)
        await compare_all(handle, bytes(model[:unit]) + bytes(size), "after shrinking and growing")


async def impossible_sizes_are_refused(factory: Factory) -> None:
    """Check that a size that no disk can have is refused, and the node stays as it is."""
    async with factory() as subject:
        handle = hold(subject)
        if handle.read_only:
            return
        for size in (-1, OFFSET_MAX + 1):
            await refused(handle.resize(size), OutOfRange, f"a resize to {size}")
        await compare_all(handle, subject.content, "after refused resizes")


async def placing_covers_the_range(factory: Factory) -> None:
    """Check that `place` yields gapless places for the whole range, and what is put there is read back."""
    async with factory() as subject:
        handle = hold(subject)
        if handle.read_only:
            return
        model = bytearray(subject.content)
        for number, (offset, length) in enumerate(ranges(len(model), random_count=8, seed=9)):
            data = random_bytes(number, length)
            async with handle.node.place(offset, length) as places:
                position = offset
                for place in places:
                    expect(place.guest_offset == position, "the places of a write have a gap")
                    expect(place.leaf is not None, "a place without a leaf")
                    assert place.leaf is not None
                    piece = data[position - offset : position - offset + place.length]
                    await place.leaf.write(place.leaf_offset, piece)
                    position += place.length
                expect(position == offset + length, "the places of a write do not cover it")
            if subject.keeps:
                model[offset : offset + length] = data
        await compare_all(handle, model, "after writes to places")


async def a_read_only_node_refuses_changes(factory: Factory) -> None:
    """Check that without access for writing every change raises ReadOnly and changes nothing."""
    async with factory() as subject:
        handle = hold(subject)
        if not handle.read_only:
            try:
                await subject.graph.reopen(subject.node, read_only=True)
            except GraphError:
                return  # a node that lives from writing
        changes: tuple[Callable[[], Awaitable[None]], ...] = (
            lambda: handle.write(0, b"x"),
            lambda: handle.write_zeroes(0, 1),
            lambda: handle.discard(0, 1),
            lambda: handle.resize(handle.size + 4096),
        )
        for change in changes:
            await refused(change(), ReadOnly, "a change of a read-only node")
        node = handle.node
        beneath: tuple[Callable[[], Awaitable[None]], ...] = (
            lambda: node.write(0, b"x"),
            lambda: node.write_zeroes(0, 1),
            lambda: node.discard(0, 1),
            lambda: node.resize(handle.size + 4096),
        )
        for change in beneath:
            await refused(
                change(), (ReadOnly, Unsupported), "a change beneath the handle of a read-only node"
            )
        expect(handle.read_only, "a read-only node says that it is writable")
        await compare_all(handle, subject.content, "after refused changes")


async def reopening_keeps_the_content(factory: Factory) -> None:
    """Check that going to reading only and back to writing changes no byte, and writing works again."""
    async with factory() as subject:
        handle = hold(subject)
        if handle.read_only:
            return
        model = bytearray(subject.content)
        data = random_bytes(10, min(3000, len(model)))
        await handle.write(0, data)
        if subject.keeps:
            model[: len(data)] = data
        try:
            await subject.graph.reopen(subject.node, read_only=True)
        except GraphError:
            return  # a node that lives from writing
        await compare_all(handle, model, "after reopening for reading")
        await subject.graph.reopen(subject.node, read_only=False)
        await handle.write(0, bytes(len(data)))
        if subject.keeps:
            model[: len(data)] = bytes(len(data))
        await compare_all(handle, model, "after reopening for writing")


async def a_cancelled_request_is_over(factory: Factory) -> None:
    """Check that a cancelled request leaves nothing in flight, and its range old or new bytes."""
    async with factory() as subject:
        handle = hold(subject)
        length = min(len(subject.content), 9000)
        for turns in range(6):
            read = asyncio.create_task(handle.node.read(1, length - 1))
            await _cancel_after(read, turns)
        model = bytearray(subject.content)
        if not handle.read_only:
            new = random_bytes(11, length)
            for turns in range(6):
                write = asyncio.create_task(handle.write(1, new[1:]))
                await _cancel_after(write, turns)
                expect(not handle.traffic.in_flight, "a cancelled write is still in flight")
                found = await handle.read(0, length)
                expect(
                    all(now in (old, then) for now, old, then in zip(found, model, new, strict=False)),
                    "a cancelled write left bytes that are neither old nor new",
                )
                model[:length] = found
        await compare_all(handle, model, "after cancelled requests")


async def _cancel_after(task: "asyncio.Task[Any]", turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
