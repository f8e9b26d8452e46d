"""`vblk merge`: checkpoints and other differencing images merged into an ancestor.

Owns: the words of the verb, and what it tells before and after. The merging is
`vblk.jobs.merge`.
"""

import json
from dataclasses import dataclass
from typing import Any

from vblk.cli.command import Verb, flag, option
from vblk.cli.console import Console
from vblk.cli.failure import SUCCESS, Failure, could_not_open, sentence
from vblk.cli.images import ImageArguments, image_graph, image_options, named_options
from vblk.cli.progress_view import progress_option, shown_progress
from vblk.cli.values import OUTPUT_TYPE, TARGET_CACHE_TYPE, SizeType
from vblk.errors import BlockError, GraphError
from vblk.jobs.local_images import LocalImages
from vblk.jobs.merge import Merge, MergePlan
from vblk.options import format_size


@dataclass(slots=True)
class Arguments(ImageArguments):
    """The words of one call."""

    into: str | None
    keep: bool
    force: bool
    dry_run: bool
    output: str
    target_cache: str
    rate: int | None
    verify: bool
    quiet: bool
    progress: bool
    progress_format: str | None


async def run(arguments: Arguments, console: Console) -> int:
    """Look at the chain, say what will be done or do it."""
    name = arguments.one_operand()
    if arguments.force_share:
        raise Failure("-U does not go with merging: nobody else may use the images meanwhile")
    if arguments.target_cache == "unsafe" and not arguments.keep:
        raise Failure("-t unsafe waits for nothing: what is merged so is not deleted, which wants --keep")
    options = named_options(name, image_opts=arguments.image_opts, format=arguments.format, console=console)
    async with image_graph(arguments, console) as graph:
        images = LocalImages(graph, name, options, arguments.rules(), cache=arguments.target_cache)
        looking = Merge(images, name, arguments.into, keep=arguments.keep, force=arguments.force)
        try:
            plan = await looking.plan()
        except BlockError as error:
            raise could_not_open(name, error) from error
        if arguments.dry_run:
            _show(plan, arguments, console)
            return SUCCESS
        with shown_progress(
            console,
            wanted=arguments.progress,
            form=arguments.progress_format,
            quiet=arguments.quiet,
            what="merge",
        ) as progress:
            merge = Merge(
                images,
                name,
                arguments.into,
                keep=arguments.keep,
                force=arguments.force,
                progress=progress,
                rate=arguments.rate,
                verify=arguments.verify,
            )
            if arguments.verify and plan.data is None:
                console.warn("what an earlier run copied cannot be verified any more")
            try:
                await merge.run(plan)
            except GraphError as error:
                raise Failure(f"{sentence(error)}; --force goes on all the same") from error
    for left in merge.left:
        console.warn(f"'{left}' was not deleted: it is not what was merged, or must not be touched")
    if not arguments.quiet:
        verified = ", and verified" if arguments.verify and plan.data is not None else ""
        console.print(f"Image merged into '{plan.target.name}'{verified}.")
        if arguments.keep and plan.between:
            kept = ", ".join(f"'{member.name}'" for member in plan.between)
            console.print(f"Kept, and of no more use, for their parent has changed: {kept}.")
    return SUCCESS


def _facts(plan: MergePlan, arguments: Arguments) -> dict[str, Any]:
    between = [member.name for member in plan.between]
    return {
        "filename": plan.top.name,
        "into": plan.target.name,
        "data-bytes": plan.data or 0,
        "copied": plan.data is None,
        "virtual-size": plan.top.size,
        "delete": [] if arguments.keep else [*between, plan.top.name],
        "lead": [] if arguments.keep else list(plan.children),
        "lost": list(plan.strangers),
    }


def _show(plan: MergePlan, arguments: Arguments, console: Console) -> None:
    facts = _facts(plan, arguments)
    if arguments.output == "json":
        console.print(json.dumps(facts, indent=4))
        return
    if plan.data is None:
        console.print(f"All data of '{plan.top.name}' is in '{plan.target.name}' already.")
    else:
        console.print(f"{format_size(plan.data)} of data would go into '{plan.target.name}'.")
    if plan.top.size != plan.target.size:
        console.print(
            f"Its disk would have {format_size(plan.top.size)}, not {format_size(plan.target.size)}."
        )
    for name in facts["lost"]:
        console.print(f"'{name}' would be lost: made from an image that the merge changes.")
    for name in facts["lead"]:
        console.print(f"'{name}' would get the new parent '{plan.target.name}'.")
    for name in facts["delete"]:
        console.print(f"'{name}' would be deleted.")


VERB = Verb(
    "merge",
    run,
    Arguments,
    [
        option("--into", metavar="ANCESTOR", help="Where the disk goes; into the parent by default."),
        flag("--keep", help="Delete nothing: the images between are of no more use all the same."),
        flag("--force", help="Go on although images would be lost that were made from those changed."),
        flag("--dry-run", help="Say what would be done, and do nothing."),
        option("--output", metavar="human|json", type=OUTPUT_TYPE, default="human", help="How to report."),
        option(
            "-t",
            "target_cache",
            metavar="CACHE",
            type=TARGET_CACHE_TYPE,
            default="writeback",
            help="Cache mode for writing.",
        ),
        option("-r", "rate", metavar="RATE", type=SizeType("rate limit", 1), help="Bytes a second at most."),
        flag("--verify", help="Compare what was copied before anything is led elsewhere or deleted."),
        flag("-q", "quiet", help="Say nothing but errors."),
        flag("-p", "progress", help="Show how far it is."),
        progress_option(),
        *image_options(),
    ],
    operands="FILENAME",
    help="Merge a differencing VHDX image, such as a checkpoint (AVHDX), into its parent or another "
    "ancestor. What the images between hold is copied once. The images that were merged are deleted when "
    "all of it is on stable storage; children that stand beside them get the new parent. A merge that was "
    "interrupted, by whatever, goes on when the same command is given again.",
)
