"""`vblk commit`: what an image holds goes down into its parent.

Owns: QEMU's words for it. The committing is `vblk.jobs.commit`.
"""

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from vblk.cli.command import Verb, flag, option
from vblk.cli.console import Console
from vblk.cli.failure import SUCCESS, Failure, could_not_open, refuse, sentence
from vblk.cli.images import ImageArguments, image_graph, image_options, named_options
from vblk.cli.progress_view import progress_option, shown_progress
from vblk.cli.values import TARGET_CACHE_TYPE, SizeType
from vblk.errors import BlockError, GraphError, OptionError
from vblk.jobs.commit import Commit
from vblk.jobs.local_images import LocalImages


@dataclass(slots=True)
class Arguments(ImageArguments):
    """The words of one call."""

    base: str | None
    live: str | None
    top: str | None
    job_id: str | None
    delete: bool
    resume: bool
    drop: bool
    force: bool
    target_cache: str
    rate: int | None
    verify: bool
    quiet: bool
    progress: bool
    progress_format: str | None


def run(arguments: Arguments, console: Console) -> Coroutine[Any, Any, int] | int:
    """Commit an image that nobody uses, or have a daemon commit layers of one in use."""
    if arguments.live is None:
        return run_here(arguments, console)
    from vblk.cli.commit_live import run_live

    return run_live(arguments, console)


async def run_here(arguments: Arguments, console: Console) -> int:
    """Commit the image."""
    live = {
        "--top": arguments.top,
        "--job-id": arguments.job_id,
        "--delete": arguments.delete,
        "--resume": arguments.resume,
    }
    refuse(live, "is for a disk in use: --live says whose")
    name = arguments.one_operand()
    if arguments.force_share:
        raise Failure("-U does not go with committing: nobody else may use the images meanwhile")
    options = named_options(name, image_opts=arguments.image_opts, format=arguments.format, console=console)
    async with image_graph(arguments, console) as graph:
        with shown_progress(
            console,
            wanted=arguments.progress,
            form=arguments.progress_format,
            quiet=arguments.quiet,
            what="commit",
        ) as progress:
            commit = Commit(
                LocalImages(graph, name, options, arguments.rules(), cache=arguments.target_cache),
                name,
                arguments.base,
                arguments.drop,
                arguments.force,
                progress,
                arguments.rate,
                arguments.verify,
            )
            try:
                members = await commit.members()
            except BlockError as error:
                raise could_not_open(name, error) from error
            try:
                await commit.run(members)
            except GraphError as error:
                raise Failure(f"{sentence(error)}; --force goes on all the same") from error
            except OptionError as error:
                raise Failure(error.message) from error
    if not arguments.quiet:
        console.print("Image committed, and verified." if arguments.verify else "Image committed.")
    return SUCCESS


VERB = Verb(
    "commit",
    run,
    Arguments,
    [
        option(
            "-t",
            "target_cache",
            metavar="CACHE",
            type=TARGET_CACHE_TYPE,
            default="writeback",
            help="Cache mode for writing.",
        ),
        option("-b", "base", metavar="BASE", help="Commit into this ancestor; implies -d."),
        option(
            "--live",
            metavar="SOCKET",
            help="Of a disk of the daemon that listens there, in use: FILENAME and BASE are nodes; without "
            "-b the base is the lowest. Nothing is emptied; the disk's users are led to the base.",
        ),
        option("--top", metavar="NODE", help="There: the uppermost layer that goes, if not the active one."),
        option("--job-id", metavar="ID", help="The job's name there; commit, unless it is given."),
        flag(
            "--delete",
            "delete",
            help="There: delete the layers' files in the end.",
        ),
        flag(
            "--resume",
            "resume",
            help="There: note beside the base how far it is, and go on from there if the commit was begun.",
        ),
        flag("-d", "drop", help="Do not empty the image."),
        flag("--force", help="Go on although images would be lost that were made from those changed."),
        option("-r", "rate", metavar="RATE", type=SizeType("rate limit", 1), help="Bytes a second at most."),
        flag(
            "--verify",
            help="Compare what was written with what it was made from, before anything is emptied or let go.",
        ),
        flag("-q", "quiet", help="Say nothing but errors."),
        flag("-p", "progress", help="Show how far it is."),
        progress_option(),
        *image_options(),
    ],
    operands="FILENAME",
    help="Write what an image holds into its parent, and empty it. With -b it goes into an ancestor, the "
    "image stays as it is, and the images between are of no more use.",
)
