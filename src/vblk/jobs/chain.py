"""What merging, committing and rebasing have in common: the images of a chain, and data that goes down.

Owns: how such a job reaches images (`Images`), what it must know of each
(`Member`), and the descent of data from some layers into an image below them.

Ordering rule of a descent into VHDX, each step durable before the next:
1. The child of the target accepts, beside the target's identity (data write
   GUID), one that is new.
2. The target takes on the new identity with its first change, and then whatever
   is in the layers.
So the chain opens at every instant, and reads the same: what was copied is still
covered by the layer that it came from. After a crash it is all done again, under
another new identity.

Source: [MS-VHDX] "Parent Locator" for the two linkages.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import NamedTuple, Protocol

from vblk.aio.clock import Clock
from vblk.codec.guid import Guid, new_guid
from vblk.drivers.vhdx import VhdxNode
from vblk.drivers.vhdx_links import disk_items, keep_identity, set_locator, take_disk_items
from vblk.errors import CorruptImage, GraphError, NodeBusy, OptionError, Reason, Unsupported
from vblk.extent import Kind
from vblk.formats.vhdx.linkage import announced
from vblk.formats.vhdx.locator import ParentLocator
from vblk.graph.edge import Role
from vblk.graph.handle import Handle
from vblk.graph.mapper import Mapper
from vblk.graph.node import Node, Span
from vblk.graph.plane import Mover
from vblk.jobs.copy import CopyJob, CopyPlan, Source
from vblk.jobs.progress import Progress
from vblk.jobs.verify import Checker, check_copy
from vblk.jobs.walk import walk_by
from vblk.units import KIB

HOLE_LEAST = 64 * KIB
"""Shorter holes of the host's file are copied as data: a call for each would cost more."""


class Kin(NamedTuple):
    """A differencing image that stands beside those of a chain: its name, identity and locator."""

    name: str
    identity: Guid
    locator: ParentLocator


class Images(Protocol):
    """How a job reaches the images of a chain; a name is what `name_of` returned or the user gave."""

    mover: Mover
    clock: Clock

    def opened(
        self, name: str, *, read_only: bool = True, backing: bool = False
    ) -> AbstractAsyncContextManager[Handle]:
        """Open an image while the block runs, with its parents or alone."""
        ...

    def name_of(self, node: Node) -> str:
        """Return the name of an image that was opened as somebody's parent."""
        ...

    def is_same(self, name: str, other: str) -> bool:
        """Tell whether two names are of one file."""
        ...

    def path_between(self, child: str, parent: str) -> str:
        """Return a parent's path as its child's locator has it."""
        ...

    def named_by(self, child: str, path: str) -> str | None:
        """Return the name of the file at such a path; None if it is gone.

        Raises:
            OpenDenied: It must not be touched.
        """
        ...

    async def kin(self, names: Sequence[str]) -> list[Kin]:
        """Find differencing images that stand in the same folders, these themselves left out."""
        ...

    async def remove(self, names: Sequence[str]) -> None:
        """Delete files, durably, in this order."""
        ...


class Member(NamedTuple):
    """One image of a chain, as it was when the chain was looked at. `size` is in bytes."""

    name: str
    format: str
    size: int
    identity: Guid | None
    locator: ParentLocator | None


def vhdx_of(handle: Handle) -> VhdxNode:
    """Return the node of a VHDX image.

    Raises:
        Unsupported: It is of another format.
    """
    node = handle.node
    if not isinstance(node, VhdxNode):
        raise Unsupported(f"only VHDX images have linkages, not {node.driver}", filename=node.filename)
    return node


async def members_of(images: Images, top: str) -> list[Member]:
    """Open a chain for reading, which verifies every link, and return its images, the top first."""
    members: list[Member] = []
    async with images.opened(top, backing=True) as handle:
        node: Node | None = handle.node
        while node is not None:
            name = images.name_of(node) if members else top
            image = node.image if isinstance(node, VhdxNode) else None
            members.append(
                Member(
                    name,
                    node.driver,
                    node.size,
                    None if image is None else image.data_write_guid,
                    None if image is None else image.locator,
                )
            )
            node = node.child(Role.BACKING)
    return members


def index_of(images: Images, members: Sequence[Member], ancestor: str | None) -> int:
    """Return the place of an ancestor of the first image; None is its parent.

    Raises:
        OptionError: The image has no parent, or this is none of its ancestors.
    """
    top = members[0].name
    if len(members) < 2:
        raise OptionError("Image does not have a backing file", filename=top)
    if ancestor is None:
        return 1
    for index, member in enumerate(members):
        if index and images.is_same(member.name, ancestor):
            return index
    raise OptionError(f"Did not find '{ancestor}' in the backing chain of '{top}'", filename=top)


async def strangers_among(
    images: Images, members: Sequence[Member], changing: Sequence[Member]
) -> tuple[str, ...]:
    """Find images beside a chain that were made from those of it that are about to change."""
    kin = await images.kin([member.name for member in members])
    return tuple(each.name for each in kin if any(stands_on(each, member) for member in changing))


def stands_on(kin: Kin, member: Member) -> bool:
    """Tell whether an image was made from another, as far as linkages tell."""
    return member.identity is not None and kin.locator.accepts(member.identity)


