"""A job on a block node: its events, and what it does when a request fails.

Owns: the words of QEMU's block jobs (`BLOCK_JOB_*`, `query-block-jobs`) and the
error policy. The work stands in the classes that inherit from it.

Source: qapi/block-core.json of QEMU's documentation, "BlockJobInfo" and
"BlockdevOnError".
"""

import enum
import errno
from typing import Any

from vblk.errors import BlockError, StorageError
from vblk.jobs.job import Job
from vblk.jobs.states import Status


class OnError(enum.Enum):
    """What a job does about a failed request."""

    REPORT = "report"
    IGNORE = "ignore"
    STOP = "stop"
    ENOSPC = "enospc"
    """Stop where the storage is full, else report."""

    def action(self, error: BlockError) -> "OnError":
        """Return REPORT, IGNORE or STOP for a failure."""
        if self is not OnError.ENOSPC:
            return self
        return OnError.STOP if error.errno == errno.ENOSPC else OnError.REPORT


class BlockJob(Job):
    """A job whose progress counts bytes. `io_status` is "ok", "failed" or "nospace"."""

    io_status = "ok"
    failure: str | None = None
    """The last request that failed, in words."""

    async def settled(self) -> None:
        """Return when a command that began the job may be answered."""

    def failed(self, error: BlockError, policy: OnError, *, reading: bool) -> None:
        """Say that a request failed; to stop holds the job at its next pause point.

        Raises:
            BlockError: This failure ends the job.
        """
        action = policy.action(error)
        said = {"device": self.id, "operation": "read" if reading else "write", "action": action.value}
        self.tell("BLOCK_JOB_ERROR", said)
        self.failure = str(error)
        if action is OnError.REPORT:
            if isinstance(error, StorageError):  # what QEMU has to say of it
                raise StorageError(error.errno) from error
            raise error
        if action is OnError.STOP:
            if self.io_status == "ok":
                self.io_status = "nospace" if error.errno == errno.ENOSPC else "failed"
            self.hold()

    def resumed(self) -> None:
        """Forget the failures so far."""
        self.io_status = "ok"

    def hindrance(self) -> str | None:
        """As for any job, with the failure that stopped it."""
        if self.io_status != "ok" and self.paused:
            return f"it stopped at a failure, resume it when that is mended: {self.failure}"
        return super().hindrance()

    def became_ready(self) -> None:
        """Publish that the job may be completed."""
        super().became_ready()
        self.tell("BLOCK_JOB_READY", self._figures())

    def said_pending(self) -> None:
        """Say that the job waits for `finalize`."""
        self.tell("BLOCK_JOB_PENDING", {"type": self.type, "id": self.id})

    def said_end(self) -> None:
        """Say whether the job came to its end, was cancelled, or failed."""
        if self.cancelled:
            self.tell("BLOCK_JOB_CANCELLED", self._figures())
        else:
            failure = {} if self.error is None else {"error": self.error}
            self.tell("BLOCK_JOB_COMPLETED", self._figures() | failure)

    def _figures(self) -> dict[str, Any]:
        return {
            "device": self.id,
            "len": self.total,
            "offset": self.current,
            "speed": self.speed,
            "type": self.type,
        }

    def query_block(self) -> dict[str, Any]:
        """Return what `query-block-jobs` says of the job."""
        shown: dict[str, Any] = {
            "auto-finalize": self.auto_finalize,
            "io-status": self.io_status,
            "device": self.id,
            "auto-dismiss": self.auto_dismiss,
            "busy": self.busy,
            "len": self.total,
            "offset": self.current,
            "status": self.status.value,
            "paused": self.paused,
            "speed": self.speed,
            "ready": self.status in (Status.READY, Status.STANDBY),
            "type": self.type,
        }
        if self.error is not None:
            shown["error"] = self.error
        return shown
