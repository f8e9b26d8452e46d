"""A mirror in a running daemon: started, watched, and completed by `vblk mirror --daemon`.

Owns: the questions that the daemon is asked. An interruption leaves the job running,
and says so.
"""

import time
from typing import Any, Final

from vblk.cli.connection import Connection
from vblk.cli.console import Console
from vblk.cli.failure import SUCCESS, Failure
from vblk.cli.jobs import Job, jobs_of
from vblk.cli.mirror import Arguments, refuse
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
        self._outcome: dict[str, Any] | None = None

    def _note(self, event: dict[str, Any]) -> None:
        """Take note of the event that tells how the job ended."""
        data = event.get("data", {})
        if data.get("device") == self.id and event["event"] in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"):
            self._outcome = event

    def until(self, status: str, progress: Progress | None) -> None:
        """Return when the job is in a state, or gone.

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

    def _find(self) -> Job | None:
        return next((job for job in jobs_of(self.connection) if job["id"] == self.id), None)

    def _require_success(self) -> None:
        outcome = self._outcome
        if outcome is None or outcome["event"] == "BLOCK_JOB_CANCELLED":
            raise Failure(f"job '{self.id}' was cancelled")
        if "error" in outcome["data"]:
            raise Failure(outcome["data"]["error"])


def run_there(arguments: Arguments, console: Console) -> int:
    """Have a daemon mirror one of its disks."""
    refuse(
        {
            "-o": arguments.options,
            "-B": arguments.backing,
            "-F": arguments.backing_format,
            "-f": arguments.format,
            "--image-opts": arguments.image_opts or arguments.target_image_opts,
            "--target-is-zero": arguments.target_is_zero,
            "--object": arguments.objects,
            "-t": arguments.target_cache != "unsafe",
            "-T": arguments.source_cache,
            "-U": arguments.force_share,
            "--strict": arguments.strict,
            "--parent": arguments.parent,
            "--parent-dir": arguments.parent_dirs,
            "--path-map": arguments.path_map,
            "--ignore-linkage": arguments.ignore_linkage,
            "--deny-implicit": arguments.deny_implicit,
        },
        "cannot be used with --daemon: the images are the daemon's",
    )
    source, target = arguments.two_operands()
    assert arguments.daemon is not None
    watch = Watch(arguments.daemon, arguments.job_id or "mirror")
    try:
        _start(watch, arguments, source, target)
        with arguments.shown(console) as progress:
            watch.until("ready", progress)
            if progress is not None:
                progress.finish()
        if arguments.pivot:
            watch.connection.call("block-job-complete", device=watch.id)
            watch.until("null", None)
    except KeyboardInterrupt:
        console.message(f"job '{watch.id}' goes on in the daemon")
        raise
    finally:
        watch.connection.close()
    return SUCCESS


def _start(watch: Watch, arguments: Arguments, source: str, target: str) -> None:
    call = watch.connection.call
    nodes = {node["node-name"] for node in call("query-named-block-nodes", flat=True)}
    how: dict[str, Any] = {
        "job_id": watch.id,
        "device": source,
        "target": target,
        "sync": arguments.sync,
        "speed": arguments.rate or None,
        "granularity": arguments.granularity or None,
        "copy_mode": arguments.copy_mode,
        "converge": arguments.converge,
    }
    if target in nodes:
        if arguments.output_format is not None or arguments.skip_create:
            raise Failure(f"-O and -n are for images: '{target}' is a node of the daemon")
        call("blockdev-mirror", **how)
        return
    mode = "existing" if arguments.skip_create else None
    call("drive-mirror", **how, format=arguments.output_format, mode=mode)
