"""How far a mirror is, and what keeps it, for those who ask.

Owns: the figures and the sentences. What makes them is the job's business.
"""

from typing import Any, Unpack

from vblk.graph.dirty_bitmap import DirtyBitmap
from vblk.jobs.block_job import BlockJob
from vblk.jobs.job import Life
from vblk.jobs.mirror_ledger import NoLedger
from vblk.jobs.mirror_plan import CopyMode
from vblk.jobs.mirror_target import MirrorTarget
from vblk.jobs.rate import Meter
from vblk.jobs.states import Status


class MirrorProgress(BlockJob):
    """A mirror, as those see it who watch it."""

    def __init__(
        self, id: str, goal: MirrorTarget, ledger: NoLedger, copy_mode: CopyMode, **life: Unpack[Life]
    ) -> None:
        super().__init__(id, **life)
        self._goal = goal
        self._ledger = ledger
        self._copy_mode = copy_mode
        self._bitmap: DirtyBitmap | None = None
        self.holds_users = False
        """Whether the users wait, and the job's own requests with them: it goes past the handles then."""
        self._flying = 0
        """Bytes that are being copied."""
        self._taken = 0
        """Bytes whose marks were cleared to copy them, less those that were marked again for a failure."""
        self._dirtied = Meter(self.clock)

    async def settled(self) -> None:
        """Return when the job's ledger has begun: at once, if it has none."""
        await self._ledger.settled()

    def _account(self, bitmap: DirtyBitmap) -> None:
        """Say how much is done, and how much it would be in all if nobody wrote any more."""
        left = bitmap.guest_bytes
        self.total = self.current + self._flying + left
        self._dirtied.note(self._taken + left)

    def hindrance(self) -> str | None:
        """Say in words why the job is not ready."""
        general = super().hindrance()
        if general is not None or self.status is Status.READY or self._bitmap is None:
            return general
        left = self._bitmap.count
        if self._goal.unproved and not left:
            return f"{self._goal.unproved} bytes are still to be compared"
        if self.holds_users:
            return f"its users wait while the last {left} bytes are copied"
        rate, dirtied = self._moved.rate, self._dirtied.rate
        if self.speed and self.speed <= dirtied:
            return f"its users change {dirtied:.0f} bytes a second and its speed is {self.speed}"
        if 0 < rate <= dirtied:
            return f"its users change {dirtied:.0f} bytes a second and {rate:.0f} are copied"
        return f"{left} bytes are still to be copied"

    def query_progress(self) -> dict[str, Any]:
        """Return what `query-job-progress` says, and what users do to the disk meanwhile."""
        shown = super().query_progress()
        if self._bitmap is not None:
            self._account(self._bitmap)
            shown["dirty-bytes"] = self._bitmap.count
            shown["dirty-rate"] = round(self._dirtied.rate)
            gain = self._moved.rate - self._dirtied.rate
            shown.pop("seconds-left", None)
            if gain > 0:
                shown["seconds-left"] = round((self.total - self.current) / gain, 1)
        shown |= self._goal.query_progress() | self._ledger.shown()
        return shown | {"copy-mode": self._copy_mode.value, "holds-users": self.holds_users}
