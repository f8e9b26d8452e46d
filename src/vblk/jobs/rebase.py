"""Rebasing an image: it gets another parent, or none.

Owns: which data goes into the image first, and when its locator changes.

Ordering rules:
- Where the old and the new parent differ, and the image holds nothing itself, it
  gets what the old parent shows, durably; its disk reads the same before and
  after. Then the locator changes, in one entry of the log.
- The image keeps its identity (data write GUID), so that its children stay
  valid. Only where the disk may read differently, for the user asked for no
  comparison and the new parent is not known to the image, it gets a new one.

Source: [MS-VHDX] "Parent Locator", "Headers".
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import NamedTuple

from vblk.codec.guid import Guid, new_guid
from vblk.drivers.vhdx import VhdxNode
from vblk.drivers.vhdx_links import keep_identity, part, set_locator
from vblk.drivers.vhdx_parent import identity
from vblk.errors import BlockError, Cycle, NodeBusy, Reason, Unsupported, UnsupportedFeature
from vblk.extent import Kind
from vblk.formats.vhdx.linkage import reparented
from vblk.formats.vhdx.locator import ParentLocator
from vblk.graph.edge import Role
from vblk.graph.handle import Handle
from vblk.graph.node import Node, Span
from vblk.jobs.chain import Images, members_of, vhdx_of
from vblk.jobs.copy import CopyJob, CopyPlan, Source
from vblk.jobs.progress import Progress
from vblk.jobs.walk import walk_by
from vblk.units import KIB, MIB

UNIT = 4 * KIB
"""Differences are copied by so many bytes."""

COMPARED = MIB
"""How many bytes are compared at a time."""


class NewParentError(Exception):
    """The new parent does not open, or cannot be the parent: `reason` says why."""

    def __init__(self, reason: BlockError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class RebasePlan(NamedTuple):
    """What a rebase will do to the image of this identity.

    `pairs` are the locator's, as they will be; None: there will be none. `old`
    are the present ones. `matches` says whether the image accepts the new
    parent already; `data` counts the bytes to copy.
    """

    identity: Guid
    old: dict[str, str]
    pairs: dict[str, str] | None
    matches: bool
    data: int


class Rebase(NamedTuple):
    """One rebase of `top` onto `parent`; None: onto nothing.

    With `unsafe` no data is looked at.
    """

    images: Images
    top: str
    parent: str | None
    unsafe: bool = False
    progress: Progress | None = None

    async def plan(self, *, count: bool = True) -> RebasePlan:
        """Say what would be done; `count` looks at all data for it, unless that is not wanted.

        Raises:
            NewParentError: The new parent does not open.
            BlockError: The image or its present parents do not, or the rebase is not possible.
        """
        async with AsyncExitStack() as stack:
            child = await stack.enter_async_context(self.images.opened(self.top))
            node = vhdx_of(child)
            if node.image.locator is None:
                raise Unsupported(
                    "the image has no parent, and a VHDX image gets one only when it is made",
                    filename=self.top,
                )
            identity = node.image.data_write_guid
            old = dict(node.image.locator.pairs)
            matches, pairs = False, None
            if self.parent is not None:
                matches, pairs = await self._new_pairs(node, node.image.locator)
            data = 0
            if count and not self.unsafe:
                parents = await self._parents(stack)
                async for span in _differences(child, *parents, 0, child.size):
                    data += span.length if span.kind is Kind.DATA else 0
        return RebasePlan(identity, old, pairs, matches, data)

    async def _new_pairs(self, node: VhdxNode, locator: ParentLocator) -> tuple[bool, dict[str, str]]:
        assert self.parent is not None
        try:
            async with self.images.opened(self.parent) as handle:
                parent = vhdx_of(handle)
                self._check_parent(node, parent)
                path = self.images.path_between(self.top, self.parent)
                guid = parent.image.data_write_guid
                return locator.accepts(guid), reparented(guid, path)
        except BlockError as error:
            raise NewParentError(error) from error

    def _check_parent(self, node: VhdxNode, parent: VhdxNode) -> None:
        assert self.parent is not None
        if self.images.is_same(self.top, self.parent):
            raise Cycle(f"'{self.parent}' cannot be its own parent", filename=self.parent)
        sizes = node.image.logical_sector_size, parent.image.logical_sector_size
        if sizes[0] != sizes[1]:
            raise UnsupportedFeature(
                Reason.BAD_VALUE,
                f"its sectors have {sizes[1]} bytes, those of '{self.top}' {sizes[0]}",
                filename=self.parent,
            )

    async def run(self) -> RebasePlan:
        """Rebase, and return what was done.

        Raises:
            NewParentError: The new parent does not open; nothing was changed.
            StorageError: A file failed; the disk reads as before.
        """
        plan = await self.plan(count=False)
        async with AsyncExitStack() as stack:
            parents = None if self.unsafe else await self._parents(stack)
            child = await stack.enter_async_context(self.images.opened(self.top, read_only=False))
            node = vhdx_of(child)
            if keep_identity(node) != plan.identity:
                raise NodeBusy("somebody wrote to the image meanwhile: rebase again", filename=self.top)
            if parents is not None:
                await self._copy(child, *parents)
            elif not plan.matches:
                node.writer.become(new_guid())
            if plan.pairs is None:
                await part(node)
            else:
                await set_locator(node, plan.pairs)
        return plan

    async def _parents(self, stack: AsyncExitStack) -> tuple[Handle, Handle | None]:
        """Open the present parent, which was verified to be it, and the new one with all of its parents."""
        members = await members_of(self.images, self.top)
        old = await stack.enter_async_context(self.images.opened(members[1].name, backing=True))
        if self.parent is None:
            return old, None
        try:
            new = await stack.enter_async_context(self.images.opened(self.parent, backing=True))
        except BlockError as error:
            raise NewParentError(error) from error
        node: Node | None = new.node
        while node is not None:
            if self.images.is_same(self.images.name_of(node), self.top):
                raise Cycle(f"'{self.top}' would be its own ancestor", filename=self.top)
            node = node.child(Role.BACKING)
        return old, new

    async def _copy(self, child: Handle, old: Handle, new: Handle | None) -> None:
        def walk(offset: int, length: int) -> AsyncIterator[Span]:
            return _differences(child, old, new, offset, length)

        await CopyJob(
            [Source(old, 0, length=child.size, walk=walk)],
            child,
            CopyPlan(out_of_order=True),
            self.images.mover,
            clock=self.images.clock,
            progress=self.progress,
        ).run()
        await child.flush()


async def _differences(
    child: Handle, old: Handle, new: Handle | None, offset: int, length: int
) -> AsyncIterator[Span]:
    """Yield the spans of the old parent that the child shows, and the new one would not."""
    node = vhdx_of(child)

    async def absent(offset: int, length: int) -> list[Span]:
        extents = await node.extents(offset, length)
        return [
            Span(Kind.ZERO, extent.guest_offset, extent.length)
            for extent in extents
            if extent.kind is Kind.ABSENT
        ]

    async for hole in walk_by(absent, offset, length):
        end = hole.guest_offset + hole.length
        for start in range(hole.guest_offset, end, 64 * MIB):
            piece = min(64 * MIB, end - start)
            before = await _spans_of(old, start, piece)
            after = await _spans_of(new, start, piece)
            for one, other in _side_by_side(before, after):
                async for span in _different(one, other):
                    yield span


async def _spans_of(handle: Handle | None, offset: int, length: int) -> list[Span]:
    """Return what an image shows in a range; behind its end, or without an image, zeros."""
    inside = 0 if handle is None else max(0, min(length, handle.size - offset))
    spans = await handle.allocation(offset, inside) if handle is not None and inside else []
    if inside < length:
        spans.append(Span(Kind.ZERO, offset + inside, length - inside))
    return spans


def _side_by_side(ones: list[Span], others: list[Span]) -> list[tuple[Span, Span]]:
    """Cut two gapless lists of one range at each other's edges."""
    pairs: list[tuple[Span, Span]] = []
    index = 0
    for one in ones:
        while one.length:
            other = others[index]
            length = min(one.length, other.length)
            pairs.append((replace(one, length=length), replace(other, length=length)))
            one, others[index] = _behind(one, length), _behind(other, length)
            index += not others[index].length
    return pairs


