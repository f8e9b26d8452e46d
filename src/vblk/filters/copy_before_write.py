"""Keeping the old bytes of a disk: QEMU's `copy-before-write`.

Owns: that before a range of `file` changes its old bytes are in `target`, and what
happens when they do not get there. `vblk.filters.snapshot_access` shows the disk as
it was from both. How bytes are copied, and that each is copied once, is
`vblk.filters.once_copier`'s.

Ordering rule: old bytes first, in `target`, not necessarily durable; then the change.
Reads wait for nothing, and changes only for the copies of their own range.

Source: qapi/block-core.json of QEMU's documentation, "BlockdevOptionsCbw".
"""

import errno
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Final

from vblk.aio.clock import Clock
from vblk.aio.engine import Engine
from vblk.errors import BlockError, GraphError, OptionError, StorageError, Unsupported
from vblk.filters.fleeced import end_fleecing, fleece
from vblk.filters.once_copier import CopyFailed, OnceCopier
from vblk.filters.passing import PassingNode
from vblk.graph.dirty_bitmap import DirtyBitmap
from vblk.graph.edge import IDLE, Access, Edge, Permission, Role
from vblk.graph.edges import reachable
from vblk.graph.node import Buffer, Node, Preallocation
from vblk.graph.recording import find_bitmap
from vblk.graph.registry import Graph
from vblk.graph.site import Site
from vblk.options import bind, check_children
from vblk.runtime.time_limit import within

TARGET: Final = "target"
_CHANGES: Final = frozenset(("write", "write-zeroes", "discard"))


class OnCbwError(Enum):
    """What happens when old bytes cannot be kept."""

    BREAK_GUEST_WRITE = "break-guest-write"
    """The change fails, and the old bytes stay where they are."""
    BREAK_SNAPSHOT = "break-snapshot"
    """The change is made; the disk as it was cannot be read any more."""


@dataclass(slots=True)
class BitmapName:
    """A bitmap of a node."""

    node: str
    name: str


@dataclass(slots=True)
class Options:
    """The options of the driver; `cbw_timeout` in seconds, 0 for none."""

    bitmap: BitmapName | None = None
    on_cbw_error: OnCbwError = OnCbwError.BREAK_GUEST_WRITE
    cbw_timeout: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.cbw_timeout < 1 << 32:
            raise OptionError("Parameter 'cbw-timeout' expects uint32_t")


