"""`vblk map`: where an image's data is.

Owns: QEMU's two tables, printed while the walk goes on, so that a disk of any
size takes no memory.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from vblk.cli.command import Verb, option
from vblk.cli.console import Console
from vblk.cli.failure import SUCCESS, Failure
from vblk.cli.images import ImageArguments, image_graph, image_options, open_named
from vblk.cli.values import OUTPUT_TYPE, SizeType
from vblk.extent import Kind
from vblk.graph.node import Opaque, Span
from vblk.jobs.walk import walk_joined

SECTOR = 512


@dataclass(slots=True)
class Arguments(ImageArguments):
    """The words of one call."""

    output: str
    start_offset: int
    max_length: int | None


async def run(arguments: Arguments, console: Console) -> int:
    """Open the image and its chain, and print its spans."""
    name = arguments.one_operand()
    async with image_graph(arguments, console) as graph:
        handle = await open_named(graph, name, arguments, console)
        start = arguments.start_offset
        length = max(0, handle.size - start)
        if arguments.max_length is not None:
            length = min(length, arguments.max_length)
        spans = _whole_sectors(walk_joined(handle, start, length)) if length else _nothing()
        if arguments.output == "json":
            await _print_json(spans, start, console)
        else:
            await _print_table(spans, console)
    return SUCCESS


async def _whole_sectors(spans: AsyncIterator[Span]) -> AsyncIterator[Span]:
    """Count the rest of a file's last sector, behind the file's end, as the file's.

    Where the file is used in larger blocks (O_DIRECT), the rest is like what is before it.
    """
    held: Span | None = None
    async for span in spans:
        if held is not None and held.leaf is not None and span.kind is Kind.ZERO and span.leaf is None:
            end = held.leaf_offset + held.length
            if end == held.leaf.size and span.length < SECTOR:
                if held.kind is Kind.ZERO or held.leaf.alignment > 1:
                    held.length += span.length
                    continue
                span.leaf, span.leaf_offset = held.leaf, end
        if held is not None:
            yield held
        held = span
    if held is not None:
        yield held


async def _nothing() -> AsyncIterator[Span]:
    return
    yield


async def _print_table(spans: AsyncIterator[Span], console: Console) -> None:
    console.print(f"{'Offset':16}{'Length':16}{'Mapped to':16}File")
    async for span in spans:
        if _has_no_place(span):
            raise Failure("File contains external, encrypted or compressed clusters.")
        if span.kind is Kind.DATA and span.leaf is not None:
            where = f"{_hex(span.guest_offset):16}{_hex(span.length):16}{_hex(span.leaf_offset):16}"
            console.print(where + span.leaf.filename)


def _has_no_place(span: Span) -> bool:
    """Tell whether the bytes are somewhere, but not as they are."""
    if span.kind is Kind.ENCODED or (span.kind is Kind.DATA and span.leaf is None):
        return True
    return isinstance(span.leaf, Opaque) and span.leaf.encodes


def _hex(value: int) -> str:
    return f"{value:#x}" if value else "0"


async def _print_json(spans: AsyncIterator[Span], start: int, console: Console) -> None:
    before = "["
    async for span in spans:
        console.out.write(before + _json_line(span))
        before = ",\n"
    if before == "[":
        console.out.write(f"[{_json_line(Span(Kind.ABSENT, start, 0, present=False))}")
    console.out.write("]\n")


def _json_line(span: Span) -> str:
    facts = {
        "present": span.present,
        "zero": span.kind is Kind.ZERO,
        "data": span.kind in (Kind.DATA, Kind.ENCODED),
    }
    words = ", ".join(f'"{name}": {"true" if value else "false"}' for name, value in facts.items())
    offset = f', "offset": {span.leaf_offset}' if span.leaf is not None and not _has_no_place(span) else ""
    return (
        f'{{ "start": {span.guest_offset}, "length": {span.length}, "depth": {span.depth}, {words}{offset}}}'
    )


VERB = Verb(
    "map",
    run,
    Arguments,
    [
        option(
            "-s",
            "--start-offset",
            "start_offset",
            metavar="OFFSET",
            type=SizeType("start offset"),
            default=0,
            help="First byte to report.",
        ),
        option(
            "-l",
            "--max-length",
            "max_length",
            metavar="LENGTH",
            type=SizeType("max length"),
            help="Bytes to report at most.",
        ),
        option("--output", metavar="human|json", type=OUTPUT_TYPE, default="human", help="How to report."),
        *image_options(),
    ],
    operands="FILENAME",
    help="Show which bytes of a disk are data, where they are, and which image of the chain has them.",
)
