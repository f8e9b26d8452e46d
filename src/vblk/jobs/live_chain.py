"""A stretch of a chain that is in use: how a job takes it, and how its links change.

Owns: which images a job works on, what it forbids to others meanwhile, whose file may
be written, and what an image's file says of the one that it stands on. Which data
moves is the jobs' business.

Ordering rules:
- A job has its images to itself (pins, permissions, frozen edges) before it changes a
  byte, and every image gets its access back at the end, well or not.
- A VHDX image that is to be written under others changes its identity (data write
  GUID). First its child accepts the new one beside the old, durably; then it gets it.
- A link in a file changes, durably, when the image reads the same on either; the edge
  of the graph after it.

Source: [MS-VHDX] "Parent Locator"; QEMU's QMP reference, block-commit and block-stream.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

from vblk.codec.guid import Guid, new_guid
from vblk.drivers.qcow2 import has_protocol
from vblk.drivers.vhdx import VhdxNode
from vblk.drivers.vhdx_links import set_locator
from vblk.drivers.vhdx_parent import local_path
from vblk.errors import BlockError, GraphError, PermissionConflict
from vblk.formats.vhdx.linkage import announced, settled
from vblk.graph.edge import (
    IDLE,
    READING,
    SHARED_BY_READER,
    SHARED_BY_WRITER,
    WRITING,
    Edge,
    Permission,
    Role,
    access_of,
)
from vblk.graph.edges import Rewiring, frozen, reachable
from vblk.graph.handle import Handle
from vblk.graph.mapper import Mapper
from vblk.graph.node import Filter, Node, Span
from vblk.graph.registry import Graph
from vblk.graph.reopening import NodeChange
from vblk.jobs.chain import without_small_holes


def standing(node: Node) -> Iterator[Node]:
    """Yield a node and what it stands on, filters included, from the top down."""
    below: Node | None = node
    while below is not None:
        yield below
        below = below.child(Role.BACKING) or (
            below.child(Role.FILTERED) if isinstance(below, Filter) else None
        )


def without_filters(node: Node) -> Node:
    """Return what the filters on it decorate."""
    while isinstance(node, Filter) and node.below is not None:
        node = node.below
    return node


def storage_of(node: Node) -> Node:
    """Return the leaf that stores an image."""
    while node.below is not None:
        node = node.below
    return node


def overlays(graph: Graph, node: Node) -> list[Mapper]:
    """Return the images that stand on a node, or on filters of it."""
    found: list[Mapper] = []
    for edge in graph.users(node):
        if edge.role is Role.BACKING and isinstance(edge.parent, Mapper):
            found.append(edge.parent)
        elif isinstance(edge.parent, Filter):
            found += overlays(graph, edge.parent)
    return found


@dataclass(frozen=True, slots=True)
class Stretch:
    """Images of a chain: `layers`, the uppermost first, each on the next, the last on `base` or nothing."""

    layers: tuple[Mapper, ...]
    base: Node | None

    @classmethod
    def between(cls, top: Node, base: Node | None) -> "Stretch":
        """Return the images from `top` down to one that stands on `base`, which is below it.

        Filters are left out.

        Raises:
            GraphError: Something among them says nothing of its data.
        """
        layers: list[Mapper] = []
        node: Node | None = top
        while node is not None and node is not base:
            if isinstance(node, Mapper):
                layers.append(node)
            elif not isinstance(node, Filter) or node.below is None:
                raise GraphError(
                    f"node '{node.name}' ({node.driver}) is in the way: take it out of the chain"
                )
            node = node.child(Role.BACKING) if isinstance(node, Mapper) else node.below
        return cls(tuple(layers), base)

    @property
    def top(self) -> Mapper:
        """The uppermost image."""
        return self.layers[0]

    async def held(self, offset: int, length: int) -> list[Span]:
        """Say what the layers hold of a range of the disk; what the base alone knows is left out."""
        return without_small_holes(await self.top.changes(offset, length, self.layers[1:]))

    def edges(self, *, to_base: bool = True) -> list[Edge]:
        """Return the edges by which the images stand on each other and, with `to_base`, on the base.

        Those of filters between them are among these.

        Raises:
            GraphError: It is another chain meanwhile.
        """
        below: list[Node | None] = [*self.layers[1:], self.base]
        links = list(zip(self.layers, below, strict=True))
        edges: list[Edge] = []
        for layer, node in links if to_base else links[:-1]:
            edge = layer.children.get(Role.BACKING.value)
            while edge is not None and edge.node is not node and isinstance(edge.node, Filter):
                edges.append(edge)
                edge = next(each for each in edge.node.children.values() if each.role is Role.FILTERED)
            if (None if edge is None else edge.node) is not node:
                raise GraphError(f"somebody changed what node '{layer.name}' stands on meanwhile")
            edges += [] if edge is None else [edge]
        return edges


class Hold(ABC):
    """A job's hold on a stretch.

    Args:
        graph: The images'.
        stretch: The images.
        user: The job, as a noun.
        why: What others are told who want one of them.
        pinned: What stays as it is meanwhile, for the use of others.
    """

    def __init__(self, graph: Graph, stretch: Stretch, user: str, why: str, pinned: Sequence[Node]) -> None:
        self.graph = graph
        self.stretch = stretch
        self._user = user
        self._why = why
        self._pinned = list(dict.fromkeys(pinned))
        self._stack = AsyncExitStack()
        self._freezing = ExitStack()
        self._leaves_writable = False

    async def take(self) -> None:
        """Take the images.

        Raises:
            NodeBusy: Another job works on one of them.
            PermissionConflict: Somebody else uses one in a way that excludes this.
            BlockError: An image does not open for writing. Everything is as before then.
        """
        for node in self._pinned:
            self.graph.require_unpinned(node)
        try:
            for node in self._pinned:
                self._stack.enter_context(self.graph.pinned(node, self._why))
            await self._take()
        except BaseException:
            await self.release()
            raise

    @abstractmethod
    async def _take(self) -> None:
        """Do what the job needs; what is entered on the stack is left in the end."""

    def _hold(self, node: Node, permissions: Permission, shared: Permission) -> Handle:
        handle = self.graph.hold(node, self._user, permissions, shared)
        self._stack.push_async_callback(self.graph.release, handle)
        return handle

    async def _let_write(self, node: Node) -> bool:
        """Open an image for writing until the end; tell whether it was open for reading only."""
        was_read_only = node.read_only
        if was_read_only:
            await self.graph.change([NodeChange(node, read_only=False)])
            self._stack.push_async_callback(self._give_access_back, node)
        return was_read_only

    async def _give_access_back(self, node: Node) -> None:
        if node in self.graph.edges and not self._leaves_writable:
            await self.graph.change([NodeChange(node, read_only=True)])

    def thaw(self) -> None:
        """Let others change the chain again."""
        self._freezing.close()

    async def release(self) -> None:
        """Let go of everything; what nobody uses any more is closed. Idempotent."""
        self.thaw()
        await self._stack.aclose()


class Grip(Hold):
    """A commit job's hold: it writes to the base, and reads the layers.

    Args:
        graph, stretch, user, why: See `Hold`.
        also: Further nodes that stay as they are.
        is_active: Whether others write to the top.
    """

    def __init__(
        self,
        graph: Graph,
        stretch: Stretch,
        user: str,
        why: str,
        *,
        also: Sequence[Node] = (),
        is_active: bool = False,
    ) -> None:
        assert stretch.base is not None, "nothing to commit to"
        pinned = [*also, *overlays(graph, stretch.top), *stretch.layers, stretch.base]
        super().__init__(graph, stretch, user, why, pinned)
        self.base = stretch.base
        self.paths = [local_path(layer) for layer in stretch.layers]
        """Where the layers are, also when they are closed."""
        self.reading: Handle
        self.writing: Handle
        self._shared = Permission.ALL if is_active else SHARED_BY_READER

    async def _take(self) -> None:
        graph, stack, layers, base = self.graph, self._stack, self.stretch.layers, self.base
        await self._let_write(base)
        edges = self.stretch.edges()
        links = [edge for edge in edges if edge.role is Role.BACKING]
        graph.rewire(Rewiring(access=dict.fromkeys(links, IDLE)))
        stack.callback(self._restore, links)
        self.reading = self._hold(layers[0], READING, self._shared)
        for layer in layers[1:]:
            self._hold(layer, Permission.NONE, Permission.ALL & ~Permission.CONSISTENT_READ)
        self.writing = self._hold(base, WRITING, SHARED_BY_WRITER)
        self._freezing.enter_context(frozen(edges))

    def _restore(self, edges: Sequence[Edge]) -> None:
        """Let images that are still there use what they stand on as before, unless that is written now."""
        for edge in edges:
            parent = edge.parent
            if parent is not None and parent.children.get(edge.name) is edge:
                access = access_of(Role.BACKING, read_only=parent.read_only)
                with suppress(PermissionConflict):  # written by those who went to the base
                    self.graph.rewire(Rewiring(access={edge: access}))

    def is_of_base(self, error: BlockError) -> bool:
        """Tell whether what failed is the base, or what stores it."""
        return error.filename in {node.filename for node in reachable(self.base)}

    @property
    def is_linked(self) -> bool:
        """Whether the base is a VHDX image that one of the layers names by its identity."""
        child, base = self.stretch.layers[-1], without_filters(self.base)
        return isinstance(child, VhdxNode) and isinstance(base, VhdxNode) and child.image.locator is not None

    async def announce(self, told: Callable[[Guid | None], Awaitable[None]] | None = None) -> None:
        """Let the base be changed under a VHDX image that stands on it: that will accept it, and does now.

        `told` is told of the base's coming identity before it has that; None: it is no matter of identities.
        """
        child, base = self.stretch.layers[-1], without_filters(self.base)
        if not isinstance(child, VhdxNode) or not isinstance(base, VhdxNode) or child.image.locator is None:
            if told is not None:
                await told(None)
            return
        present = base.image.data_write_guid
        coming = present if base.writer.changed else new_guid()
        async with changeable(self.graph, child):
            await set_locator(child, announced(child.image.locator, present, coming))
        if told is not None:
            await told(coming)
        if coming != present:
            base.writer.become(coming)
            await base.writer.begin()

    async def settle(self) -> None:
        """Let a VHDX image that still stands on the base accept that as it is, and nothing else."""
        child, base = self.stretch.layers[-1], without_filters(self.base)
        if not isinstance(child, VhdxNode) or not isinstance(base, VhdxNode):
            return
        locator = child.image.locator
        if locator is not None and locator.linkage2 is not None:
            async with changeable(self.graph, child):
                await set_locator(child, settled(locator, base.image.data_write_guid))

    async def lead_users(self, *, leaves_writable: bool = False) -> None:
        """Let everybody who uses the top use the base, which shows the same.

        With `leaves_writable` it stays open for writing: its users do that.
        """
        self.thaw()
        graph, top = self.graph, self.stretch.top
        graph.rewire(Rewiring(access={self.writing.edge: IDLE}))
        if leaves_writable:
            # What they write is seen by who stands on the base: another identity, from the first on.
            await graph.change([NodeChange(self.base, read_only=True)])
            await graph.change([NodeChange(self.base, read_only=False)])
        users = [edge for edge in graph.users(top) if edge is not self.reading.edge]
        await graph.replace(top, self.base, users=users)
        self._leaves_writable = leaves_writable


@asynccontextmanager
async def changeable(graph: Graph, image: Mapper) -> AsyncGenerator[None, None]:
    """Let the file of an image be changed while the block runs, in what those on it do not see."""
    was_read_only = image.read_only
    if was_read_only:
        await graph.change([NodeChange(image, read_only=False)])
    try:
        keep_identity(graph, image, was_read_only=was_read_only)
        yield
    finally:
        if was_read_only:
            await graph.change([NodeChange(image, read_only=True)])


def keep_identity(graph: Graph, image: Mapper, *, was_read_only: bool = False) -> None:
    """Let an image that is open for writing stay the same to those who stand on it, if there may be any."""
    if was_read_only or overlays(graph, image):
        image.keep_identity()


async def name_backing(graph: Graph, image: Mapper, backing: Node | None, name: str | None = None) -> None:
    """Let an image's file name another one that it stands on: by `name`, or by where that is.

    Raises:
        BlockError: It cannot be changed; it names the old one then.
    """
    if name is None:
        name = "" if backing is None else _path_between(image, backing)
    async with changeable(graph, image):
        await image.name_backing(backing, name)


def _path_between(image: Node, backing: Node) -> str:
    """Return the name of a backing image as one in the folder of `image` has it."""
    path, folder = local_path(backing), os.path.dirname(local_path(image))
    if has_protocol(path) or os.path.isabs(path) or not folder:
        return path
    return os.path.relpath(path, folder)
