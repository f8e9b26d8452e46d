"""Copy on read: what was read becomes the child's own, and never overwrites a newer write."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from vblk.errors import GraphError, ReadOnly
from vblk.extent import Kind
from vblk.filters import copy_on_read, snapshot
from vblk.filters.copy_on_read import COPY_MAX, CopyOnReadNode
from vblk.filters.events import Event, InjectedError
from vblk.filters.snapshot import SnapshotNode
from vblk.graph.node import Span
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.opening import open_node
from vblk.options import NodeReference, from_mapping
from vblk.protocols.memory import MemoryNode
from vblk.units import KIB

SIZE = 2 * COPY_MAX + 512


def content() -> bytes:
    return b"".join(number.to_bytes(2, "big") * 256 for number in range(SIZE // 512))


@asynccontextmanager
async def opened(data: bytes | None = None) -> AsyncGenerator[tuple[CopyOnReadNode, SnapshotNode], None]:
    async with Graph() as graph:
        base = MemoryNode("base", size=SIZE, data=content() if data is None else data, read_only=True)
        graph.add(base)
        overlay = await snapshot.put_over(graph, base)
        yield await copy_on_read.put_over(graph, overlay), overlay


def held(spans: list[Span]) -> list[tuple[int, int]]:
    return [(span.guest_offset, span.length) for span in spans if span.present and not span.depth]


def test_what_was_read_is_the_child_s_own() -> None:
    async def scenario() -> None:
        async with opened() as (node, overlay):
            assert await node.read(1000, 3000) == content()[1000:4000]
            assert held(await overlay.resolve(0, SIZE)) == [(1000, 3000)]
            await node.read(0, SIZE)
            assert sum(length for _, length in held(await overlay.resolve(0, SIZE))) == SIZE
            assert await overlay.read(0, SIZE) == content()

    asyncio.run(scenario())


def test_zeros_are_copied_as_zeros() -> None:
    async def scenario() -> None:
        async with opened(b"") as (node, overlay):
            assert await node.read(0, 64 * KIB) == bytes(64 * KIB)
            spans = await overlay.allocation(0, 64 * KIB)
            assert held(spans) == [(0, 64 * KIB)]

    asyncio.run(scenario())


def test_an_empty_read_copies_nothing() -> None:
    async def scenario() -> None:
        async with opened() as (node, overlay):
            assert await node.read(0, 0) == b""
            await node.write(0, b"")
            assert held(await overlay.resolve(0, SIZE)) == []

    asyncio.run(scenario())


def test_a_read_never_overwrites_a_write_in_flight() -> None:
    async def scenario() -> None:
        async with opened() as (node, overlay):
            await asyncio.gather(*(node.read(0, 4096) for _ in range(4)), node.write(512, b"w" * 512))
            expected = bytearray(content()[:4096])
            expected[512:1024] = b"w" * 512
            assert await overlay.read(0, 4096) == bytes(expected)

    asyncio.run(scenario())


def test_resolved_data_is_to_be_had_from_the_filter_so_that_it_is_copied() -> None:
    async def scenario() -> None:
        async with opened() as (node, _):
            spans = await node.resolve(0, 4096)
            assert [(span.kind, span.leaf, span.depth) for span in spans] == [(Kind.DATA, node, 1)]

    asyncio.run(scenario())


def test_a_node_that_cannot_be_written_is_refused() -> None:
    async def scenario() -> None:
        async with Graph() as graph:
            base = MemoryNode("base", size=SIZE, read_only=True)
            graph.add(base)
            with pytest.raises(GraphError, match="Can't use copy-on-read on read-only device"):
                await copy_on_read.put_over(graph, base)
            mapping: dict[str, Any] = {"driver": "copy-on-read", "file": {"driver": "memory", "size": 512}}
            with pytest.raises(ReadOnly, match="Block node is read-only"):
                await open_node(graph, from_mapping(mapping), Request(True))
        async with opened() as (node, _):
            with pytest.raises(GraphError):
                await node.reopen(read_only=True)

    asyncio.run(scenario())


def test_the_copy_is_an_event_for_the_filter_below() -> None:
    async def scenario() -> None:
        async with Graph() as graph:
            base = MemoryNode("base", size=SIZE, data=content(), read_only=True)
            graph.add(base)
            overlay = await snapshot.put_over(graph, base)
            options = from_mapping(
                {"driver": "blkdebug", "inject-error": [{"event": "cor_write", "sector": 8}]}
            )
            options.children["image"] = NodeReference(overlay.name)
            faulty = await open_node(graph, options, Request(False))
            node = await copy_on_read.put_over(graph, faulty)
            assert await node.read(0, 4096) == content()[:4096]
            with pytest.raises(InjectedError):
                await node.read(4096, 512)

    asyncio.run(scenario())


def test_the_event_has_qemus_name() -> None:
    assert Event.COR_WRITE.value == "cor_write"
