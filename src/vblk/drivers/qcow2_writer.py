"""Writing to a qcow2 image: the shell around planner, free space and session.

Owns: the tables that a plan asks for, and the references of space that is given
back. Plans are carried out by `vblk.drivers.plan_writer`. What is to be done is
decided in `vblk.formats.qcow2.planner`, when it becomes durable in
`vblk.drivers.qcow2_session`.

Ordering rule: space that nothing names any more, durably, loses its references;
when none is left it is punched out of the host's file, and used again after the
punch, when no read can look at it any more.
"""

import asyncio
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack
from itertools import groupby

from vblk.aio.engine import Engine
from vblk.drivers.plan_writer import PlanWriter, lengthen, payload_step, pieces
from vblk.drivers.qcow2 import Qcow2Node
from vblk.drivers.qcow2_session import Session
from vblk.errors import BlockError, NodeFailed, Unsupported
from vblk.extent import Missing
from vblk.formats.edits import EditedPages, Range
from vblk.formats.plan import Need
from vblk.formats.qcow2.compression import laid_out, pack
from vblk.formats.qcow2.counts import count_max
from vblk.formats.qcow2.header import Header
from vblk.formats.qcow2.image import Qcow2Image
from vblk.formats.qcow2.plan import Plan
from vblk.formats.qcow2.planner import Answer, NeedsCounts, NeedsCountTable, NeedsTable
from vblk.formats.qcow2.survey import survey_image
from vblk.formats.qcow2.tables import missing
from vblk.formats.qcow2.writing import ClusterWriter
from vblk.formats.space import Space
from vblk.graph.node import Buffer, Node
from vblk.units import MIB, OFFSET_MAX, align_down, align_up

ENTRIES_AT_ONCE = 8192
"""The most clusters that one plan without payload covers."""

COMPRESSED_AT_ONCE = 2 * MIB
"""The most bytes, or else one cluster, that are compressed into one piece of space."""

SECTOR = 512

PAGES_MAX = 4096
"""How many pages may wait for a flush before one is made."""