class CopyBeforeWriteNode(PassingNode):
    """A node over `file` whose changes wait until the old bytes are in `target`.

    `copier` knows what was kept. `accessible` marks what the disk as it was can be
    read from, None: everything. `broken` is why it cannot be read at all any more.
    """

    driver: ClassVar[str] = "copy-before-write"
    own_access = Access(Permission.CONSISTENT_READ, Permission.ALL & ~(Permission.WRITE | Permission.RESIZE))
    """What is written past it would not be kept."""

    def __init__(
        self,
        name: str,
        file: Node,
        target: Node,
        *,
        engine: Engine,
        clock: Clock,
        options: Options,
        **how: Any,
    ) -> None:
        """Stand over `file`; from now on the disk is as it is at this instant.

        Raises:
            GraphError: The two cannot be.
        """
        super().__init__(name, file, **how)
        if target.size != file.size:
            raise GraphError(
                f"Source and target image have different sizes ({file.size} and {target.size} bytes)"
            )
        self.target = target
        self.copier = OnceCopier(engine, file, target)
        self.accessible: DirtyBitmap | None = None
        self.broken: BlockError | None = None
        self._clock = clock
        self._on_error = options.on_cbw_error
        self._timeout = options.cbw_timeout
        self._is_keeping = True

    def only(self, bitmap: DirtyBitmap) -> None:
        """Keep no more than what a bitmap marks; nothing was copied yet.

        Raises:
            GraphError: It is of a disk of another size.
        """
        self.copier.only(bitmap)
        self.accessible = DirtyBitmap("accessible", self.size, self.copier.todo.granularity)
        self.accessible.merge(self.copier.todo)

    def put_over_both(self, graph: Graph) -> None:
        """Join the graph and take `file` and `target`, which are in it, as children."""
        graph.add(self)
        graph.attach(self, Role.FILTERED, self.file, "file")
        graph.attach(self, Role.TARGET, self.target, TARGET)
        self.begin_fleecing()

    def begin_fleecing(self) -> None:
        """Let the target, if it stands on the disk, show the disk as it was; nothing is in flight on it."""
        if self.file in reachable(self.target):
            fleece(self.target, self.reading_old, self.old_is_still)

    def end_keeping(self) -> None:
        """Let changes pass from now on; the disk as it was cannot be read any more."""
        self._is_keeping = False
        end_fleecing(self.target)
        self.own_access = IDLE
        self.broken = GraphError("the old bytes are not kept any more")

    def child_changed(self, edge: Edge) -> None:
        """Go on with the children that are there now."""
        if edge.role is Role.TARGET:
            end_fleecing(self.target)
            self.target = self.copier.target = edge.node
            self.begin_fleecing()
        else:
            super().child_changed(edge)
            self.copier.source = edge.node

    async def close(self) -> None:
        """Let go of the target."""
        end_fleecing(self.target)
        await super().close()

    async def before(self, operation: str, offset: int, length: int) -> None:
        """Keep the old bytes before a change."""
        if operation not in _CHANGES or not length or not self._is_keeping or self.broken:
            return
        if self.copier.is_kept(offset, length):
            return
        try:
            await self._keep(offset, length)
        except BlockError as error:
            if self._on_error is OnCbwError.BREAK_GUEST_WRITE:
                raise
            self.broken = self.broken or error

    async def _keep(self, offset: int, length: int) -> None:
        copying = self.copier.keep(offset, length)
        try:
            if self._timeout:
                await within(self._clock, self._timeout, copying)
            else:
                await copying
        except CopyFailed as failure:
            raise failure.error from failure
        except TimeoutError:
            raise StorageError(
                errno.ETIMEDOUT, "the old bytes were not copied in time", filename=self.filename
            ) from None

    def try_write(self, offset: int, data: Buffer) -> bool:
        """Write at once where the old bytes are kept already."""
        self.require_writable()
        if self._is_keeping and not self.broken and not self.copier.is_kept(offset, len(data)):
            return False
        return self.file.try_write(offset, data)

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        """Refuse: the disk as it was has the size that it had.

        Raises:
            Unsupported: Always.
        """
        raise Unsupported(
            "a disk cannot be resized while its old content is kept by copy-before-write",
            filename=self.filename,
        )

    # The disk as it was

    def reading_old(self, offset: int, length: int) -> AbstractAsyncContextManager[object]:
        """Hold a range as it is, kept or not, while the block runs."""
        start, count = self.copier.whole(offset, length)
        return self.copier.locks.shared(start, count)

    def old_is_still(self, offset: int, length: int) -> bool:
        """Tell whether nobody is copying, or waits to copy, anything of a range."""
        return self.copier.locks.may_share(*self.copier.whole(offset, length))

    def old_places(self, offset: int, length: int) -> Sequence[tuple[Node, int, int]]:
        """Return where the old bytes of a range are: (node, offset there, length), in order.

        Raises:
            StorageError: They are not to be had.
        """
        self.require_old(offset, length)
        return [
            (self.file if pending else self.target, at, count)
            for at, count, pending in self.copier.todo.ranges(offset, length)
        ]

    def require_old(self, offset: int, length: int) -> None:
        """Raise StorageError when the disk as it was cannot be read there."""
        if self.broken is not None:
            raise StorageError(errno.EACCES, f"the snapshot is broken: {self.broken}", filename=self.filename)
        marked = self.accessible
        if marked is not None and not all(kept for _, _, kept in marked.ranges(offset, length)):
            raise StorageError(errno.EACCES, "this range is not kept", filename=self.filename)


async def open_node(site: Site) -> CopyBeforeWriteNode:
    """Open the nodes under `file` and `target`, and keep the bytes of one in the other.

    Raises:
        OptionError: An option cannot be.
        GraphError: The nodes, or the bitmap, do not fit.
    """
    check_children(site.options, "copy-before-write", "file", TARGET)
    options = bind(site.options.own, Options, "copy-before-write")
    file = await site.child()
    target = await site.child(TARGET)
    node = CopyBeforeWriteNode(
        site.name,
        file,
        target,
        engine=site.graph.engine,
        clock=site.graph.clock,
        options=options,
        filename=site.filename,
        read_only=site.read_only,
    )
    if options.bitmap is not None:
        bitmap = find_bitmap(site.graph.find(options.bitmap.node), options.bitmap.name)
        node.only(bitmap)
    await site.take(node, file, "file", Role.FILTERED)
    async with site.graph.drained(target):
        site.graph.attach(node, Role.TARGET, target, TARGET)
        node.begin_fleecing()
    return node
