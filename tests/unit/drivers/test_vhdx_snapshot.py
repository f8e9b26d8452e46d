"""Snapshots of VHDX disks in use: the overlay stands on the state that the parent has then."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from vblk.creating import creator_of
from vblk.drivers.vhdx import VhdxNode
from vblk.errors import GraphError
from vblk.graph.creation import Backing, FileOptions, Wish
from vblk.graph.edge import WRITING
from vblk.graph.handle import Handle
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.jobs.target import make_image
from vblk.opening import open_image, open_node
from vblk.options import from_mapping
from vblk.testing import PassingNode

SIZE = 4 << 20


async def make(graph: Graph, path: Path, parent: Node | None = None) -> None:
    creator = creator_of("vhdx")
    backing = None if parent is None else Backing(parent.filename, "vhdx", parent.filename, parent)
    options = creator.options()
    wish = Wish(str(path), SIZE, options, FileOptions(), backing, graph.objects)
    await make_image(graph, str(path), await creator.plan(wish))


async def opened(graph: Graph, path: Path, *, read_only: bool = False) -> Node:
    mapping = {"driver": "vhdx", "file": {"driver": "file", "filename": str(path)}, "backing": None}
    node = await open_node(graph, from_mapping(mapping), Request(read_only=read_only))
    graph.keep(node)
    return node


def with_chain(
    folder: Path, scenario: Callable[[Graph, Node, Handle], Awaitable[None]], content: bytes
) -> None:
    """Run a scenario on a disk in use, then read what the chain holds when it is opened by its names."""

    async def main() -> None:
        async with Graph() as graph:
            await make(graph, folder / "base.vhdx")
            base = await opened(graph, folder / "base.vhdx")
            await scenario(graph, base, graph.hold(base, "the guest", WRITING))
        async with Graph() as graph:
            handle = await open_image(graph, str(folder / "top.vhdx"))
            assert await handle.read(0, len(content)) == content

    asyncio.run(main())


def test_an_overlay_made_before_a_write_names_the_parent_as_it_is_at_the_snapshot(tmp_path: Path) -> None:
    async def scenario(graph: Graph, base: Node, handle: Handle) -> None:
        await make(graph, tmp_path / "top.vhdx", base)
        await handle.write(0, b"since then")
        overlay = await opened(graph, tmp_path / "top.vhdx")
        assert isinstance(overlay, VhdxNode)
        assert isinstance(base, VhdxNode)
        assert overlay.image.locator is not None
        assert not overlay.image.locator.accepts(base.image.data_write_guid)
        await graph.put_overlay(base, overlay)
        await handle.write(5, b"and after that")
        assert (await base.read(0, 10)) == b"since then"

    with_chain(tmp_path, scenario, b"sinceand after that")


def test_a_chain_of_snapshots_opens_by_its_names(tmp_path: Path) -> None:
    async def scenario(graph: Graph, base: Node, handle: Handle) -> None:
        await handle.write(0, b"0" * 10)
        top = base
        for number, name in enumerate(("middle.vhdx", "top.vhdx"), 1):
            await make(graph, tmp_path / name, top)
            overlay = await opened(graph, tmp_path / name)
            await graph.put_overlay(top, overlay)
            await handle.write(number, bytes([48 + number]) * 8)
            top = overlay

    with_chain(tmp_path, scenario, b"0122222222")


def test_filters_on_the_parent_do_not_hide_it(tmp_path: Path) -> None:
    async def scenario(graph: Graph, base: Node, handle: Handle) -> None:
        await make(graph, tmp_path / "top.vhdx", base)
        filter = PassingNode("filter", base)
        filter.put_over(graph)
        await graph.insert_filter(base, filter)
        await handle.write(0, b"through")
        await graph.put_overlay(filter, await opened(graph, tmp_path / "top.vhdx"))

    with_chain(tmp_path, scenario, b"through")


def test_an_overlay_that_cannot_stand_there_is_refused_and_the_guest_goes_on(tmp_path: Path) -> None:
    async def scenario(graph: Graph, base: Node, handle: Handle) -> None:
        await make(graph, tmp_path / "top.vhdx", base)
        await handle.write(0, b"since then")
        await make(graph, tmp_path / "plain.vhdx")
        plain = await opened(graph, tmp_path / "plain.vhdx")
        with pytest.raises(GraphError, match="does not support backing images"):
            await graph.put_overlay(base, plain)
        overlay = await opened(graph, tmp_path / "top.vhdx")
        raw = await open_node(
            graph, from_mapping({"driver": "null-co", "size": SIZE, "node-name": "raw"}), Request(False)
        )
        graph.keep(raw)
        with pytest.raises(GraphError, match="stands on VHDX images only, and node 'raw' is null-co"):
            await graph.put_overlay(raw, overlay)
        assert not raw.read_only
        await graph.put_overlay(base, overlay)
        await handle.write(5, b" now")

    with_chain(tmp_path, scenario, b"since now")
