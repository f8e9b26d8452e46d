"""`vblk dd`: copy blocks of an image into a new one.

Owns: the operands of dd(1) as far as QEMU has them.
"""

from dataclasses import dataclass

from vblk.aio.clock import LoopClock
from vblk.cli.command import Verb, option
from vblk.cli.console import Console
from vblk.cli.creation import request, required_creator, target_of
from vblk.cli.failure import SUCCESS, Failure, sentence
from vblk.cli.images import ImageArguments, image_graph, image_options, open_named
from vblk.cli.values import bounded_size
from vblk.errors import BlockError
from vblk.graph.plane import Mover
from vblk.jobs.copy import CopyJob, CopyPlan, Source
from vblk.jobs.target import new_image

BLOCK_SIZE = 512
BLOCK_SIZE_MAX = (1 << 31) - 1


@dataclass(slots=True)
class Arguments(ImageArguments):
    """The words of one call."""

    output_format: str


@dataclass(slots=True)
class Operands:
    """What dd's operands say; sizes in bytes, `skip` and `count` in blocks."""

    source: str | None = None
    target: str | None = None
    block_size: int = BLOCK_SIZE
    count: int | None = None
    skip: int = 0


def parse_operands(words: tuple[str, ...]) -> Operands:
    """Read `if=`, `of=`, `bs=`, `count=` and `skip=`; later ones replace earlier ones.

    Raises:
        Failure: An operand is unknown, or its value is none.
    """
    operands = Operands()
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise Failure(f"unrecognized operand {word}")
        if name == "if":
            operands.source = value
        elif name == "of":
            operands.target = value
        elif name == "bs":
            operands.block_size = bounded_size(value, "bs", 1, BLOCK_SIZE_MAX)
        elif name == "count":
            operands.count = bounded_size(value, "count")
        elif name == "skip":
            operands.skip = bounded_size(value, "skip")
        else:
            raise Failure(f"unrecognized operand {name}")
    return operands


async def run(arguments: Arguments, console: Console) -> int:
    """Copy the blocks."""
    operands = parse_operands(arguments.operands)
    if operands.source is None or operands.target is None:
        raise Failure("Must specify both input and output files")
    name, target = operands.source, operands.target
    async with image_graph(arguments, console) as graph:
        handle = await open_named(graph, name, arguments, console)
        required_creator(arguments.output_format, "Unknown file format")
        end = handle.size
        if operands.count is not None:
            end = min(end, (operands.skip + operands.count) * operands.block_size)
        start = operands.skip * operands.block_size
        if start > handle.size:
            console.message(f"{name}: cannot skip to specified offset")
        start = min(start, end)
        opened = False
        try:
            wanted = request(arguments.output_format, {}, None, None)
            image = await wanted.plan(graph, target, end - start, None)
            async with new_image(graph, target_of(target), image, cache="unsafe") as made:
                opened = True
                source = Source(handle, -start, start, end - start)
                job = CopyJob(
                    [source],
                    made.handle,
                    CopyPlan(target_is_zero=made.is_zero),
                    Mover(graph.engine),
                    clock=LoopClock(),
                )
                await job.run()
        except BlockError as error:
            if opened:
                raise
            text = sentence(error).removeprefix(f"{target}: ")
            raise Failure(f"{target}: error while creating output image: {text}") from error
    return SUCCESS


VERB = Verb(
    "dd",
    run,
    Arguments,
    [
        option("-O", "output_format", metavar="FMT", default="raw", help="Its format: raw or vhdx."),
        *image_options(),
    ],
    operands="[bs=SIZE] [count=N] [skip=N] if=INPUT of=OUTPUT",
    help="Copy blocks of an image into a new image. A block has 512 bytes, or as many as bs says.",
)
