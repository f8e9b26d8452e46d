"""`block-commit`: layers of a chain that is in use go down into one of their backing images.

Owns: the options under QEMU's names, which images they mean, and its words for what
cannot be.

Ordering rule: what cannot be is refused before anything begins.
"""

import os
from contextlib import AsyncExitStack
from itertools import takewhile

from vblk.aio.clock import LoopClock
from vblk.drivers.vhdx_parent import local_path
from vblk.errors import BlockError, GraphError
from vblk.filters.job_top import CommitTop, MirrorTop, put_job_top, take_job_top
from vblk.graph.edge import Role
from vblk.graph.mapper import Mapper
from vblk.graph.node import Node
from vblk.jobs.block_job import BlockJob, OnError
from vblk.jobs.commit_journal import CommitJournal, FinishedCommit
from vblk.jobs.job import Life
from vblk.jobs.live_chain import Grip, Stretch, standing, storage_of, without_filters
from vblk.jobs.live_commit import ActiveCommitJob, CommitJob, FinishJob
from vblk.jobs.mirror_ledger import MirrorLedger
from vblk.monitor.commands.creating import require_new_job
from vblk.monitor.commands.resuming import ledger_of_node
from vblk.monitor.daemon import Daemon
from vblk.monitor.schema import Object
from vblk.monitor.table import CommandTable
from vblk.wire.qmp import ErrorClass, QmpError

TABLE = CommandTable()


class BlockCommit(Object, kw_only=True):
    """The arguments of `block-commit`; `verify`, `delete` and `resume` are not in QEMU."""

    job_id: str | None = None
    device: str
    base_node: str | None = None
    base: str | None = None
    top_node: str | None = None
    top: str | None = None
    backing_file: str | None = None
    speed: int = 0
    on_error: OnError = OnError.REPORT
    filter_node_name: str | None = None
    auto_finalize: bool = True
    auto_dismiss: bool = True
    verify: bool = False
    delete: bool = False
    resume: bool = False


@TABLE.command("block-commit")
async def block_commit(daemon: Daemon, arguments: BlockCommit) -> None:
    """Commit layers into a backing image."""
    device = _device(daemon, arguments.device)
    daemon.graph.require_unpinned(device)
    id = arguments.job_id or arguments.device
    life = Life(
        listener=daemon.job_event,
        clock=LoopClock(),
        speed=arguments.speed,
        auto_finalize=arguments.auto_finalize,
        auto_dismiss=arguments.auto_dismiss,
    )
    job: BlockJob
    try:
        top = _top(daemon, device, arguments)
    except (QmpError, GraphError) as error:
        finished = _finished(daemon, device, arguments)
        if finished is None:
            raise error
        require_new_job(daemon, id)
        job = FinishJob(id, daemon.graph, finished, delete=arguments.delete, **life)
    else:
        job = await _job(daemon, device, top, arguments, id, life)
    daemon.jobs[id] = job
    job.start()
    await job.settled()


