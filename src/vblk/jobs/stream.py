"""Streaming: what shows through an image of those below it becomes its own, while it is in use.

Owns: the hold on the chain, the order of the steps, and what of a range is missing in
the image. How a chain's links change is `vblk.jobs.live_chain`'s; how nothing newer is
overwritten, `vblk.graph.filling`'s.

Ordering rule: all data is in the image, durably, before its file names another one; the
graph leads there last. Requests wait meanwhile, and the disk reads the same throughout.
"""

from collections.abc import Sequence
from typing import ClassVar, Unpack

from vblk.errors import BlockError
from vblk.extent import Kind
from vblk.graph.edge import READING, SHARED_BY_READER, Permission, Role
from vblk.graph.edges import frozen, reachable
from vblk.graph.filling import Filler, filled
from vblk.graph.handle import Handle
from vblk.graph.node import Node, Span
from vblk.graph.plane import Mover
from vblk.graph.registry import Graph
from vblk.graph.reopening import NodeChange
from vblk.jobs.block_job import OnError
from vblk.jobs.job import Life
from vblk.jobs.live_chain import Hold, Stretch, keep_identity, name_backing
from vblk.jobs.sweep import SweepJob

FILLING = Permission.CONSISTENT_READ | Permission.WRITE_UNCHANGED


class Pull(Hold):
    """A stream's hold: it fills the top, and nobody changes what is below that; see `Hold`."""

    def __init__(self, graph: Graph, stretch: Stretch, user: str, why: str) -> None:
        super().__init__(graph, stretch, user, why, stretch.layers)
        self.top: Handle
        self.filler: Filler

    async def _take(self) -> None:
        top, *below = self.stretch.layers
        was_read_only = await self._let_write(top)
        keep_identity(self.graph, top, was_read_only=was_read_only)
        self.top = self._hold(top, FILLING, Permission.ALL)
        for node in below:
            self._hold(node, READING, SHARED_BY_READER)
        async with self.graph.drained(top):
            self.filler = self._stack.enter_context(filled(top))
        edges = self.stretch.edges(to_base=self.stretch.base is None)
        self._freezing.enter_context(frozen(edges))

    async def stand_on_base(self, name: str | None) -> None:
        """Let the image stand on what the last of the others stands on, first in its file."""
        self.thaw()
        top, last = self.stretch.top, self.stretch.layers[-1]
        base = None if self.stretch.base is None else last.child(Role.BACKING)
        async with self.graph.drained(top):
            await name_backing(self.graph, top, base, None if base is None else name)
            change = NodeChange(top, top.read_only, {Role.BACKING.value: base})
            await self.graph.change([change])

    async def release(self) -> None:
        """Let go of everything, with nothing in flight; see `Hold.release`."""
        async with self.graph.drained(self.stretch.top):
            await super().release()


class StreamJob(SweepJob):
    """Fills an image with what it shows of some images below it, and takes these out of its chain.

    Args:
        id: The job's.
        pull: Its hold on the chain; the job lets go of it at its end.
        on_error: What becomes of failures. With what is ignored the chain stays.
        backing_file: The name in the image's file of what it stands on then; by default where that is.
        life: What every job has.
    """

    type: ClassVar[str] = "stream"
    skips_ignored: ClassVar[bool] = True

    def __init__(
        self,
        id: str,
        pull: Pull,
        on_error: OnError = OnError.REPORT,
        *,
        backing_file: str | None = None,
        **life: Unpack[Life],
    ) -> None:
        super().__init__(id, on_error, **life)
        self._pull = pull
        self._backing_file = backing_file
        self._mover = Mover(pull.graph.engine)

    @property
    def filler(self) -> Filler:
        """The way into the image past those who write to it."""
        return self._pull.filler

    @property
    def _below(self) -> Sequence[Node]:
        return self._pull.stretch.layers[1:]

    async def run(self) -> None:
        """Bring all data up, durably."""
        if not self._below:
            return
        size = self.total = self._pull.top.size
        await self.sweep(size)
        if self.ignored is not None:
            raise self.ignored
        await self._pull.top.flush()

    async def _missing(self, offset: int, length: int) -> list[Span]:
        """Say what the image has to get of a range."""
        top, *below = self._pull.stretch.layers
        spans = await top.lacks(offset, length, below)
        if self._pull.stretch.base is not None:
            return spans
        return [span for span in spans if span.kind is not Kind.ZERO]

    async def look(self, offset: int, length: int) -> list[Span]:
        """Return what is missing in the image."""
        async with self._pull.top.traffic:
            return await self._missing(offset, length)

    async def carry(self, offset: int, length: int) -> None:
        """Bring it there."""
        filler = self.filler
        async with self._pull.top.traffic, filler.alone(offset, length):
            for span in await self._missing(offset, length):
                await self._mover.bring(span, filler)

    def _is_reading(self, error: BlockError) -> bool:
        """Tell by whose file it is."""
        top = self._pull.stretch.top
        return error.filename not in {top.filename, *(node.filename for node in reachable(top.file))}

    async def prepare(self) -> None:
        """Take the others out of the chain."""
        if self._below:
            await self._pull.stand_on_base(self._backing_file)

    async def clean(self) -> None:
        """Let go of the chain; images that nobody uses any more are closed."""
        await self._pull.release()
