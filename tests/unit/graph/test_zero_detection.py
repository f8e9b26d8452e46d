"""Detecting zeros: which writes become zero-writes, beside dirty bitmaps and without."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.nodes import BUILDERS, Bench
from vblk.errors import OptionError
from vblk.filters.passing import PassingNode
from vblk.graph.edge import WRITING
from vblk.graph.handle import Handle
from vblk.graph.node import Buffer, Node
from vblk.graph.recording import Recording, add_bitmap, remove_bitmap
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.graph.zero_detection import ZeroDetecting, is_zero, set_detection
from vblk.opening import open_node
from vblk.options import from_mapping
from vblk.protocols.memory import MemoryNode

SIZE = 1 << 20
OLD = b"old" * 1000


class Noting(PassingNode):
    """Notes what arrives, and whether zeros may be unmapped."""

    def __init__(self, file: Node) -> None:
        super().__init__("noting", file)
        self.log: list[tuple[str, bool]] = []

    def try_write(self, offset: int, data: Buffer) -> bool:
        return False

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        self.log.append(("write", False))
        await super().write(offset, data, fua=fua)

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        self.log.append(("zero", unmap))
        await super().write_zeroes(offset, length, unmap=unmap, no_fallback=no_fallback, fua=fua)


def with_noting(scenario: Callable[[Graph, Noting, Handle], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Graph() as graph:
            memory = MemoryNode("memory", size=SIZE, data=OLD)
            graph.add(memory)
            noting = Noting(memory)
            noting.put_over(graph)
            mapping = {"driver": "raw", "file": "noting", "discard": "unmap", "detect-zeroes": "on"}
            node = await open_node(graph, from_mapping(mapping), Request(read_only=False))
            await scenario(graph, noting, graph.hold(node, "the test", WRITING))

    asyncio.run(main())


def test_zeros_are_written_as_zeros_and_other_bytes_as_they_are() -> None:
    async def scenario(graph: Graph, noting: Noting, handle: Handle) -> None:
        await handle.write(10, bytes(1000))
        await handle.write(10, bytes(500) + b"\1" + bytes(500))
        await handle.write(10, memoryview(bytearray(100)), fua=True)
        assert noting.log == [("zero", False), ("write", False), ("zero", False)]
        set_detection(handle.node, "unmap")
        await handle.write(10, bytes(1000))
        set_detection(handle.node, "off")
        await handle.write(10, bytes(1000))
        assert noting.log[3:] == [("zero", True), ("write", False)]
        assert await handle.read(0, 1020) == OLD[:10] + bytes(1001) + OLD[1011:1020]
        assert type(handle.node).__mro__.count(ZeroDetecting) == 0

    with_noting(scenario)


@pytest.mark.parametrize("first", ["bitmap", "detection"])
def test_bitmaps_and_detection_come_and_go_in_any_order(first: str) -> None:
    async def scenario(graph: Graph, noting: Noting, handle: Handle) -> None:
        node = handle.node
        if first == "bitmap":
            set_detection(node, "off")
        plain = type(node)
        bitmap = await add_bitmap(graph, node, "b", granularity=4096)
        set_detection(node, "on")
        assert isinstance(node, Recording)
        assert isinstance(node, ZeroDetecting)
        await handle.write(8192, bytes(4096))
        assert noting.log == [("zero", False)]
        assert bitmap.count == 4096
        if first == "bitmap":
            set_detection(node, "off")
            remove_bitmap(node, "b")
            assert type(node) is plain
        else:
            remove_bitmap(node, "b")
            assert isinstance(node, ZeroDetecting)
            await handle.write(0, bytes(4096))
            assert noting.log == [("zero", False)] * 2
        assert bitmap.count == 4096

    with_noting(scenario)


@pytest.mark.parametrize("kind", ["memory", "file", "raw", "qcow2-overlay", "luks", "blkdebug"])
def test_every_kind_of_node_holds_what_was_written(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with Graph() as graph:
            made = await BUILDERS[kind](Bench(graph, tmp_path))
            handle = graph.hold(made.node, "the test", WRITING)
            set_detection(made.node, "on")
            content = bytearray(made.content)
            for offset, data in (
                (0, bytes(70_000)),
                (5000, b"x" * 100),
                (100, bytes(10_000)),
                (512, bytes(1)),
            ):
                await handle.write(offset, data)
                content[offset : offset + len(data)] = data
            assert await handle.read(0, handle.size) == content

    asyncio.run(main())


@pytest.mark.parametrize("length", [0, 1, 4096, (2 << 20) + 5])
def test_zeros_are_told_from_other_bytes(length: int) -> None:
    assert is_zero(bytes(length))
    assert is_zero(memoryview(bytearray(length)))
    for at in {0, length // 2, length - 1} if length else ():
        data = bytearray(length)
        data[at] = 1
        assert not is_zero(data)


def test_unmapping_needs_discards_as_in_qemu() -> None:
    async def main() -> None:
        async with Graph() as graph:
            mapping = {"driver": "null-co", "detect-zeroes": "unmap"}
            with pytest.raises(OptionError, match="setting detect-zeroes to unmap is not allowed without"):
                await open_node(graph, from_mapping(mapping), Request())

    asyncio.run(main())
