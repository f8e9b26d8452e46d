"""What every node of the block graph promises, and the three families of nodes.

Owns: the interface. `Leaf` stores bytes, `Mapper` (a format) says where bytes
are, `Filter` decorates one child. Every operation is abstract in every family
that could forward it by accident: a filter that does not know an operation does
not exist. It knows neither how bytes are moved (`plane`) nor how nodes are
opened (`vblk.opening`).

All offsets and lengths are bytes. Callers go through a `Handle`, which checks
ranges; inside the graph requests are asserted, not checked.
"""

import enum
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vblk.errors import GraphError, ReadOnly, Unsupported
from vblk.extent import Kind
from vblk.graph.edge import IDLE, Edge, Role

if TYPE_CHECKING:
    from vblk.aio.engine import Engine
    from vblk.graph.dirty_bitmap import DirtyBitmap
    from vblk.graph.objects import Objects
    from vblk.options import NodeOptions, Scalar

Buffer = bytes | bytearray | memoryview


class Preallocation(enum.Enum):
    """What a resize does for the new space, in QEMU's words."""

    OFF = "off"
    METADATA = "metadata"
    FALLOC = "falloc"
    FULL = "full"


@dataclass(slots=True)
class Span:
    """One run of guest bytes, resolved through the whole chain.

    `kind` is DATA, ZERO or ENCODED, never ABSENT. For DATA `leaf` holds the
    bytes at `leaf_offset`; for ENCODED it is the format that decodes them, and
    `leaf_offset` a guest offset there (`Node.read_encoded`). `depth` counts the images passed on the way down
    (0: the top). `present` is false where no image of the chain has a word on
    the range; of a place for bytes, where it holds others than the disk shows.
    """

    kind: Kind
    guest_offset: int
    length: int
    leaf: "Node | None" = None
    leaf_offset: int = 0
    depth: int = 0
    present: bool = True


