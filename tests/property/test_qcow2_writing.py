"""Whatever is done to a qcow2 disk, in whatever order: it reads as its model, and its check is clean.

Every cluster size in small, counts from one bit to 64, both versions, with and
without a backing file that is shorter or longer than the disk. Reopening,
growing and cutting come in between.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.support.qcow2_disks import checked, new_image, opened
from tests.support.vhdx.model import Model, pattern
from vblk.graph.handle import Handle

T = TypeVar("T")

SHAPES: tuple[dict[str, Any], ...] = (
    {"cluster_size": 512},
    {"cluster_size": 512, "refcount_bits": 64},
    {"cluster_size": 1024, "refcount_bits": 1},
    {"cluster_size": 4096, "version": 2},
    {"cluster_size": 65536, "refcount_bits": 2},
)
CLUSTERS_MAX = 400


class Writing(RuleBasedStateMachine):
    """One disk, and what it should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.image = b""
        self.backing: bytes | None = None
        self.model = Model(0)
        self.tag = 0
        self.open: Any = None
        self.handle: Handle | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @property
    def disk(self) -> Handle:
        assert self.handle is not None
        return self.handle

    @initialize(
        shape=st.sampled_from(SHAPES),
        sectors=st.integers(1, CLUSTERS_MAX),
        backing=st.sampled_from((None, 0.5, 1.0, 1.7)),
    )
    def create(self, shape: dict[str, Any], sectors: int, backing: float | None) -> None:
        self.cluster = shape["cluster_size"]
        size = sectors * max(512, self.cluster // 4)
        self.image = self.run(new_image(size, **shape))
        self.model = Model(size)
        if backing is not None:
            self.backing = pattern(1 << 40, 0, int(size * backing) // 512 * 512)
            self.model.write(0, self.backing)
        self.run(self.start())

    async def start(self) -> None:
        self.open = opened(self.image, backing=self.backing, read_only=False)
        self.handle, self.leaf = await self.open.__aenter__()

    async def stop(self) -> None:
        await self.disk.flush()
        handle = self.disk
        await handle.node.close()
        self.image = await self.leaf.read(0, self.leaf.size)
        self.handle = None
        await self.open.__aexit__(None, None, None)

    def range(self, data: st.DataObject) -> tuple[int, int]:
        """Draw a range of the disk, half of them whole clusters."""
        size = self.model.size
        offset = data.draw(st.integers(0, size - 1))
        length = data.draw(
            st.sampled_from((1, 511, 512, self.cluster, 3 * self.cluster, 20 * self.cluster + 7))
        )
        if data.draw(st.booleans()):
            offset -= offset % self.cluster
        return offset, min(length, size - offset)

    @rule(data=st.data(), fua=st.booleans())
    def write(self, data: st.DataObject, fua: bool) -> None:
        offset, length = self.range(data)
        self.tag += 1
        content = pattern(self.tag, offset, length)
        self.run(self.disk.write(offset, content, fua=fua))
        self.model.write(offset, content)

    @rule(data=st.data(), count=st.integers(2, 6))
    def write_side_by_side(self, data: st.DataObject, count: int) -> None:
        """Write ranges that do not overlap, all at once, with a flush among them."""
        start, length = self.range(data)
        step = max(1, length // count)
        writes: list[tuple[int, bytes]] = []
        for offset in range(start, start + length, step):
            self.tag += 1
            writes.append((offset, pattern(self.tag, offset, min(step, start + length - offset))))

        async def all_at_once() -> None:
            disk = self.disk
            await asyncio.gather(disk.flush(), *(disk.write(*each) for each in writes), disk.flush())

        self.run(all_at_once())
        for offset, content in writes:
            self.model.write(offset, content)

    @rule(data=st.data(), unmap=st.booleans())
    def zero(self, data: st.DataObject, unmap: bool) -> None:
        offset, length = self.range(data)
        self.run(self.disk.write_zeroes(offset, length, unmap=unmap))
        self.model.zero(offset, length)

    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        """Whatever a discarded sector was, it is that or zeros."""
        offset, length = self.range(data)
        self.run(self.disk.discard(offset, length))
        found = self.run(self.disk.read(offset, length))
        before = self.model.read(offset, length)
        assert all(new in (old, 0) for old, new in zip(before, found, strict=True))
        self.model.write(offset, found)

    @rule(data=st.data())
    def resize(self, data: st.DataObject) -> None:
        sectors = data.draw(st.integers(1, CLUSTERS_MAX + 200))
        size = sectors * max(512, self.cluster // 4)
        self.run(self.disk.resize(size))
        self.model = self.model.copy(size)

    @rule()
    def flush(self) -> None:
        self.run(self.disk.flush())

    @rule()
    def reopen(self) -> None:
        self.run(self.stop())
        report = self.run(checked(self.image))
        assert report.messages == []
        self.run(self.start())

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        offset, length = self.range(data)
        assert self.run(self.disk.read(offset, length)) == self.model.read(offset, length)

    def teardown(self) -> None:
        try:
            if self.handle is not None:
                assert self.run(self.disk.read(0, self.model.size)) == self.model.read(0, self.model.size)
                self.run(self.stop())
                assert self.run(checked(self.image)).messages == []
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()


TestWriting = Writing.TestCase
TestWriting.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much),
)
