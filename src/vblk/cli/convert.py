"""`vblk convert`: copy images into a new one, or over an existing one.

Owns: what the options mean together, QEMU's words for combinations that make no
sense, and where the result is kept until it is whole. The copying is
`vblk.jobs.copy`.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from vblk.aio.clock import LoopClock
from vblk.cli.command import Verb, flag, option
from vblk.cli.console import Console
from vblk.cli.creation import Request, options_help, read_options, request, target_of
from vblk.cli.failure import SUCCESS, Failure, could_not_open, sentence
from vblk.cli.images import ImageArguments, image_graph, image_options, named_options, open_named
from vblk.cli.progress_view import progress_option, shown_progress
from vblk.cli.snapshots import check_snapshot_name, no_snapshots
from vblk.cli.values import TARGET_CACHE_TYPE, NumberType, SizeType
from vblk.errors import BlockError
from vblk.graph.handle import Handle
from vblk.graph.plane import Mover
from vblk.graph.registry import Graph
from vblk.jobs.copy import CopyJob, CopyPlan, Loss, Source, concatenated
from vblk.jobs.target import Made, new_image
from vblk.opening import open_image
from vblk.units import MIB

SPARSE_MOST = 16 * MIB
SECTOR = 512


@dataclass(slots=True)
class Arguments(ImageArguments):
    """The words of one call."""

    output_format: str | None
    options: tuple[str, ...]
    target_image_opts: bool
    target_is_zero: bool
    skip_create: bool
    target_cache: str
    backing: str | None
    backing_format: str | None
    compress: bool
    copy_offload: bool
    sparse: int | None
    workers: int
    out_of_order: bool
    salvage: bool
    bitmaps: bool
    skip_broken_bitmaps: bool
    snapshot: str | None
    rate: int | None
    quiet: bool
    progress: bool
    progress_format: str | None

    @property
    def form(self) -> str:
        """The format of the target."""
        return self.output_format or "raw"

    def plan(self, *, target_is_zero: bool, differences: bool) -> CopyPlan:
        """Return how to copy onto a target that reads as zeros, or does not, or shows other data already."""
        return CopyPlan(
            workers=self.workers,
            out_of_order=self.out_of_order,
            sparse=self.sparse,
            offload=self.copy_offload,
            target_is_zero=target_is_zero,
            differences=differences,
            salvage=self.salvage,
            rate=self.rate,
        )


async def run(arguments: Arguments, console: Console) -> int:
    """Check the options, open the sources, copy."""
    options = read_options(arguments.options)
    if options.wants_help:
        console.print(*options_help(arguments.form, with_file=len(arguments.operands) > 1))
        return SUCCESS
    _check_combinations(arguments)
    creation = None if arguments.skip_create else _creation(arguments, options.values)
    if len(arguments.operands) < 2:
        raise Failure("Must specify image file name")
    *names, target = arguments.operands
    async with image_graph(arguments, console) as graph:
        sources = [await open_named(graph, name, arguments, console) for name in names]
        if arguments.snapshot is not None:
            raise no_snapshots(sources[0].node.driver)
        if arguments.bitmaps:
            raise Failure("Source lacks bitmap support")
        total = sum(source.size for source in sources)
        async with _opened_target(graph, arguments, target, total, creation, console) as goal:
            behind = arguments.backing if creation is None else creation.backing_file
            plan = arguments.plan(target_is_zero=goal.is_zero, differences=behind is not None)
            await _copy(sources, goal.handle, plan, arguments, graph, console)
    return SUCCESS


def _check_combinations(arguments: Arguments) -> None:
    if arguments.copy_offload and arguments.sparse is not None:
        raise Failure("Cannot enable copy offloading when -S is used")
    if arguments.copy_offload and arguments.compress:
        raise Failure("Cannot enable copy offloading when -c is used")
    if arguments.copy_offload and arguments.salvage:
        raise Failure("Cannot use copy offloading in salvaging mode")
    if arguments.sparse is not None and (arguments.sparse % SECTOR or arguments.sparse > SPARSE_MOST):
        raise Failure(
            f"Invalid buffer size for sparse output specified. Valid sizes are multiples of {SECTOR} up to "
            f"{SPARSE_MOST}. Select 0 to disable sparse detection (fully allocates output)."
        )
    if arguments.target_image_opts and not arguments.skip_create:
        raise Failure("--target-image-opts requires use of -n flag")
    if arguments.target_is_zero and not arguments.skip_create:
        raise Failure("--target-is-zero requires use of -n flag")
    if arguments.target_image_opts and arguments.output_format is not None:
        raise Failure("--image-opts and --format are mutually exclusive")
    if arguments.target_is_zero and arguments.backing is not None:
        raise Failure("Cannot use --target-is-zero when the destination image has a backing file")
    if arguments.backing is not None and len(arguments.operands) > 2:
        raise Failure(
            "Having a backing file for the target makes no sense when concatenating multiple input images"
        )
    if arguments.skip_create and arguments.options:
        raise Failure("-o has no effect when skipping image creation")
    if arguments.skip_broken_bitmaps and not arguments.bitmaps:
        raise Failure("Use of --skip-broken-bitmaps requires --bitmaps")
    if arguments.compress:
        raise Failure("Compression not supported for this file format")
    if arguments.snapshot is not None:
        check_snapshot_name(arguments.snapshot)


def _creation(arguments: Arguments, values: dict[str, str]) -> Request:
    wanted = request(arguments.form, values, arguments.backing, arguments.backing_format)
    if wanted.backing_file is not None and wanted.backing_format is None:
        if wanted.creator.backing_format is None:
            raise Failure("Use of backing file requires explicit backing format")
        wanted.backing_format = wanted.creator.backing_format
    return wanted


@asynccontextmanager
async def _opened_target(
    graph: Graph,
    arguments: Arguments,
    name: str,
    size: int,
    creation: Request | None,
    console: Console,
) -> AsyncGenerator[Made]:
    """Yield the target, new or existing; a new one is kept if the block ends well."""
    if creation is None:
        yield Made(await _open_existing(graph, arguments, name, size, console), arguments.target_is_zero)
        return
    opened = False
    try:
        backing = await creation.opened_backing(graph, name, rules=arguments.rules())
        image = await creation.plan(graph, name, size, backing)
        async with new_image(graph, target_of(name), image, cache=arguments.target_cache) as made:
            opened = True
            yield made
    except BlockError as error:
        if opened:
            raise
        raise Failure(f"{name}: error while converting {arguments.form}: {_without(name, error)}") from error
    except Failure as failure:
        if opened:
            raise
        lines = (f"{name}: error while converting {arguments.form}: {line}" for line in failure.lines)
        raise Failure(*lines) from failure


def _without(name: str, error: BlockError) -> str:
    return sentence(error).removeprefix(f"{name}: ")


async def _open_existing(
    graph: Graph, arguments: Arguments, name: str, size: int, console: Console
) -> Handle:
    options = named_options(
        name,
        image_opts=arguments.target_image_opts,
        format=None if arguments.target_image_opts else arguments.form,
        console=console,
    )
    try:
        target = await open_image(
            graph, options, read_only=False, cache=arguments.target_cache, rules=arguments.rules()
        )
    except BlockError as error:
        raise could_not_open(name, error) from error
    if target.size < size:
        raise Failure("output file is smaller than input file")
    return target


async def _copy(
    sources: Sequence[Handle],
    target: Handle,
    plan: CopyPlan,
    arguments: Arguments,
    graph: Graph,
    console: Console,
) -> None:
    def salvaged(what: Loss, _: Source, offset: int, length: int, error: BlockError) -> None:
        if what is Loss.DAMAGED:
            console.warn(f"{length} bytes at offset {offset} are lost and become zeros: {error.message}")
            return
        place = "offset" if what is Loss.READ else "block status at offset"
        console.warn(f"error while reading {place} {offset}: {error.message}")

    with shown_progress(
        console,
        wanted=arguments.progress,
        form=arguments.progress_format,
        quiet=arguments.quiet,
        what="convert",
    ) as progress:
        job = CopyJob(
            concatenated(sources),
            target,
            plan,
            Mover(graph.engine),
            clock=LoopClock(),
            progress=progress,
            salvaged=None if arguments.quiet else salvaged,
        )
        await job.run()
        if arguments.target_cache != "unsafe":
            await target.flush()


VERB = Verb(
    "convert",
    run,
    Arguments,
    [
        option("-O", "output_format", metavar="FMT", help="Format of the result: raw, the default, or vhdx."),
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
        flag("-c", "compress", help="Refused: raw images are not compressed."),
        flag("-C", "copy_offload", help="Let the kernel copy all data, and look for no zeros in it."),
        option(
            "-S",
            "sparse",
            metavar="SIZE",
            type=SizeType("buffer size for sparse output"),
            help="Leave holes for runs of zeros of SIZE; 0 writes all. Without it, what the image's tables "
            "and the file system call zero stays a hole, extents that the file system can share are shared, "
            "and other data is searched for 4k of zeros.",
        ),
        option(
            "-m",
            "workers",
            metavar="N",
            default=8,
            type=NumberType(
                "Invalid number of coroutines. Allowed number of coroutines is between 1 and 16", 1, 16
            ),
            help="How many pieces are under way at a time: 1 to 16; 8.",
        ),
        flag("-W", "out_of_order", help="Allow the pieces to be written in any order."),
        flag("--salvage", help="Replace what cannot be read by zeros, and say where."),
        flag("--bitmaps", help="Refused: no format of this version has bitmaps."),
        flag("--skip-broken-bitmaps", help="Refused, as --bitmaps."),
        option(
            "-l", "snapshot", metavar="SNAPSHOT", help="Refused: no format of this version has snapshots."
        ),
        option("-r", "rate", metavar="RATE", type=SizeType("rate limit", 1), help="Bytes a second at most."),
        flag("-q", "quiet", help="Say nothing but errors."),
        flag("-p", "progress", help="Show how far it is."),
        progress_option(),
        *image_options(),
    ],
    operands="FILENAME... TARGET",
    help="Copy one or more images, one behind the other, into a new image. The result has its name only "
    "when it is whole: until then it stands beside it under a temporary name, and an existing file is "
    "kept. Devices, files with several names, and targets of -n are written in place.",
)
