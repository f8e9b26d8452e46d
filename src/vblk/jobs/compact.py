"""Compacting an image: what it would win, and the work itself.

Owns: the measuring before and after, and how far the work is. What is done to a
VHDX image is `vblk.drivers.vhdx_compact`'s. A job prints nothing.
"""

from dataclasses import dataclass, field

from vblk.drivers.vhdx import VhdxNode
from vblk.drivers.vhdx_compact import Compactor, Gains
from vblk.drivers.vhdx_worksite import LiveSite, Rehearsal, Worksite
from vblk.errors import Unsupported
from vblk.extent import Kind
from vblk.graph.node import Leaf, Node
from vblk.graph.plane import Mover
from vblk.jobs.progress import Progress


@dataclass(slots=True)
class CompactReport:
    """What compacting came, or would come, to; bytes.

    Lengths are the file's. What it takes on its storage is None where that is
    not known; after a rehearsal it is an estimate.
    """

    length_before: int
    length_after: int = 0
    allocated_before: int | None = None
    allocated_after: int | None = None
    gains: Gains = field(default_factory=Gains)


class CompactJob:
    """One compaction of a VHDX image; others may use it meanwhile.

    Args:
        node: The image. `run` wants it open for writing.
        mover: The data plane.
        progress: Told of bytes looked through and moved, if anybody wants to know.
    """

    def __init__(self, node: VhdxNode, mover: Mover, *, progress: Progress | None = None) -> None:
        self._node = node
        self._mover = mover
        self._progress = progress

    async def rehearse(self) -> CompactReport:
        """Return what `run` would come to, and change nothing.

        Raises:
            Unsupported: The image is fixed.
            CorruptImage: It must not be written.
        """
        self._refuse_fixed()
        report = await self._measured()
        site = await Rehearsal.enter(self._node)
        unused = site.blocks.space.free_ranges()
        compactor = await self._work(site)
        report.gains = compactor.gains
        report.length_after = site.blocks.space.used_end
        if report.allocated_before is not None:
            given = [(start, end - start) for start, end in unused] + compactor.released
            freed = [await _allocated(self._node.file, place, length) for place, length in given]
            report.allocated_after = max(0, report.allocated_before - sum(freed))
        return report

    async def run(self) -> CompactReport:
        """Make the file smaller, durably; what a guest reads stays as it is.

        Raises:
            Unsupported: The image is fixed.
            ReadOnly: It is open for reading only.
            StorageError: The file failed; the disk is as it was.
        """
        self._refuse_fixed()
        report = await self._measured()
        compactor = await self._work(await LiveSite.enter(self._node, self._mover))
        await self._node.flush()
        report.gains = compactor.gains
        report.length_after = self._node.file.size
        report.allocated_after = await self._allocated_bytes()
        return report

    async def _work(self, site: Worksite) -> Compactor:
        progress = self._progress
        if progress is None:
            compactor = Compactor(site)
        else:
            compactor = Compactor(site, progress.add)
            progress.start(2 * await compactor.count_bytes())
        await compactor.give_back()
        await compactor.pack()
        if progress is not None:
            progress.finish()
        return compactor

    async def _measured(self) -> CompactReport:
        return CompactReport(self._node.file.size, allocated_before=await self._allocated_bytes())

    async def _allocated_bytes(self) -> int | None:
        file = self._node.file
        return await file.allocated_bytes() if isinstance(file, Leaf) else None

    def _refuse_fixed(self) -> None:
        if self._node.image.type == "fixed":
            raise Unsupported(
                "the image is fixed: its blocks keep their space; convert it into a dynamic one to make it "
                "smaller",
                filename=self._node.filename,
            )


async def _allocated(file: Node, offset: int, length: int) -> int:
    """Return how much of a range takes space on the storage."""
    length = max(0, min(length, file.size - offset))
    spans = await file.allocation(offset, length) if length else []
    return sum(span.length for span in spans if span.kind is not Kind.ZERO)
