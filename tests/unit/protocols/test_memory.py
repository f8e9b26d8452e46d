"""The memory disk equals a bytearray, and tells its holes."""

import asyncio
import random

import pytest

from vblk.errors import OptionError, OutOfRange, ReadOnly, Unsupported
from vblk.extent import Kind
from vblk.graph.node import Preallocation, Span
from vblk.protocols.memory import MemoryNode, Options, open_memory
from vblk.units import KIB, TIB


def ends(spans: list[Span]) -> list[int]:
    return [span.guest_offset + span.length for span in spans]


def test_any_sequence_equals_a_model() -> None:
    async def scenario() -> None:
        size = 300_000
        node = MemoryNode("m", size=size)
        model = bytearray(size)
        chance = random.Random(1)
        for _ in range(2000):
            offset = chance.randrange(size)
            length = min(chance.choice([0, 1, 512, 65536, 65537, 200_000]), size - offset)
            match chance.randrange(5):
                case 0:
                    data = chance.randbytes(length)
                    await node.write(offset, data)
                    model[offset : offset + length] = data
                case 1:
                    await node.write_zeroes(offset, length, unmap=chance.random() < 0.5)
                    model[offset : offset + length] = bytes(length)
                case 2:
                    await node.discard(offset, length)
                    model[offset : offset + length] = bytes(length)
                case 3:
                    assert node.try_read(offset, length) == bytes(model[offset : offset + length])
                case _:
                    assert await node.read(offset, length) == model[offset : offset + length]
                    buffer = bytearray(length)
                    await node.read_into(offset, memoryview(buffer))
                    assert buffer == model[offset : offset + length]
            spans = await node.allocation(0, size)
            assert [span.guest_offset for span in spans] == [0, *ends(spans)[:-1]]
            assert ends(spans)[-1] == size
            for span in spans:
                if span.kind is Kind.ZERO:
                    end = span.guest_offset + span.length
                    assert not any(model[span.guest_offset : end])

    asyncio.run(scenario())


def test_a_huge_disk_takes_only_what_is_written() -> None:
    async def scenario() -> None:
        node = MemoryNode("m", size=64 * TIB)
        await node.write(63 * TIB + 5, b"here")
        assert await node.allocated_bytes() == 64 * KIB
        assert node.try_read(63 * TIB + 4, 6) == b"\0here\0"
        await node.write_zeroes(0, 64 * TIB)
        assert await node.allocated_bytes() == 0
        await node.close()

    asyncio.run(scenario())


def test_what_a_shrink_cut_off_does_not_come_back() -> None:
    async def scenario() -> None:
        node = MemoryNode("m", size=1000, data=b"x" * 1000)
        await node.resize(10)
        await node.resize(1000)
        assert await node.read(0, 1000) == b"x" * 10 + bytes(990)

    asyncio.run(scenario())


def test_a_write_past_the_end_grows_the_disk() -> None:
    async def scenario() -> None:
        node = MemoryNode("m", size=10)
        await node.write(20, b"abc")
        assert node.size == 23
        with pytest.raises(OutOfRange):
            await node.write((1 << 63) - 1, b"ab")

    asyncio.run(scenario())


def test_a_read_only_disk_refuses_every_change() -> None:
    async def scenario() -> None:
        node = MemoryNode("m", size=10, read_only=True)
        for change in (
            node.write(0, b"x"),
            node.write_zeroes(0, 1),
            node.discard(0, 1),
            node.resize(5),
        ):
            with pytest.raises(ReadOnly):
                await change
        await node.reopen(read_only=False)
        await node.write(0, b"x", fua=True)
        await node.flush()

    asyncio.run(scenario())


def test_impossible_sizes_are_refused() -> None:
    async def scenario() -> None:
        node = open_memory(Options(), name="m", read_only=False)
        assert node.size == 0
        with pytest.raises(OutOfRange):
            await node.resize(-1)
        with pytest.raises(Unsupported):
            await node.resize(5, preallocation=Preallocation.FULL)

    for size in (-1, 1 << 63):
        with pytest.raises(OptionError):
            MemoryNode("m", size=size)
    with pytest.raises(OptionError):
        MemoryNode("m", size=1, data=b"too long")
    asyncio.run(scenario())
