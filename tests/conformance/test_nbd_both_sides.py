"""A disk behind our NBD server and our NBD client keeps every promise of a node."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.nbd_server import served
from tests.support.nodes import BUILDERS, LOOPS, factory_of, run
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.opening import open_node
from vblk.options import from_mapping
from vblk.testing import Subject, check_conformance

KINDS = (
    "memory",
    "file-none",
    "raw-odd",
    "raw-read-only",
    "raw-probed",
    "vhdx",
    "vhdx-chain",
    "qcow2-overlay",
)


@pytest.mark.parametrize(("loop", "seed"), [("asyncio", None), ("uvloop", 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_behind_both_of_our_sides_keeps_all_promises(
    kind: str, loop: str, seed: int | None, tmp_path: Path
) -> None:
    """With a seed a reluctant node stands under the server, so that nearly nothing is answered at once."""
    number = 0

    @asynccontextmanager
    async def make() -> AsyncGenerator[Subject]:
        nonlocal number
        number += 1
        folder = tmp_path / f"{number}"
        folder.mkdir()
        async with factory_of(BUILDERS[kind], folder, over_seed=seed)() as below:
            writable = not below.node.read_only
            async with (
                served(folder, lambda _: below.node, writable=writable, graph=below.graph) as (_, _, path),
                Graph() as graph,
            ):
                address = {"driver": "nbd", "server": {"type": "unix", "path": str(path)}}
                node = await open_node(graph, from_mapping(address), Request(read_only=not writable))
                yield Subject(graph, node, below.content, resizable=False)

    assert set(LOOPS) == {"asyncio", "uvloop"}
    run(check_conformance(make), loop)
