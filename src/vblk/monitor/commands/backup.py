"""`blockdev-backup` and `drive-backup`: a disk as it is at one instant, copied while it is in use.

Owns: the options under QEMU's names and what is refused in its words, and the image
that `drive-backup` makes.

Ordering rule: what cannot be is refused before anything is made or begins. All
backups of a transaction are of the same instant, for nothing is in flight then.
"""

from dataclasses import replace

from vblk.aio.clock import LoopClock
from vblk.errors import BlockError, OptionError
from vblk.filters.once_copier import unit_for
from vblk.graph.dirty_bitmap import DirtyBitmap
from vblk.graph.edge import Role
from vblk.graph.node import Node
from vblk.jobs.backup import (
    PIECE,
    WORKERS,
    WORKERS_MOST,
    BackupJob,
    BitmapMode,
    Plan,
    Sync,
    prepare_backup,
)
from vblk.jobs.backup_ledger import BackupLedger
from vblk.jobs.block_job import OnError
from vblk.jobs.ledger import Ledger
from vblk.monitor.actions import ActionTable, Undo, batch
from vblk.monitor.commands.creating import make_beside, require_new_job
from vblk.monitor.commands.mirroring import SyncMode
from vblk.monitor.commands.resuming import closed_on_failure, ledger_of_name, ledger_of_node
from vblk.monitor.daemon import Daemon
from vblk.monitor.schema import NewImageMode, Object
from vblk.options import check_node_name, parse_filename
from vblk.wire.qmp import QmpError

ACTIONS = ActionTable()


class Perf(Object):
    """How the copying is done: how many workers, the most bytes of a piece, and whether the kernel copies."""

    use_copy_range: bool = True
    max_workers: int = WORKERS
    max_chunk: int = 0


class BackupOptions(Object, kw_only=True):
    """What both commands take. Not in QEMU: `verify`, see `Plan`, and `resume`, see `BackupLedger`."""

    job_id: str | None = None
    device: str
    sync: SyncMode
    speed: int = 0
    bitmap: str | None = None
    bitmap_mode: BitmapMode | None = None
    compress: bool = False
    on_source_error: OnError = OnError.REPORT
    on_target_error: OnError = OnError.REPORT
    auto_finalize: bool = True
    auto_dismiss: bool = True
    filter_node_name: str | None = None
    x_perf: Perf | None = None
    verify: bool = False
    resume: bool = False


class BlockdevBackup(BackupOptions, kw_only=True):
    """The arguments of `blockdev-backup`; `target` is a node."""

    target: str


class DriveBackup(BackupOptions, kw_only=True):
    """The arguments of `drive-backup`; `target` is the name of an image."""

    target: str
    format: str | None = None
    mode: NewImageMode = NewImageMode.ABSOLUTE_PATHS


@ACTIONS.action("blockdev-backup")
async def blockdev_backup(daemon: Daemon, arguments: BlockdevBackup) -> Undo:
    """Back up a disk to a node."""
    source = daemon.find_either(arguments.device)
    target = daemon.find_either(arguments.target)
    plan = _plan(source, arguments)
    ledger = await ledger_of_node(daemon.graph, target) if arguments.resume else None
    async with closed_on_failure(ledger):
        return await _start(daemon, source, target, arguments, plan, ledger)


@ACTIONS.action("drive-backup")
async def drive_backup(daemon: Daemon, arguments: DriveBackup) -> Undo:
    """Back up a disk to an image, which is made unless it is there."""
    source = daemon.find_either(arguments.device)
    plan = _plan(source, arguments)
    backing = source.child(Role.BACKING) if plan.sync is Sync.TOP else None
    if plan.sync is Sync.NONE:
        backing = source
    elif plan.sync is Sync.TOP and backing is None:
        plan = replace(plan, sync=Sync.FULL)
    ledger = await ledger_of_name(daemon.graph, arguments.target) if arguments.resume else None
    async with closed_on_failure(ledger):
        makes = arguments.mode is NewImageMode.ABSOLUTE_PATHS
        format = arguments.format or (source.driver if makes else None)
        if makes and not (ledger is not None and ledger.is_begun):
            await make_beside(daemon, arguments.target, format or "raw", source.size, backing)
            plan = replace(plan, target_is_zero=backing is None)
        options = parse_filename(arguments.target, format=format)
        # Only the job uses the image, and it writes whole clusters: nothing is read from behind it.
        options = replace(options, children={**options.children, "backing": None})
        target = await daemon.open_node(options)
        try:
            return await _start(daemon, source, target, arguments, plan, ledger)
        except BaseException:
            await daemon.graph.discard_unused(target)
            raise


