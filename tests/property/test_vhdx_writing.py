"""Whatever is done to a VHDX disk, in whatever order: it reads as its model, and its check is clean.

512- and 4096-byte sectors, dynamic, fixed and differencing, with blocks of
different sizes in a chain. Reopening, snapshots, merges and crashes come in between.
"""

import asyncio
from collections.abc import Coroutine, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.support.crash import NIGHTLY
from tests.support.crash_chain import files_of, images_on
from tests.support.vhdx.model import Model, pattern
from tests.support.vhdx_disks import Chain, MemoryFile
from vblk.errors import BlockError
from vblk.formats.vhdx.create import NewVhdx
from vblk.graph.handle import Handle
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.jobs.merge import Merge
from vblk.testing import Content, Effort, Expectation, Explorer, Recorder
from vblk.testing.expectation import Step
from vblk.units import KIB, MIB

T = TypeVar("T")

pytestmark = pytest.mark.timeout(600)
"""Hundreds of runs in one test, on a machine that may have other things to do."""

DISK_MAX = 12 * MIB
LENGTHS = (1, 511, 512, 4096, 5000, 64 * KIB, MIB, 2 * MIB + 512, 5 * MIB)
BLOCKS = (MIB, 2 * MIB, 4 * MIB)


class Writing(RuleBasedStateMachine):
    """One disk, its chain below, and what it should hold."""

    lengths: tuple[int, ...] = LENGTHS

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.chain = Chain()
        self.graph: Graph | None = None
        self.handle: Handle | None = None
        self.model = Model(0)
        self.tag = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @property
    def disk(self) -> "Handle | Noting":
        assert self.handle is not None
        return self.handle

    @initialize(
        sectors=st.integers(1, DISK_MAX // 4096),
        sector_size=st.sampled_from((512, 4096)),
        block_size=st.sampled_from(BLOCKS),
        fixed=st.booleans(),
        zero=st.booleans(),
    )
    def create(self, sectors: int, sector_size: int, block_size: int, fixed: bool, zero: bool) -> None:
        self.sector_size = sector_size
        new = NewVhdx(
            size=sectors * 4096,
            block_size=block_size,
            fixed=fixed,
            block_state_zero=zero,
            logical_sector_size=sector_size,
        )
        self.model = Model(sectors * 4096)
        self.run(self.chain.add(new))
        self.run(self.open())

    async def open(self) -> None:
        self.graph = Graph()
        self.handle = await self.chain.open(self.graph)
        assert self.handle.size == self.model.size

    @rule()
    def merge(self) -> None:
        """Merge the top into its parent, which is the top then."""
        if len(self.chain.files) < 2:
            return
        self.run(self.close())
        self.run(merged(self.chain))
        self.run(self.open())

    async def close(self) -> None:
        graph, self.graph = self.graph, None
        if graph is not None:
            await graph.close()

    def noted_write(self, offset: int, content: bytes) -> AbstractContextManager[None]:
        """Surround a write that does not go through `disk`."""
        return nullcontext()

    def range(self, data: st.DataObject, align: bool = False) -> tuple[int, int]:
        """Draw a range of the disk, most of them near the edge of a block."""
        size = self.model.size
        near = data.draw(st.sampled_from(range(0, size + 1, MIB))) + data.draw(
            st.sampled_from((-4096, -512, -1, 0, 1, 512, 4096, 300 * KIB))
        )
        offset = max(0, min(near, size - 1))
        length = min(data.draw(st.sampled_from(self.lengths)), size - offset)
        if align:
            offset -= offset % self.sector_size
            length = max(self.sector_size, length - length % self.sector_size)
        return offset, length

    def bytes_for(self, offset: int, length: int) -> bytes:
        self.tag += 1
        return pattern(self.tag, offset, length)

    @rule(data=st.data(), fua=st.booleans())
    def write(self, data: st.DataObject, fua: bool) -> None:
        offset, length = self.range(data)
        content = self.bytes_for(offset, length)
        self.run(self.disk.write(offset, content, fua=fua))
        self.model.write(offset, content)

    @rule(data=st.data(), count=st.integers(2, 6))
    def write_side_by_side(self, data: st.DataObject, count: int) -> None:
        """Write ranges that do not overlap, all at once, with a flush among them."""
        start, length = self.range(data, align=True)
        step = max(1, length // count)
        writes = [
            (offset, self.bytes_for(offset, min(step, start + length - offset)))
            for offset in range(start, start + length, step)
        ]

        async def all_at_once() -> None:
            disk = self.disk
            await asyncio.gather(disk.flush(), *(disk.write(*each) for each in writes), disk.flush())

        self.run(all_at_once())
        for offset, content in writes:
            self.model.write(offset, content)

    @rule(data=st.data())
    def place(self, data: st.DataObject) -> None:
        """Write as the data plane does: to the leaf's own places."""
        offset, length = self.range(data)
        content = self.bytes_for(offset, length)

        async def placed() -> None:
            async with self.disk.node.place(offset, length) as spans:
                assert sum(span.length for span in spans) == length
                for span in spans:
                    assert span.leaf is not None
                    start = span.guest_offset - offset
                    await span.leaf.write(span.leaf_offset, content[start : start + span.length])

        with self.noted_write(offset, content):
            self.run(placed())
        self.model.write(offset, content)

    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        """Give up a write into space that had no data: nothing of it may be seen."""
        offset, length = self.range(data)

        async def abandoned() -> None:
            node = self.disk.node
            before = await node.read(offset, length)
            holders = [span.leaf for span in await node.resolve(offset, length)]
            try:
                async with node.place(offset, length) as spans:
                    for span in spans:
                        assert span.leaf is not None
                        if span.leaf not in holders:
                            await span.leaf.write(span.leaf_offset, b"\xee" * span.length)
                    raise RuntimeError("given up")
            except RuntimeError:
                pass
            assert await node.read(offset, length) == before

        self.run(abandoned())

    @rule(data=st.data(), unmap=st.booleans())
    def write_zeroes(self, data: st.DataObject, unmap: bool) -> None:
        offset, length = self.range(data)
        self.run(self.disk.write_zeroes(offset, length, unmap=unmap))
        self.model.zero(offset, length)

    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        """Afterwards every sector reads as before or as zeros, and goes on doing so."""
        offset, length = self.range(data, align=True)
        before = self.model.read(offset, length)
        self.run(self.disk.discard(offset, length))
        after = self.run(self.disk.read(offset, length))
        for start in range(0, length, 512):
            sector = after[start : start + 512]
            assert sector in (before[start : start + 512], bytes(len(sector)))
        self.model.write(offset, after)

    @rule()
    def flush(self) -> None:
        self.run(self.disk.flush())

    @rule(sectors=st.integers(1, DISK_MAX // 4096))
    def resize(self, sectors: int) -> None:
        self.run(self.disk.resize(sectors * 4096))
        self.model = self.model.copy(sectors * 4096)
        assert self.disk.size == sectors * 4096

    @rule()
    def reopen(self) -> None:
        self.run(self.close())
        self.run(self.open())

    @rule()
    def turn_read_only_and_back(self) -> None:
        assert self.graph is not None
        self.run(self.graph.reopen(self.disk.node, read_only=True))
        assert self.disk.read_only
        self.compare()
        self.run(self.graph.reopen(self.disk.node, read_only=False))

    @rule(block_size=st.sampled_from(BLOCKS), sectors=st.integers(1, DISK_MAX // 4096), resized=st.booleans())
    def snapshot(self, block_size: int, sectors: int, resized: bool) -> None:
        """Go on in a child, which may be larger or smaller than its parent."""
        if len(self.chain.files) >= 4:
            return
        size = sectors * 4096 if resized else self.model.size
        self.run(self.close())
        self.run(self.chain.add(NewVhdx(size=size, block_size=block_size)))
        self.model = self.model.copy(size)
        self.run(self.open())

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        offset, length = self.range(data)
        assert self.run(self.disk.read(offset, length)) == self.model.read(offset, length)

    @invariant()
    def compare(self) -> None:
        if self.handle is not None:
            assert self.run(self.disk.read(0, self.model.size)) == self.model.read(0, self.model.size)

    def teardown(self) -> None:
        try:
            if self.handle is not None:
                self.run(self.close())
                report = self.run(self.chain.check())
                assert report.findings == []
                self.run(self.open())
                self.compare()
                self.run(self.close())
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()


async def merged(chain: Chain) -> None:
    """Merge the top of a chain, which is closed, into the image below it."""
    names = [f"{number}" for number in range(len(chain.files))]
    images = images_on(
        {name: content_of(file.content) for name, file in zip(names, chain.files, strict=True)}
    )
    job = Merge(images, names[-1], names[-2])
    await job.run(await job.plan())
    left = files_of(images)
    chain.files = [MemoryFile(left[name].read(0, left[name].length)) for name in names[:-1]]


def content_of(data: bytes) -> Content:
    content = Content()
    content.write(0, data)
    return content


@dataclass
class Noting:
    """A disk all changes of which are noted in an expectation, with the instants of a recorder."""

    handle: Handle
    recorder: Recorder
    expectation: Expectation

    @property
    def node(self) -> Node:
        return self.handle.node

    @property
    def size(self) -> int:
        return self.handle.size

    @property
    def read_only(self) -> bool:
        return self.handle.read_only

    @contextmanager
    def step(self, *, weak: bool = False, durable: bool = False) -> Generator[Step]:
        step = Step(self.recorder.note(), weak=weak, durable=durable)
        yield step
        step.ended = self.recorder.note()

    async def read(self, offset: int, length: int) -> bytes:
        return await self.handle.read(offset, length)

    async def write(self, offset: int, data: bytes, *, fua: bool = False) -> None:
        with self.step(durable=fua) as step:
            self.expectation.write(step, offset, data)
            await self.handle.write(offset, data, fua=fua)

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool = False) -> None:
        with self.step() as step:
            self.expectation.zero(step, offset, length)
            await self.handle.write_zeroes(offset, length, unmap=unmap)

    async def discard(self, offset: int, length: int) -> None:
        with self.step(weak=True) as step:
            self.expectation.zero(step, offset, length)
            await self.handle.discard(offset, length)

    async def resize(self, size: int) -> None:
        with self.step() as step:
            self.expectation.resize(step, size)
            await self.handle.resize(size)

    async def flush(self) -> None:
        with self.step() as step:
            self.expectation.flush(step)
            await self.handle.flush()


class Crashing(Writing):
    """The same, on a file of which a crash may keep any legal part of what was not flushed."""

    lengths = (1, 512, 4096, 5000, 64 * KIB)

    async def open(self) -> None:
        self.recorder = Recorder()
        self.leaf = self.recorder.leaf("top", content_of(self.chain.files[-1].content))
        self.graph = Graph()
        self.handle = await self.chain.open(self.graph, leaf=self.leaf)
        assert self.handle.size == self.model.size
        expected = content_of(self.model.read(0, self.model.size))
        self.noting = Noting(self.handle, self.recorder, Expectation(expected))

    async def close(self) -> None:
        was_open = self.graph is not None
        await super().close()
        if was_open:
            content = self.leaf.content
            self.chain.files[-1].content = content.read(0, content.length)

    @property
    def disk(self) -> Noting:
        return self.noting

    @contextmanager
    def noted_write(self, offset: int, content: bytes) -> Generator[None]:
        with self.noting.step() as step:
            self.noting.expectation.write(step, offset, content)
            yield

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """Go on from one of the states that a crash at this instant may leave."""
        at = self.recorder.now
        explorer = Explorer(self.recorder, Effort(bound=16, samples=6, corners=4), seed=at)
        states = list(explorer.states([at], since=at))
        state = data.draw(st.sampled_from(states))
        allowed = self.noting.expectation.allowed(at)
        graph, self.graph = self.graph, None
        assert graph is not None
        self.recorder.dead = True  # the process is gone, too: closing brings nothing home
        with suppress(BlockError):
            self.run(graph.close())
        content = state.files["top"]
        self.chain.files[-1].content = content.read(0, content.length)

        async def look() -> bytes:
            async with Graph() as fresh:
                handle = await self.chain.open(fresh, read_only=True)
                return await handle.read(0, handle.size)

        found = content_of(self.run(look()))
        self.noting.expectation.judge(allowed, found.length, found.pages)
        self.model = Model(found.length)
        self.model.write(0, found.read(0, found.length))
        self.run(self.open())


TestWriting = Writing.TestCase
TestWriting.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much),
)
TestCrashing = Crashing.TestCase
TestCrashing.settings = settings(TestWriting.settings, max_examples=200 if NIGHTLY else 25)
