"""Small qcow2 images in memory, made by the product, and read back by it.

Owns: making, opening and checking them. Other people's images are the business
of `tests/interop`.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from vblk.drivers.qcow2 import Qcow2Node
from vblk.drivers.qcow2_create import create_image
from vblk.formats.qcow2.check import CheckReport
from vblk.formats.qcow2.create import NewQcow2, plan_creation
from vblk.graph.handle import Handle
from vblk.graph.registry import Graph
from vblk.opening import open_image
from vblk.options import NodeOptions, NodeReference
from vblk.protocols.memory import MemoryNode

KIB = 1 << 10


async def new_image(size: int, **new: Any) -> bytes:
    """Return the bytes of a new image."""
    leaf = MemoryNode("new", size=0)
    await create_image(leaf, plan_creation(NewQcow2(size, **new)))
    return await leaf.read(0, leaf.size)


@asynccontextmanager
async def opened(
    image: bytes, *, backing: bytes | None = None, read_only: bool = True
) -> AsyncGenerator[tuple[Handle, MemoryNode], None]:
    """Yield a handle on an image, and the leaf that stores it."""
    async with Graph() as graph:
        leaf = MemoryNode("file", size=len(image), data=image)
        graph.add(leaf)
        children: dict[str, Any] = {"file": NodeReference("file"), "backing": None}
        if backing is not None:
            graph.add(MemoryNode("backing", size=len(backing), data=backing))
            children["backing"] = NodeReference("backing")
        options = NodeOptions(driver="qcow2", children=children)
        yield await open_image(graph, options, read_only=read_only), leaf


async def checked(image: bytes) -> CheckReport:
    """Return what a check of an image finds."""
    async with opened(image) as (handle, _):
        node = handle.node
        assert isinstance(node, Qcow2Node)
        return await node.check()
