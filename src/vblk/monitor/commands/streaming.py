"""`block-stream`: what shows through an image of those below it becomes its own.

Owns: the options under QEMU's names, which images they mean, and its words for what
cannot be.

Ordering rule: what cannot be is refused before anything begins.
"""

from vblk.aio.clock import LoopClock
from vblk.graph.edge import Role
from vblk.graph.node import Filter, Node
from vblk.jobs.block_job import OnError
from vblk.jobs.job import Life
from vblk.jobs.live_chain import Stretch, standing, without_filters
from vblk.jobs.stream import Pull, StreamJob
from vblk.monitor.commands.committing import backing_named, require_speed
from vblk.monitor.commands.creating import require_new_job
from vblk.monitor.daemon import Daemon
from vblk.monitor.schema import Object
from vblk.monitor.table import CommandTable
from vblk.wire.qmp import QmpError

TABLE = CommandTable()


class BlockStream(Object, kw_only=True):
    """The arguments of `block-stream`."""

    job_id: str | None = None
    device: str
    base: str | None = None
    base_node: str | None = None
    backing_file: str | None = None
    bottom: str | None = None
    speed: int = 0
    on_error: OnError = OnError.REPORT
    auto_finalize: bool = True
    auto_dismiss: bool = True


@TABLE.command("block-stream")
async def block_stream(daemon: Daemon, arguments: BlockStream) -> None:
    """Stream backing images into one that stands on them."""
    _refuse_two(arguments)
    device = daemon.find_either(arguments.device)
    base = _base(daemon, device, arguments)
    if base is None and arguments.backing_file is not None:
        raise QmpError("backing file specified, but streaming the entire chain")
    id = arguments.job_id or arguments.device
    require_new_job(daemon, id)
    require_speed(arguments.speed)
    daemon.graph.require_unpinned(device)
    stretch = Stretch.between(without_filters(device), base)
    pull = Pull(daemon.graph, stretch, f"block job '{id}'", "block device is in use by block job: stream")
    await pull.take()
    job = StreamJob(
        id,
        pull,
        arguments.on_error,
        backing_file=arguments.backing_file,
        **Life(
            listener=daemon.job_event,
            clock=LoopClock(),
            speed=arguments.speed,
            auto_finalize=arguments.auto_finalize,
            auto_dismiss=arguments.auto_dismiss,
        ),
    )
    daemon.jobs[id] = job
    job.start()


def _refuse_two(arguments: BlockStream) -> None:
    given = {
        "base": arguments.base,
        "base-node": arguments.base_node,
        "bottom": arguments.bottom,
    }
    for one, other in (("base", "base-node"), ("base", "bottom"), ("bottom", "base-node")):
        if given[one] is not None and given[other] is not None:
            raise QmpError(f"'{one}' and '{other}' cannot be specified at the same time")


def _base(daemon: Daemon, device: Node, arguments: BlockStream) -> Node | None:
    """Return the image that stays below; None: there is none."""
    if arguments.base is not None:
        base = backing_named(device, arguments.base)
        if base is None:
            raise QmpError(f"Can't find '{arguments.base}' in the backing chain")
        return base
    if arguments.base_node is not None:
        base = daemon.find_device(None, arguments.base_node)
        if base is device or base not in standing(device):
            raise QmpError(f"Node '{arguments.base_node}' is not a backing image of '{arguments.device}'")
        return base
    if arguments.bottom is None:
        return None
    bottom = daemon.find_device(None, arguments.bottom)
    if isinstance(bottom, Filter):
        raise QmpError(f"Node '{arguments.bottom}' is a filter, use a non-filter node as 'bottom'")
    if bottom not in standing(device):
        raise QmpError(f"Node '{arguments.bottom}' is not in a chain starting from '{arguments.device}'")
    return bottom.child(Role.BACKING)