def refuse_strangers(strangers: Sequence[str], top: str) -> None:
    """Raise GraphError if there are any."""
    if strangers:
        listed = ", ".join(f"'{name}'" for name in strangers)
        raise GraphError(f"{listed} would be lost: made from an image that would change", filename=top)


def require_same(node: Node, member: Member) -> None:
    """Raise when an image is not what it was when the chain was looked at.

    Raises:
        NodeBusy: Somebody changed it meanwhile.
    """
    if isinstance(node, VhdxNode) and node.image.data_write_guid != member.identity:
        raise NodeBusy(
            "somebody changed the image meanwhile; nothing is lost, try again", filename=node.filename
        )


async def announce(images: Images, child: Member, target: Member) -> Guid:
    """Let a child accept another identity of its parent, durably, and return that."""
    coming = new_guid()
    assert target.identity is not None
    async with images.opened(child.name, read_only=False) as handle:
        node = vhdx_of(handle)
        require_same(node, child)
        if node.image.locator is None:
            raise CorruptImage(
                Reason.PARENT_LOCATOR, "the image has no parent locator", filename=node.filename
            )
        keep_identity(node)
        await set_locator(node, announced(node.image.locator, target.identity, coming))
    return coming


class Descent(NamedTuple):
    """Data of some layers, the uppermost first, that goes into the image below them.

    `exact` lets the target have the top's size and whatever else describes its
    disk; without it the target only grows. `verify` compares what was written.
    """

    images: Images
    layers: Sequence[Member]
    target: Member
    coming: Guid | None
    exact: bool
    progress: Progress | None = None
    rate: int | None = None
    verify: bool = False

    async def run(self) -> None:
        """Copy everything, durably.

        Raises:
            CopyDiffers: What was written is not what was read; the chain still reads as before.
            StorageError: A file failed; the chain still reads as before.
        """
        async with self.images.opened(self.target.name, read_only=False, backing=True) as target:
            require_same(target.node, self.target)
            if isinstance(target.node, VhdxNode) and self.coming is not None:
                target.node.writer.become(self.coming)
                await target.node.writer.begin()
            async with _opened_all(self.images, self.layers) as layers:
                await self._copy(target, layers)

    async def _copy(self, target: Handle, layers: Sequence[Handle]) -> None:
        top = layers[0]
        if target.size < top.size:
            await target.resize(top.size)
        sources = [Source(top, 0, walk=lambda offset, length: _walk_layers(layers, offset, length))]
        checker = Checker(target.node, self.images.mover, top.size) if self.verify else None
        await CopyJob(
            sources,
            target,
            CopyPlan(out_of_order=True, rate=self.rate),
            self.images.mover,
            clock=self.images.clock,
            progress=self.progress,
        ).run()
        await target.flush()
        if checker is not None:
            await check_copy(checker, sources)
        if not self.exact:
            return
        if target.size > top.size:
            await target.resize(top.size)
        node = vhdx_of(top)
        await take_disk_items(vhdx_of(target), await disk_items(node), node.image.facts)


def _walk_layers(layers: Sequence[Handle], offset: int, length: int) -> AsyncIterator[Span]:
    nodes: list[Mapper] = []
    for handle in layers:
        if not isinstance(handle.node, Mapper):
            raise Unsupported("the image cannot say what it holds", filename=handle.node.filename)
        nodes.append(handle.node)

    async def ask(offset: int, length: int) -> list[Span]:
        return without_small_holes(await nodes[0].changes(offset, length, nodes[1:]))

    return walk_by(ask, offset, length)


def without_small_holes(spans: Sequence[Span]) -> list[Span]:
    """Join data with short holes of its leaf, which read as zeros there."""
    joined: list[Span] = []
    for span in spans:
        if joined:
            last = joined[-1]
            continues = (
                span.leaf is not None
                and last.leaf is span.leaf
                and last.guest_offset + last.length == span.guest_offset
                and last.leaf_offset + last.length == span.leaf_offset
            )
            if continues and (last.kind is span.kind or min(_hole(last), _hole(span)) < HOLE_LEAST):
                last.kind = Kind.DATA if Kind.DATA in (last.kind, span.kind) else span.kind
                last.length += span.length
                continue
        joined.append(span)
    return joined


def _hole(span: Span) -> int:
    return span.length if span.kind is Kind.ZERO else HOLE_LEAST


async def amount_of(images: Images, layers: Sequence[Member]) -> int:
    """Count the bytes of data that a descent would copy."""
    total = 0
    async with _opened_all(images, layers) as opened:
        async for span in _walk_layers(opened, 0, opened[0].size):
            total += span.length if span.kind is not Kind.ZERO else 0
    return total


@asynccontextmanager
async def _opened_all(images: Images, members: Sequence[Member]) -> AsyncGenerator[list[Handle], None]:
    """Open images for reading, each alone."""
    async with AsyncExitStack() as stack:
        handles: list[Handle] = []
        for member in members:
            handle = await stack.enter_async_context(images.opened(member.name))
            require_same(handle.node, member)
            handles.append(handle)
        yield handles
