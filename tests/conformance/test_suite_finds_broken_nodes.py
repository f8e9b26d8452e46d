"""The suite is worth something: each of these nodes breaks one promise, and is found out."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import pytest

from tests.support.nodes import content_of, run
from vblk.extent import Kind
from vblk.graph.node import Buffer, Node, Preallocation, Span
from vblk.graph.registry import Graph
from vblk.protocols.memory import MemoryNode
from vblk.testing import ConformanceError, Factory, PassingNode, Subject, check_conformance

CONTENT = content_of(70 << 10)


class ForgetsTail(PassingNode):
    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        kept = len(data) - 1 if len(data) > 4096 else len(data)
        await super().write(offset, memoryview(data)[:kept], fua=fua)


class AnswersOldBytes(PassingNode):
    def try_read(self, offset: int, length: int) -> bytes | None:
        return CONTENT[offset : offset + length]


class ReadsShort(PassingNode):
    async def read(self, offset: int, length: int) -> bytes:
        return (await super().read(offset, length))[:65536]


class FillsTooMuch(PassingNode):
    async def read_into(self, offset: int, buffer: memoryview) -> None:
        await super().read_into(offset, buffer)
        if isinstance(buffer.obj, bytearray) and len(buffer) < len(buffer.obj):
            buffer.obj[-1] = 0


class RoundsZeroesUp(PassingNode):
    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        rounded = min(-(-length // 512) * 512, self.size - offset)
        await super().write_zeroes(offset, rounded, unmap=unmap, no_fallback=no_fallback, fua=fua)


class DiscardsNeighbours(PassingNode):
    async def discard(self, offset: int, length: int) -> None:
        start = offset // 512 * 512
        await super().discard(start, min(length + 512, self.size - start))


class DiscardsToGarbage(PassingNode):
    async def discard(self, offset: int, length: int) -> None:
        await self.file.write(offset, b"\xde" * length)


class LiesAboutHoles(PassingNode):
    async def allocation(self, offset: int, length: int) -> list[Span]:
        return [Span(Kind.ZERO, offset, length)]


class LeavesGaps(PassingNode):
    async def allocation(self, offset: int, length: int) -> list[Span]:
        spans = await super().allocation(offset, length)
        return spans[1:] if len(spans) > 1 else spans


class PointsBeside(PassingNode):
    async def resolve(self, offset: int, length: int) -> list[Span]:
        return [Span(Kind.DATA, offset, length, self, max(0, offset - 1))]


class SaysTooMuch(PassingNode):
    async def resolve(self, offset: int, length: int) -> list[Span]:
        return [Span(Kind.DATA, offset, length + 1, self, offset)]


class GrowsWithGarbage(PassingNode):
    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        before = self.size
        await super().resize(size, preallocation=preallocation, exact=exact)
        if size > before:
            await self.file.write(before, b"\x01")


class WritesWhenReadOnly(MemoryNode):
    def require_writable(self) -> None:
        """Let everybody write."""


class PlacesHalf(PassingNode):
    @asynccontextmanager
    async def place(self, offset: int, length: int) -> AsyncGenerator[list[Span], None]:
        yield [Span(Kind.DATA, offset, max(1, length // 2), self, offset)]


class FlushesSomethingElse(PassingNode):
    async def flush(self) -> None:
        await super().flush()
        if not self.read_only:
            await self.file.write(0, b"F")


class TearsNeighbours(PassingNode):
    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        start = offset // 512 * 512
        end = min(-(-(offset + len(data)) // 512) * 512, self.size)
        whole = bytearray(await self.read(start, end - start))
        await self.before("write", offset, len(data))
        whole[offset - start : offset - start + len(data)] = data
        await asyncio.sleep(0)
        await super().write(start, whole, fua=fua)


BROKEN: Sequence[type[PassingNode]] = (
    ForgetsTail,
    AnswersOldBytes,
    ReadsShort,
    FillsTooMuch,
    RoundsZeroesUp,
    DiscardsNeighbours,
    DiscardsToGarbage,
    LiesAboutHoles,
    LeavesGaps,
    PointsBeside,
    SaysTooMuch,
    GrowsWithGarbage,
    PlacesHalf,
    FlushesSomethingElse,
    TearsNeighbours,
)


def factory(decorate: type[PassingNode] | None, storage: type[MemoryNode] = MemoryNode) -> Factory:
    @asynccontextmanager
    async def make() -> AsyncGenerator[Subject, None]:
        async with Graph() as graph:
            node: Node = storage("memory", size=len(CONTENT), data=CONTENT)
            graph.add(node)
            if decorate is not None:
                over = decorate("over", node)
                over.put_over(graph)
                node = over
            yield Subject(graph, node, CONTENT)

    return make


def test_a_sound_node_passes() -> None:
    run(check_conformance(factory(None)))
    run(check_conformance(factory(PassingNode)))


def test_storage_that_takes_writes_when_it_is_read_only_is_found_out() -> None:
    with pytest.raises(ConformanceError, match="ReadOnly"):
        run(check_conformance(factory(None, WritesWhenReadOnly)))


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_node_is_found_out(broken: type[PassingNode]) -> None:
    with pytest.raises(ConformanceError):
        run(check_conformance(factory(broken)))