async def _job(
    daemon: Daemon, device: Node, top: Node, arguments: BlockCommit, id: str, life: Life
) -> BlockJob:
    """Take the chain, and return the job."""
    base = _base(daemon, top, arguments)
    if top is base:
        raise QmpError("cannot commit an image into itself")
    is_active = without_filters(top) is without_filters(device)
    if is_active and arguments.backing_file is not None:
        raise QmpError("'backing-file' specified, but 'top' is the active layer")
    require_new_job(daemon, id)
    require_speed(arguments.speed)
    stretch = Stretch.between(without_filters(top), base)
    if arguments.delete:
        _require_files(stretch)
    filter = journal = ledger = keeper = None
    async with AsyncExitStack() as undo:
        if arguments.resume and is_active:
            ledger = await ledger_of_node(daemon.graph, base)
            undo.callback(ledger.close)
        elif arguments.resume:
            journal = CommitJournal(stretch)
            journal.claim()
            undo.callback(journal.close)
        if arguments.filter_node_name is not None:
            kind = MirrorTop if is_active else CommitTop
            filter = await put_job_top(daemon.graph, stretch.top, arguments.filter_node_name, kind)
            undo.push_async_callback(take_job_top, daemon.graph, filter)
        why = "block device is in use by block job: commit"
        grip = Grip(daemon.graph, stretch, f"block job '{id}'", why, also=[device], is_active=is_active)
        await grip.take()
        if ledger is not None:
            undo.push_async_callback(grip.release)
            what, linked = "a commit of the active layer", grip.is_linked
            keeper = MirrorLedger(ledger, daemon.graph, what, stretch.top, base, linked=linked)
        undo.pop_all()
    on_error, verify, delete = arguments.on_error, arguments.verify, arguments.delete
    if is_active:
        return ActiveCommitJob(
            id, grip, on_error, verify=verify, delete=delete, filter=filter, ledger=keeper, **life
        )
    return CommitJob(
        id,
        grip,
        on_error,
        backing_file=arguments.backing_file,
        verify=verify,
        delete=delete,
        journal=journal,
        filter=filter,
        **life,
    )


def _finished(daemon: Daemon, device: Node, arguments: BlockCommit) -> FinishedCommit | None:
    """Return what is left of the same commit where it died with its layers out of the chain already."""
    if not arguments.resume:
        return None
    base = _base(daemon, device, arguments)
    above = takewhile(lambda node: node is not base, standing(device))
    try:
        return FinishedCommit([*above, base])
    except BlockError:
        return None


def _require_files(stretch: Stretch) -> None:
    """Refuse to delete what is no file here."""
    for layer in stretch.layers:
        if storage_of(layer).driver != "file":
            raise QmpError(f"'delete' is for files of this host, and node '{layer.name}' is in none")


def require_speed(speed: int) -> None:
    """Refuse a speed that cannot be."""
    if speed < 0:
        raise QmpError("Parameter 'speed' expects a non-negative value")


def _device(daemon: Daemon, name: str) -> Node:
    try:
        device = daemon.find_either(name)
    except GraphError:
        raise QmpError(f"Device '{name}' not found", ErrorClass.DEVICE_NOT_FOUND) from None
    if any(edge.parent is not None for edge in daemon.graph.users(device)):
        raise QmpError("Need a root block node")
    return device


def _top(daemon: Daemon, device: Node, arguments: BlockCommit) -> Node:
    if arguments.top_node is not None:
        if arguments.top is not None:
            raise QmpError("'top-node' and 'top' are mutually exclusive")
        return _named(daemon, device, arguments.top_node)
    if arguments.top is None or arguments.top in (device.filename, local_path(device)):
        return device
    top = backing_named(device, arguments.top)
    if top is None:
        raise QmpError(f"Top image file {arguments.top} not found")
    return top


def _base(daemon: Daemon, top: Node, arguments: BlockCommit) -> Node:
    if arguments.base_node is not None:
        if arguments.base is not None:
            raise QmpError("'base-node' and 'base' are mutually exclusive")
        return _named(daemon, top, arguments.base_node)
    base = list(standing(top))[-1] if arguments.base is None else backing_named(top, arguments.base)
    if base is None:
        raise QmpError(f"Can't find '{arguments.base}' in the backing chain")
    return base


def _named(daemon: Daemon, above: Node, name: str) -> Node:
    """Return the node of a name, which is `above` or below it in its chain."""
    node = daemon.find_device(None, name)
    if node not in standing(above):
        raise QmpError(f"'{name}' is not in this backing file chain")
    return node


def backing_named(top: Node, name: str) -> Node | None:
    """Return the image below `top` that a name means: its file's, or what the image above it calls it."""
    above = top
    for node in standing(top):
        if node is above.child(Role.BACKING):
            path, folder = local_path(node), os.path.dirname(local_path(above))
            if name in (node.filename, path):
                return node
            if os.path.realpath(os.path.join(folder, name)) == os.path.realpath(path):
                return node
        if isinstance(node, Mapper):
            above = node
    return None
