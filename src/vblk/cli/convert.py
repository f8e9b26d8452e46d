"""`vblk convert`: copy images into a new one, or over an existing one.

Owns: what the options mean together, QEMU's words for combinations that make no
sense, and where the result is kept until it is whole. The copying is
`vblk.jobs.copy`.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vblk.aio.clock import LoopClock
from vblk.cli.command import Verb, flag, option
from vblk.cli.console import Console
from vblk.cli.copy_target import (
    TargetArguments,
    check_target,
    claimed_journal,
    open_existing,
    target_options,
    verify_option,
    wanted_image,
)
from vblk.cli.creation import Request, options_help, read_options, target_of
from vblk.cli.failure import SUCCESS, Failure, sentence
from vblk.cli.images import image_graph, image_options, open_named
from vblk.cli.progress_view import progress_option, shown_progress
from vblk.cli.snapshots import check_snapshot_name, no_snapshots
from vblk.cli.values import NumberType, SizeType
from vblk.errors import BlockError, CopyDiffers, Unsupported
from vblk.graph.dirty_bitmap import DirtyBitmap
from vblk.graph.handle import Handle
from vblk.graph.plane import Mover
from vblk.graph.registry import Graph
from vblk.jobs.copy import CopyJob, CopyPlan, Loss, Source, concatenated
from vblk.jobs.progress import Progress
from vblk.jobs.target import Made, Target, new_image
from vblk.opening import open_image
from vblk.units import MIB

if TYPE_CHECKING:
    from vblk.jobs.resumption import Journal
    from vblk.jobs.verify import Checker

SPARSE_MOST = 16 * MIB
SECTOR = 512

_NO_COMPRESSION = "Compression not supported for this file format"


@dataclass(slots=True)
class Arguments(TargetArguments):
    """The words of one call."""

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
    resume: bool
    verify: bool
    quiet: bool
    progress: bool
    progress_format: str | None

    @property
    def how(self) -> str:
        """What decides about the bytes of the target, beside the sources, as words of a command."""
        words = [f"-O {self.form}", *(f"-o {each}" for each in self.options), *self.operands[:-1]]
        if self.format is not None:
            words.append(f"-f {self.format}")
        if self.backing is not None:
            words.append(f"-B {self.backing}")
        if self.sparse is not None:
            words.append(f"-S {self.sparse}")
        return " ".join(words)

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
            compress=self.compress,
            rate=self.rate,
        )


async def run(arguments: Arguments, console: Console) -> int:
    """Check the options, open the sources, copy."""
    options = read_options(arguments.options)
    if options.wants_help:
        console.print(*options_help(arguments.form, with_file=len(arguments.operands) > 1))
        return SUCCESS
    _check_combinations(arguments)
    creation = None if arguments.skip_create else wanted_image(arguments, options.values)
    if len(arguments.operands) < 2:
        raise Failure("Must specify image file name")
    *names, target = arguments.operands
    async with image_graph(arguments, console) as graph:
        sources = [await open_named(graph, name, arguments, console) for name in names]
        if arguments.snapshot is not None:
            raise no_snapshots(sources[0].node.driver)
        bitmaps: Sequence[DirtyBitmap] = ()
        if arguments.bitmaps:
            from vblk.cli.bitmap_copy import bitmaps_of

            bitmaps = bitmaps_of(sources, console, skip_broken=arguments.skip_broken_bitmaps)
        await _Conversion(graph, arguments, console, sources, target, creation, bitmaps).run()
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
    check_target(arguments)
    if arguments.backing is not None and len(arguments.operands) > 2:
        raise Failure(
            "Having a backing file for the target makes no sense when concatenating multiple input images"
        )
    if arguments.skip_create and arguments.options:
        raise Failure("-o has no effect when skipping image creation")
    if arguments.resume and arguments.skip_create:
        raise Failure("--resume is for a new image, which -n does not make")
    if arguments.resume and arguments.salvage:
        raise Failure("--resume and --salvage do not go together: what is lost is to be told in one go")
    if arguments.verify and arguments.salvage:
        raise Failure("--verify and --salvage do not go together: what cannot be read cannot be compared")
    if arguments.skip_broken_bitmaps and not arguments.bitmaps:
        raise Failure("Use of --skip-broken-bitmaps requires --bitmaps")
    if arguments.compress and not arguments.skip_create and arguments.form != "qcow2":
        raise Failure(_NO_COMPRESSION)
    if arguments.snapshot is not None:
        check_snapshot_name(arguments.snapshot)


@dataclass(frozen=True, slots=True)
class _Conversion:
    """One copy of what is open; `creation` is None where the target exists."""

    graph: Graph
    arguments: Arguments
    console: Console
    sources: Sequence[Handle]
    target: str
    creation: Request | None
    bitmaps: Sequence[DirtyBitmap]

    @property
    def _size(self) -> int:
        return sum(source.size for source in self.sources)

    @property
    def _cache(self) -> str:
        """The cache mode of the target: what a journal says of it must be durable."""
        cache = self.arguments.target_cache
        return "writeback" if self.arguments.resume and cache == "unsafe" else cache

    async def run(self) -> None:
        """Make or open the target, and copy."""
        if self.creation is None:
            target = await open_existing(
                self.graph, self.arguments, self.target, self._size, self._cache, self.console
            )
            made = Made(target, self.arguments.target_is_zero)
            await self._copy(made, None, differences=self.arguments.backing is not None)
        else:
            await self._copy_into_new(self.creation)

    async def _copy_into_new(self, creation: Request) -> None:
        opened = False
        try:
            backing = await creation.opened_backing(self.graph, self.target, rules=self.arguments.rules())
            image = await creation.plan(self.graph, self.target, self._size, backing)
            goal = target_of(self.target)
            with self._journal_of(goal, backing) as journal:
                if journal is not None and journal.is_whole:
                    opened = True
                    await self._verify_whole(goal)
                    return
                async with new_image(self.graph, goal, image, cache=self._cache, journal=journal) as made:
                    opened = True
                    await self._copy(made, journal, differences=creation.backing_file is not None)
        except BlockError as error:
            if opened:
                if self.arguments.resume and not isinstance(error, CopyDiffers):
                    self.console.message("what was copied is kept: the same command goes on from there")
                raise
            raise Failure(f"{self._trouble}: {_without(self.target, error)}") from error
        except Failure as failure:
            if opened:
                raise
            raise Failure(*(f"{self._trouble}: {line}" for line in failure.lines)) from failure

    @property
    def _trouble(self) -> str:
        return f"{self.target}: error while converting {self.arguments.form}"

    def _journal_of(self, goal: Target, backing: Handle | None) -> "AbstractContextManager[Journal | None]":
        """Return what yields the journal of the copy, if it is to have one."""
        if not self.arguments.resume:
            return nullcontext()
        read = [*self.sources, *([] if backing is None else [backing])]
        told = None if self.arguments.quiet else self.console
        return claimed_journal(goal, read, self.arguments.how, self._size, told)

    async def _copy(self, made: Made, journal: "Journal | None", *, differences: bool) -> None:
        arguments, target = self.arguments, made.handle
        if arguments.bitmaps:
            from vblk.cli.bitmap_copy import require_keeping

            require_keeping(target.node)
        if arguments.compress:
            try:
                target.node.compress(self.graph.engine)
            except Unsupported as error:
                raise Failure(error.message) from error
        mover = Mover(self.graph.engine)
        checker = self._checker(target, mover) if arguments.verify else None
        with self._shown("convert") as progress:
            job = CopyJob(
                concatenated(self.sources, 0 if journal is None else journal.done),
                target,
                arguments.plan(target_is_zero=made.is_zero, differences=differences),
                mover,
                clock=LoopClock(),
                progress=progress,
                salvaged=None if arguments.quiet else self._salvaged,
            )
            if journal is None:
                await job.run()
            else:
                from vblk.jobs.resumption import noted

                async with noted(journal, self.graph, target, job.copied_to, LoopClock()):
                    await job.run()
            if self._cache != "unsafe":
                await target.flush()
        if checker is not None:
            await self._verify(checker)
        if self.bitmaps:
            from vblk.cli.bitmap_copy import copy_bitmaps

            await copy_bitmaps(self.graph, target.node, self.bitmaps)

    def _shown(self, what: str) -> AbstractContextManager[Progress | None]:
        arguments = self.arguments
        return shown_progress(
            self.console,
            wanted=arguments.progress,
            form=arguments.progress_format,
            quiet=arguments.quiet,
            what=what,
        )

    def _checker(self, target: Handle, mover: Mover) -> "Checker":
        from vblk.jobs.verify import Checker

        return Checker(target.node, mover, self._size)

    async def _verify(self, checker: "Checker") -> None:
        """Compare the target with the sources."""
        from vblk.jobs.verify import check_copy

        with self._shown("verify") as progress:
            await check_copy(checker, concatenated(self.sources), progress)
        if not self.arguments.quiet:
            self.console.print(checker.summary())

    async def _verify_whole(self, goal: Target) -> None:
        """Compare a target that an earlier run has finished."""
        if self.arguments.verify:
            whole = await open_image(
                self.graph, goal, format=self.arguments.form, rules=self.arguments.rules()
            )
            await self._verify(self._checker(whole, Mover(self.graph.engine)))

    def _salvaged(self, what: Loss, _: Source, offset: int, length: int, error: BlockError) -> None:
        if what is Loss.DAMAGED:
            self.console.warn(f"{length} bytes at offset {offset} are lost and become zeros: {error.message}")
            return
        place = "offset" if what is Loss.READ else "block status at offset"
        self.console.warn(f"error while reading {place} {offset}: {error.message}")


def _without(name: str, error: BlockError) -> str:
    return sentence(error).removeprefix(f"{name}: ")


VERB = Verb(
    "convert",
    run,
    Arguments,
    [
        *target_options(),
        flag("-c", "compress", help="Compress what is written; for qcow2, whose compression_type says how."),
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
        flag("--bitmaps", help="Copy the dirty bitmaps that are kept of the image, too."),
        flag("--skip-broken-bitmaps", help="With a warning, copy none of those that are inconsistent."),
        option(
            "-l", "snapshot", metavar="SNAPSHOT", help="Refused: no format of this version has snapshots."
        ),
        option("-r", "rate", metavar="RATE", type=SizeType("rate limit", 1), help="Bytes a second at most."),
        flag(
            "--resume",
            help="Keep a journal beside the target, and go on from it if there is one: after a failure, a "
            "kill or a crash the same command copies the rest. The target is then written as with -t "
            "writeback; sources have to be local files, which must not have changed.",
        ),
        verify_option(),
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
