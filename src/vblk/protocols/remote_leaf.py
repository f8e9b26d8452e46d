"""What images on other machines have in common, whatever protocol reaches them.

Owns: reads that are never answered at once, the memory of what is not flushed yet,
when a flush goes to the server, and how an image ends. The requests themselves are
each protocol's.

Ordering rule: at the end everything is flushed, then no flush is under way, and only
then the server is left.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar

from vblk.graph.node import Leaf
from vblk.graph.registry import Graph
from vblk.protocols.cache_mode import CacheMode
from vblk.runtime.flush_sequencer import FlushSequencer


class RemoteLeaf(Leaf):
    """An image on another machine.

    Concurrency: belongs to one event loop's thread, with any number of requests
    in flight; overlapping writes in flight leave either's bytes.
    """

    def __init__(self, name: str, filename: str, *, read_only: bool, cache: CacheMode) -> None:
        super().__init__(name, filename, read_only=read_only)
        self.cache = cache
        self._closed = False
        self._dirty = False
        """Whether there is anything to flush. Who changes the image says so before it does."""
        self._flusher = FlushSequencer(self._flush_once, filename=filename)

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Nothing is here without waiting."""
        return None

    async def read(self, offset: int, length: int) -> bytes:
        """Read bytes; see `Node.read`."""
        buffer = bytearray(length)
        await self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    async def flush(self) -> None:
        """Have the server bring everything to stable storage; see `Node.flush`."""
        if self.read_only:
            self._flusher.check_healthy()
        elif not self.cache.no_flush:
            await self._flusher.flush()

    async def _flush_once(self) -> None:
        self._dirty = False
        await self._flush_server()

    @abstractmethod
    async def _flush_server(self) -> None:
        """Flush, where the server can."""

    @abstractmethod
    async def _leave(self) -> None:
        """Say goodbye to the server; nothing is in flight."""

    async def allocated_bytes(self) -> int | None:
        """Say nothing: a server does not tell."""
        return None

    def info(self) -> Mapping[str, Any]:
        """Nothing is special to an image elsewhere."""
        return {}

    async def close(self) -> None:
        """Have the server make everything stable, then leave it. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._dirty and not self._flusher.failed:
                await self.flush()
            await self._flusher.drain()
        finally:
            await self._leave()


RemoteT = TypeVar("RemoteT", bound=RemoteLeaf)


async def added(graph: Graph, node: RemoteT) -> RemoteT:
    """Add an open image to a graph; where that fails it is closed."""
    try:
        graph.add(node)
    except BaseException:
        await node.close()
        raise
    return node
