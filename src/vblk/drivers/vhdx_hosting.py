"""What the host's file system does to the file of a VHDX image.

Owns: asking for it. What it means is `vblk.formats.vhdx.hyper_v`.
"""

import os

from vblk.aio.file_calls import is_compressed_or_encrypted
from vblk.drivers.vhdx import VhdxNode
from vblk.extent import Kind
from vblk.formats.vhdx.hyper_v import HostFile
from vblk.graph.node import Leaf
from vblk.graph.registry import Graph


async def host_file(node: VhdxNode, graph: Graph) -> HostFile:
    """Return the facts about the file that stores an image.

    Concurrency: may suspend.
    """
    file = node.file
    spans = await file.allocation(0, file.size) if file.size else []
    holes = sum(span.length for span in spans if span.kind is Kind.ZERO)
    descriptor = file.descriptor() if isinstance(file, Leaf) else None
    compressed = encrypted = False
    if descriptor is not None:
        compressed, encrypted = await graph.engine.run(lambda: is_compressed_or_encrypted(descriptor))
    return HostFile(os.path.basename(file.filename), file.size, holes, compressed, encrypted)
