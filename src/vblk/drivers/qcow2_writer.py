"""Writing to a qcow2 image: the shell around planner, free space and session.

Owns: carrying out plans. It takes the gates of clusters, makes the room and the
tables that a plan asks for, does its copies and zeros, lets the caller bring the
payload, and ends the plan. What is to be done is decided in
`vblk.formats.qcow2.planner`, when it becomes durable in `vblk.drivers.qcow2_session`.

Ordering rules:
- gate, session, plan's fills, payload, commit; an exception or a cancellation
  aborts the plan and gives the gate back.
- The file is extended before anything is mapped to the extension.
- Space that nothing names any more, durably, loses its references; when none is
  left it is punched out of the host's file, and used again after the punch, when
  no read can look at it any more.

Concurrency: clusters are shared by overwrites and belong to one change that
gives or takes space. Reads never wait for a gate.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager

from vblk.codec.ranges import RangeSet
from vblk.drivers.qcow2 import Qcow2Node
from vblk.drivers.qcow2_session import Session
from vblk.errors import BlockError, NodeFailed, OutOfRange, Unsupported
from vblk.extent import Missing
from vblk.formats.edits import EditedPages, Range
from vblk.formats.plan import NeedsRoom
from vblk.formats.qcow2.header import Header
from vblk.formats.qcow2.image import Qcow2Image
from vblk.formats.qcow2.plan import Plan
from vblk.formats.qcow2.planner import Answer, NeedsCounts, NeedsCountTable, NeedsTable
from vblk.formats.qcow2.survey import survey_image
from vblk.formats.qcow2.tables import missing
from vblk.formats.qcow2.writing import ClusterWriter
from vblk.formats.space import Space
from vblk.graph.node import Buffer, Span
from vblk.runtime.fan_out import fan_out
from vblk.runtime.range_lock import RangeGuard, RangeLock
from vblk.units import MIB, OFFSET_MAX, align_down, align_up

CLUSTERS_AT_ONCE = 256
BYTES_AT_ONCE = 64 * MIB
"""The most that one plan of payload covers, or else one cluster."""

ENTRIES_AT_ONCE = 8192
"""The most clusters that one plan without payload covers."""

PIECES_AT_ONCE = 8
"""How many pieces of one plan are written side by side."""

COPY_MAX = MIB
"""The most bytes that are copied at once."""

PAGES_MAX = 4096
"""How many pages may wait for a flush before one is made."""


class Qcow2Writer:
    """The writing side of one node, whose image may be written."""

    def __init__(self, node: Qcow2Node) -> None:
        self.node = node
        self._file = node.file
        self._edits = EditedPages(node.pages)
        self.session = Session(
            node.file,
            node.image.header,
            self._edits,
            rank=lambda page: self._clusters().rank(page),
            filename=node.filename,
            durable=self.give_up,
            header_changed=self._header_changed,
        )
        self._gates = RangeLock()
        self._known: ClusterWriter | None = None
        self._preparing = asyncio.Lock()
        self._extending = asyncio.Lock()
        self._making_tables = asyncio.Lock()
        self._making_counts = asyncio.Lock()
        self._to_release: list[Range] = []
        self._releasing: asyncio.Task[None] | None = None

    # What the node asks for

    @contextmanager
    def reading(self) -> Generator[None]:
        """Keep whatever is mapped now from being used for something else while the block runs."""
        if self._known is None:
            yield
            return
        space = self._known.space
        readers = space.readers
        readers.active += 1
        try:
            yield
        finally:
            readers.active -= 1
            if not readers.active:
                space.promote()

    async def write(self, offset: int, data: Buffer) -> None:
        """Write all of `data` at a guest offset."""
        view = memoryview(data)
        size = self.node.image.geometry.cluster_size
        step = max(size, min(BYTES_AT_ONCE, CLUSTERS_AT_ONCE * size))
        for start, length in _pieces(offset, len(view), step):
            await self._write_piece(start, view[start - offset : start - offset + length])

    async def _write_piece(self, offset: int, view: memoryview) -> None:
        def make(clusters: ClusterWriter) -> Answer:
            return clusters.plan_write(offset, len(view))

        async with self._planned(offset, len(view), make) as plan:
            await fan_out(
                (
                    self._file.write(
                        piece.file_offset,
                        view[piece.guest_offset - offset : piece.guest_offset - offset + piece.length],
                    )
                    for piece in plan.payload
                ),
                PIECES_AT_ONCE,
            )

    @asynccontextmanager
    async def place(self, offset: int, length: int) -> AsyncGenerator[list[Span], None]:
        """Make room for a range and yield where its bytes go; see `Node.place`."""

        def make(clusters: ClusterWriter) -> Answer:
            return clusters.plan_write(offset, length)

        async with self._planned(offset, length, make) as plan, AsyncExitStack() as below:
            spans: list[Span] = []
            for piece in plan.payload:
                shift = piece.guest_offset - piece.file_offset
                place = self._file.place(piece.file_offset, piece.length)
                for span in await below.enter_async_context(place):
                    span.guest_offset += shift
                    spans.append(span)
            yield spans

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool, no_fallback: bool) -> None:
        """Make a range read as zeros; see `Node.write_zeroes`."""
        for start, count in _pieces(offset, length, self._entries_step):
            make = _zero_plan(start, count, unmap)
            async with self._planned(start, count, make, no_fallback=no_fallback):
                pass

    async def discard(self, offset: int, length: int) -> None:
        """Forget a range; see `Node.discard`."""
        for start, count in _pieces(offset, length, self._entries_step):
            async with self._planned(start, count, _discard_plan(start, count)):
                pass

    @property
    def _entries_step(self) -> int:
        geometry = self.node.image.geometry
        return min(geometry.table_span, ENTRIES_AT_ONCE * geometry.cluster_size)

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
        if self._known is not None and self.session.begun:
            end = self._known.space.used_end
            if end < self._file.size:
                await self._file.resize(end)
                await self._file.flush()
        self._known = None

    # Plans

    @asynccontextmanager
    async def _planned(
        self,
        offset: int,
        length: int,
        make: Callable[[ClusterWriter], Answer],
        *,
        no_fallback: bool = False,
    ) -> AsyncGenerator[Plan, None]:
        """Plan, do what must come before the payload, and commit when the block ends well."""
        clusters = await self.prepared()
        guard, plan = await self._gated(clusters, offset, length, make)
        try:
            if plan.changes_nothing:
                yield plan
                return
            async with self.carried_out(clusters, plan):
                await self._fill(plan, no_fallback=no_fallback)
                yield plan
        finally:
            guard.release()

    @asynccontextmanager
    async def carried_out(self, clusters: ClusterWriter, plan: Plan) -> AsyncGenerator[None, None]:
        """Open the way for a plan, and commit it when the block ends well."""
        reserved = 0
        touched = False
        try:
            wanted = len(plan.pages) + len(plan.tables)
            while not self._edits.try_reserve(wanted):
                await self.session.flush()
            reserved = wanted
            await self.session.begin()
            touched = True
            yield
            self.session.check_healthy()
            clusters.commit(plan)
        except BaseException:
            clusters.abort(plan, touched=touched)
            raise
        finally:
            self._edits.unreserve(reserved)

    async def _gated(
        self, clusters: ClusterWriter, offset: int, length: int, make: Callable[[ClusterWriter], Answer]
    ) -> tuple[RangeGuard, Plan]:
        """Return a plan and the gate that it needs, held."""
        size = clusters.image.geometry.cluster_size
        start = align_down(offset, size)
        span = align_up(offset + length, size) - start
        exclusive = False
        while True:
            guard = self._gates.exclusive(start, span) if exclusive else self._gates.shared(start, span)
            await guard.acquire()
            try:
                if offset + length > self.node.size:
                    raise OutOfRange(
                        f"range of {length} bytes at {offset} does not lie within the disk any more",
                        filename=self.node.filename,
                        length=length,
                    )
                plan = await self.answered(clusters, make)
            except BaseException:
                guard.release()
                raise
            if exclusive or not plan.exclusive:
                return guard, plan
            clusters.abort(plan, touched=False)
            guard.release()
            exclusive = True

    async def answered(self, clusters: ClusterWriter, make: Callable[[ClusterWriter], Answer]) -> Plan:
        """Ask for a plan until nothing that it needs is missing."""
        with ExitStack() as pins:
            while True:
                clusters.backed_end = self.node.backed_end
                answer = make(clusters)
                if isinstance(answer, Plan):
                    return answer
                if isinstance(answer, Missing):
                    await self.node.load(answer, pins)
                elif isinstance(answer, NeedsRoom):
                    await self._extend(clusters, answer)
                else:
                    await self._make_tables(clusters, answer)

    async def _make_tables(
        self, clusters: ClusterWriter, need: NeedsTable | NeedsCounts | NeedsCountTable
    ) -> None:
        """Make a table that is lacking: a change of its own, sound without what asked for it."""
        if isinstance(need, NeedsCountTable):
            from vblk.drivers.qcow2_tables import grow_count_table

            async with self._making_counts, self._extending:
                await self.session.begin()
                await grow_count_table(self, clusters, need.index)
            return

        def make(clusters: ClusterWriter) -> Answer:
            if isinstance(need, NeedsTable):
                return clusters.plan_table(need.index)
            return clusters.plan_counts(need.index)

        async with self._making_tables if isinstance(need, NeedsTable) else self._making_counts:
            plan = await self.answered(clusters, make)
            if not plan.changes_nothing:
                async with self.carried_out(clusters, plan):
                    pass

    async def _fill(self, plan: Plan, *, no_fallback: bool = False) -> None:
        """Do a plan's copies and zeros."""
        if no_fallback and plan.copies:
            raise Unsupported("these zeros would have to be written out", filename=self.node.filename)
        for piece in plan.copies:
            for done in range(0, piece.length, COPY_MAX):
                length = min(COPY_MAX, piece.length - done)
                data = bytearray(length)
                await self.node.read_into(piece.guest_offset + done, memoryview(data))
                await self._file.write(piece.file_offset + done, data)
        for file_offset, length in _joined(plan.zeros):
            await self._file.write_zeroes(file_offset, length, no_fallback=no_fallback)

    # Space

    def _clusters(self) -> ClusterWriter:
        assert self._known is not None, "nothing is edited before the survey"
        return self._known

    async def prepared(self) -> ClusterWriter:
        """Return the planner; before the first change look through all reference counts."""
        self.session.check_healthy()
        if self._known is None:
            async with self._preparing:
                if self._known is None:
                    self._known = await self._survey()
        return self._known

    async def _survey(self) -> ClusterWriter:
        node = self.node
        survey = await survey_image(node.image, node.read_tables, node.file.size)
        if survey.end > align_up(node.file.size, node.image.geometry.cluster_size):
            await self.session.begin()
            await node.file.resize(survey.end)
        space = Space(survey.free, survey.end, node.image.geometry.cluster_size)
        self._edits.batch_max = PAGES_MAX + 2 * node.image.geometry.cluster_size // node.pages.page_size
        return ClusterWriter(node.image, self._edits, space, survey.blocks, node.backed_end)

    async def _extend(self, clusters: ClusterWriter, need: NeedsRoom) -> None:
        """Make the file longer, unless somebody has done so meanwhile."""
        await self.session.begin()
        space = clusters.space
        async with self._extending:
            if space.file_size != need.file_size:
                return
            length = space.extension(need.length)
            try:
                await self._file.resize(length)
            except BlockError:
                length = space.file_size + need.length
                await self._file.resize(length)
            space.extended(length)

    def adopt(self, image: Qcow2Image) -> None:
        """Show the image as it is now, to readers and to the planner."""
        self.node.adopt(image)
        if self._known is not None:
            self._known.image = image

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
                try:
                    for file_offset, length in _joined(freed):
                        await self._file.discard(file_offset, length)
                except BlockError as error:
                    self.node.warnings.append(f"space could not be given back to the host: {error}")
                self._clusters().space.defer(freed)
        except NodeFailed:
            pass  # the space leaks; whoever uses the node is told
        except BlockError as error:
            self.node.warnings.append(f"space has leaked: {error}")
        finally:
            self._releasing = None

    async def zero_hidden(self, clusters: ClusterWriter, start: int, end: int) -> None:
        """Let a range read as zeros, whatever stands behind it; the gate of all is held."""
        for offset, count in _pieces(start, end - start, self._entries_step):
            await self._change_hidden(clusters, _zero_plan(offset, count, unmap=True))

    async def forget_hidden(self, clusters: ClusterWriter, start: int, end: int) -> None:
        """Let go of the clusters of a range that no backing file has; the gate of all is held."""
        for offset, count in _pieces(start, end - start, self._entries_step):
            await self._change_hidden(clusters, _forgetting_plan(offset, count))

    async def _change_hidden(self, clusters: ClusterWriter, make: Callable[[ClusterWriter], Answer]) -> None:
        plan = await self.answered(clusters, make)
        if not plan.changes_nothing:
            async with self.carried_out(clusters, plan):
                await self._fill(plan)

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


def _pieces(offset: int, length: int, step: int) -> Generator[tuple[int, int]]:
    """Divide a range at multiples of `step`."""
    end = offset + length
    while offset < end:
        count = min(end, align_down(offset + step, step)) - offset
        yield offset, count
        offset += count


def _zero_plan(start: int, count: int, unmap: bool) -> Callable[[ClusterWriter], Answer]:
    return lambda clusters: clusters.plan_zero(start, count, unmap=unmap)


def _discard_plan(start: int, count: int) -> Callable[[ClusterWriter], Answer]:
    return lambda clusters: clusters.plan_discard(start, count)


def _forgetting_plan(start: int, count: int) -> Callable[[ClusterWriter], Answer]:
    return lambda clusters: clusters.plan_forget(start, count)


def _joined(ranges: list[Range]) -> list[Range]:
    """Join ranges that follow each other."""
    whole = RangeSet()
    for start, length in ranges:
        whole.add(start, start + length)
    return [(start, end - start) for start, end in whole.ranges()]
