"""Commands on jobs, whatever they do: the `job-*` ones, and the older `block-job-*`.

Owns: finding a job by its id, and QEMU's words where there is none.
"""

from typing import Any

from vblk.jobs.block_job import BlockJob
from vblk.jobs.job import Job
from vblk.jobs.mirror import MirrorJob
from vblk.monitor.daemon import Daemon
from vblk.monitor.schema import BlockJobCancel, BlockJobChange, BlockJobDevice, BlockJobSpeed, JobId
from vblk.monitor.table import CommandTable
from vblk.wire.qmp import ErrorClass, QmpError

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


def find_block_job(daemon: Daemon, id: str) -> BlockJob:
    """Return the block job of that id.

    Raises:
        QmpError: There is none.
    """
    job = daemon.jobs.get(id)
    if not isinstance(job, BlockJob):
        raise QmpError(f"Block job '{id}' not found", ErrorClass.DEVICE_NOT_ACTIVE)
    return job


@TABLE.command("query-jobs")
async def query_jobs(daemon: Daemon) -> list[dict[str, Any]]:
    """Show all jobs."""
    return [job.query() for job in daemon.jobs.values()]


@TABLE.command("query-job-progress")
async def query_job_progress(daemon: Daemon) -> list[dict[str, Any]]:
    """Show how fast all jobs get on, and what keeps them; the command is vblk's own."""
    return [job.query_progress() for job in daemon.jobs.values()]


@TABLE.command("job-pause")
async def job_pause(daemon: Daemon, arguments: JobId) -> None:
    """Pause a job."""
    find_job(daemon, arguments.id).pause()


@TABLE.command("job-resume")
async def job_resume(daemon: Daemon, arguments: JobId) -> None:
    """Let a paused job go on."""
    find_job(daemon, arguments.id).resume()


@TABLE.command("job-cancel", out_of_band=True)
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


@TABLE.command("query-block-jobs")
async def query_block_jobs(daemon: Daemon) -> list[dict[str, Any]]:
    """Show the jobs on block nodes."""
    return [job.query_block() for job in daemon.jobs.values() if isinstance(job, BlockJob)]


@TABLE.command("block-job-set-speed")
async def block_job_set_speed(daemon: Daemon, arguments: BlockJobSpeed) -> None:
    """Limit what a job moves in a second."""
    find_block_job(daemon, arguments.device).set_speed(arguments.speed)


@TABLE.command("block-job-change")
async def block_job_change(daemon: Daemon, arguments: BlockJobChange) -> None:
    """Give a running mirror another copy mode or deadline."""
    job = find_block_job(daemon, arguments.id)
    if not isinstance(job, MirrorJob) or job.type != MirrorJob.type:
        raise QmpError(f"Job '{arguments.id}' is no mirror")
    if arguments.copy_mode is None and arguments.converge is None:
        raise QmpError("Parameter 'copy-mode' is missing")
    await job.change(arguments.copy_mode, arguments.converge)


@TABLE.command("block-job-cancel", out_of_band=True)
async def block_job_cancel(daemon: Daemon, arguments: BlockJobCancel) -> None:
    """End a job; one that is ready ends with its result, unless by force."""
    find_block_job(daemon, arguments.device).cancel(force=arguments.force)


@TABLE.command("block-job-pause")
async def block_job_pause(daemon: Daemon, arguments: BlockJobDevice) -> None:
    """Pause a job."""
    find_block_job(daemon, arguments.device).pause()


@TABLE.command("block-job-resume")
async def block_job_resume(daemon: Daemon, arguments: BlockJobDevice) -> None:
    """Let a paused job go on."""
    find_block_job(daemon, arguments.device).resume()


@TABLE.command("block-job-complete")
async def block_job_complete(daemon: Daemon, arguments: BlockJobDevice) -> None:
    """Let a job that is ready come to its end."""
    find_block_job(daemon, arguments.device).complete()


@TABLE.command("block-job-finalize")
async def block_job_finalize(daemon: Daemon, arguments: JobId) -> None:
    """Let a job publish its result."""
    find_block_job(daemon, arguments.id).finalize()


@TABLE.command("block-job-dismiss")
async def block_job_dismiss(daemon: Daemon, arguments: JobId) -> None:
    """Forget a job that has ended."""
    find_block_job(daemon, arguments.id).dismiss()
