"""A job in a running daemon, watched by the verb that began it.

Owns: the questions that the daemon is asked meanwhile, and how the job ended.
"""

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

from vblk.cli.connection import Connection
from vblk.cli.console import Console
from vblk.cli.failure import Failure
from vblk.cli.jobs import Job, jobs_of
from vblk.jobs.progress import Progress

LOOK_SECONDS: Final = 0.1
"""The daemon is asked so often."""


class Watch:
    """One job in a daemon."""

    def __init__(self, socket: str, id: str) -> None:
        """Connect.

        Raises:
            Failure: Nobody is there.
        """
        self.id = id
        self.connection = Connection(socket, self._note)
        self.seen: Job = {}
        """What was told of it last."""
        self._outcome: dict[str, Any] | None = None

    @contextmanager
    def kept(self, console: Console) -> Generator[None]:
        """Talk to the daemon in the block. The job outlives an interruption, which is said."""
        try:
            yield
        except KeyboardInterrupt:
            console.message(f"job '{self.id}' goes on in the daemon")
            raise
        finally:
            self.connection.close()

    def _note(self, event: dict[str, Any]) -> None:
        """Take note of the event that tells how the job ended."""
        data = event.get("data", {})
        if data.get("device") == self.id and event["event"] in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"):
            self._outcome = event

    def until(self, status: str, progress: Progress | None) -> bool:
        """Return when the job is in a state, or gone; tell whether it is there.

        Raises:
            Failure: It failed, was cancelled, or stands still until somebody resumes it.
        """
        while (job := self._find()) is not None and job["status"] != status:
            if progress is not None:
                progress.reach(job["offset"], job["length"])
            if job["status"] == "paused":
                raise Failure(f"job '{self.id}' is paused: {job.get('reason', 'resume it')}")
            time.sleep(LOOK_SECONDS)
        if job is None:
            self._require_success()
        return job is not None

    def _find(self) -> Job | None:
        job = next((job for job in jobs_of(self.connection) if job["id"] == self.id), None)
        self.seen = job or self.seen
        return job

    def _require_success(self) -> None:
        outcome = self._outcome
        if outcome is None or outcome["event"] == "BLOCK_JOB_CANCELLED":
            raise Failure(f"job '{self.id}' was cancelled")
        if "error" in outcome["data"]:
            raise Failure(outcome["data"]["error"])
