"""The null disk finds zeros, loses writes and takes its time."""

import asyncio

import pytest

from vblk.errors import OptionError, OutOfRange, ReadOnly, Unsupported
from vblk.extent import Kind
from vblk.graph.node import Preallocation
from vblk.options import Size
from vblk.protocols.null import Options, open_null


class Watch:
    """A clock that notes every wait and passes it at once."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


def test_reads_find_zeros_and_writes_vanish() -> None:
    async def scenario() -> None:
        node = open_null(Options(size=Size(1000)), name="n", read_only=False)
        await node.write(0, b"x" * 100, fua=True)
        await node.write_zeroes(0, 100)
        await node.discard(0, 100)
        await node.flush()
        assert node.try_read(0, 1000) == bytes(1000)
        assert await node.read(0, 10) == bytes(10)
        buffer = bytearray(b"x" * 10)
        await node.read_into(0, memoryview(buffer))
        assert buffer == bytes(10)
        assert await node.allocated_bytes() == 0
        await node.close()

    asyncio.run(scenario())


def test_every_request_takes_the_latency() -> None:
    async def scenario() -> None:
        from vblk.protocols.null import NullNode

        watch = Watch()
        node = NullNode("n", Options(latency_ns=500_000_000), clock=watch)
        assert node.try_read(0, 1) is None
        await node.read(0, 1)
        await node.read_into(0, memoryview(bytearray(1)))
        await node.write(0, b"x")
        await node.write_zeroes(0, 1)
        await node.discard(0, 1)
        await node.flush()
        assert watch.time == 3.0

    asyncio.run(scenario())


@pytest.mark.parametrize(("promise", "kind"), [(True, Kind.ZERO), (False, Kind.DATA)])
def test_zeros_are_told_only_where_they_are_promised(promise: bool, kind: Kind) -> None:
    async def scenario() -> None:
        node = open_null(Options(read_zeroes=promise), name="n", read_only=True)
        assert [(s.kind, s.guest_offset, s.length) for s in await node.allocation(5, 10)] == [(kind, 5, 10)]
        with pytest.raises(ReadOnly):
            await node.write(0, b"x")

    asyncio.run(scenario())


def test_both_names_are_served() -> None:
    assert open_null(Options(), name="n", read_only=True).filename == "null-co://"
    assert open_null(Options(), name="n", read_only=True, driver="null-aio").driver == "null-aio"


def test_impossible_options_are_refused() -> None:
    for options in (Options(size=Size(-1)), Options(size=Size(1 << 63)), Options(latency_ns=-1)):
        with pytest.raises(OptionError):
            open_null(options, name="n", read_only=True)

    async def scenario() -> None:
        node = open_null(Options(), name="n", read_only=False)
        await node.resize(7)
        assert node.size == 7
        with pytest.raises(OutOfRange):
            await node.resize(1 << 63)
        with pytest.raises(Unsupported):
            await node.resize(7, preallocation=Preallocation.FALLOC)

    asyncio.run(scenario())
