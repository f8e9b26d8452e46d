"""`blockdev-mirror` and `drive-mirror`: a disk in use is copied, and its users follow.

Owns: the options under QEMU's names, the image that `drive-mirror` makes, and whose
the target is: the user's, or the job's, which then closes it when nobody uses it.

Ordering rule: what cannot be is refused before anything is made or begins.
"""

import enum
from contextlib import AsyncExitStack
from dataclasses import replace

from vblk.aio.clock import LoopClock
from vblk.filters.copies import CopiesNode
from vblk.filters.job_top import put_job_top, take_job_top
from vblk.graph.edge import READING, SHARED_BY_WRITER, WRITING, Role
from vblk.graph.node import Filter, Node
from vblk.graph.registry import Graph
from vblk.jobs.block_job import OnError
from vblk.jobs.ledger import Ledger
from vblk.jobs.mirror import MirrorJob
from vblk.jobs.mirror_ledger import MirrorLedger
from vblk.jobs.mirror_plan import BUFFER_DEFAULT, CopyMode, Plan, Sync
from vblk.monitor.commands.creating import make_beside, require_new_job
from vblk.monitor.commands.resuming import closed_on_failure, ledger_of_name, ledger_of_node
from vblk.monitor.daemon import Daemon
from vblk.monitor.schema import NewImageMode, Object
from vblk.monitor.table import CommandTable
from vblk.options import NodeOptions, NodeReference, check_node_name, parse_filename, to_filename
from vblk.wire.qmp import QmpError

TABLE = CommandTable()


class SyncMode(enum.Enum):
    """What QEMU copies in jobs of all kinds; not all of it is for mirrors."""

    TOP = "top"
    FULL = "full"
    NONE = "none"
    INCREMENTAL = "incremental"
    BITMAP = "bitmap"


class MirrorOptions(Object, kw_only=True):
    """What both commands take. Not in QEMU: `converge`, `verify` (`Plan`) and `resume` (`MirrorLedger`)."""

    job_id: str | None = None
    device: str
    target: str
    replaces: str | None = None
    sync: SyncMode
    speed: int = 0
    granularity: int = 0
    buf_size: int = 0
    on_source_error: OnError = OnError.REPORT
    on_target_error: OnError = OnError.REPORT
    copy_mode: CopyMode = CopyMode.BACKGROUND
    auto_finalize: bool = True
    auto_dismiss: bool = True
    converge: float | None = None
    verify: bool = False
    resume: bool = False


class BlockdevMirror(MirrorOptions, kw_only=True):
    """The arguments of `blockdev-mirror`; `target` is a node."""

    filter_node_name: str | None = None


class DriveMirror(MirrorOptions, kw_only=True):
    """The arguments of `drive-mirror`; `target` is the name of an image."""

    format: str | None = None
    node_name: str | None = None
    mode: NewImageMode = NewImageMode.ABSOLUTE_PATHS
    unmap: bool = True


@TABLE.command("blockdev-mirror")
async def blockdev_mirror(daemon: Daemon, arguments: BlockdevMirror) -> None:
    """Mirror a disk to a node."""
    source = daemon.find_either(arguments.device)
    target = daemon.find_either(arguments.target)
    if source is target:
        raise QmpError("Can't mirror node into itself")
    ledger = await ledger_of_node(daemon.graph, target) if arguments.resume else None
    async with closed_on_failure(ledger):
        await _start(
            daemon,
            source,
            target,
            arguments,
            unmap=True,
            is_zero=False,
            filter_name=arguments.filter_node_name,
            ledger=ledger,
        )


@TABLE.command("drive-mirror")
async def drive_mirror(daemon: Daemon, arguments: DriveMirror) -> None:
    """Mirror a disk to an image, which is made unless it is there."""
    source = daemon.find_either(arguments.device)
    if arguments.node_name is not None:
        check_node_name(arguments.node_name)
    elif arguments.replaces is not None:
        raise QmpError("a node-name must be provided when replacing a named node of the graph")
    ledger = await ledger_of_name(daemon.graph, arguments.target) if arguments.resume else None
    async with closed_on_failure(ledger):
        makes = arguments.mode is NewImageMode.ABSOLUTE_PATHS
        format = arguments.format or (source.driver if makes else None)
        is_new = makes and not (ledger is not None and ledger.is_begun)
        backing = source.child(Role.BACKING) if makes and arguments.sync is SyncMode.TOP else None
        if is_new:
            await make_beside(daemon, arguments.target, format or "raw", source.size, backing)
        options = parse_filename(arguments.target, format=format)
        options.node_name = arguments.node_name
        if backing is None:
            target = await daemon.open_node(options)
        else:  # what is not copied is there already
            target = await _open_on(daemon, options, backing)
        try:
            is_zero = is_new and backing is None
            await _start(
                daemon, source, target, arguments, unmap=arguments.unmap, is_zero=is_zero, ledger=ledger
            )
        except BaseException:
            await daemon.graph.discard_unused(target)
            raise


