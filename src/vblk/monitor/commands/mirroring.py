"""`blockdev-mirror` and `drive-mirror`: a disk in use is copied, and its users follow.

Owns: the options under QEMU's names, the image that `drive-mirror` makes, and whose
the target is: the user's, or the job's, which then closes it when nobody uses it.

Ordering rule: what cannot be is refused before anything is made or begins.
"""

import enum
from dataclasses import replace

from vblk.aio.clock import LoopClock
from vblk.creating import creator_of
from vblk.errors import GraphError
from vblk.graph.creation import FileOptions, Wish
from vblk.graph.edge import READING, SHARED_BY_WRITER, WRITING
from vblk.graph.node import Node
from vblk.jobs.block_job import OnError
from vblk.jobs.mirror import MirrorJob, Plan, Sync
from vblk.jobs.target import make_image
from vblk.monitor.commands.creating import require_new_job
from vblk.monitor.daemon import Daemon
from vblk.monitor.schema import NewImageMode, Object
from vblk.monitor.table import CommandTable
from vblk.options import check_node_name, parse_filename
from vblk.wire.qmp import QmpError

TABLE = CommandTable()


class CopyMode(enum.Enum):
    """When what users write comes to the target."""

    BACKGROUND = "background"
    WRITE_BLOCKING = "write-blocking"


class MirrorOptions(Object, kw_only=True):
    """What both commands take."""

    job_id: str | None = None
    device: str
    target: str
    replaces: str | None = None
    sync: Sync
    speed: int = 0
    granularity: int = 0
    on_source_error: OnError = OnError.REPORT
    on_target_error: OnError = OnError.REPORT
    copy_mode: CopyMode = CopyMode.BACKGROUND
    auto_finalize: bool = True
    auto_dismiss: bool = True


class BlockdevMirror(MirrorOptions, kw_only=True):
    """The arguments of `blockdev-mirror`; `target` is a node."""


class DriveMirror(MirrorOptions, kw_only=True):
    """The arguments of `drive-mirror`; `target` is the name of an image."""

    format: str | None = None
    node_name: str | None = None
    mode: NewImageMode = NewImageMode.ABSOLUTE_PATHS
    unmap: bool = True


@TABLE.command("blockdev-mirror")
async def blockdev_mirror(daemon: Daemon, arguments: BlockdevMirror) -> None:
    """Mirror a disk to a node."""
    source = _source(daemon, arguments)
    target = daemon.find_either(arguments.target)
    if source is target:
        raise QmpError("Can't mirror node into itself")
    await _start(daemon, source, target, arguments, unmap=True, is_new=False)


@TABLE.command("drive-mirror")
async def drive_mirror(daemon: Daemon, arguments: DriveMirror) -> None:
    """Mirror a disk to an image, which is made unless it is there."""
    source = _source(daemon, arguments)
    if arguments.node_name is not None:
        check_node_name(arguments.node_name)
    makes = arguments.mode is NewImageMode.ABSOLUTE_PATHS
    format = arguments.format or (source.driver if makes else None)
    if makes:
        creator = creator_of(format or "raw")
        chosen = creator.options(size=source.size)
        wish = Wish(arguments.target, source.size, chosen, FileOptions(), None, daemon.graph.objects)
        await make_image(daemon.graph, arguments.target, await creator.plan(wish))
    options = parse_filename(arguments.target, format=format)
    target = await daemon.open_node(replace(options, node_name=arguments.node_name))
    try:
        await _start(daemon, source, target, arguments, unmap=arguments.unmap, is_new=makes)
    except BaseException:
        await daemon.graph.discard_unused(target)
        raise


def _source(daemon: Daemon, arguments: MirrorOptions) -> Node:
    if arguments.copy_mode is CopyMode.WRITE_BLOCKING:
        raise QmpError("copy-mode=write-blocking is not in this version of vblk")
    return daemon.find_either(arguments.device)


async def _start(
    daemon: Daemon, source: Node, target: Node, arguments: MirrorOptions, *, unmap: bool, is_new: bool
) -> None:
    graph = daemon.graph
    id = arguments.job_id or arguments.device
    require_new_job(daemon, id)
    replaces = None if arguments.replaces is None else daemon.find_either(arguments.replaces)
    plan = Plan(
        sync=arguments.sync,
        granularity=arguments.granularity,
        on_source_error=arguments.on_source_error,
        on_target_error=arguments.on_target_error,
        unmap=unmap,
        target_is_zero=is_new,
    )
    reading = graph.hold(source, f"block job '{id}'", READING)
    try:
        writing = graph.hold(target, f"block job '{id}'", WRITING, SHARED_BY_WRITER)
    except GraphError:
        await graph.release(reading)
        raise
    try:
        job = MirrorJob(
            id,
            graph,
            reading,
            writing,
            plan,
            replaces=replaces,
            listener=daemon.job_event,
            clock=LoopClock(),
            speed=arguments.speed,
            auto_finalize=arguments.auto_finalize,
            auto_dismiss=arguments.auto_dismiss,
        )
    except BaseException:
        await graph.release(reading)
        await graph.release(writing)
        raise
    daemon.jobs[id] = job
    job.start()
