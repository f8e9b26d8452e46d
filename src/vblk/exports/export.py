"""What every export promises, whatever its clients speak.

Owns: the life of an export from its start to the one moment in which it has ended.
It knows no protocol.

Ordering rule: an export that stops takes no new clients; what its clients asked for
ends first, then they are let go, then the handle; `on_end` is called last.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from vblk.graph.handle import Handle
from vblk.graph.registry import Graph
from vblk.graph.statistics import Statistics


class Export(ABC):
    """A node, shown to clients outside of the graph.

    Concurrency: belongs to one event loop's thread.
    """

    type: ClassVar[str]

    def __init__(self, id: str, graph: Graph, handle: Handle, *, writable: bool) -> None:
        """Show what `handle` holds, and take the handle over.

        Args:
            id: The name of the export among all exports, whatever their kind.
            graph: The graph that the handle belongs to.
            handle: The export's edge. Its node may be replaced by changes of the graph.
            writable: Whether clients may change the disk; the handle has to allow it.
        """
        self.id = id
        self.graph = graph
        self.handle = handle
        self.writable = writable
        self.statistics = Statistics()
        self.shutting_down = False
        self.on_end: Callable[[Export], None] | None = None
        """Called once, when the export has ended."""
        self._stopping: asyncio.Task[None] | None = None

    @property
    @abstractmethod
    def users(self) -> int:
        """How many clients are connected, or how often the file is open."""

    @abstractmethod
    async def start(self) -> None:
        """Let clients come.

        Raises:
            BlockError: That cannot be; the handle is still the export's.
        """

    async def stop(self, *, hard: bool = False) -> None:
        """End: clients are let go when what they asked for has ended, then the handle is released.

        With `hard` they are cut off first: their requests end, but nobody waits
        until they have taken the answers. Whoever comes second waits for the first.

        Cancellation: the export ends all the same.
        """
        self.shutting_down = True
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(hard=hard))
        elif hard:
            self.cut_off()
        await asyncio.shield(self._stopping)

    async def _stop(self, *, hard: bool) -> None:
        if hard:
            self.cut_off()
        try:
            await self.let_go()
        finally:
            try:
                await self.graph.release(self.handle)
            finally:
                if self.on_end is not None:
                    self.on_end(self)

    @abstractmethod
    def cut_off(self) -> None:
        """Hear no client any more. May be called at any time, more than once."""

    @abstractmethod
    async def let_go(self) -> None:
        """Wait until every request has ended and every client is gone; take no new ones."""
