"""The shell that every format shares: it turns a map into a node.

Owns: reading through a map (lookup, load what is missing, ask again), the walk
through `file` and `backing` down to the leaves, and the inline path. It knows
no format: subclasses answer `lookup` and `load`, and say how they are written.

Ordering rule: an extent is good until the next await unless its metadata is
pinned and its range is held; payload is only moved between the two.
"""

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext

from vblk.errors import CorruptImage, GraphError, Reason, Unsupported
from vblk.extent import Extent, Kind, Missing
from vblk.graph.edge import Edge, Role
from vblk.graph.node import Buffer, Leaf, Node, Span, coalesce
from vblk.graph.plane import read_spans
from vblk.units import KIB

INLINE_MAX = 256 * KIB
"""The longest read, in bytes, that is tried on the loop's own thread."""

LOOKUP_ROUNDS_MAX = 8
"""How often a lookup may ask for more metadata: the depth of a format's tables, and some."""


class Mapper(Node):
    """A format: it says where guest bytes are and moves none itself."""

    lookup_step = 1 << 62
    """The most guest bytes that one lookup covers, so that tables load in pieces."""

    has_tables = True
    """Whether the format keeps something of the file in memory beside payload."""

    damage_unit: int | None = None
    """How many bytes of the disk, a power of two, one wrong entry of the format spoils as a whole."""

    def __init__(self, name: str, filename: str, *, read_only: bool, file: Node) -> None:
        super().__init__(name, filename, read_only=read_only)
        self._file = file
        self.backing: Node | None = None
        self.backing_left_closed = False

    @abstractmethod
    def lookup(self, offset: int, length: int) -> Sequence[Extent] | Missing:
        """Translate a guest range into extents without I/O.

        Returns: gapless extents whose lengths sum to `length`, or what to load.

        Raises:
            CorruptImage: The tables of this range contradict the specification.
        """

    @abstractmethod
    def locate(self, offset: int, length: int) -> int | None:
        """Return the file offset of a range that lies in one piece and is known at once.

        The short cut of the inline path: None means "use `lookup`", no more.
        """

    @abstractmethod
    async def load(self, missing: Missing, pins: ExitStack) -> None:
        """Bring metadata into memory, so that the next lookup gets further.

        What is loaded is pinned on `pins`, so that it is still there when the
        lookup asks again.
        """

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Read without waiting when tables and data are in memory."""
        if length > INLINE_MAX:
            return None
        file_offset = self.locate(offset, length)
        if file_offset is not None:
            return self._file.try_read(file_offset, length)
        extents = self.lookup(offset, length)
        if isinstance(extents, Missing):
            return None
        parts: list[bytes] = []
        for extent in extents:
            part = self._try_part(extent)
            if part is None:
                return None
            parts.append(part)
        return b"".join(parts)

    def _try_part(self, extent: Extent) -> bytes | None:
        if extent.kind is Kind.ZERO:
            return bytes(extent.length)
        if extent.kind is Kind.DATA:
            assert extent.file_offset is not None
            return self._file.try_read(extent.file_offset, extent.length)
        if extent.kind is Kind.ENCODED:
            return None
        if self.backing is None:
            return None if self.backing_left_closed else bytes(extent.length)
        inside = max(0, min(extent.length, self.backing.size - extent.guest_offset))
        if not inside:
            return bytes(extent.length)
        part = self.backing.try_read(extent.guest_offset, inside)
        return part if part is None else part + bytes(extent.length - inside)

    def try_resolve(self, offset: int, length: int) -> list[Span] | None:
        """Walk the chain below down to leaves, when its tables are in memory; see `Node.try_resolve`."""
        extents = self.lookup(offset, length) if length <= self.lookup_step else Missing([])
        if isinstance(extents, Missing):
            return None
        spans: list[Span] = []
        for extent in extents:
            guest, count = extent.guest_offset, extent.length
            below, at, inside = self.backing, int(guest), count
            if extent.kind is Kind.DATA:
                assert extent.file_offset is not None
                below, at = self._file, extent.file_offset
            elif extent.kind is Kind.ENCODED or (below is None and self.backing_left_closed):
                return None
            elif extent.kind is Kind.ZERO:
                below = None
            elif below is not None:
                inside = max(0, min(count, below.size - guest))
            if below is not None and inside:
                found = below.try_resolve(at, inside)
                if found is None:
                    return None
                for span in found:
                    span.guest_offset += guest - at
                    spans.append(span)
            if below is None or inside < count:
                rest = 0 if below is None else inside
                spans.append(Span(Kind.ZERO, guest + rest, count - rest))
        return coalesce(spans)

    async def read(self, offset: int, length: int) -> bytes:
        """Read through the whole chain."""
        data = bytearray(length)
        await self.read_into(offset, memoryview(data))
        return bytes(data)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, pieces that lie apart side by side."""
        await read_spans(await self.resolve(offset, len(buffer)), offset, buffer)

    def reading(self) -> AbstractContextManager[None]:
        """Keep what is mapped now from being used anew while the block runs."""
        return nullcontext()

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write payload to the places that the format allocates for it."""
        self.require_writable()
        view = memoryview(data)
        async with self.place(offset, len(view)) as places:
            for span in places:
                assert span.leaf is not None
                start = span.guest_offset - offset
                await span.leaf.write(span.leaf_offset, view[start : start + span.length])
        if fua:
            await self.flush()

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Return this image's own extents of a range, loading tables as needed."""
        found: list[Extent] = []
        end = offset + length
        while offset < end:
            piece = min(self.lookup_step, end - offset)
            found.extend(await self._lookup_loaded(offset, piece))
            offset += piece
        return found

    async def _lookup_loaded(self, offset: int, length: int) -> Sequence[Extent]:
        with ExitStack() as pins:
            for _ in range(LOOKUP_ROUNDS_MAX):
                answer = self.lookup(offset, length)
                if not isinstance(answer, Missing):
                    return answer
                await self.load(answer, pins)
        raise CorruptImage(
            Reason.LIMIT, "the tables of this range never end", filename=self.filename, offset=offset
        )

    async def resolve(self, offset: int, length: int) -> list[Span]:
        """Walk the chain below down to leaves.

        Raises:
            GraphError: A range is in a backing image that was left closed: what
                it holds is not known, and zeros would be a lie.
        """
        spans: list[Span] = []
        for extent in await self.extents(offset, length):
            await self._resolve_extent(extent, spans)
        return spans

    async def _resolve_extent(self, extent: Extent, spans: list[Span]) -> None:
        guest, length = extent.guest_offset, extent.length
        if extent.kind is Kind.DATA:
            assert extent.file_offset is not None
            for below in await self._file.resolve(extent.file_offset, length):
                below.guest_offset += guest - extent.file_offset
                spans.append(below)
        elif extent.kind is Kind.ZERO:
            spans.append(Span(Kind.ZERO, guest, length))
        elif extent.kind is Kind.ENCODED:
            spans.append(Span(Kind.ENCODED, guest, length, self, guest))
        elif self.backing_left_closed:
            raise GraphError(
                "this range is in the parent image, which was not opened",
                filename=self.filename,
                operation="read",
                offset=guest,
                length=length,
            )
        elif self.backing is None:
            spans.append(Span(Kind.ZERO, guest, length, present=False))
        else:
            inside = max(0, min(length, self.backing.size - guest))
            if inside:
                for below in await self.backing.resolve(guest, inside):
                    below.depth += 1
                    spans.append(below)
            if inside < length:
                spans.append(Span(Kind.ZERO, guest + inside, length - inside))

    async def allocation(self, offset: int, length: int) -> list[Span]:
        """As `resolve`, with the holes of the leaves as zeros."""
        return await without_holes(await self.resolve(offset, length))

    async def changes(self, offset: int, length: int, below: Sequence["Mapper"] = ()) -> list[Span]:
        """Say what this image holds of a range, and what the images `below` it hold that shows through.

        What none of them holds is left out. What lies beyond the end of one of
        them is zeros: that is what the disk shows there, whatever comes below.
        Holes of the leaves are zeros, too.
        """
        return await without_holes(await self._changes(offset, length, below))

    async def _changes(self, offset: int, length: int, below: Sequence["Mapper"]) -> list[Span]:
        spans: list[Span] = []
        for extent in await self.extents(offset, length):
            start, end = extent.guest_offset, extent.guest_offset + extent.length
            if extent.kind is not Kind.ABSENT:
                await self._resolve_extent(extent, spans)
            elif below:
                spans += await self._seen_of(below, start, end)
        return spans

    @staticmethod
    async def _seen_of(images: Sequence["Mapper"], start: int, end: int) -> list[Span]:
        """Say what images hold, the uppermost first, and what is zeros behind the end of one of them."""
        inside = min(max(start, images[0].size), end)
        spans = await images[0]._changes(start, inside - start, images[1:]) if start < inside else []
        if inside < end:
            spans.append(Span(Kind.ZERO, inside, end - inside))
        return spans

    async def lacks(self, offset: int, length: int, below: Sequence["Mapper"]) -> list[Span]:
        """Say what shows through this image of those `below` it; see `changes`."""
        spans: list[Span] = []
        for extent in await self.extents(offset, length):
            if extent.kind is Kind.ABSENT:
                start = extent.guest_offset
                spans += await self._seen_of(below, start, start + extent.length)
        return await without_holes(spans)

    @property
    def file(self) -> Node:
        """The child that stores this image."""
        return self._file

    @property
    def takes_backing(self) -> bool:
        """Whether this image may stand on another one."""
        return False

    async def stand_on(self, backing: Node) -> None:
        """Make sure that the image may stand on `backing` as that is now; called before it does.

        Raises:
            GraphError: It cannot.
        """

    async def name_backing(self, backing: Node | None, name: str) -> None:
        """Let the file say that the image stands on `backing` (None: on nothing), durably.

        `name` is that image's, as this one is to have it. The disk reads the same on either. Whom
        it really stands on is the graph's to change.

        Raises:
            Unsupported: The format cannot.
        """
        raise Unsupported(f"{self.driver} images do not name others", filename=self.filename)

    def keep_identity(self) -> None:
        """Let the next change, which the image was opened for, be one that those who stand on it do not see.

        Not a single byte of the disk changes by it.
        """

    def child_changed(self, edge: Edge) -> None:
        """Follow an edge to what stores the image, or to what absent ranges are read from."""
        if edge.role is Role.BACKING:
            self.backing = edge.node
            self.backing_left_closed = False
        else:
            self._file = edge.node

    def child_left(self, edge: Edge) -> None:
        """Read absent ranges as zeros from now on."""
        assert edge.role is Role.BACKING, "an image without its file"
        self.backing = None

    async def make_empty(self) -> None:
        """Let the image hold nothing, so that all of the disk is the backing image's; it is durable then.

        Raises:
            Unsupported: The format cannot.
        """
        raise Unsupported(f"{self.driver} images cannot be emptied", filename=self.filename)

    async def flush(self) -> None:
        """Bring payload and metadata to stable storage."""
        await self._file.flush()


async def without_holes(spans: Sequence[Span]) -> list[Span]:
    """Return the spans with the holes of their leaves as zeros."""
    refined: list[Span] = []
    for span in coalesce(spans):
        if span.kind is not Kind.DATA or span.leaf is None:
            refined.append(span)
            continue
        for below in await span.leaf.allocation(span.leaf_offset, span.length):
            below.guest_offset += span.guest_offset - span.leaf_offset
            below.depth += span.depth
            refined.append(below)
    return refined


def has_descriptor(node: Node | None) -> bool:
    """Tell whether a node is a leaf that the kernel can copy from and to."""
    return isinstance(node, Leaf) and node.descriptor() is not None


def reaches_kernel(node: Node) -> bool:
    """Tell whether what is written to a node lands in a leaf that the kernel can copy to."""
    while isinstance(node, Mapper):
        node = node.file
    return has_descriptor(node)
