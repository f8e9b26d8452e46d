"""Commands on jobs, whatever they do.

Owns: finding a job by its id, and QEMU's words where there is none.
"""

from typing import Any

from vblk.jobs.job import Job
from vblk.monitor.daemon import Daemon
from vblk.monitor.schema import JobId
from vblk.monitor.table import CommandTable
from vblk.wire.qmp import QmpError

TABLE = CommandTable()


def find_job(daemon: Daemon, id: str) -> Job:
    """Return the job of that id.

    Raises:
        QmpError: There is none.
    """
    try:
        return daemon.jobs[id]
    except KeyError:
        raise QmpError("Job not found") from None


@TABLE.command("query-jobs")
async def query_jobs(daemon: Daemon) -> list[dict[str, Any]]:
    """Show all jobs."""
    return [job.query() for job in daemon.jobs.values()]


@TABLE.command("job-pause")
async def job_pause(daemon: Daemon, arguments: JobId) -> None:
    """Pause a job."""
    find_job(daemon, arguments.id).pause()


@TABLE.command("job-resume")
async def job_resume(daemon: Daemon, arguments: JobId) -> None:
    """Let a paused job go on."""
    find_job(daemon, arguments.id).resume()


@TABLE.command("job-cancel")
async def job_cancel(daemon: Daemon, arguments: JobId) -> None:
    """End a job without its result."""
    find_job(daemon, arguments.id).cancel(force=True)


@TABLE.command("job-complete")
async def job_complete(daemon: Daemon, arguments: JobId) -> None:
    """Let a job that is ready come to its end."""
    find_job(daemon, arguments.id).complete()


@TABLE.command("job-dismiss")
async def job_dismiss(daemon: Daemon, arguments: JobId) -> None:
    """Forget a job that has ended."""
    find_job(daemon, arguments.id).dismiss()


@TABLE.command("job-finalize")
async def job_finalize(daemon: Daemon, arguments: JobId) -> None:
    """Let a job publish its result."""
    find_job(daemon, arguments.id).finalize()
