"""`vblk mirror`: a disk is copied by the mirror job, here or in a running daemon.

Owns: the two ways. On its own the command opens both images, and ends when the target
is a copy; in a daemon it starts the job, shows how far it is until it is ready, and
with `--pivot` leads the disk's users to the target.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import AbstractContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Any

from vblk.aio.clock import LoopClock
from vblk.cli.command import Verb, flag, option
from vblk.cli.console import Console
from vblk.cli.copy_target import (
    TargetArguments,
    check_target,
    claimed_journal,
    opened_target,
    target_options,
    verify_option,
    wanted_image,
)
from vblk.cli.creation import options_help, read_options, target_of
from vblk.cli.failure import SUCCESS, Failure, refuse
from vblk.cli.images import image_graph, image_options, open_named
from vblk.cli.progress_view import progress_option, shown_progress
from vblk.cli.values import SecondsType, SizeType, WordType
from vblk.errors import CopyDiffers
from vblk.graph.edge import IDLE, SHARED_BY_WRITER, WRITING
from vblk.graph.edges import Rewiring
from vblk.graph.handle import Handle
from vblk.graph.registry import Graph
from vblk.jobs.job import woken
from vblk.jobs.mirror import MirrorJob
from vblk.jobs.mirror_plan import Plan, Sync
from vblk.jobs.offset_ledger import OffsetLedger
from vblk.jobs.progress import Progress
from vblk.jobs.states import Status
from vblk.options import format_size

LOOK_SECONDS = 0.1
"""The progress is looked at so often."""


@dataclass(slots=True)
class Arguments(TargetArguments):
    """The words of one call."""

    sync: str
    rate: int
    granularity: int
    daemon: str | None
    job_id: str | None
    copy_mode: str | None
    converge: float | None
    pivot: bool
    verify: bool
    resume: bool
    quiet: bool
    progress: bool
    progress_format: str | None

    def shown(self, console: Console) -> AbstractContextManager[Progress | None]:
        """Yield what the job reports to, or None."""
        return shown_progress(
            console, wanted=self.progress, form=self.progress_format, quiet=self.quiet, what="mirror"
        )

    def tell_verified(self, console: Console, verified: int | None) -> None:
        """Say how much was compared, if anything was."""
        if verified is not None and not self.quiet:
            console.print(f"verified {format_size(verified)}")

    @property
    def how(self) -> str:
        """What decides about the bytes of the target, beside the source, as words of a command."""
        words = ["mirror", f"--sync {self.sync}", f"-O {self.form}", *(f"-o {each}" for each in self.options)]
        words += [] if self.format is None else [f"-f {self.format}"]
        words += [] if self.backing is None else [f"-B {self.backing}"]
        return " ".join([*words, *self.operands[:-1]])

    def two_operands(self) -> tuple[str, str]:
        """Return source and target.

        Raises:
            Failure: These are not two.
        """
        if len(self.operands) != 2:
            raise Failure("Expecting a source and a target", hint=True)
        return self.operands[0], self.operands[1]


async def run_here(arguments: Arguments, console: Console) -> int:
    """Mirror one image to another."""
    options = read_options(arguments.options)
    if options.wants_help:
        console.print(*options_help(arguments.form, with_file=len(arguments.operands) > 1))
        return SUCCESS
    refuse(
        {
            "--pivot": arguments.pivot,
            "--converge": arguments.converge is not None,
            "--copy-mode": arguments.copy_mode,
            "--job-id": arguments.job_id,
        },
        "is for a disk in use: say which daemon has it with --daemon",
    )
    check_target(arguments)
    if arguments.resume and (arguments.skip_create or arguments.sync == "none"):
        raise Failure("--resume is for a new image that gets all of a disk: not with -n and --sync none")
    creation = None if arguments.skip_create else wanted_image(arguments, options.values)
    source, target = arguments.two_operands()
    async with image_graph(arguments, console) as graph, AsyncExitStack() as held:
        disk = await open_named(graph, source, arguments, console)
        backing = None
        if creation is not None:
            backing = await creation.opened_backing(graph, target, rules=arguments.rules())
        journal = None
        if arguments.resume:
            read = [disk, *([] if backing is None else [backing])]
            told = None if arguments.quiet else console
            claim = claimed_journal(target_of(target), read, arguments.how, disk.size, told)
            journal = held.enter_context(claim)
            if journal.is_whole:
                return SUCCESS
        goal = await held.enter_async_context(
            opened_target(
                graph, arguments, target, disk.size, creation, console, backing=backing, journal=journal
            )
        )
        plan = Plan(
            sync=Sync(arguments.sync),
            granularity=arguments.granularity,
            target_is_zero=goal.is_zero and (journal is None or not journal.done),
            target_may_be_larger=True,
            verify=arguments.verify,
        )
        ledger = None if journal is None else OffsetLedger(journal, graph.engine, goal.handle.node)
        graph.rewire(Rewiring(access={goal.handle.edge: IDLE}))  # the job writes, not we
        with arguments.shown(console) as progress:
            verified = await _mirror(graph, disk, goal.handle, plan, ledger, arguments.rate, progress)
    arguments.tell_verified(console, verified)
    return SUCCESS


async def _mirror(
    graph: Graph,
    disk: Handle,
    goal: Handle,
    plan: Plan,
    ledger: OffsetLedger | None,
    rate: int,
    progress: Progress | None,
) -> int | None:
    """Mirror a disk that nobody uses; return how many bytes were compared, if that was wanted."""
    clock = LoopClock()
    news = asyncio.Event()
    job = MirrorJob(
        "mirror",
        graph,
        disk,
        graph.hold(goal.node, "the mirror", WRITING, SHARED_BY_WRITER),
        plan,
        ledger=ledger,
        listener=lambda job, event, data: news.set(),
        clock=clock,
        speed=rate,
    )
    job.start()
    try:
        while job.at_work:
            news.clear()
            if job.status is Status.READY:
                job.cancel()  # nobody writes: the target is the disk
                break
            await woken(news, clock.sleep(LOOK_SECONDS))
            if progress is not None:
                progress.reach(job.current, job.total)
        await job.ended()
    except BaseException:
        job.give_up()
        await job.ended()
        raise
    if isinstance(job.cause, CopyDiffers):
        raise job.cause
    if job.error is not None:
        raise Failure(job.error)
    if progress is not None:
        progress.finish()
    return job.query_progress().get("verified-bytes")


def run(arguments: Arguments, console: Console) -> Coroutine[Any, Any, int] | int:
    """Mirror here, or have a daemon do it."""
    if arguments.daemon is None:
        return run_here(arguments, console)
    from vblk.cli.mirror_remote import run_there

    return run_there(arguments, console)


VERB = Verb(
    "mirror",
    run,
    Arguments,
    [
        *target_options(),
        option(
            "--sync",
            metavar="full|top|none",
            default="full",
            type=WordType(("full", "top", "none"), "--sync must be full, top or none"),
            help="What is copied at first: all, the default; what the top image holds; nothing.",
        ),
        option(
            "-r",
            "rate",
            metavar="RATE",
            default=0,
            type=SizeType("rate limit", 1),
            help="Bytes a second at most.",
        ),
        option(
            "--granularity",
            metavar="SIZE",
            default=0,
            type=SizeType("granularity"),
            help="In what pieces changes are noted: 512 to 64M, a power of 2.",
        ),
        option("--daemon", metavar="SOCKET", help="Mirror a disk of the daemon that listens there."),
        option("--job-id", metavar="ID", help="The job's name there; mirror, unless it is given."),
        option(
            "--copy-mode",
            metavar="MODE",
            type=WordType(
                ("background", "write-blocking"), "--copy-mode must be background or write-blocking"
            ),
            help="There: write-blocking writes to both disks at once, so that the copy always gets done.",
        ),
        option(
            "--converge",
            metavar="SECONDS",
            type=SecondsType("--converge"),
            help="There: after so long its users wait while the rest is copied.",
        ),
        flag("--pivot", help="There: lead the disk's users to the target when it is ready."),
        verify_option(),
        flag(
            "--resume",
            help="Keep a journal beside the target, and go on by it if there is one: after a failure, a "
            "kill or a crash, also of the daemon. Nobody may have written to the disk meanwhile.",
        ),
        flag("-q", "quiet", help="Say nothing but errors."),
        flag("-p", "progress", help="Show how far it is."),
        progress_option(),
        *image_options(),
    ],
    operands="SOURCE TARGET",
    help="Copy a disk by the mirror job. On its own: from an image to one that is made, as convert does. "
    "With --daemon: SOURCE is a node there, TARGET a node or the name of an image that the daemon makes "
    "(opens, with -n); the command ends when the job is ready, or with --pivot when the disk's users are "
    "on the target.",
)