async def _open_on(daemon: Daemon, options: NodeOptions, backing: Node) -> Node:
    """Open an image that was made for `backing` on that node, under its plain name."""
    named = to_filename(replace(options, node_name=None))
    reference = NodeReference(backing.name)
    target = await daemon.open_node(replace(options, children={**options.children, "backing": reference}))
    target.filename = named
    return target


async def _start(
    daemon: Daemon,
    source: Node,
    target: Node,
    arguments: MirrorOptions,
    *,
    unmap: bool,
    is_zero: bool,
    filter_name: str | None = None,
    ledger: Ledger | None = None,
) -> None:
    graph = daemon.graph
    id = arguments.job_id or arguments.device
    require_new_job(daemon, id)
    if arguments.sync in (SyncMode.INCREMENTAL, SyncMode.BITMAP):
        raise QmpError(f"Sync mode '{arguments.sync.value}' not supported")
    graph.require_unpinned(source)
    replaces = None if arguments.replaces is None else _replaced(graph, source, arguments.replaces)
    plan = Plan(
        sync=Sync(arguments.sync.value),
        granularity=arguments.granularity,
        on_source_error=arguments.on_source_error,
        on_target_error=arguments.on_target_error,
        unmap=unmap,
        target_is_zero=is_zero,
        converge=arguments.converge,
        copy_mode=arguments.copy_mode,
        buffer=arguments.buf_size or BUFFER_DEFAULT,
        verify=arguments.verify,
    )
    user = f"block job '{id}'"
    keeper = None if ledger is None else _keeper(graph, ledger, source, target, plan)
    async with AsyncExitStack() as undo:
        reading = graph.hold(source, user, READING)
        undo.push_async_callback(graph.release, reading)
        writing = graph.hold(target, user, WRITING, SHARED_BY_WRITER)
        undo.push_async_callback(graph.release, writing)
        filter = None
        if filter_name is not None:
            filter = await put_job_top(graph, source, filter_name)
            undo.push_async_callback(take_job_top, graph, filter)
        job = MirrorJob(
            id,
            graph,
            reading,
            writing,
            plan,
            replaces=replaces,
            filter=filter,
            ledger=keeper,
            listener=daemon.job_event,
            clock=LoopClock(),
            speed=arguments.speed,
            auto_finalize=arguments.auto_finalize,
            auto_dismiss=arguments.auto_dismiss,
        )
        undo.pop_all()
    daemon.jobs[id] = job
    job.start()
    await job.settled()


def _keeper(graph: Graph, ledger: Ledger, source: Node, target: Node, plan: Plan) -> MirrorLedger:
    if plan.sync is Sync.NONE:
        raise QmpError("a mirror with sync=none cannot be resumed: what its target held before is not known")
    return MirrorLedger(ledger, graph, f"a mirror with sync={plan.sync.value}", source, target)


def _replaced(graph: Graph, source: Node, name: str) -> Node:
    """Return the node whose users are to go to the target: one that shows what the source shows."""
    waiting = [source]
    while waiting:
        node = waiting.pop()
        users = graph.users(node)
        if node.name == name:
            if len(users) > 1 and any(isinstance(edge.parent, CopiesNode) for edge in users):
                break  # others would see what the copies agree on, not what this one holds
            return node
        if isinstance(node, Filter | CopiesNode):
            waiting += [edge.node for edge in node.children.values()]
    if all(node.name != name for node in graph.nodes()):
        raise QmpError(f"Failed to find node with node-name='{name}'")
    raise QmpError(
        f"Cannot replace '{name}' by a node mirrored from '{source.name}', because it cannot be guaranteed"
        " that doing so would not lead to an abrupt change of visible data"
    )
