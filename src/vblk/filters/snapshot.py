"""A temporary overlay: what is written is gone when the node is closed.

Owns: the unnamed file that keeps the written bytes, and the way of requests
between it and the image below, which is only read. Where the bytes are is said
by `overlay_map`.

Ordering rule: bytes are stored before the map shows them, so that a read finds
old bytes or new ones.
"""

import errno
import os
from collections.abc import Mapping
from typing import Any, ClassVar

from vblk.aio.engine import Engine, storage_error
from vblk.aio.file_calls import KEEP_SIZE, PUNCH_HOLE, fallocate
from vblk.errors import OutOfRange, StorageError, Unsupported
from vblk.extent import Kind
from vblk.filters.overlay_map import Gap, OverlayMap, Run
from vblk.graph.edge import Role
from vblk.graph.node import Buffer, Filter, Node, Preallocation, Span
from vblk.graph.registry import Graph
from vblk.units import OFFSET_MAX

DIRECTORY = "/var/tmp"


class SnapshotNode(Filter):
    """A disk that begins as its backing is and keeps changes to itself.

    Concurrency: any number of requests; overlapping writes in flight leave
    either's bytes.
    """

    driver: ClassVar[str] = "snapshot"

    def __init__(self, name: str, backing: Node, *, engine: Engine, fd: int, read_only: bool) -> None:
        """Take over `fd`, an empty file."""
        super().__init__(name, backing.filename, read_only=read_only, file=backing)
        self._engine = engine
        self._fd = fd
        self._map = OverlayMap()
        self._size = backing.size

    @property
    def size(self) -> int:
        """The length in bytes, the backing's until it is changed."""
        return self._size

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Read without waiting what was not written."""
        parts = self._map.lookup(offset, length)
        if len(parts) != 1 or not isinstance(parts[0], Gap) or offset + length > self._file.size:
            return None
        return self._file.try_read(offset, length)

    async def read(self, offset: int, length: int) -> bytes:
        """Read what was written, or else the backing."""
        buffer = bytearray(length)
        await self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Read into a buffer what was written, or else the backing."""
        for part in self._map.lookup(offset, len(buffer)):
            piece = buffer[part.start - offset : part.end - offset]
            if isinstance(part, Gap):
                await self._read_backing(part.start, piece)
            elif part.slot is None:
                piece[:] = bytes(len(piece))
            elif await self._engine.read_into(self._fd, part.slot, piece) < len(piece):
                raise StorageError(errno.EIO, "the temporary file has lost its end", filename=self.filename)

    async def _read_backing(self, offset: int, buffer: memoryview) -> None:
        inside = max(0, min(len(buffer), self._file.size - offset))
        if inside:
            await self._file.read_into(offset, buffer[:inside])
        buffer[inside:] = bytes(len(buffer) - inside)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Keep the data; what does not outlive the process needs no stable storage."""
        self.require_writable()
        view = memoryview(data).cast("B")
        places = self._map.place(offset, len(view))
        for place in places:
            assert place.slot is not None
            await self._engine.write(self._fd, place.slot, view[place.start - offset : place.end - offset])
        self._map.set_data(places)

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Note the zeros."""
        self.require_writable()
        await self._give_back(self._map.set_zero(offset, length))

    async def discard(self, offset: int, length: int) -> None:
        """Make the range zeros: what the backing holds there must not come back."""
        self.require_writable()
        await self._give_back(self._map.set_zero(offset, length))

    async def _give_back(self, unused: list[Run]) -> None:
        def punch() -> None:
            for run in unused:
                assert run.slot is not None
                fallocate(self._fd, PUNCH_HOLE | KEEP_SIZE, run.slot, run.end - run.start)

        if not unused:
            return
        try:
            await self._engine.run(punch)
        except OSError as error:
            if error.errno not in (
                errno.EOPNOTSUPP,
                errno.EINVAL,
            ):  # the space stays taken; nobody reads it again
                raise storage_error(error, filename=self.filename, operation="discard") from error

    async def flush(self) -> None:
        """Nothing of this outlives the process."""

    async def resolve(self, offset: int, length: int) -> list[Span]:
        """Say what was written; the rest is the backing's, one image deeper."""
        return await self._spans(offset, length, stored=False)

    async def allocation(self, offset: int, length: int) -> list[Span]:
        """As `resolve`, with the holes of the backing."""
        return await self._spans(offset, length, stored=True)

    async def _spans(self, offset: int, length: int, *, stored: bool) -> list[Span]:
        spans: list[Span] = []
        for part in self._map.lookup(offset, length):
            count = part.end - part.start
            if isinstance(part, Run):
                kind = Kind.ZERO if part.slot is None else Kind.DATA
                spans.append(Span(kind, part.start, count, self, part.start))
                continue
            inside = max(0, min(count, self._file.size - part.start))
            if inside:
                ask = self._file.allocation if stored else self._file.resolve
                for below in await ask(part.start, inside):
                    below.depth += 1
                    spans.append(below)
            if inside < count:
                spans.append(Span(Kind.ZERO, part.start + inside, count - inside, present=False))
        return spans

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        """Change the length; what was cut off reads as zeros when it comes back."""
        self.require_writable()
        if preallocation is not Preallocation.OFF:
            raise Unsupported(
                f"Unsupported preallocation mode: {preallocation.value}", filename=self.filename
            )
        if not 0 <= size <= OFFSET_MAX:
            raise OutOfRange(f"a disk cannot be {size} bytes long", filename=self.filename)
        if size < self._size:
            await self._give_back(self._map.set_zero(size, self._size - size))
        self._size = size

    async def reopen(self, *, read_only: bool) -> None:
        """Take on the new access; the backing stays read-only."""
        self.read_only = read_only

    def info(self) -> Mapping[str, Any]:
        """Nothing is special to a temporary overlay."""
        return {}

    async def close(self) -> None:
        """Forget everything that was written. Idempotent."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def _unnamed_file() -> int:
    """Open a file without a name in the folder for temporary files. Blocks."""
    folder = os.environ.get("TMPDIR") or DIRECTORY
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        import tempfile

        fd, name = tempfile.mkstemp(prefix="vblk.", dir=folder)
        os.unlink(name)
        return fd


async def put_over(graph: Graph, backing: Node, *, read_only: bool = False) -> SnapshotNode:
    """Put an empty overlay on a node that has no user yet; it closes with the overlay.

    Raises:
        StorageError: There is no room for temporary files.
    """
    try:
        fd = await graph.engine.run(_unnamed_file)
    except OSError as error:
        raise storage_error(error, operation="open a temporary file") from error
    node = SnapshotNode(graph.unique_name(), backing, engine=graph.engine, fd=fd, read_only=read_only)
    graph.add(node)
    graph.attach(node, Role.BACKING, backing)
    return node
