"""Raw over file and over memory, in any order of requests, against plain bytes."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.nodes import content_of
from vblk.errors import OutOfRange, ReadOnly
from vblk.extent import Kind
from vblk.graph.handle import Handle
from vblk.graph.registry import Graph
from vblk.opening import open_image
from vblk.options import from_mapping
from vblk.protocols.memory import MemoryNode
from vblk.testing import hold_everything_free

T = TypeVar("T")

SIZE_MAX = 192 * 1024
SECTOR = 512

OFFSETS = st.one_of(
    st.integers(0, SIZE_MAX),
    st.integers(0, SIZE_MAX // SECTOR).map(lambda sector: sector * SECTOR),
    st.sampled_from((0, 1, 511, 512, 4095, 4096, 65535, 65536)),
)
LENGTHS = st.one_of(st.integers(0, 2000), st.integers(0, 70_000), st.sampled_from((512, 4096, 65536)))


class RawModel(RuleBasedStateMachine):
    """One raw image; `model` is what a guest must see."""

    kind = "file"
    cache = "writeback"

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.graph: Graph | None = None
        self.handle: Handle | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="vblk-model-"))
        self.model = bytearray()
        self.start = 0

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(call)

    @property
    def disk(self) -> Handle:
        assert self.handle is not None
        return self.handle

    @initialize(length=st.integers(0, SIZE_MAX // 2), start=st.sampled_from((0, 0, 512, 100)))
    def make(self, length: int, start: int) -> None:
        self.start = min(start, length)
        stored = content_of(length)
        inside = stored[self.start :]
        self.model = bytearray(inside) + bytearray(-len(inside) % SECTOR)
        if self.kind == "file":
            (self.folder / "disk").write_bytes(stored)
            self.run(self._open(read_only=False))
        else:
            self.run(self._open_memory(stored))

    async def _open(self, *, read_only: bool) -> None:
        self.graph = Graph()
        options = from_mapping(
            {
                "driver": "raw",
                "offset": self.start,
                "file": {"driver": "file", "filename": str(self.folder / "disk")},
            }
        )
        self.handle = await open_image(self.graph, options, read_only=read_only, cache=self.cache)

    async def _open_memory(self, stored: bytes) -> None:
        self.graph = Graph()
        self.graph.add(MemoryNode("memory", size=len(stored), data=stored))
        options = from_mapping({"driver": "raw", "offset": self.start, "file": "memory"})
        self.handle = await open_image(self.graph, options, read_only=False)

    def clip(self, offset: int, length: int) -> tuple[int, int]:
        offset = min(offset, len(self.model))
        return offset, min(length, len(self.model) - offset)

    def change(self, call: Coroutine[Any, Any, None]) -> bool:
        """Make a change, or see it refused; tell whether it was made."""
        if self.disk.read_only:
            with pytest.raises(ReadOnly):
                self.run(call)
            return False
        self.run(call)
        return True

    @rule(offset=OFFSETS, length=LENGTHS)
    def read(self, offset: int, length: int) -> None:
        offset, length = self.clip(offset, length)
        wanted = bytes(self.model[offset : offset + length])
        assert self.run(self.disk.read(offset, length)) == wanted
        buffer = bytearray(length)
        self.run(self.disk.read_into(offset, memoryview(buffer)))
        assert bytes(buffer) == wanted
        assert self.disk.try_read(offset, length) in (wanted, None)

    @rule(offset=OFFSETS, length=LENGTHS, value=st.integers(1, 255), fua=st.booleans())
    def write(self, offset: int, length: int, value: int, fua: bool) -> None:
        offset, length = self.clip(offset, length)
        data = bytes((value + index) % 256 for index in range(length))
        if self.change(self.disk.write(offset, data, fua=fua)):
            self.model[offset : offset + length] = data

    @rule(offset=OFFSETS, length=LENGTHS, unmap=st.booleans(), fua=st.booleans())
    def write_zeroes(self, offset: int, length: int, unmap: bool, fua: bool) -> None:
        offset, length = self.clip(offset, length)
        if self.change(self.disk.write_zeroes(offset, length, unmap=unmap, fua=fua)):
            self.model[offset : offset + length] = bytes(length)

    @rule(offset=OFFSETS, length=LENGTHS)
    def discard(self, offset: int, length: int) -> None:
        offset, length = self.clip(offset, length)
        if self.change(self.disk.discard(offset, length)):
            found = self.run(self.disk.read(offset, length))
            before = self.model[offset : offset + length]
            assert all(new in (0, old) for new, old in zip(found, before, strict=True))
            self.model[offset : offset + length] = found

    @rule(offset=OFFSETS, length=st.integers(1, 4096))
    def reach_outside(self, offset: int, length: int) -> None:
        start = len(self.model) - min(offset, len(self.model))
        length += offset
        with pytest.raises(OutOfRange):
            self.run(self.disk.read(start, length))
        with pytest.raises((OutOfRange, ReadOnly)):
            self.run(self.disk.write(start, bytes(length)))

    @rule(offset=OFFSETS, length=LENGTHS)
    def map(self, offset: int, length: int) -> None:
        offset, length = self.clip(offset, length)
        for spans in (
            self.run(self.disk.resolve(offset, length)),
            self.run(self.disk.allocation(offset, length)),
        ):
            position = offset
            for span in spans:
                assert span.guest_offset == position
                position += span.length
                if span.kind is Kind.ZERO:
                    assert not any(self.model[span.guest_offset : position])
            assert position == offset + length

    @rule()
    def flush(self) -> None:
        self.run(self.disk.flush())

    @rule(sectors=st.integers(0, SIZE_MAX // SECTOR))
    def resize(self, sectors: int) -> None:
        size = sectors * SECTOR
        if self.change(self.disk.resize(size)):
            del self.model[size:]
            self.model += bytes(size - len(self.model))

    @rule(read_only=st.booleans())
    def reopen(self, read_only: bool) -> None:
        assert self.graph is not None
        self.run(self.graph.reopen(self.disk.node, read_only=read_only))
        assert self.disk.read_only is read_only

    @precondition(lambda self: self.kind == "file")
    @rule(read_only=st.booleans())
    def close_and_open(self, read_only: bool) -> None:
        assert self.graph is not None
        self.run(self.graph.close())
        assert (self.folder / "disk").stat().st_size in range(
            self.start + len(self.model) - SECTOR + 1, self.start + len(self.model) + 1
        ) or not self.model
        self.run(self._open(read_only=read_only))

    @invariant()
    def the_size_is_right_and_nothing_is_held(self) -> None:
        if self.handle is not None and self.graph is not None:
            assert self.disk.size == len(self.model)
            hold_everything_free(self.graph)

    def teardown(self) -> None:
        try:
            if self.graph is not None:
                assert self.run(self.disk.read(0, len(self.model))) == bytes(self.model)
                self.run(self.graph.close())
        finally:
            self.runner.close()
            shutil.rmtree(self.folder)


class RawOverFile(RawModel):
    pass


class RawOverDirectFile(RawModel):
    cache = "none"


class RawOverMemory(RawModel):
    kind = "memory"


EXAMPLES = int(os.environ.get("VBLK_EXAMPLES", "25"))


@pytest.mark.parametrize("machine", [RawOverFile, RawOverDirectFile, RawOverMemory])
def test_raw_behaves_as_plain_bytes(machine: type[RawModel]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
