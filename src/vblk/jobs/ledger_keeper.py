"""A job's side of its ledger: begun or gone on by, and let go of.

Owns: the order in which a ledger is begun and left, and what becomes of a job whose
ledger cannot be written: it goes on without. When a region is done is for the
subclasses.

Ordering rule: nothing is in flight on source and target when a ledger begins and when
it is left; the source is flushed then. It names the identities that images get before
they get them.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from vblk.errors import BlockError, JobError
from vblk.graph.guarding import Guard, Ticket, guard_node, is_guarded, unguard
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.jobs.identity import Fact, Facts
from vblk.jobs.ledger import Activity, Ledger, Task, region_for
from vblk.jobs.region_map import RegionMap


class Watch(Guard):
    """Notes when a node is changed, and forbids nothing."""

    def __init__(self, activity: Activity) -> None:
        self._activity = activity

    def enter(self, offset: int, length: int) -> Ticket:
        """Note a change."""
        self._activity.begun()
        return 0, 0

    async def permit(self, offset: int, length: int) -> None:
        """Permit everything."""

    def leave(self, ticket: Ticket) -> None:
        """Note its end."""
        self._activity.ended()

    def flushing(self) -> None:
        """Note that something may be written."""
        self._activity.note()


class LedgerKeeper(ABC):
    """Keeps the ledger of one job.

    Args:
        ledger: The ledger, which is claimed.
        graph: The nodes'.
        how: What the job does, in words: another job does not go on by this ledger.
        source: Where it copies from.
        target: Where it copies to.
        least: The least bytes of a region, a power of two.
        most: The most regions.
        linked: Whether the source is a chain of VHDX that stands on the target.

    Raises:
        JobError: The ledger is about something else, or a disk was changed since.
        Unsupported: Nobody could tell whether one of the disks is changed.
    """

    def __init__(
        self,
        ledger: Ledger,
        graph: Graph,
        how: str,
        source: Node,
        target: Node,
        *,
        least: int,
        most: int,
        linked: bool = False,
    ) -> None:
        self._ledger = ledger
        self._graph = graph
        self._how = how
        self._source = source
        self._target = target
        self._linked = linked
        task = ledger.task
        self.region = region_for(source.size, least, most) if task is None else task.region
        if self.region < least or -(-source.size // self.region) > most:
            raise ledger.refusal("its regions make no sense")
        self._shift = self.region.bit_length() - 1
        self._map = RegionMap(0)
        self._has_begun = False
        self._settled = asyncio.Event()
        self._giving_up: asyncio.Future[None] | None = None
        self._require_same()

    @property
    def is_kept(self) -> bool:
        """Whether there is, or will be, something to go on from."""
        return self._giving_up is None

    def shown(self) -> dict[str, Any]:
        """Return what `query-job-progress` says of it."""
        return {"resumable": self.is_kept}

    async def settled(self) -> None:
        """Return when the ledger has begun, so that what users change is known, or the job has ended."""
        await self._settled.wait()

    def _facts(self) -> tuple[Facts, Facts]:
        source = Facts(self._source, leaving_out=self._target)
        return source, Facts(self._target, alone=True, linked=self._linked)

    def _task(self, source: tuple[Fact, ...], target: tuple[Fact, ...]) -> Task:
        return Task(self._how, self._source.size, self.region, source, target)

    def _require_same(self) -> None:
        source, target = self._facts()
        self._ledger.require(self._task(source.found, target.found))

    async def prepare(self) -> None:
        """Do what takes long before a ledger is begun."""
        for facts in self._facts():
            await facts.prepare()

    async def _begin(self, guard: Guard | None = None) -> None:
        """Write the ledger; `guard` has a say from then on in the changes of the source.

        Raises:
            JobError: A disk was changed in the last moment, or another job watches it.
            BlockError: The source cannot be flushed, or the ledger not be written.
        """
        for node in (self._source, self._target):
            if is_guarded(node):
                raise JobError(f"another job keeps a journal of node '{node.name}'")
        self._require_same()
        await self._source.flush()
        source, target = self._facts()
        await self._ledger.begin(self._task(source.pending(), target.pending()))
        for facts in (source, target):
            await facts.take_on()
        self._map = self._ledger.map
        guard_node(self._source, guard or Watch(self._ledger.source))
        guard_node(self._target, Watch(self._ledger.target))
        self._has_begun = True
        self._settled.set()

    def _regions(self, offset: int, length: int) -> tuple[int, int]:
        """Return the first region that has a byte of a range, and that behind the last."""
        return offset >> self._shift, (offset + length - 1 >> self._shift) + 1

    async def _store(self) -> None:
        """Let the file say what it is to say, durably."""
        try:
            await self._ledger.store()
        except BlockError:
            await self._give_up()

    async def _note(self, regions: Iterable[int]) -> None:
        """Let the file say that some regions are done, durably."""
        self._map.set(regions)
        await self._store()

    async def _give_up(self) -> None:
        """Go on without a ledger that cannot be written; users do not suffer for it."""
        if self._giving_up is None:
            self._giving_up = asyncio.ensure_future(self._ledger.forget())
        await asyncio.shield(self._giving_up)

    async def finish(self) -> None:
        """Note, durably, that the target is whole, before it is changed by those who go there."""
        if self.is_kept:
            try:
                await self._ledger.finish()
            except BlockError:
                await self._give_up()

    async def stop(self, *, succeeded: bool) -> None:
        """Let go of both nodes; the ledger goes after a success, or else stays if it is of use."""
        self._settled.set()
        if not self._has_begun:
            self._ledger.close()
            return
        self._has_begun = False
        if not succeeded and self.is_kept:
            await self._note_last()
        unguard(self._source)
        unguard(self._target)
        if not self.is_kept:
            return
        if succeeded or self._map.surely_undone(0, len(self._map)):
            await self._ledger.forget()
            return
        for facts in self._facts():
            facts.forget()
        await self._ledger.rest()

    async def _note_last(self) -> None:
        """Note what is done, and leave nothing that either node would write later; nothing is in flight."""
        try:
            for node in (self._target, self._source):
                await node.flush()
        except BlockError:
            return  # the job has failed for that, or others find out
        await self._note(self._done())

    @abstractmethod
    def _done(self) -> Iterable[int]:
        """Return regions that are done now that both nodes were flushed."""
