"""`vblk compare`: whether two images have the same content.

Owns: QEMU's sentences and exit statuses of a comparison.
"""

from dataclasses import dataclass

from vblk.cli.command import Verb, flag, option
from vblk.cli.console import Console
from vblk.cli.failure import (
    COMPARE_DIFFERENT,
    COMPARE_READ_FAILED,
    COMPARE_STATUS_FAILED,
    SUCCESS,
    Failure,
    sentence,
)
from vblk.cli.images import ImageArguments, image_graph, image_options, open_named
from vblk.cli.progress_view import progress_option, shown_progress
from vblk.graph.handle import Handle
from vblk.jobs.compare import CompareError, Comparison, ImageComparison
from vblk.jobs.progress import Progress


@dataclass(slots=True)
class Arguments(ImageArguments):
    """The words of one call."""

    second_format: str | None
    strict_sizes: bool
    quiet: bool
    progress: bool
    progress_format: str | None


async def run(arguments: Arguments, console: Console) -> int:
    """Open both images with their chains and compare them."""
    if len(arguments.operands) != 2:
        raise Failure("Expecting two image file names", hint=True)
    names = arguments.operands
    async with image_graph(arguments, console) as graph:
        first = await open_named(graph, names[0], arguments, console)
        second = await open_named(graph, names[1], arguments, console, format=arguments.second_format)
        if arguments.strict_sizes and first.size != second.size:
            _say("Strict mode: Image size mismatch!", arguments, console)
            return COMPARE_DIFFERENT
        with shown_progress(
            console,
            wanted=arguments.progress,
            form=arguments.progress_format,
            quiet=arguments.quiet,
            what="compare",
        ) as progress:
            try:
                text = await _verdict(first, second, arguments, console, progress)
            except CompareError as error:
                raise _failure(error, names) from error
            if text is not None:
                _say(text, arguments, console)
                return COMPARE_DIFFERENT
            _say("Images are identical.", arguments, console)
    return SUCCESS


def _say(text: str, arguments: Arguments, console: Console) -> None:
    if not arguments.quiet:
        console.print(text)


async def _verdict(
    first: Handle, second: Handle, arguments: Arguments, console: Console, progress: Progress | None
) -> str | None:
    """Return what differs, in QEMU's words, or None."""
    common = min(first.size, second.size)
    longest = max(first.size, second.size)
    if progress is not None:
        progress.start(longest)
    found = await ImageComparison(
        (first, second), 0, common, strict=arguments.strict_sizes, progress=progress
    ).run()
    if found.equal and common != longest:
        _say("Warning: Image size mismatch!", arguments, console)
        larger = first if first.size > second.size else second
        found = await ImageComparison((larger, None), common, longest - common, progress=progress).run()
    return None if found.equal else _words(found)


def _words(found: Comparison) -> str:
    if found.status is not None:
        return f"Strict mode: Offset {found.status} block status mismatch!"
    return f"Content mismatch at offset {found.content}!"


def _failure(error: CompareError, names: tuple[str, ...]) -> Failure:
    why = sentence(error.cause)
    if error.reading:
        return Failure(
            f"Error while reading offset {error.offset} of {names[error.side]}: {why}",
            status=COMPARE_READ_FAILED,
        )
    return Failure(
        f"Sector allocation test failed for {names[error.side]}: {why}", status=COMPARE_STATUS_FAILED
    )


VERB = Verb(
    "compare",
    run,
    Arguments,
    [
        option("-F", "second_format", metavar="FMT", help="Format of the second image; -f is the first's."),
        flag("-s", "strict_sizes", help="Different sizes or allocation count as differences too."),
        flag("-q", "quiet", help="Say nothing; the exit status tells."),
        flag("-p", "progress", help="Show how far it is."),
        progress_option(),
        *image_options(),
    ],
    operands="FILENAME1 FILENAME2",
    help="Compare the content of two images. Exit status: 0 the same, 1 different, 2 an image does not open, "
    "3 an image's map, or 4 its data, could not be read.",
)
