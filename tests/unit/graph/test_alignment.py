"""Unaligned requests become aligned ones, and neighbours of a padded write survive."""

import asyncio
import random

import pytest

from tests.support.cancellation import sweep
from vblk.aio.buffers import AlignedBuffers
from vblk.graph.alignment import PIECE_MAX, Aligner, BufferSource, Moment, whole_blocks
from vblk.units import MIB, align_up


class Storage:
    """Storage in memory that refuses unaligned requests and suspends in all of them."""

    def __init__(self, content: bytes, alignment: int) -> None:
        self.content = bytearray(content)
        self.alignment = alignment
        self.log: list[tuple[str, int, int]] = []

    @property
    def size(self) -> int:
        return len(self.content)

    def check(self, offset: int, length: int) -> None:
        assert offset % self.alignment == 0
        assert length % self.alignment == 0
        assert length > 0

    async def read_aligned(self, offset: int, buffer: memoryview) -> None:
        self.check(offset, len(buffer))
        self.log.append(("read", offset, len(buffer)))
        await asyncio.sleep(0)
        data = bytes(self.content[offset : offset + len(buffer)])
        await asyncio.sleep(0)
        buffer[:] = data.ljust(len(buffer), b"\0")

    async def write_aligned(self, offset: int, data: memoryview) -> None:
        self.check(offset, len(data))
        self.log.append(("write", offset, len(data)))
        await asyncio.sleep(0)
        if offset + len(data) > len(self.content):
            self.content.extend(bytes(offset + len(data) - len(self.content)))
        self.content[offset : offset + len(data)] = data
        await asyncio.sleep(0)

    async def trim(self, size: int) -> None:
        self.log.append(("trim", size, 0))
        await asyncio.sleep(0)
        del self.content[size:]


@pytest.fixture(params=[None, "aligned"])
def buffers(request: pytest.FixtureRequest) -> BufferSource | None:
    return AlignedBuffers() if request.param else None


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 4096, (0, 4096)),
        (1, 4096, (4096, 0)),
        (1, 8191, (4096, 4096)),
        (4095, 1, (4096, 0)),
        (10, 0, (4096, 0)),
    ],
)
def test_the_whole_blocks_of_a_range(offset: int, length: int, expected: tuple[int, int]) -> None:
    assert whole_blocks(offset, length, 4096) == expected


def test_any_request_equals_a_model(buffers: BufferSource | None) -> None:
    async def scenario() -> None:
        chance = random.Random(5)
        storage = Storage(chance.randbytes(10_000), 512)
        aligner = Aligner(storage, 512, buffers=buffers)
        model = bytearray(storage.content)
        for _ in range(1500):
            offset = chance.randrange(len(model))
            length = min(chance.choice([0, 1, 3, 511, 512, 513, 1024, 3000]), 10_000 - offset)
            match chance.randrange(3):
                case 0:
                    data = chance.randbytes(length)
                    await aligner.write(offset, data)
                    model[offset : offset + length] = data
                case 1:

                    async def zero(start: int, count: int) -> None:
                        storage.check(start, count)
                        storage.content[start : start + count] = bytes(count)

                    await aligner.write_zeroes(offset, length, zero)
                    model[offset : offset + length] = bytes(length)
                case _:
                    buffer = bytearray(length)
                    await aligner.read_into(offset, memoryview(buffer))
                    assert buffer == model[offset : offset + length]
            assert storage.content == model

    asyncio.run(scenario())


def test_requests_longer_than_a_piece_go_in_pieces(buffers: BufferSource | None) -> None:
    async def scenario() -> None:
        content = random.Random(1).randbytes(3 * MIB)
        storage = Storage(content, 4096)
        aligner = Aligner(storage, 4096, buffers=buffers)
        data = random.Random(2).randbytes(2 * MIB + 777)
        await aligner.write(4000, data)
        assert storage.content == content[:4000] + data + content[4000 + len(data) :]
        assert max(length for _, _, length in storage.log) <= PIECE_MAX
        buffer = bytearray(2 * MIB + 777)
        await aligner.read_into(4000, memoryview(buffer))
        assert buffer == data

    asyncio.run(scenario())


def test_aligned_requests_pass_without_reading(buffers: BufferSource | None) -> None:
    async def scenario() -> None:
        storage = Storage(bytes(8192), 4096)
        await Aligner(storage, 4096, buffers=buffers).write(4096, b"x" * 4096)
        assert storage.log == [("write", 4096, 4096)]

    asyncio.run(scenario())


