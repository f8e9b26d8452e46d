"""`vblk bitmap`: change the dirty bitmaps that an image, or a file beside it, keeps.

Owns: the operations in the order in which they are given, and QEMU's sentences for
one that cannot be. What was done before it stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vblk.cli.command import Verb, flag, option
from vblk.cli.console import Console
from vblk.cli.failure import SUCCESS, Failure
from vblk.cli.images import ImageArguments, image_graph, image_options, open_named
from vblk.errors import BlockError, OptionError
from vblk.graph.dirty_bitmap import DirtyBitmap
from vblk.graph.node import Node
from vblk.graph.recording import add_bitmap, find_bitmap, remove_bitmap, require_changeable
from vblk.graph.registry import Graph
from vblk.options import parse_size

_FLAGS: Final = ("--add", "--remove", "--clear", "--enable", "--disable")
_MERGE: Final = "--merge"
_NO_SIZE: Final = (
    "Invalid granularity specified. You may use k, M, G, T, P or E suffixes for\n"
    "qemu-img: kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes."
)


@dataclass(slots=True)
class Arguments(ImageArguments):
    """The words of one call. `steps` are the operations, each with the bitmap that it merges."""

    add: bool
    remove: bool
    clear: bool
    enable: bool
    disable: bool
    merge: tuple[str, ...]
    source_file: str | None
    source_format: str | None
    granularity: str | None
    steps: tuple[tuple[str, str | None], ...] = ()


class BitmapVerb(Verb[Arguments]):
    """A verb whose operations count in the order of the words."""

    def read(self, words: Sequence[str], program: str) -> Arguments:
        """Read the words, and the order of the operations."""
        arguments = super().read(words, program)
        arguments.steps = tuple(
            (spelling, value)
            for spelling, value in self.scan(words).options
            if spelling in _FLAGS or spelling == _MERGE
        )
        return arguments


async def run(arguments: Arguments, console: Console) -> int:
    """Open the image for writing and carry out the operations."""
    if len(arguments.operands) != 2:
        raise Failure("Expecting filename and bitmap name")
    granularity = _check(arguments)
    filename, name = arguments.operands
    async with image_graph(arguments, console) as graph:
        handle = await open_named(graph, filename, arguments, console, read_only=False, backing=False)
        source = handle.node
        if arguments.source_file is not None:
            opened = await open_named(
                graph,
                arguments.source_file,
                arguments,
                console,
                format=arguments.source_format,
                backing=False,
            )
            source = opened.node
        for operation, other in arguments.steps:
            try:
                await _carry_out(graph, handle.node, name, operation, granularity, source, other)
            except BlockError as error:
                what = operation.removeprefix("--")
                raise Failure(f"Operation {what} on bitmap {name} failed: {error.message}") from error
    return SUCCESS


def _check(arguments: Arguments) -> int | None:
    """Return the granularity, when the options fit together."""
    if not arguments.steps:
        raise Failure("Need at least one of --add, --remove, --clear, --enable, --disable, or --merge")
    if arguments.granularity is not None and not arguments.add:
        raise Failure("granularity only supported with --add")
    if arguments.source_format is not None and arguments.source_file is None:
        raise Failure("-F only supported with -b")
    if arguments.source_file is not None and not arguments.merge:
        raise Failure("Merge bitmap source file only supported with --merge")
    if arguments.granularity is None:
        return None
    try:
        return parse_size(arguments.granularity)
    except OptionError:
        raise Failure(_NO_SIZE) from None


async def _carry_out(
    graph: Graph,
    node: Node,
    name: str,
    operation: str,
    granularity: int | None,
    source: Node,
    other: str | None,
) -> None:
    if operation == "--add":
        await add_bitmap(graph, node, name, granularity=granularity, persistent=True)
        return
    bitmap = find_bitmap(node, name)
    require_changeable(node, bitmap)
    if operation == "--remove":
        remove_bitmap(node, name)
        return
    bitmap.require_consistent()
    if operation == "--clear":
        bitmap.clear()
    elif operation == _MERGE:
        assert other is not None
        merged: DirtyBitmap = find_bitmap(source, other)
        merged.require_usable()
        bitmap.merge(merged)
    else:
        bitmap.enabled = operation == "--enable"


VERB = BitmapVerb(
    "bitmap",
    run,
    Arguments,
    [
        flag("--add", help="Make a new bitmap, which is enabled."),
        flag("--remove", help="Remove the bitmap."),
        flag("--clear", help="Unmark everything."),
        flag("--enable", help="Mark changes from now on."),
        flag("--disable", help="Mark changes no more."),
        option(_MERGE, metavar="SOURCE", multiple=True, help="Add the marks of another bitmap."),
        option("-b", "source_file", metavar="FILE", help="The image whose bitmaps are merged."),
        option("-F", "source_format", metavar="FMT", help="Its format; probed when not given."),
        option("-g", "--granularity", "granularity", metavar="SIZE", help="Bytes of the disk to a mark."),
        *image_options(),
    ],
    operands="FILENAME BITMAP",
    help="Change the dirty bitmaps that are kept of an image's disk, by one or more operations in the order "
    "given. A qcow2 image keeps them itself; of raw and VHDX images a file beside them does, "
    ".NAME.vblk-bitmaps.",
)
