"""The ledger of a mirror: which regions of the target are the same as the source's, durably.

Owns: when a region counts as done, and that it does no more before a user changes it.
The file is `vblk.jobs.ledger`'s.

Ordering rules:
- A region is done when nothing of it is marked, being changed or being copied, at the
  start and at the end of a flush of both sides between which nothing of the kind was.
- Before a user changes a region that is done, the file says durably that it is not.
  Users who come meanwhile share that. What is not done costs them nothing.
- A region that users opened is done again after a whole period without a change: who
  writes there all the time pays once.
"""

import asyncio
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

from vblk.aio.clock import Clock
from vblk.errors import BlockError
from vblk.graph.dirty_bitmap import DirtyBitmap
from vblk.graph.guarding import Guard, Ticket
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.jobs.ledger import Ledger
from vblk.jobs.ledger_keeper import LedgerKeeper
from vblk.jobs.region_map import RegionMap
from vblk.units import MIB

PERIOD: Final = 5.0
"""Seconds between two looks for regions that are done."""
REGION_LEAST: Final = MIB
REGIONS_MOST: Final = 8192


class NoLedger:
    """What a mirror asks of its ledger where it has none."""

    async def settled(self) -> None:
        """Return when it has begun, or the job has ended."""

    async def prepare(self) -> None:
        """Do what takes long of `start`."""

    async def start(self, bitmap: DirtyBitmap) -> None:
        """Begin, or go on; nothing is in flight on either node, and `bitmap` marks what changes from now on.

        Raises:
            JobError: A disk was changed in the last moment.
            BlockError: The ledger cannot be written.
        """

    def undone(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield what of a range is still to be copied: (offset, length)."""
        yield offset, length

    def copying(self, offset: int, length: int) -> AbstractContextManager[None]:
        """Know of a copy, from before its marks are cleared to its end."""
        return nullcontext()

    def all_is_marked(self) -> None:
        """Note that everything is marked that is to be copied of the disk as it is."""

    async def keep(self, clock: Clock) -> None:
        """Look for regions that are done, every now and then, for ever."""
        await asyncio.Event().wait()

    def shown(self) -> dict[str, Any]:
        """Return what `query-job-progress` says of it."""
        return {}

    async def finish(self) -> None:
        """Note, durably, that the target is whole, before it is changed by those who go there."""

    async def stop(self, *, succeeded: bool) -> None:
        """Let go of both nodes; the ledger goes after a success, or else stays if it is of use."""


class MirrorLedger(LedgerKeeper, NoLedger, Guard):
    """Keeps the ledger of a mirror, and has a say in the changes of its source; see `LedgerKeeper`."""

    def __init__(
        self, ledger: Ledger, graph: Graph, how: str, source: Node, target: Node, *, linked: bool = False
    ) -> None:
        least, most = REGION_LEAST, REGIONS_MOST
        super().__init__(ledger, graph, how, source, target, least=least, most=most, linked=linked)
        self._bitmap: DirtyBitmap | None = None
        self._active: list[tuple[int, int]] = []
        self._disturbed: set[int] = set()
        """Regions that were changed or copied since the last look."""
        self._opened: set[int] = set()
        """Regions that were done, and that users changed then."""
        self._marked = asyncio.Event()
        self._synced = 0

    async def start(self, bitmap: DirtyBitmap) -> None:
        """Write the ledger, and have a say from then on."""
        self._bitmap = bitmap
        await self._begin(self)

    def undone(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield what of a range is in regions that are not done."""
        for first, stop in self._map.undone(*self._regions(offset, length)):
            start, end = max(offset, first << self._shift), min(offset + length, stop << self._shift)
            yield start, end - start

    # What users change

    def enter(self, offset: int, length: int) -> Ticket | None:
        """Let a change of the source begin if the file surely says of none of its regions that it is done."""
        first, stop = regions = self._regions(offset, length)
        if not self._map.surely_undone(first, stop):
            return None
        self._active.append(regions)
        self._ledger.source.begun()
        return regions

    async def permit(self, offset: int, length: int) -> None:
        """Let the file say so."""
        first, stop = self._regions(offset, length)
        if self._map.clear(first, stop):
            self._opened.update(range(first, stop))
        await self._store()
        if not self.is_kept:
            self._map = RegionMap(len(self._map))

    def leave(self, ticket: Ticket) -> None:
        """Note its end; what it changed is marked."""
        self._ledger.source.ended()
        self._settle(*ticket)

    def flushing(self) -> None:
        """Note that the source may be written to."""
        self._ledger.source.note()

    @contextmanager
    def copying(self, offset: int, length: int) -> Generator[None]:
        """Note that its regions are not at rest."""
        regions = self._regions(offset, length)
        self._active.append(regions)
        try:
            yield
        finally:
            self._settle(*regions)

    def _settle(self, first: int, stop: int) -> None:
        self._active.remove((first, stop))
        if stop - first == 1:
            self._disturbed.add(first)
        else:
            self._disturbed.update(range(first, stop))

    # What is done

    def all_is_marked(self) -> None:
        """Take what is not marked for what is done, from now on."""
        self._marked.set()

    async def keep(self, clock: Clock) -> None:
        """Note which regions are done, until it is cancelled."""
        await self._marked.wait()
        while True:
            await clock.sleep(PERIOD)
            if self.is_kept:
                await self._look()

    async def _look(self) -> None:
        disturbed, self._disturbed = self._disturbed, set()
        resting = self._opened - disturbed
        fresh = [each for each in self._clean() if each not in self._opened or each in resting]
        try:
            if fresh:
                await self._target.flush()
                await self._source.flush()
        except BlockError:
            return  # of what is wrong with the disks the job finds out by itself
        still = set(self._clean()) - self._disturbed
        done = [each for each in fresh if each in still]
        moment = max(self._ledger.source.moment, self._ledger.target.moment)
        if done or moment != self._synced:
            self._synced = moment
            self._opened.difference_update(done)
            await self._note(done)

    def _done(self) -> Iterable[int]:
        """Return the regions of which nothing is marked, if it is known what was to be copied."""
        return self._clean() if self._marked.is_set() else ()

    def _clean(self) -> Iterator[int]:
        """Yield the regions that are not done and of which nothing is marked or under way."""
        bitmap = self._bitmap
        assert bitmap is not None
        busy = {region for first, stop in self._active for region in range(first, stop)}
        for region in range(len(self._map)):
            if region in busy or self._map.is_wanted(region):
                continue
            start = region << self._shift
            if bitmap.is_dirty(start):
                continue
            length = min(self.region, bitmap.size - start)
            if not any(dirty for _, _, dirty in bitmap.ranges(start, length)):
                yield region

    async def stop(self, *, succeeded: bool) -> None:
        """Let go of both nodes, with nothing in flight."""
        async with self._graph.drained(self._source):
            await super().stop(succeeded=succeeded)
