"""`vblk io`: reads, writes and examines an image by commands, in qemu-io's language.

Owns: the verb's options, and the run from the first command to the exit status.
The language is in `language` and `table`, the commands in the modules that
`commands` names.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vblk.cli.command import ProgramVerb, flag, option
from vblk.cli.console import Console
from vblk.cli.failure import SUCCESS, Failure
from vblk.cli.objects import objects_of, objects_option

if TYPE_CHECKING:
    from vblk.qemu_io.session import Session

__all__ = ["VERB"]


PROGRAM = "qemu-io"
"""The program that is this verb and nothing else."""


@dataclass(slots=True)
class IoArguments:
    """The words of one call. `operands` are not options."""

    operands: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    format: str | None = None
    image_opts: bool = False
    objects: tuple[str, ...] = ()
    read_only: bool = False
    snapshot: bool = False
    nocache: bool = False
    copy_on_read: bool = False
    misalign: bool = False
    native_aio: bool = False
    aio: str | None = None
    cache: str | None = None
    discard: str | None = None
    trace: str | None = None
    force_share: bool = False
    version: bool = False
    help: bool = False


OPTIONS = (
    option(
        "-c", "--cmd", "cmd", metavar="COMMAND", multiple=True, help="Carry out a command; may be repeated."
    ),
    option("-f", "--format", "format", metavar="FMT", help="Format of the image; probed when not given."),
    flag("--image-opts", help="The image's name is options: driver=raw,file.filename=a.img"),
    objects_option(),
    flag("-r", "--read-only", help="Open for reading only."),
    flag("-s", "--snapshot", help="Keep what is written in a temporary overlay, gone at the end."),
    flag("-n", "--nocache", help="Go around the system's cache: -t none."),
    flag("-C", "--copy-on-read", help="Copy what is read from the backing into the image."),
    flag("-m", "--misalign", help="Use buffers at bad addresses, to try direct I/O."),
    flag("-k", "--native-aio", help="The same as -i native."),
    option("-i", "--aio", "aio", metavar="MODE", help="How requests reach the system: threads."),
    option(
        "-t",
        "--cache",
        "cache",
        metavar="MODE",
        help="Cache mode: writethrough (default), writeback, none, directsync or unsafe.",
    ),
    option(
        "-d",
        "--discard",
        "discard",
        metavar="MODE",
        help="Whether discards reach the image: unmap or ignore.",
    ),
    option("-T", "--trace", "trace", metavar="EVENTS", help="Refused: vblk has no trace events."),
    flag("-U", "--force-share", help="Open even though another process writes to the image; with -r."),
    flag("-V", "--version", help="Show the version."),
)


class IoVerb(ProgramVerb[IoArguments]):
    """The verb, and the program."""

    program = PROGRAM
    more = "\n\nSee '{} -c help' for the commands."


async def _run(arguments: IoArguments, console: Console) -> int:
    if VERB.answered(arguments, console):
        return SUCCESS
    from vblk.cli.io_prompt import run_prompt
    from vblk.qemu_io.commands import by_name
    from vblk.qemu_io.session import Session

    _check(arguments)
    session = Session(
        console,
        commands=by_name(),
        image_opts=arguments.image_opts,
        misalign=arguments.misalign,
        objects=objects_of(arguments.objects),
    )
    try:
        if arguments.operands:
            await _open(session, arguments)
        for command in arguments.cmd:
            if not session.ended:
                await session.execute(command)
        if not arguments.cmd:
            await run_prompt(session, console.name)
    finally:
        await session.close()
    return session.status


def _check(arguments: IoArguments) -> None:
    """Refuse what contradicts itself or what this version has not.

    Raises:
        Failure: Always in one sentence.
    """
    from vblk.qemu_io.images import AIO_MODES, read_cache, read_discard

    if len(arguments.operands) > 1:
        raise Failure("Expecting at most one image file name", hint=True)
    if arguments.image_opts and arguments.format is not None:
        raise Failure("--image-opts and -f are mutually exclusive")
    if arguments.trace is not None:
        raise Failure("--trace is not supported: vblk has no trace events")
    if arguments.cache is not None:
        read_cache(arguments.cache)
    if arguments.discard is not None:
        read_discard(arguments.discard)
    if arguments.aio is not None and arguments.aio not in AIO_MODES:
        raise Failure(f"Invalid aio option: {arguments.aio}")


async def _open(session: "Session", arguments: IoArguments) -> None:
    """Open the image that the call names."""
    from vblk.options import NodeOptions, parse_image_opts
    from vblk.qemu_io.images import open_image, read_discard, with_discard
    from vblk.qemu_io.session import Access

    name: str | None = arguments.operands[0]
    options = NodeOptions(driver=arguments.format)
    if arguments.image_opts:
        options, name = parse_image_opts(arguments.operands[0], warn=session.caution), None
    access = Access(
        read_only=arguments.read_only,
        snapshot=arguments.snapshot,
        copy_on_read=arguments.copy_on_read,
        force_share=arguments.force_share,
        cache=arguments.cache or ("none" if arguments.nocache else "writethrough"),
    )
    if arguments.discard is not None:
        options = with_discard(options, read_discard(arguments.discard))
    aio = arguments.aio or ("native" if arguments.native_aio else None)
    await open_image(session, name, options, access, aio)


VERB = IoVerb(
    "io",
    _run,
    IoArguments,
    OPTIONS,
    operands="[FILE]",
    help="Read, write and examine an image by commands, as qemu-io does.",
)
