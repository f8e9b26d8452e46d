"""`resume: true`, a member of vblk's own: a job keeps a ledger beside its target, and goes on by one.

Owns: where the ledger is, by the target's node or its name.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from vblk.drivers.vhdx_parent import local_path
from vblk.errors import JobError
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.jobs.identity import Facts
from vblk.jobs.ledger import Ledger
from vblk.options import NodeOptions, parse_filename


async def ledger_of_node(graph: Graph, target: Node) -> Ledger:
    """Return the ledger beside the file of a node, claimed.

    Raises:
        Unsupported: The node is not stored in a local file.
        JobError: The ledger is somebody else's, or of something else.
        StorageError: It cannot be opened.
    """
    Facts(target, alone=True)
    return await _claimed(graph, local_path(target))


async def ledger_of_name(graph: Graph, name: str) -> Ledger:
    """Return the ledger beside the file that a target's name means, claimed.

    Raises: as `ledger_of_node`.
    """
    below: object = parse_filename(name, format="raw")
    while isinstance(below, NodeOptions):
        if below.driver in (None, "file") and "filename" in below.own:
            return await _claimed(graph, str(below.own["filename"]))
        below = below.children.get("file")
    raise JobError("a journal is kept beside a local file: the target is none", filename=name)


@asynccontextmanager
async def closed_on_failure(ledger: Ledger | None) -> AsyncGenerator[None]:
    """Let go of a ledger if no job took it over."""
    try:
        yield
    except BaseException:
        if ledger is not None:
            ledger.close()
        raise


async def _claimed(graph: Graph, path: str) -> Ledger:
    ledger = Ledger(graph.engine, path)
    await ledger.claim()
    return ledger
