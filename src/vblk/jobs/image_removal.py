"""Deleting images that a job has made superfluous, and that nobody uses.

Owns: that nothing is deleted which somebody, here or in another process, has open.

Ordering rule: a node is closed before its file goes; the uppermost image goes first, for
it names the one below it; that they are gone is durable in the end.
"""

import os
from collections.abc import Sequence
from functools import partial

from vblk.aio.engine import storage_error
from vblk.aio.file_calls import sync_folder
from vblk.errors import BlockError
from vblk.graph.edge import READING, Permission
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.protocols.file import Options, open_file


async def close_unused(graph: Graph, nodes: Sequence[Node]) -> None:
    """Close nodes that are only kept.

    Raises:
        NodeBusy: Somebody uses one; the others are closed.
    """
    failures: list[BlockError] = []
    for node in nodes:
        if graph.keeps(node):
            try:
                await graph.let_go(node)
            except BlockError as error:
                failures.append(error)
    if failures:
        raise failures[0]


async def remove_images(graph: Graph, paths: Sequence[str]) -> None:
    """Delete files, the first named first; one that is gone already is passed over.

    Raises:
        BlockError: Somebody uses one, or it could not be deleted; the others are.
    """
    failures: list[BlockError] = []
    for path in paths:
        if not await graph.engine.run(partial(os.path.lexists, path)):
            continue
        try:
            file = await open_file(
                graph.engine,
                Options(path),
                name="what is deleted",
                read_only=True,
                permissions=READING,
                shared=Permission.NONE,
            )
            try:
                await graph.engine.run(partial(_unlink, path))
            finally:
                await file.close()
        except BlockError as error:
            failures.append(error)
    for folder in dict.fromkeys(map(os.path.dirname, paths)):
        await graph.engine.run(partial(sync_folder, folder or "."))
    if failures:
        raise failures[0]


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError as error:
        raise storage_error(error, filename=path, operation="delete") from error
