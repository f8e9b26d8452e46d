"""The checked front door: how a user outside the graph works with a node.

Owns: range checks, the count of requests in flight, and drain. Inside the graph
the same facts are asserted. A handle is one edge of the graph, with a user's
name and permissions.

Ordering rule: a request is checked when it starts, not when it arrives, for a
drain that it waited for may have changed the node.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from vblk.errors import GraphError, OutOfRange, ReadOnly
from vblk.graph.edge import Edge, Permission
from vblk.graph.node import Buffer, Node, Preallocation, Span
from vblk.units import MIB, OFFSET_MAX

TURN = MIB
"""After so many bytes were written without waiting, everybody else has a turn."""


class Traffic:
    """Requests in flight through one handle, and the barrier that holds new ones back.

    Concurrency: `drain` returns when nothing is in flight; requests that arrive
    later wait for the matching `release`. Drains nest.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self.held = 0
        self.on_hold: list[Callable[[], None]] = []
        """Called when requests begin to be held back, by whoever has some that would last."""
        self._quiet = asyncio.Event()
        self._open = asyncio.Event()
        self._quiet.set()
        self._open.set()

    async def __aenter__(self) -> None:
        while self.held:
            await self._open.wait()
        self.begin()

    async def __aexit__(self, *_: object) -> None:
        self.end()

    def begin(self) -> None:
        """Count a request in; the caller has seen that none is held back."""
        self.in_flight += 1
        self._quiet.clear()

    def end(self) -> None:
        """Count a request out."""
        self.in_flight -= 1
        if not self.in_flight:
            self._quiet.set()

    def hold(self) -> None:
        """Hold new requests back until the matching `release`."""
        self.held += 1
        self._open.clear()
        for listener in self.on_hold:
            listener()

    async def quiet(self) -> None:
        """Wait until nothing is in flight."""
        await self._quiet.wait()

    async def drain(self) -> None:
        """Hold new requests back and wait for those in flight.

        Cancellation: lets requests through again.
        """
        self.hold()
        try:
            await self.quiet()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let requests through again, when the last drain has ended."""
        self.held -= 1
        if not self.held:
            self._open.set()


class Handle:
    """A user's hold on a node. Offsets and lengths are bytes of any alignment.

    Raises (all requests):
        OutOfRange: The range does not lie within the node.
        ReadOnly: A request to change the node through a handle that may not.
        GraphError: The handle is closed.
        NodeFailed: An earlier flush failed.
    """

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.traffic = Traffic()
        self._node: Node | None = edge.node
        self._found_writing: Permission | None = None
        self._left_of_turn = TURN

    @property
    def node(self) -> Node:
        """The node that this handle holds."""
        if self._node is None:
            raise GraphError(f"{self.edge.user} has let go of this image")
        return self._node

    @property
    def closed(self) -> bool:
        """Whether the handle was let go."""
        return self._node is None

    @property
    def size(self) -> int:
        """The virtual size in bytes."""
        return self.node.size

    @property
    def read_only(self) -> bool:
        """Whether writes are refused, by the node or by what this user said it would do."""
        return self.node.read_only or not self.edge.permissions & Permission.WRITE

    def follow(self) -> None:
        """Go on with the node that the edge leads to now; the graph calls this with nothing in flight."""
        self._node = self.edge.node

    def detach(self) -> None:
        """Forget the node; the graph calls this when it closes the handle."""
        self._node = None

    def check_range(self, offset: int, length: int) -> Node:
        """Return the node, when the range lies within it."""
        node = self.node
        if offset < 0 or length < 0 or offset + length > node.size:
            raise OutOfRange(
                f"range of {length} bytes at {offset} does not lie within the {node.size} bytes of the disk",
                filename=node.filename,
                length=length,
            )
        return node

    def check_writable(self) -> Node:
        """Return the node, when this user may change it."""
        node = self.node
        if node.read_only:
            node.require_writable()
        permissions = self.edge.permissions
        if permissions is not self._found_writing:  # looking into them takes longer than writing 4 KiB
            if not permissions & Permission.WRITE:
                raise ReadOnly(f"{self.edge.user} holds this image for reading only", filename=node.filename)
            self._found_writing = permissions
        return node

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Read without waiting, or return None. Concurrency: runs to completion."""
        node = self.check_range(offset, length)
        if not length:
            return b""
        return None if self.traffic.held else node.try_read(offset, length)

    async def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`. Concurrency: may suspend."""
        node = self._node
        if node is None or offset < 0 or length < 0 or offset + length > node.size:
            node = self.check_range(offset, length)
        if not length:
            return b""
        if not self.traffic.held:
            data = node.try_read(offset, length)
            if data is not None:
                return data
        async with self.traffic:
            return await self.check_range(offset, length).read(offset, length)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a writable view of bytes from `offset`."""
        view = _in_bytes(buffer)
        async with self.traffic:
            node = self.check_range(offset, len(view))
            if view:
                await node.read_into(offset, view)

    def try_write(self, offset: int, data: Buffer) -> bool:
        """Write without waiting, or return False: await `write`; see `Node.try_write`."""
        if self.traffic.held:
            return False
        if isinstance(data, memoryview):
            data = _in_bytes(data)
        self.check_range(offset, len(data))
        node = self.check_writable()
        return node.try_write(offset, data) if data else True

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write all of `data`; see `Node.write`."""
        if isinstance(data, memoryview):
            data = _in_bytes(data)
        if not fua and self.try_write(offset, data):
            self._left_of_turn -= len(data)
            if self._left_of_turn < 0:
                self._left_of_turn = TURN
                await asyncio.sleep(0)
            return
        async with self.traffic:
            self.check_range(offset, len(data))
            node = self.check_writable()
            if data:
                await node.write(offset, data, fua=fua)

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Make a range read as zeros; see `Node.write_zeroes`."""
        async with self.traffic:
            self.check_range(offset, length)
            node = self.check_writable()
            if length:
                await node.write_zeroes(offset, length, unmap=unmap, no_fallback=no_fallback, fua=fua)

    async def discard(self, offset: int, length: int) -> None:
        """Say that a range is of no more use; see `Node.discard`."""
        async with self.traffic:
            self.check_range(offset, length)
            node = self.check_writable()
            if length:
                await node.discard(offset, length)

    async def flush(self) -> None:
        """Bring every finished write to stable storage."""
        async with self.traffic:
            await self.node.flush()

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        """Change the size in bytes; see `Node.resize`."""
        async with self.traffic:
            node = self.check_writable()
            if not 0 <= size <= OFFSET_MAX:
                raise OutOfRange(f"a disk cannot be {size} bytes long", filename=node.filename)
            await node.resize(size, preallocation=preallocation, exact=exact)

    async def resolve(self, offset: int, length: int) -> list[Span]:
        """Say where a range is, down to the leaves; see `Node.resolve`."""
        async with self.traffic:
            node = self.check_range(offset, length)
            return await node.resolve(offset, length) if length else []

    async def allocation(self, offset: int, length: int) -> list[Span]:
        """As `resolve`, with the storage's holes as zeros; see `Node.allocation`."""
        async with self.traffic:
            node = self.check_range(offset, length)
            return await node.allocation(offset, length) if length else []

    @asynccontextmanager
    async def drained(self) -> AsyncGenerator[None, None]:
        """Hold new requests back while the block runs; nothing is in flight inside it."""
        await self.traffic.drain()
        try:
            yield
        finally:
            self.traffic.release()


def _in_bytes(view: memoryview) -> memoryview:
    """Return the same memory, so that lengths and slices count bytes."""
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")