def _plan(source: Node, arguments: BackupOptions) -> Plan:
    """Return how the disk is backed up; what the options say of bitmaps fits together."""
    bitmap = _bitmap(source, arguments)
    if arguments.verify and arguments.sync is SyncMode.NONE:
        raise QmpError("verify=true wants a backup that comes to an end, which sync mode 'none' does not")
    if arguments.resume and arguments.verify:
        raise QmpError("verify and resume do not go together: old bytes that were copied before are gone")
    if arguments.resume and arguments.compress:
        raise QmpError("compress and resume do not go together: compressed clusters are written once")
    if arguments.resume and (bitmap is not None or arguments.sync is SyncMode.NONE):
        raise QmpError("only a backup with sync=full or sync=top, and without a bitmap, can be resumed")
    incremental = arguments.sync is SyncMode.INCREMENTAL
    perf = arguments.x_perf or Perf()
    if not 1 <= perf.max_workers < 1 << 31:
        raise QmpError(f"max-workers must be between 1 and {(1 << 31) - 1}")
    if perf.max_chunk < 0:
        raise QmpError("max-chunk must be zero (which means no limit) or positive")
    return Plan(
        sync=Sync.BITMAP if incremental else Sync(arguments.sync.value),
        bitmap=bitmap,
        bitmap_mode=arguments.bitmap_mode or BitmapMode.ON_SUCCESS,
        on_source_error=arguments.on_source_error,
        on_target_error=arguments.on_target_error,
        workers=min(perf.max_workers, WORKERS_MOST),
        piece=min(perf.max_chunk or PIECE, PIECE),
        in_kernel=perf.use_copy_range,
        verify=arguments.verify,
        compress=arguments.compress,
    )


def _bitmap(source: Node, arguments: BackupOptions) -> DirtyBitmap | None:
    sync, mode = arguments.sync, arguments.bitmap_mode
    by_bitmap = sync in (SyncMode.BITMAP, SyncMode.INCREMENTAL)
    if by_bitmap and arguments.bitmap is None:
        raise QmpError(f"must provide a valid bitmap name for '{sync.value}' sync mode")
    if sync is SyncMode.INCREMENTAL:
        if mode not in (None, BitmapMode.ON_SUCCESS):
            raise QmpError("Bitmap sync mode must be 'on-success' when using sync mode 'incremental'")
        mode = BitmapMode.ON_SUCCESS
    if arguments.bitmap is None:
        if mode is not None:
            raise QmpError("Cannot specify bitmap sync mode without a bitmap")
        return None
    bitmap = source.bitmaps.get(arguments.bitmap)
    if bitmap is None:
        raise QmpError(f"Bitmap '{arguments.bitmap}' could not be found")
    if mode is None:
        raise QmpError("Bitmap sync mode must be given when providing a bitmap")
    bitmap.require_usable()
    if sync is SyncMode.NONE:
        raise QmpError("sync mode 'none' does not produce meaningful bitmap outputs")
    if mode is BitmapMode.NEVER and not by_bitmap:
        raise QmpError(
            f"Bitmap sync mode 'never' has no meaningful effect when combined with sync mode '{sync.value}'"
        )
    return bitmap


async def _start(
    daemon: Daemon,
    source: Node,
    target: Node,
    arguments: BackupOptions,
    plan: Plan,
    ledger: Ledger | None,
) -> Undo:
    id = arguments.job_id or arguments.device
    require_new_job(daemon, id)
    if source is target:
        raise QmpError("Source and target cannot be the same")
    name = arguments.filter_node_name
    if name is not None:
        try:
            check_node_name(name)
        except OptionError as error:
            raise QmpError(f"Could not create node: {error.message}") from error
        if any(node.name == name for node in daemon.graph.nodes()):
            raise QmpError(f"Could not create node: Duplicate nodes with node-name='{name}'")
    if plan.compress:
        try:
            target.compress(daemon.graph.engine)
        except BlockError as error:
            raise QmpError(f"Compression is not supported for this drive {target.name}") from error
    keeper = None
    if ledger is not None:
        how = f"a backup with sync={plan.sync.value}"
        keeper = BackupLedger(ledger, daemon.graph, how, source, target, unit_for(target))
    together = batch.get()
    job: BackupJob = await prepare_backup(
        id,
        daemon.graph,
        source,
        target,
        plan,
        filter_name=name,
        ledger=keeper,
        listener=daemon.job_event,
        clock=LoopClock(),
        speed=arguments.speed,
        auto_finalize=arguments.auto_finalize,
        auto_dismiss=arguments.auto_dismiss,
        transaction=together.group,
    )
    daemon.jobs[id] = job
    together.jobs.append(job)
    return job.abandon