class Qcow2Writer(PlanWriter[Qcow2Node, ClusterWriter, Plan]):
    """The writing side of one node, whose image may be written."""

    def __init__(self, node: Qcow2Node) -> None:
        super().__init__(node, EditedPages(node.pages))
        self.session = Session(
            node.file,
            node.image.header,
            self._edits,
            rank=lambda page: self._clusters().rank(page),
            filename=node.filename,
            durable=self.give_up,
            header_changed=self._header_changed,
        )
        self._making_tables = asyncio.Lock()
        self._making_counts = asyncio.Lock()
        self._to_release: list[Range] = []
        self._releasing: asyncio.Task[None] | None = None
        self._compression: Engine | None = None
        """What packs clusters, where whole ones are to be."""

    @property
    def _unit(self) -> int:
        return self.node.image.geometry.cluster_size

    def _pieces(self, offset: int, length: int) -> Generator[tuple[int, int]]:
        step = payload_step(self._unit)
        return pieces(offset, length, step, step)

    def _needs_gate(self, planner: ClusterWriter, offset: int) -> bool:
        return planner.needs_gate(offset)

    def _check_healthy(self) -> None:
        self.session.check_healthy()

    async def _begin(self) -> None:
        await self.session.begin()

    # What the node asks for

    def follow_file(self, file: Node) -> None:
        """Go on in another node, metadata as well."""
        super().follow_file(file)
        self.session.file = file

    def compress(self, engine: Engine | None) -> None:
        """Compress the whole clusters of whatever is written from now on; with None not any more."""
        self._compression = engine

    async def write(self, offset: int, data: Buffer) -> None:
        """Write all of `data`, its whole clusters compressed if that is wanted."""
        if self._compression is None:
            await super().write(offset, data)
            return
        view, unit = memoryview(data), self._unit
        for start, length in pieces(offset, len(view), max(unit, COMPRESSED_AT_ONCE), unit):
            part = view[start - offset : start - offset + length]
            first = align_up(start, unit)
            last = start + length if start + length == self.node.size else align_down(start + length, unit)
            if first >= last:
                await super().write(start, part)
                continue
            if start < first:
                await super().write(start, part[: first - start])
            await self._write_compressed(first, part[first - start : last - start], self._compression)
            if last < start + length:
                await super().write(last, part[last - start :])

    async def _write_compressed(self, offset: int, view: memoryview, engine: Engine) -> None:
        """Write whole clusters, those compressed that become smaller by it."""
        image, unit = self.node.image, self._unit
        clusters = [view[at : at + unit] for at in range(0, len(view), unit)]
        method = image.compression

        def pack_all() -> list[bytes | None]:
            return [pack(_whole(cluster, unit), method) for cluster in clusters]

        packed = await engine.run(pack_all)
        at = 0
        for is_smaller, run in groupby(packed, key=lambda each: each is not None):
            same = list(run)
            start = at * unit
            at += len(same)
            if is_smaller:
                await self._write_packed(offset + start, [each for each in same if each is not None])
            else:
                await super().write(offset + start, view[start : at * unit])

    async def _write_packed(self, offset: int, packed: Sequence[bytes]) -> None:
        geometry = self.node.image.geometry
        layout = laid_out([len(each) for each in packed], self._unit, count_max(geometry.refcount_order))
        data = bytearray(align_up(sum(layout[-1]), SECTOR))
        for (start, length), each in zip(layout, packed, strict=True):
            data[start : start + length] = each
        length = min(len(packed) * self._unit, self.node.size - offset)
        make = _compressed_plan(offset, layout)
        async with self._planned(offset, length, make) as plan:
            await self._bring(plan.places[0].file_offset, memoryview(data))

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool, no_fallback: bool) -> None:
        """Make a range read as zeros; see `Node.write_zeroes`."""
        for start, count in self._entry_pieces(offset, length):
            make = _zero_plan(start, count, unmap)
            async with self._planned(start, count, make, no_fallback=no_fallback):
                pass

    async def discard(self, offset: int, length: int) -> None:
        """Forget a range; see `Node.discard`."""
        for start, count in self._entry_pieces(offset, length):
            async with self._planned(start, count, _discard_plan(start, count)):
                pass

    def _entry_pieces(self, offset: int, length: int) -> Generator[tuple[int, int]]:
        """Divide a guest range into what one plan without payload takes."""
        step = min(self.node.image.geometry.table_span, ENTRIES_AT_ONCE * self._unit)
        return pieces(offset, length, step, step)

    async def resize(self, size: int) -> None:
        """Make the disk `size` bytes long."""
        from vblk.drivers.qcow2_tables import cut_disk, grow_disk

        clusters = await self.prepared()
        async with self._gates.exclusive(0, OFFSET_MAX):
            await self.session.begin()
            await self.session.flush()
            if size > self.node.size:
                await grow_disk(self, clusters, size)
            elif size < self.node.size:
                await cut_disk(self, clusters, size)

    async def make_empty(self) -> None:
        """Let go of all clusters, durably."""
        clusters = await self.prepared()
        async with self._gates.exclusive(0, OFFSET_MAX):
            await self.session.begin()
            for start, count in self._entry_pieces(0, self.node.size):
                await self._change_hidden(clusters, _emptying_plan(start, count))
        await self.settle()

    async def change_backing(self, name: str | None, form: str | None) -> None:
        """Let the header name another backing file."""
        await self.session.begin()
        await self.session.flush()
        await self.session.publish(self.session.header.with_backing(name, form))

    async def flush(self) -> None:
        """Make everything durable that has returned."""
        await self.session.flush()

    async def settle(self) -> None:
        """Make everything durable, space given back included."""
        await self.session.flush()
        while self._releasing is not None or self._edits.is_dirty:
            if self._releasing is not None:
                await asyncio.wait([self._releasing])
            await self.session.flush()

    async def close(self) -> None:
        """End the session and cut the file behind what is used. Idempotent.

        Raises:
            NodeFailed: Something had failed; space may have leaked.
        """
        try:
            await self.settle()
        finally:
            if self._releasing is not None:
                await asyncio.wait([self._releasing])
        if self._planner is not None and self.session.begun:
            end = self._planner.space.used_end
            if end < self._file.size:
                await self._file.resize(end)
                await self._file.flush()
        self._planner = None

    # Plans

    def carried_out(self, planner: ClusterWriter, plan: Plan) -> AbstractAsyncContextManager[None]:
        """Open the way for a plan, and commit it when the block ends well."""
        return self._carry_out(planner, plan, len(plan.pages) + len(plan.tables), self.session.begin)

    async def answered(
        self, planner: ClusterWriter, make: Callable[[ClusterWriter], Plan | Missing | Need]
    ) -> Plan:
        """Ask for a plan until nothing that it needs is missing."""

        def ask(clusters: ClusterWriter) -> Plan | Missing | Need:
            clusters.backed_end = self.node.backed_end
            return make(clusters)

        return await super().answered(planner, ask)

    async def _make(self, planner: ClusterWriter, need: Need) -> None:
        """Make a table that is lacking: a change of its own, sound without what asked for it."""
        if isinstance(need, NeedsCountTable):
            from vblk.drivers.qcow2_tables import grow_count_table

            async with self._making_counts, self._extending:
                await self.session.begin()
                await grow_count_table(self, planner, need.index)
            return

        def make(clusters: ClusterWriter) -> Answer:
            if isinstance(need, NeedsTable):
                return clusters.plan_table(need.index)
            assert isinstance(need, NeedsCounts)
            return clusters.plan_counts(need.index)

        async with self._making_tables if isinstance(need, NeedsTable) else self._making_counts:
            plan = await self.answered(planner, make)
            if not plan.changes_nothing:
                async with self.carried_out(planner, plan):
                    pass

    async def fill(self, plan: Plan, *, unmap: bool = False, no_fallback: bool = False) -> None:
        """Do a plan's copies and zeros."""
        if no_fallback and plan.copies:
            raise Unsupported("these zeros would have to be written out", filename=self.node.filename)
        await super().fill(plan, unmap=unmap, no_fallback=no_fallback)

    # Space

    def _clusters(self) -> ClusterWriter:
        assert self._planner is not None, "nothing is edited before the survey"
        return self._planner

    async def _survey(self) -> ClusterWriter:
        node = self.node
        survey = await survey_image(node.image, node.read_tables, node.file.size)
        if survey.end > align_up(node.file.size, node.image.geometry.cluster_size):
            await self.session.begin()
            await lengthen(node.file, survey.end)
        space = Space(survey.free, survey.end, node.image.geometry.cluster_size)
        self._edits.batch_max = PAGES_MAX + 2 * node.image.geometry.cluster_size // node.pages.page_size
        return ClusterWriter(node.image, self._edits, space, survey.blocks, node.backed_end)

    def adopt(self, image: Qcow2Image) -> None:
        """Show the image as it is now, to readers and to the planner."""
        self.node.adopt(image)
        if self._planner is not None:
            self._planner.image = image

    def _header_changed(self, header: Header) -> None:
        self.adopt(Qcow2Image(header, self.node.filename))

    def give_up(self, ranges: list[Range]) -> None:
        """Take space that one who named it does not name any more, durably."""
        if ranges:
            self._to_release += ranges
            if self._releasing is None:
                self._releasing = asyncio.create_task(self._release())

    async def _release(self) -> None:
        """Count references down, and give what has none left back to the host, then to the pool."""
        try:
            while self._to_release and not self.session.failed:
                ranges, self._to_release = self._to_release, []
                freed = await self.drop_references(ranges)
                await self._punch(freed)
                self._clusters().space.defer(freed)
        except NodeFailed:
            pass  # the space leaks; whoever uses the node is told
        except BlockError as error:
            self.node.warnings.append(f"space has leaked: {error}")
        finally:
            self._releasing = None

    async def zero_hidden(self, clusters: ClusterWriter, start: int, end: int) -> None:
        """Let a range read as zeros, whatever stands behind it; the gate of all is held."""
        for offset, count in self._entry_pieces(start, end - start):
            await self._change_hidden(clusters, _zero_plan(offset, count, unmap=True))

    async def forget_hidden(self, clusters: ClusterWriter, start: int, end: int) -> None:
        """Let go of the clusters of a range that no backing file has; the gate of all is held."""
        for offset, count in self._entry_pieces(start, end - start):
            await self._change_hidden(clusters, _forgetting_plan(offset, count))

    async def _change_hidden(self, clusters: ClusterWriter, make: Callable[[ClusterWriter], Answer]) -> None:
        plan = await self.answered(clusters, make)
        if not plan.changes_nothing:
            async with self.carried_out(clusters, plan):
                await self.fill(plan)

    async def drop_references(self, ranges: list[Range]) -> list[Range]:
        """Take a reference from each cluster of some ranges; return those that have none left."""
        clusters = self._clusters()
        geometry = clusters.image.geometry
        freed: list[Range] = []
        for start, length in ranges:
            for cluster in geometry.clusters_of(start, length):
                with ExitStack() as pins:
                    await self._load_count(clusters, cluster, pins)
                    while not self._edits.try_reserve(1):
                        await self.session.flush()
                    try:
                        if clusters.drop_reference(cluster):
                            freed.append((cluster, geometry.cluster_size))
                    finally:
                        self._edits.unreserve(1)
        return freed

    async def _load_count(self, clusters: ClusterWriter, cluster: int, pins: ExitStack) -> None:
        """Bring the count of a cluster into memory, and keep it there."""
        page = clusters.count_page(cluster)
        if page is None:
            return
        pins.enter_context(self.node.pages.pinned([page]))
        if self.node.pages.get(page) is None:
            await self.node.load(missing(clusters.image.geometry, [page]), pins)


def _whole(cluster: memoryview, unit: int) -> memoryview:
    """Return a cluster, filled up with zeros where the disk ends in it."""
    return cluster if len(cluster) == unit else memoryview(bytes(cluster).ljust(unit, b"\0"))


def _compressed_plan(start: int, layout: Sequence[Range]) -> Callable[[ClusterWriter], Answer]:
    return lambda clusters: clusters.plan_compressed(start, layout)


def _zero_plan(start: int, count: int, unmap: bool) -> Callable[[ClusterWriter], Answer]:
    return lambda clusters: clusters.plan_zero(start, count, unmap=unmap)


def _discard_plan(start: int, count: int) -> Callable[[ClusterWriter], Answer]:
    return lambda clusters: clusters.plan_discard(start, count)


def _forgetting_plan(start: int, count: int) -> Callable[[ClusterWriter], Answer]:
    return lambda clusters: clusters.plan_forget(start, count)


def _emptying_plan(start: int, count: int) -> Callable[[ClusterWriter], Answer]:
    return lambda clusters: clusters.plan_empty(start, count)