def test_padded_writes_to_one_block_at_once_lose_nothing(buffers: BufferSource | None) -> None:
    async def scenario() -> None:
        storage = Storage(bytes(8192), 4096)
        aligner = Aligner(storage, 4096, buffers=buffers)
        pieces = [(n * 128, bytes([n + 1]) * 128) for n in range(64)]
        random.Random(3).shuffle(pieces)
        await asyncio.gather(*(aligner.write(offset, data) for offset, data in pieces))
        assert storage.content == b"".join(bytes([n + 1]) * 128 for n in range(64))

    asyncio.run(scenario())


def test_writes_past_an_unaligned_end_grow_by_exactly_what_was_written() -> None:
    async def scenario() -> None:
        storage = Storage(b"a" * 1000, 512)
        aligner = Aligner(storage, 512)
        await asyncio.gather(
            aligner.write(1000, b"b" * 10), aligner.write(990, b"c" * 5), aligner.write(1010, b"d" * 2000)
        )
        assert storage.content == b"a" * 990 + b"c" * 5 + b"a" * 5 + b"b" * 10 + b"d" * 2000

    asyncio.run(scenario())


def test_a_padded_write_keeps_the_length_of_the_storage() -> None:
    async def scenario() -> None:
        storage = Storage(b"a" * 1000, 512)
        await Aligner(storage, 512).write(900, b"b" * 100)
        assert storage.size == 1000
        assert storage.log[-1] == ("trim", 1000, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("offset", "length", "moments"),
    [
        (0x1200, 0x200, ["head", "tail", "after_head", "after_tail"]),
        (0x1000, 0x200, ["tail", "after_tail"]),
        (0x1E00, 0x200, ["head", "after_head"]),
        (0x1800, 0x1000, ["head", "after_head", "tail", "after_tail"]),
        (0x1800, 0x800 + 0x1000, ["head", "after_head"]),
        (0x1000, 0x1000, []),
    ],
)
def test_every_edge_has_its_moments_in_order(offset: int, length: int, moments: list[str]) -> None:
    async def scenario() -> None:
        seen: list[str] = []

        async def hook(moment: Moment) -> None:
            seen.append(moment.value.removeprefix("pwritev_rmw_"))

        storage = Storage(bytes(0x10000), 4096)
        await Aligner(storage, 4096, hook=hook).write(offset, bytes(length))
        assert seen == moments

    asyncio.run(scenario())


def test_a_write_that_overlaps_one_stopped_in_its_padding_waits() -> None:
    async def scenario() -> None:
        stopped, go_on = asyncio.Event(), asyncio.Event()

        async def hook(moment: Moment) -> None:
            if moment is Moment.AFTER_HEAD and not stopped.is_set():
                stopped.set()
                await go_on.wait()

        storage = Storage(bytes(8192), 4096)
        aligner = Aligner(storage, 4096, hook=hook)
        first = asyncio.create_task(aligner.write(0x200, b"A" * 0x200))
        await stopped.wait()
        second = asyncio.create_task(aligner.write(0x400, b"B" * 0x200))
        whole = asyncio.create_task(aligner.write(0, b"C" * 4096))
        await aligner.write(4096, b"D" * 4096)  # another block does not wait
        assert not second.done()
        assert not whole.done()
        go_on.set()
        await asyncio.gather(first, second, whole)
        assert storage.content == b"C" * 4096 + b"D" * 4096

    asyncio.run(scenario())


def test_cancellation_at_every_turn_gives_locks_back_and_touches_no_neighbour() -> None:
    async def scenario() -> None:
        storage = Storage(b"." * 16384, 4096)
        aligner = Aligner(storage, 4096, buffers=AlignedBuffers())

        async def write() -> None:
            await asyncio.gather(aligner.write(100, b"x" * 5000), aligner.write(9000, b"x" * 10))

        async def check() -> None:
            for _ in range(5):
                await asyncio.sleep(0)
            assert aligner._locks.idle
            assert storage.content[:100] == b"." * 100
            assert storage.content[5100:9000] == b"." * 3900
            assert storage.content[9010:] == b"." * (16384 - 9010)

        assert await sweep(write, check) > 5

    asyncio.run(scenario())


def test_buffers_are_reused_and_begin_on_a_page() -> None:
    import ctypes

    buffers = AlignedBuffers()
    first = buffers.take(5000)
    assert len(first) == 5000
    address = ctypes.addressof(ctypes.c_char.from_buffer(first))
    assert address % 4096 == 0
    buffers.give(first)
    again = buffers.take(8192)
    assert ctypes.addressof(ctypes.c_char.from_buffer(again)) == address
    assert align_up(len(again), 4096) == 8192