def _behind(span: Span, length: int) -> Span:
    return replace(
        span,
        guest_offset=span.guest_offset + length,
        leaf_offset=span.leaf_offset + length,
        length=span.length - length,
    )


async def _different(one: Span, other: Span) -> AsyncIterator[Span]:
    """Yield the parts of `one` that do not read as `other`."""
    if one.leaf is None and other.leaf is None:
        return
    if one.leaf is not None and other.leaf is not None and one.leaf_offset == other.leaf_offset:
        file = identity(one.leaf)
        if one.leaf is other.leaf or (file is not None and file == identity(other.leaf)):
            return
    for start in range(0, one.length, COMPARED):
        length = min(COMPARED, one.length - start)
        ours, theirs = await _bytes_of(one, start, length), await _bytes_of(other, start, length)
        at = 0
        while at < length:
            stop = min(length, at + UNIT)
            if ours[at:stop] == theirs[at:stop]:
                at = stop
                continue
            first = at
            while at < length and ours[at : at + UNIT] != theirs[at : at + UNIT]:
                at += UNIT
            at = min(at, length)
            part_of = _behind(one, start + first)
            yield replace(part_of, length=at - first)


async def _bytes_of(span: Span, start: int, length: int) -> bytes:
    if span.leaf is None:
        return bytes(length)
    return await span.leaf.read(span.leaf_offset + start, length)
