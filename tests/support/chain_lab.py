"""A chain of images with a guest on it, for the jobs that work on chains that are in use.

Owns: the making of the files, what the disk must show, and what a job told.
"""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.command_line import good
from vblk.graph.edge import Role
from vblk.graph.handle import Handle
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.jobs.job import Job
from vblk.jobs.states import Status
from vblk.opening import open_image, open_node
from vblk.options import parse_filename
from vblk.units import KIB, MIB

SIZE = 3 * MIB


class ChainLab:
    """The chain and its guest; `images` are the nodes, the active one first."""

    def __init__(self, graph: Graph, guest: Handle, content: bytes) -> None:
        self.graph = graph
        self.guest = guest
        self.content = bytearray(content)
        self.images: list[Node] = []
        node: Node | None = guest.node
        while node is not None:
            self.images.append(node)
            node = node.child(Role.BACKING)
        self.access = {node.name: node.read_only for node in self.images}
        self.told: list[str] = []
        self._news = asyncio.Event()
        self._writes = random.Random(11)

    def listener(self, job: Job, event: str, data: Mapping[str, Any]) -> None:
        """Note what a job tells."""
        self.told.append(data["status"] if event == "JOB_STATUS_CHANGE" else event)
        self._news.set()

    async def until(self, job: Job, status: Status) -> None:
        """Wait until a job is in a state."""
        async with asyncio.timeout(60):
            while job.status is not status:
                assert job.error is None, job.error
                self._news.clear()
                await self._news.wait()

    async def write(self) -> None:
        """Let the guest write somewhere."""
        lot = self._writes
        offset = lot.randrange(0, len(self.content) - 64 * KIB, 512)
        data = lot.randbytes(lot.choice((512, 4 * KIB, 64 * KIB)))
        self.content[offset : offset + len(data)] = data
        await self.guest.write(offset, data)

    async def check(self) -> None:
        """See that the guest's disk is what it must be."""
        assert await self.guest.read(0, len(self.content)) == self.content

    @asynccontextmanager
    async def busy(self) -> AsyncGenerator[None, None]:
        """Let the guest write and look all the while; nobody else writes meanwhile."""
        ended = False

        async def guest() -> None:
            while not ended:
                await self.write()
                offset = self._writes.randrange(0, len(self.content) - 8 * KIB)
                wanted = bytes(self.content[offset : offset + 8 * KIB])
                assert await self.guest.read(offset, 8 * KIB) == wanted
                await asyncio.sleep(0)

        task = asyncio.ensure_future(guest())
        try:
            yield
        finally:
            ended = True
            await task

    def chain(self) -> list[str]:
        """Return the names of the files that the guest's disk consists of now, the active one first."""
        found: list[str] = []
        node: Node | None = self.guest.node
        while node is not None:
            found.append(Path(node.filename).name)
            node = node.child(Role.BACKING)
        return found

    def access_is_as_before(self) -> bool:
        """Tell whether every image that is left is open as it was."""
        there = {node.name: node.read_only for node in self.graph.nodes()}
        return all(there.get(name, access) == access for name, access in self.access.items())


def names_of(formats: Sequence[str]) -> list[str]:
    """Return the files of a chain: the base is "0.FORMAT"."""
    return [f"{number}.{format}" for number, format in enumerate(formats)]


def make_chain(folder: Path, formats: Sequence[str], sizes: Sequence[int] | None = None) -> bytes:
    """Make a chain, the base first, each image with some data of its own; return what the last one shows."""
    names = names_of(formats)
    lot = random.Random(5)
    content = bytearray()
    for number, (name, format) in enumerate(zip(names, formats, strict=True)):
        size = SIZE if sizes is None else sizes[number]
        words = [] if number == 0 else ["-b", names[number - 1], "-F", formats[number - 1]]
        options = ["-o", "block_size=1M"] if format == "vhdx" else []
        good("create", "-q", "-f", format, *options, *words, folder / name, str(size))
        content = content[:size].ljust(size, b"\0")
        asyncio.run(_fill(folder / name, content, lot))
    return bytes(content)


async def _fill(path: Path, content: bytearray, lot: random.Random) -> None:
    async with Graph() as graph:
        disk = await open_image(graph, str(path), format=path.suffix[1:], read_only=False)
        for _ in range(6):
            offset = lot.randrange(0, disk.size - 96 * KIB, 512)
            data = lot.randbytes(lot.choice((512, 20 * KIB, 96 * KIB)))
            if lot.randrange(5) == 0:
                data = bytes(len(data))
            content[offset : offset + len(data)] = data
            await (disk.write(offset, data) if any(data) else disk.write_zeroes(offset, len(data)))


@asynccontextmanager
async def chain_lab(folder: Path, formats: Sequence[str], content: bytes) -> AsyncGenerator[ChainLab, None]:
    """Open the last image of a chain that was made, as a guest does, and close everything in the end."""
    async with Graph() as graph:
        path = folder / names_of(formats)[-1]
        guest = await open_image(graph, str(path), format=formats[-1], read_only=False)
        graph.keep(guest.node)
        yield ChainLab(graph, guest, content)


async def let_fail(room: ChainLab, image: Node, iotype: str, number: int, *, once: bool = True) -> None:
    """From now on let a request to what stores an image fail, or all of them."""
    leaf = image.below
    assert leaf is not None
    rule = {"event": "none", "iotype": iotype, "errno": number, "once": once}
    options = {"driver": "blkdebug", "image": leaf.name, "inject-error": [rule]}
    parsed = parse_filename("json:" + json.dumps(options))
    filter = await open_node(room.graph, parsed, Request(read_only=leaf.read_only))
    await room.graph.insert_filter(leaf, filter)


async def shown(path: Path, format: str) -> bytes:
    """Return what an image shows that nobody uses."""
    async with Graph() as graph:
        disk = await open_image(graph, str(path), format=format)
        return await disk.read(0, disk.size)


Scenario = Callable[[ChainLab], Awaitable[None]]


def in_chain_lab(
    folder: Path, formats: Sequence[str], scenario: Scenario, sizes: Sequence[int] | None = None
) -> None:
    """Run a scenario on a chain; afterwards every file of the disk must be sound, and the disk be right."""
    made = make_chain(folder, formats, sizes)

    async def main() -> tuple[list[str], bytes]:
        async with chain_lab(folder, formats, made) as room:
            await scenario(room)
            assert room.access_is_as_before()
            await room.check()
            return room.chain(), bytes(room.content)

    chain, content = asyncio.run(main())
    for name in chain:
        if not name.endswith(".raw"):
            good("check", "-q", folder / name)
    found = asyncio.run(shown(folder / chain[0], chain[0].rpartition(".")[2]))
    assert found[: len(content)] == content, "a base may be larger"