class Node(ABC):
    """Anything in the block graph.

    `name` is unique in its graph. `filename` is what a user would type to open
    it. `alignment` is what requests below this node are best aligned to; nodes
    accept every alignment. `allocation_unit` is in which pieces, in bytes, a write
    takes space; 0 where that is no more than what is written. `bitmaps` are marked
    by `vblk.graph.recording`.
    """

    driver: ClassVar[str]

    own_access = IDLE
    """What a filter in use does with its child, and forbids there, beyond what its users do and forbid."""

    idle_access = IDLE
    """The same of a filter without users."""

    changeable: ClassVar[frozenset[str]] = frozenset()
    """The names of the driver's own options that `prepare_options` changes while the node lives."""

    def __init__(self, name: str, filename: str, *, read_only: bool) -> None:
        self.name = name
        self.filename = filename
        self.read_only = read_only
        self.children: dict[str, Edge] = {}
        self.alignment = 1
        self.allocation_unit = 0
        self.warnings: list[str] = []
        self.options: NodeOptions | None = None
        """How the node was opened, where it was opened by options."""
        self.hurried = 0
        self.detect_zeroes = "off"
        self.bitmaps: dict[str, DirtyBitmap] = {}

    def child(self, role: Role) -> "Node | None":
        """Return the first child that plays `role`, or None."""
        for edge in self.children.values():
            if edge.role is role:
                return edge.node
        return None

    @property
    def below(self) -> "Node | None":
        """The child that stores this node, or that it decorates."""
        return self.child(Role.FILE) or self.child(Role.FILTERED)

    def child_changed(self, edge: Edge) -> None:
        """Take note of the child that an edge leads to now; the graph says it, with nothing in flight.

        What a node keeps of its children beside `children` it sets here, so that
        requests follow an edge at once.
        """
        assert self.children[edge.name] is edge

    def child_left(self, edge: Edge) -> None:
        """Take note that there is no such child any more; the graph says it, with nothing in flight."""
        assert edge.name not in self.children

    def prepare_options(self, objects: "Objects", own: "Mapping[str, Scalar]") -> Callable[[], None]:
        """Return what gives the node other options of its own; nothing may be in flight when it is called.

        Raises:
            OptionError: They cannot be.
        """
        raise AssertionError("nothing can be changed")

    def require_storable(self, name: str, granularity: int) -> None:
        """Raise GraphError when what stores this node cannot keep one more dirty bitmap."""
        raise GraphError(f"Can't store persistent bitmaps to {self.name}: Operation not supported")

    def compress(self, engine: "Engine | None") -> None:
        """Store what is written from now on compressed, as far as that goes; with None not any more.

        Raises:
            Unsupported: The format cannot.
        """
        raise Unsupported("Compression not supported for this file format", filename=self.filename)

    def hurry(self) -> None:
        """Hold no request back, until the matching `heed`: somebody waits for what is in flight."""
        self.hurried += 1

    def heed(self) -> None:
        """Hold requests back again, if that is what the node is for."""
        self.hurried -= 1

    def require_writable(self) -> None:
        """Raise ReadOnly when this node may not be changed."""
        if self.read_only:
            raise ReadOnly("Block node is read-only", filename=self.filename)

    @property
    @abstractmethod
    def size(self) -> int:
        """The length in bytes that a user of this node sees."""

    @abstractmethod
    def try_read(self, offset: int, length: int) -> bytes | None:
        """Read without waiting, or return None: it would block.

        Concurrency: runs to completion.
        """

    @abstractmethod
    async def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`.

        Raises:
            StorageError: The medium failed or is shorter than it said.
            ImageError: The bytes that say where the data is are damaged.
        """

    @abstractmethod
    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, a writable view of bytes, from `offset`."""

    def try_write(self, offset: int, data: Buffer) -> bool:
        """Write all of `data`, whose length counts bytes, without waiting, or return False: await `write`.

        After False any part of it may be written, so `write` has to follow. A
        node that does not know better never writes at once.

        Raises as `write`.

        Concurrency: runs to completion.
        """
        return False

    def try_resolve(self, offset: int, length: int) -> "list[Span] | None":
        """Say where a range is, as `resolve` does, or return None: that would block, or may change.

        What is returned stays true until the next request that changes this range.

        Raises as `resolve`.

        Concurrency: runs to completion.
        """
        return None

    def cached_descriptor(self, offset: int, length: int) -> int | None:
        """Return a descriptor that has this range at the same offset, if reading from it would not wait.

        None also where that cannot be known.
        """
        return None

    async def read_encoded(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from a range that this format's `lookup` calls ENCODED."""
        raise Unsupported("this format's encoded data cannot be read", filename=self.filename)

    @abstractmethod
    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write all of `data` at `offset`; with `fua` it is stable on return.

        Raises:
            ReadOnly: The node is open for reading only.
            NoSpace: The storage is full.
        """

    @abstractmethod
    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Make a range read as zeros.

        With `unmap` the space may be given back. With `no_fallback` raise
        Unsupported rather than writing zeros out.
        """

    @abstractmethod
    async def discard(self, offset: int, length: int) -> None:
        """Say that a range is of no more use; it reads as before or as zeros."""

    @abstractmethod
    async def flush(self) -> None:
        """Bring every finished write to stable storage.

        Raises:
            NodeFailed: This flush or an earlier one failed.
        """

    @abstractmethod
    async def resolve(self, offset: int, length: int) -> list[Span]:
        """Say where a range is, through the whole chain below.

        Returns: gapless spans in guest order whose lengths sum to `length`.
        Opaque nodes answer with one DATA span of themselves.
        """

    @abstractmethod
    async def allocation(self, offset: int, length: int) -> list[Span]:
        """As `resolve`, and ask the storage which of the data is a hole."""

    @abstractmethod
    def place(self, offset: int, length: int) -> AbstractAsyncContextManager[list[Span]]:
        """Make room for a guest range and yield the leaf places where its bytes go.

        The guard of a write: leaving the block normally publishes the mapping;
        an exception or a cancellation gives the space back and publishes
        nothing.
        """

    @abstractmethod
    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        """Change the size; new space reads as zeros."""

    @abstractmethod
    async def reopen(self, *, read_only: bool) -> None:
        """Change between reading only and writing, keeping the node's place."""

    @abstractmethod
    def info(self) -> Mapping[str, Any]:
        """Return what is special to this driver, in QEMU's names where it has one."""

    @abstractmethod
    async def close(self) -> None:
        """Release the storage. The children are closed by the graph."""


class Opaque(Node):
    """A node that others cannot see through: its bytes are had from itself alone.

    `encodes` says that it stores them otherwise, so that their places say nothing.
    """

    encodes: ClassVar[bool] = False

    async def resolve(self, offset: int, length: int) -> list[Span]:
        """Answer with this node itself."""
        return [Span(Kind.DATA, offset, length, self, offset)]

    @asynccontextmanager
    async def place(self, offset: int, length: int) -> AsyncGenerator[list[Span], None]:
        """Answer with this node itself: its `write` needs no mapping."""
        self.require_writable()
        yield [Span(Kind.DATA, offset, length, self, offset)]


class Leaf(Opaque):
    """A node that stores bytes itself: a file, a device, memory, a remote image."""

    def descriptor(self) -> int | None:
        """Return a file descriptor that the kernel can copy from and to, or None."""
        return None

    def try_resolve(self, offset: int, length: int) -> list[Span] | None:
        """Answer with this node itself."""
        return [Span(Kind.DATA, offset, length, self, offset)]

    def written(self, offset: int, length: int) -> None:
        """Note that `length` bytes arrived at `offset` through the descriptor."""

    @abstractmethod
    async def allocated_bytes(self) -> int | None:
        """Return the bytes that the image takes on its storage, or None if unknown."""


class Filter(Opaque):
    """A node that decorates one child. It sees every request: nothing passes by accident."""

    def __init__(self, name: str, filename: str, *, read_only: bool, file: Node) -> None:
        super().__init__(name, filename, read_only=read_only)
        self._file = file
        self.alignment = file.alignment

    def child_changed(self, edge: Edge) -> None:
        """Pass requests on to the child that is there now."""
        self._file = edge.node
        self.alignment = edge.node.alignment

    @property
    def size(self) -> int:
        """The length of the child in bytes."""
        return self._file.size


def coalesce(spans: Sequence[Span]) -> list[Span]:
    """Join neighbouring spans that continue each other."""
    joined: list[Span] = []
    for span in spans:
        if joined:
            last = joined[-1]
            if (
                last.kind is span.kind
                and last.guest_offset + last.length == span.guest_offset
                and last.leaf is span.leaf
                and last.depth == span.depth
                and last.present == span.present
                and (span.leaf is None or last.leaf_offset + last.length == span.leaf_offset)
            ):
                last.length += span.length
                continue
        joined.append(
            Span(
                span.kind,
                span.guest_offset,
                span.length,
                span.leaf,
                span.leaf_offset,
                span.depth,
                span.present,
            )
        )
    return joined


def cut(span: Span, start: int, length: int) -> Span:
    """Return the part of a span that begins `start` bytes into it."""
    assert 0 <= start < start + length <= span.length
    return Span(
        span.kind,
        span.guest_offset + start,
        length,
        span.leaf,
        span.leaf_offset + start,
        span.depth,
        span.present,
    )
