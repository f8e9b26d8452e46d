"""A node over several children that all hold the same disk.

Owns: that they do. Changes of one range are made one after the other, in every
child, and nobody reads a range while some children have a change and others have
not. What is made of differences is for the subclasses.

Ordering rule: a change holds its range alone until all children have answered.
"""

import errno
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

from vblk.errors import BlockError, StorageError, Unsupported
from vblk.extent import Kind
from vblk.graph.edge import Access, Edge, Permission, Role
from vblk.graph.node import Buffer, Node, Opaque, Preallocation, Span
from vblk.graph.site import Site
from vblk.runtime.fan_out import fan_out
from vblk.runtime.range_lock import RangeLock
from vblk.runtime.uninterrupted import to_the_end

Answer = bytes | BlockError | None
"""What a child made of a request: what it read, or its error."""

Ask = Callable[[Node], Coroutine[Any, Any, bytes | None]]


class CopiesNode(Opaque):
    """A node that makes every change in each of `copies`."""

    own_access = Access(Permission.NONE, Permission.ALL & ~(Permission.WRITE | Permission.RESIZE))
    """What others write to one child is in none of the others."""

    def __init__(self, name: str, filename: str, *, read_only: bool, copies: Sequence[Node]) -> None:
        super().__init__(name, filename, read_only=read_only)
        self.copies = list(copies)
        self.alignment = max(node.alignment for node in copies)
        self.locks = RangeLock()

    def child_changed(self, edge: Edge) -> None:
        """Go on with the children that are there now."""
        super().child_changed(edge)
        self.copies = [edge.node for edge in self.children.values()]
        self.alignment = max(node.alignment for node in self.copies)

    def child_left(self, edge: Edge) -> None:
        """Go on with the children that are left."""
        super().child_left(edge)
        if self.children:  # there are none while the node is closed
            self.copies = [each.node for each in self.children.values()]

    @property
    def size(self) -> int:
        """The length in bytes, which all children have."""
        return self.copies[0].size

    @abstractmethod
    def judge(self, operation: str, offset: int, length: int, answers: Sequence[Answer]) -> None:
        """Raise what a change has to raise, seeing what the children made of it."""

    async def asked(self, ask: Ask) -> list[Answer]:
        """Ask all children side by side; return when the last has answered.

        Cancellation: raised then, so that no child is left without a change that others have.
        """
        answers: list[Answer] = [None] * len(self.copies)

        async def one(index: int, node: Node) -> None:
            try:
                answers[index] = await ask(node)
            except BlockError as error:
                answers[index] = error

        copies = self.copies
        await to_the_end(fan_out((one(index, node) for index, node in enumerate(copies)), len(copies)))
        return answers

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Never answer at once: others have to be asked as well."""
        return None

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Read into a buffer."""
        buffer[:] = await self.read(offset, len(buffer))

    @asynccontextmanager
    async def _alone(self, offset: int, length: int) -> AsyncGenerator[None]:
        self.require_writable()
        if not length:
            yield
            return
        async with self.locks.exclusive(offset, length):
            yield

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write to every child."""
        length = memoryview(data).nbytes
        async with self._alone(offset, length):
            answers = await self.asked(lambda node: node.write(offset, data, fua=fua))
            self.judge("write", offset, length, answers)

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Write zeros to every child."""
        async with self._alone(offset, length):
            answers = await self.asked(
                lambda node: node.write_zeroes(offset, length, unmap=unmap, no_fallback=no_fallback, fua=fua)
            )
            if no_fallback and any(isinstance(answer, Unsupported) for answer in answers):
                raise Unsupported("Operation not supported", filename=self.filename, operation="write-zeroes")
            self.judge("write", offset, length, answers)

    async def discard(self, offset: int, length: int) -> None:
        """Do nothing: what children read after a discard may differ."""
        self.require_writable()

    async def flush(self) -> None:
        """Flush every child."""
        self.judge("flush", 0, 0, await self.asked(lambda node: node.flush()))

    async def allocation(self, offset: int, length: int) -> list[Span]:
        """Answer data: the children's holes need not be the same."""
        return [Span(Kind.DATA, offset, length, self, offset)]

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        """Refuse: children that fail would differ in size from then on."""
        self.require_writable()
        raise Unsupported("Image format driver does not support resize", filename=self.filename)

    async def reopen(self, *, read_only: bool) -> None:
        """Take on the new access, with all children as they are."""
        self.read_only = read_only

    async def close(self) -> None:
        """There is nothing to release."""


def same_size(nodes: Sequence[Node], filename: str) -> None:
    """Refuse children of different sizes.

    Raises:
        StorageError: With the sizes.
    """
    sizes = sorted({node.size for node in nodes})
    if len(sizes) > 1:
        raise StorageError(
            errno.EIO, f"the children differ in size: {', '.join(map(str, sizes))} bytes", filename=filename
        )


def first_difference(one: bytes, other: bytes) -> int:
    """Return where two texts of equal length begin to differ; their length if they do not."""
    low, high = 0, len(one)
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


async def take(site: Site, node: CopiesNode, keys: Sequence[str], copies: Sequence[Node]) -> None:
    """Add a node to the graph, over children under the names `keys`."""
    await site.take(node, copies[0], keys[0], Role.FILTERED)
    for key, copy in zip(keys[1:], copies[1:], strict=True):
        site.graph.attach(node, Role.FILTERED, copy, key)
