"""The ledger of a mirror that nobody writes beside: one offset, in the journal of a copy.

Owns: up to where everything is on the target. The journal, and the name of the target
while it is not whole, are `vblk.jobs.resumption`'s.

Ordering rule: what is before the offset is flushed before it is noted.
"""

import asyncio
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from vblk.aio.clock import Clock
from vblk.aio.engine import Engine
from vblk.errors import BlockError
from vblk.graph.dirty_bitmap import DirtyBitmap
from vblk.graph.node import Node
from vblk.jobs import resumption
from vblk.jobs.mirror_ledger import NoLedger
from vblk.jobs.resumption import Journal


class OffsetLedger(NoLedger):
    """Notes how far a mirror is whose source nobody writes."""

    def __init__(self, journal: Journal, engine: Engine, target: Node) -> None:
        self._journal = journal
        self._engine = engine
        self._target = target
        self._bitmap: DirtyBitmap | None = None
        self._flying: list[int] = []
        self._marked = asyncio.Event()

    async def start(self, bitmap: DirtyBitmap) -> None:
        """Go on behind the offset."""
        self._bitmap = bitmap

    def undone(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield what of a range is behind the offset."""
        start = max(offset, self._journal.done)
        if start < offset + length:
            yield start, offset + length - start

    @contextmanager
    def copying(self, offset: int, length: int) -> Generator[None]:
        """Note that what begins there is not on the target."""
        self._flying.append(offset)
        try:
            yield
        finally:
            self._flying.remove(offset)

    def all_is_marked(self) -> None:
        """Take what is not marked for what is done, from now on."""
        self._marked.set()

    async def keep(self, clock: Clock) -> None:
        """Note the offset, until it is cancelled, or cannot be noted."""
        await self._marked.wait()
        with suppress(BlockError):
            while True:
                await clock.sleep(resumption.PERIOD)
                if (done := self._done()) > self._journal.done:
                    await self._target.flush()
                    await self._engine.run(partial(self._journal.note, done))
        await super().keep(clock)

    def _done(self) -> int:
        bitmap = self._bitmap
        assert bitmap is not None
        marked = (offset for offset, _, dirty in bitmap.ranges(0, bitmap.size) if dirty)
        return min([next(marked, bitmap.size), *self._flying])
