"""Local files as nodes, opened and closed around a test's scenario.

Owns: `with_file`, which makes the engine, opens the node, runs the scenario and
closes everything whatever happens.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Literal

from vblk.aio.engine import Engine
from vblk.aio.threads import ThreadEngine
from vblk.graph.edge import Permission
from vblk.protocols.cache_mode import parse_cache_mode
from vblk.protocols.file import Options, open_file, open_host_device
from vblk.protocols.file_node import FileNode

Driver = Literal["file", "host_device", "host_cdrom"]


async def open_local(
    engine: Engine,
    path: Path | str,
    *,
    driver: Driver = "file",
    read_only: bool = False,
    cache: str = "writeback",
    auto_read_only: bool = False,
    locking: Literal["auto", "on", "off"] = "auto",
    discard: bool = True,
) -> FileNode:
    """Open a node that shares everything with everybody."""
    opener: Callable[..., Awaitable[FileNode]] = open_file
    if driver != "file":
        opener = partial(open_host_device, cdrom=driver == "host_cdrom")
    return await opener(
        engine,
        Options(str(path), locking=locking),
        name="file",
        read_only=read_only,
        auto_read_only=auto_read_only,
        shared=Permission.ALL,
        cache=parse_cache_mode(cache),
        discard=discard,
    )


def with_engine(scenario: Callable[[ThreadEngine], Awaitable[None]]) -> None:
    """Run a scenario with an engine that is closed afterwards."""

    async def main() -> None:
        engine = ThreadEngine(4)
        try:
            await scenario(engine)
        finally:
            await engine.close()

    asyncio.run(main())


def with_file(
    path: Path | str,
    scenario: Callable[[FileNode], Awaitable[None]],
    *,
    driver: Driver = "file",
    read_only: bool = False,
    cache: str = "writeback",
    discard: bool = True,
) -> None:
    """Run a scenario with an open node that is closed afterwards."""

    async def main(engine: ThreadEngine) -> None:
        node = await open_local(
            engine, path, driver=driver, read_only=read_only, cache=cache, discard=discard
        )
        try:
            await scenario(node)
        finally:
            await node.close()

    with_engine(main)
