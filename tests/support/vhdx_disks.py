"""VHDX disks over files in memory, with parents, opened through the product's own nodes.

Owns: creating, opening, closing and checking them without touching a file
system. It must not know what is written to them.
"""

from dataclasses import dataclass, field

from vblk.drivers.vhdx import VhdxNode, load_writable, read_up_to
from vblk.drivers.vhdx_create import create_image, parent_facts
from vblk.formats.vhdx import CheckReport, load_image
from vblk.formats.vhdx.create import NewVhdx
from vblk.graph.edge import WRITING, Role
from vblk.graph.handle import Handle
from vblk.graph.node import Leaf
from vblk.graph.registry import Graph
from vblk.protocols.memory import MemoryNode


@dataclass
class MemoryFile:
    """The bytes of one file, which outlive its nodes."""

    content: bytes = b""


class KeptMemory(MemoryNode):
    """A memory leaf that leaves its bytes in a `MemoryFile` when it is closed."""

    def __init__(self, name: str, file: MemoryFile, *, read_only: bool) -> None:
        super().__init__(name, size=len(file.content), read_only=read_only, data=file.content)
        self._kept = file

    async def discard(self, offset: int, length: int) -> None:
        """Leave the bytes as they are: who takes their place must not count on zeros."""

    async def close(self) -> None:
        """Keep the bytes."""
        if not self.read_only:
            self._kept.content = await self.read(0, self.size)
        await super().close()


@dataclass
class Chain:
    """Files in memory, the base first; the last is the one that is written."""

    files: list[MemoryFile] = field(default_factory=list[MemoryFile])

    async def add(self, new: NewVhdx) -> None:
        """Put a new image on top; it is the former top's child, if there is one."""
        file = MemoryFile()
        if self.files:
            async with Graph() as graph:
                parent = await self._node(graph, len(self.files) - 1, read_only=True)
                number = len(self.files)
                facts = await parent_facts(parent, f"/{number}.vhdx", f"/{number - 1}.vhdx")
                graph.hold(parent, "a test")
                new = NewVhdx(size=new.size, block_size=new.block_size, log_size=new.log_size, parent=facts)
        leaf = KeptMemory("new", file, read_only=False)
        await create_image(leaf, new)
        await leaf.close()
        self.files.append(file)

    async def open(self, graph: Graph, *, read_only: bool = False, leaf: Leaf | None = None) -> Handle:
        """Open the top, whose file may be on a `leaf` of the caller's, and everything below it."""
        node = await self._node(graph, len(self.files) - 1, read_only=read_only, leaf=leaf)
        return graph.hold(node, "a test") if read_only else graph.hold(node, "a test", WRITING)

    async def _node(self, graph: Graph, index: int, *, read_only: bool, leaf: Leaf | None = None) -> VhdxNode:
        if leaf is None:
            leaf = KeptMemory(f"leaf{index}", self.files[index], read_only=read_only)
        graph.add(leaf)
        name = f"{index}.vhdx"
        if read_only:
            image = await load_image(lambda at, size: read_up_to(leaf, at, size), leaf.size, filename=name)
        else:
            image = await load_writable(leaf, name)
        node = VhdxNode(f"vhdx{index}", name, file=leaf, image=image)
        if not read_only:
            await node.start_writing()
        graph.add(node)
        graph.attach(node, Role.FILE, leaf)
        if index:
            parent = await self._node(graph, index - 1, read_only=True)
            assert image.locator is not None
            assert image.locator.accepts(parent.image.data_write_guid)
            graph.attach(node, Role.BACKING, parent)
        return node

    async def check(self) -> CheckReport:
        """Check the top as it stands."""
        async with Graph() as graph:
            handle = await self.open(graph, read_only=True)
            node = handle.node
            assert isinstance(node, VhdxNode)
            return await node.check()
