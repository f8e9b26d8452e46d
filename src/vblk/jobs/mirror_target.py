"""The target of a mirror: how a span of the source, or what a user wrote, comes to it.

Owns: which means are used, and what of the target still reads as zeros as it did at
the start, so that zeros are not written there.

Ordering rule: a range counts as zeros no more before anything else is written to it.
"""

from typing import Final

from vblk.aio.engine import Engine
from vblk.extent import Kind
from vblk.graph.dirty_bitmap import DirtyBitmap
from vblk.graph.mapper import has_descriptor, reaches_kernel
from vblk.graph.node import Buffer, Node, Span
from vblk.graph.plane import Mover
from vblk.jobs.copy import ZEROS_LEFT_OUT
from vblk.jobs.mirror_plan import BUFFER, Plan
from vblk.jobs.mirror_proof import MirrorProof, Owner
from vblk.jobs.walk import walk_by
from vblk.units import KIB, align_down, align_up

AT_ONCE_MOST: Final = 64 * KIB
_ZEROS: Final = bytes(AT_ONCE_MOST)


class MirrorTarget:
    """The node that a mirror writes to.

    Args:
        engine: What carries out what blocks.
        node: It.
        size: The disk's, in bytes.
        granularity: That of the job.
        plan: How it is mirrored.
    """

    def __init__(self, engine: Engine, node: Node, size: int, granularity: int, plan: Plan) -> None:
        self.node = node
        self._unmap = plan.unmap
        self._buffer = min(max(plan.buffer, granularity), BUFFER)
        self._mover = Mover(engine)
        self.proof = MirrorProof(node, self._mover, size, granularity) if plan.verify else None
        """What is told of every change, where the two are compared."""
        self._virgin = DirtyBitmap("virgin", size, granularity)
        if plan.target_is_zero:
            self._virgin.set(0, size)

    async def look(self) -> None:
        """Find out what reads as zeros already, by the target's tables and the holes of its storage."""
        unit, size = self._virgin.granularity, min(self._virgin.size, self.node.size)
        async for span in walk_by(self.node.allocation, 0, size):
            if span.kind is Kind.ZERO:
                start, end = span.guest_offset, span.guest_offset + span.length
                start = align_up(start, unit)
                end = end if end == size else align_down(end, unit)
                self._virgin.set(start, max(0, end - start))

    @property
    def unproved(self) -> int:
        """Bytes that came to the target and are still to be compared."""
        return 0 if self.proof is None else self.proof.due.count

    def owes(self, offset: int, length: int) -> None:
        """Note that some of a range came to the target before this job, and is to be compared as well."""
        if self.proof is not None:
            self.proof.due.set(offset, length)

    async def prove(self, owner: Owner, dirty: DirtyBitmap) -> None:
        """Compare what came to the target, where that is wanted; see `MirrorProof.sweep`."""
        if self.proof is not None:
            await self.proof.sweep(owner, dirty)

    def query_progress(self) -> dict[str, int]:
        """Return what `query-job-progress` says of comparing."""
        return {} if self.proof is None else {"verified-bytes": self.proof.checker.verified}

    def try_copy(self, source: Node, offset: int, length: int) -> bool:
        """Copy a short range of data that is in memory, without waiting, or return False: await `copy`."""
        if length > AT_ONCE_MOST or self.proof is not None:
            return False
        data = source.try_read(offset, length)
        if data is None or _ZEROS.startswith(data):
            return False
        self._touch(offset, length)
        return self.node.try_write(offset, data)

    async def copy(self, source: Node, span: Span) -> None:
        """Let a span of the source be on the target as well."""
        offset, length = span.guest_offset, span.length
        if span.kind is Kind.ZERO:
            await self.zero(offset, length)
            return
        is_virgin = all(untouched for _, _, untouched in self._virgin.ranges(offset, length))
        self._touch(offset, length)
        if has_descriptor(span.leaf) and reaches_kernel(self.node):
            zero_unit = ZEROS_LEFT_OUT if is_virgin and self._unmap else 0
            await self._mover.move(span, self.node, offset, zero_unit=zero_unit)
            return
        for done in range(0, length, self._buffer):
            await self._copy_by_memory(source, offset + done, min(self._buffer, length - done))

    async def write(self, offset: int, data: Buffer) -> None:
        """Write what a user wrote to the source."""
        self._touch(offset, len(data))
        await self.node.write(offset, data)

    async def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Let a range read as zeros; with `unmap` it may lose its space, if that is wanted at all."""
        if self.proof is not None:
            self.proof.changes(offset, length)
        for start, count, untouched in self._virgin.ranges(offset, length):
            if not untouched:
                await self.node.write_zeroes(start, count, unmap=unmap and self._unmap)

    async def _copy_by_memory(self, source: Node, offset: int, length: int) -> None:
        buffer = bytearray(length)
        await source.read_into(offset, memoryview(buffer))
        await self._mover.saw(offset, buffer)
        await self.node.write(offset, buffer)

    def _touch(self, offset: int, length: int) -> None:
        if self.proof is not None:
            self.proof.changes(offset, length)
        unit = self._virgin.granularity
        first = align_down(offset, unit)
        self._virgin.reset(first, align_up(offset + length, unit) - first)
