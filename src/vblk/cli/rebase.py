"""`vblk rebase`: give an image another parent, or none.

Owns: QEMU's words for it, and what a dry run tells. The rebasing is
`vblk.jobs.rebase`.
"""

import os
from dataclasses import dataclass

from vblk.cli.command import Verb, flag, option
from vblk.cli.console import Console
from vblk.cli.failure import SUCCESS, Failure, could_not_open, sentence
from vblk.cli.images import ImageArguments, image_graph, image_options, named_options
from vblk.cli.progress_view import progress_option, shown_progress
from vblk.cli.rebase_names import rebase_names
from vblk.cli.values import TARGET_CACHE_TYPE
from vblk.errors import GraphError, ImageError, OptionError
from vblk.jobs.local_images import LocalImages
from vblk.jobs.rebase import NewParentError, Rebase, RebasePlan
from vblk.opening import FORMATS, KNOWN_ELSEWHERE
from vblk.options import format_size


@dataclass(slots=True)
class Arguments(ImageArguments):
    """The words of one call; `backing` is empty for no parent."""

    backing: str | None
    backing_format: str | None
    unsafe: bool
    dry_run: bool
    target_cache: str
    quiet: bool
    progress: bool
    progress_format: str | None


async def run(arguments: Arguments, console: Console) -> int:
    """Rebase the image, or say what that would change."""
    name = arguments.one_operand()
    if arguments.backing is None and not arguments.unsafe:
        raise Failure("Must specify backing file (-b) or use unsafe mode (-u)", hint=True)
    options = named_options(name, image_opts=arguments.image_opts, format=arguments.format, console=console)
    async with image_graph(arguments, console) as graph:
        if await rebase_names(
            graph,
            name,
            arguments,
            console,
            backing=arguments.backing,
            backing_format=arguments.backing_format,
            unsafe=arguments.unsafe,
            dry_run=arguments.dry_run,
        ):
            return SUCCESS
        _check_format(arguments)
        with shown_progress(
            console,
            wanted=arguments.progress and not arguments.dry_run,
            form=arguments.progress_format,
            quiet=arguments.quiet,
            what="rebase",
        ) as progress:
            rebase = Rebase(
                LocalImages(
                    graph,
                    name,
                    options,
                    arguments.rules(),
                    cache=arguments.target_cache,
                    force_share=arguments.force_share,
                ),
                name,
                _beside(name, arguments.backing) if arguments.backing else None,
                arguments.unsafe,
                progress,
            )
            try:
                plan = await (rebase.plan() if arguments.dry_run else rebase.run())
            except NewParentError as error:
                why = sentence(error.reason)
                raise Failure(f"Could not open new backing file '{arguments.backing}': {why}") from error
            except (GraphError, OptionError) as error:
                raise Failure(error.message) from error
            except ImageError as error:
                raise could_not_open(name, error) from error
    if arguments.dry_run:
        _show(plan, arguments, console)
    elif arguments.unsafe and not plan.matches:
        console.warn(_mismatch(name, plan))
    return SUCCESS


def _check_format(arguments: Arguments) -> None:
    form = arguments.backing_format
    if form is None or form == "vhdx":
        return
    if form not in FORMATS and form not in KNOWN_ELSEWHERE:
        raise Failure(f"Invalid format name: '{form}'")
    raise Failure(f"the parent of a VHDX image is a VHDX image, not {form}")


def _beside(name: str, backing: str) -> str:
    """Return a parent's path, which QEMU takes to be relative to the image."""
    return os.path.join(os.path.dirname(name), backing)


def _mismatch(name: str, plan: RebasePlan) -> str:
    if plan.pairs is None:
        return f"'{name}' has a new identity: what its parent showed is zeros now"
    return (
        f"'{name}' was not made from this parent, as far as linkages tell: it has a new identity, "
        "and its disk may read differently"
    )


def _show(plan: RebasePlan, arguments: Arguments, console: Console) -> None:
    if plan.data:
        console.print(f"{format_size(plan.data)} of data would be copied from the present parents.")
    pairs = plan.pairs or {}
    for key in dict.fromkeys((*plan.old, *pairs)):
        before, after = plan.old.get(key, "none"), pairs.get(key, "none")
        console.print(f"{key}: {before}" if before == after else f"{key}: {before} -> {after}")
    if arguments.unsafe and not plan.matches:
        console.print("The image would get a new identity: the linkage does not match.")


VERB = Verb(
    "rebase",
    run,
    Arguments,
    [
        option("-b", "backing", metavar="PARENT", help="The new parent, from the image's folder; '': none."),
        option(
            "-F",
            "backing_format",
            metavar="FMT",
            help="Format of the new parent; vhdx for a VHDX.",
        ),
        flag("-u", "unsafe", help="Change the parent's name and linkage, and look at no data."),
        flag("--dry-run", help="Say what would be changed, and change nothing."),
        option(
            "-t",
            "target_cache",
            metavar="CACHE",
            type=TARGET_CACHE_TYPE,
            default="writeback",
            help="Cache mode for writing.",
        ),
        flag("-q", "quiet", help="Say nothing but errors."),
        flag("-p", "progress", help="Show how far it is."),
        progress_option(),
        *image_options(),
    ],
    operands="FILENAME",
    help="Give a differencing VHDX image another parent. Its disk stays the same: what the present parents "
    "show and the new one does not is copied into it first. With an empty parent it holds everything "
    "itself. With -u only the locator changes: for parents that were moved or renamed. A qcow2 image gets "
    "another backing file, with -u only.",
)
