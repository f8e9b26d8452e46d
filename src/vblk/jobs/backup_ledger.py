"""The ledger of a backup: which regions of the old disk are in the target, durably.

Owns: when that is noted. The file is `vblk.jobs.ledger`'s, the copying the filter's.

Ordering rules:
- The disk as it is at the beginning is durable before anything is noted of it.
- What is in the target is flushed before it is noted. Users change a region after
  that; those who come meanwhile share the flush and the note. So what is not noted is
  in the source as it was.
"""

from collections.abc import Iterable
from itertools import chain
from typing import Final

from vblk.aio.clock import Clock
from vblk.errors import BlockError
from vblk.filters.once_copier import Notes, OnceCopier
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.jobs.ledger import REGIONS_MOST, Ledger
from vblk.jobs.ledger_keeper import LedgerKeeper

PERIOD: Final = 5.0
"""Seconds between two notes of what nobody waits for."""


class BackupLedger(LedgerKeeper, Notes):
    """Keeps the ledger of a backup; see `LedgerKeeper`. `unit` is the least that is copied together."""

    def __init__(self, ledger: Ledger, graph: Graph, how: str, source: Node, target: Node, unit: int) -> None:
        super().__init__(ledger, graph, how, source, target, least=unit, most=REGIONS_MOST)
        self._copied: list[tuple[int, int]] = []
        """Ranges that are in the target, and of which nobody was told to wait for the note."""

    async def start(self, copier: OnceCopier) -> None:
        """Write the ledger, and let `copier` copy what is not noted; nothing is in flight.

        Raises:
            BlockError: The disk cannot be flushed, or the ledger not be written.
        """
        await self._begin()
        copier.note_in(self, self.region)
        for first, stop in self._map.undone(0, len(self._map)):
            copier.todo.set(first * self.region, (stop - first) * self.region)

    def has(self, offset: int, length: int) -> bool:
        """Tell whether all of a range is noted, or nothing is noted any more."""
        return self._map.surely_done(*self._regions(offset, length)) or not self.is_kept

    def copied(self, offset: int, length: int) -> None:
        """Note, later, that whole regions are in the target, or left out."""
        self._copied.append((offset, length))

    async def noted(self, offset: int, length: int) -> None:
        """Return when regions that are in the target are noted."""
        await self._note_all([(offset, length)])

    async def keep(self, clock: Clock) -> None:
        """Note what was copied, until it is cancelled."""
        while True:
            await clock.sleep(PERIOD)
            if self.is_kept:
                copied, self._copied = self._copied, []
                await self._note_all(copied)

    async def _note_all(self, ranges: list[tuple[int, int]]) -> None:
        try:
            await self._target.flush()
        except BlockError:
            await self._give_up()
        else:
            await self._note(self._within(ranges))

    def _within(self, ranges: list[tuple[int, int]]) -> Iterable[int]:
        return chain.from_iterable(range(*self._regions(*each)) for each in ranges)

    def _done(self) -> Iterable[int]:
        """Return what was copied since the last note."""
        return self._within(self._copied)
