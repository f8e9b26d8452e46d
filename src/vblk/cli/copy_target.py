"""Targets of verbs that copy an image: made anew, or opened.

Owns: the options that say where a copy goes, QEMU's words for those that make no
sense together, and where a new image is kept until it is whole.
"""

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from vblk.cli.command import flag, option
from vblk.cli.console import Console
from vblk.cli.creation import Request, request, target_of
from vblk.cli.failure import Failure, could_not_open
from vblk.cli.images import ImageArguments, named_options
from vblk.cli.values import TARGET_CACHE_TYPE
from vblk.errors import BlockError
from vblk.graph.handle import Handle
from vblk.graph.registry import Graph
from vblk.jobs.target import Made, Target, new_image
from vblk.opening import open_image

if TYPE_CHECKING:
    from vblk.jobs.resumption import Journal


@dataclass(slots=True)
class TargetArguments(ImageArguments):
    """What a verb that copies an image can be told about its target."""

    output_format: str | None
    options: tuple[str, ...]
    target_image_opts: bool
    target_is_zero: bool
    skip_create: bool
    target_cache: str
    backing: str | None
    backing_format: str | None

    @property
    def form(self) -> str:
        """The format of the target."""
        return self.output_format or "raw"


def target_options() -> list[click.Option]:
    """Declare the options of `TargetArguments`."""
    return [
        option("-O", "output_format", metavar="FMT", help="Format of the result; raw, the default."),
        option("-o", "options", metavar="OPTIONS", multiple=True, help="How it is made; -o help lists all."),
        flag("-n", "skip_create", help="The target exists: copy into it, and do not make it anew."),
        flag("--target-image-opts", help="The target's name is options, as with --image-opts; wants -n."),
        flag("--target-is-zero", help="The target reads as zeros already; wants -n."),
        option(
            "-t",
            "target_cache",
            metavar="CACHE",
            type=TARGET_CACHE_TYPE,
            default="unsafe",
            help="Cache mode for writing; unsafe, the default, does not wait for stable storage.",
        ),
        option(
            "-B",
            "backing",
            metavar="FILE",
            help="What the result stands on, from its own folder: makes a VHDX a differencing image.",
        ),
        option("-F", "backing_format", metavar="FMT", help="The format of that."),
    ]


def verify_option() -> click.Option:
    """Declare `--verify`."""
    return flag(
        "--verify",
        help="Compare the copy with its source at the end, and say how much was compared. What passed "
        "through memory was hashed on its way, and is read from the copy alone; of what the kernel "
        "copied both sides are read.",
    )


def check_target(arguments: TargetArguments) -> None:
    """Refuse options that make no sense together.

    Raises:
        Failure: With QEMU's sentence.
    """
    if arguments.target_image_opts and not arguments.skip_create:
        raise Failure("--target-image-opts requires use of -n flag")
    if arguments.target_is_zero and not arguments.skip_create:
        raise Failure("--target-is-zero requires use of -n flag")
    if arguments.target_image_opts and arguments.output_format is not None:
        raise Failure("--image-opts and --format are mutually exclusive")
    if arguments.target_is_zero and arguments.backing is not None:
        raise Failure("Cannot use --target-is-zero when the destination image has a backing file")


def wanted_image(arguments: TargetArguments, values: dict[str, str]) -> Request:
    """Return what is to be made, of the values that `-o` gave.

    Raises:
        Failure: It cannot be.
    """
    wanted = request(arguments.form, values, arguments.backing, arguments.backing_format)
    if wanted.backing_file is not None and wanted.backing_format is None:
        if wanted.creator.backing_format is None:
            raise Failure("Use of backing file requires explicit backing format")
        wanted.backing_format = wanted.creator.backing_format
    return wanted


@asynccontextmanager
async def opened_target(
    graph: Graph,
    arguments: TargetArguments,
    name: str,
    size: int,
    creation: Request | None,
    console: Console,
    *,
    backing: Handle | None = None,
    journal: "Journal | None" = None,
) -> AsyncGenerator[Made]:
    """Yield the target, new or existing; a new one, on `backing`, is kept if the block ends well."""
    if creation is None:
        target = await open_existing(graph, arguments, name, size, arguments.target_cache, console)
        yield Made(target, arguments.target_is_zero)
        return
    image = await creation.plan(graph, name, size, backing)
    cache = arguments.target_cache
    if journal is not None and cache == "unsafe":
        cache = "writeback"  # what a journal says of it must be durable
    async with new_image(graph, target_of(name), image, cache=cache, journal=journal) as made:
        yield made


@contextmanager
def claimed_journal(
    goal: Target, read: Sequence[Handle], how: str, size: int, console: Console | None
) -> "Generator[Journal]":
    """Yield the journal of a copy, claimed; tell the console, if it is given, that the copy goes on.

    Args:
        goal: Where the copy goes.
        read: What is copied, and what else decides about the bytes.
        how: The rest that does.
        size: That of the copy, in bytes.
        console: For the message.

    Raises:
        Failure: The target is no local file.
        JobError: Somebody else copies there, or something else was copied.
    """
    if not isinstance(goal, str):
        raise Failure("--resume wants a local file for the target")
    from vblk.jobs.resumption import Journal, Task, traces_of

    journal = Journal(goal, Task(traces_of([each.node for each in read]), how))
    with journal.claimed():
        if journal.done and console is not None:
            console.message(f"going on: {journal.done} of {size} bytes were copied before")
        yield journal


async def open_existing(
    graph: Graph, arguments: TargetArguments, name: str, size: int, cache: str, console: Console
) -> Handle:
    """Open a target that is there, for at least `size` bytes.

    Raises:
        Failure: It does not open, or is too small.
    """
    options = named_options(
        name,
        image_opts=arguments.target_image_opts,
        format=None if arguments.target_image_opts else arguments.form,
        console=console,
    )
    try:
        target = await open_image(graph, options, read_only=False, cache=cache, rules=arguments.rules())
    except BlockError as error:
        raise could_not_open(name, error) from error
    if target.size < size:
        raise Failure("output file is smaller than input file")
    return target
