"""Commands on descriptors that clients pass beside their texts.

Owns: QEMU's words for those that are not there. Named ones belong to a connection,
sets to the daemon's graph.
"""

from vblk.monitor.client import Client
from vblk.monitor.daemon import Daemon
from vblk.monitor.schema import Object
from vblk.monitor.table import CommandTable
from vblk.wire.qmp import QmpError

TABLE = CommandTable()


class FdName(Object):
    """A descriptor of a connection."""

    fdname: str


class AddFd(Object):
    """The arguments of `add-fd`."""

    fdset_id: int | None = None
    opaque: str | None = None


class RemoveFd(Object):
    """The arguments of `remove-fd`."""

    fdset_id: int
    fd: int | None = None


class AddedFd(Object):
    """What `add-fd` returns."""

    fdset_id: int
    fd: int


class FdOfSet(Object):
    """A descriptor of a set."""

    fd: int
    opaque: str | None = None


class FdSet(Object):
    """A set, as `query-fdsets` shows it."""

    fdset_id: int
    fds: list[FdOfSet]


@TABLE.command("getfd", for_client=True)
async def getfd(daemon: Daemon, client: Client, arguments: FdName) -> None:
    """Keep a descriptor that came with the command under a name."""
    client.keep(arguments.fdname)


@TABLE.command("closefd", for_client=True)
async def closefd(daemon: Daemon, client: Client, arguments: FdName) -> None:
    """Close a descriptor that has a name."""
    client.drop(arguments.fdname)


@TABLE.command("add-fd", for_client=True)
async def add_fd(daemon: Daemon, client: Client, arguments: AddFd) -> AddedFd:
    """Put a descriptor that came with the command into a set: a file `/dev/fdset/N`."""
    if arguments.fdset_id is not None and arguments.fdset_id < 0:
        raise QmpError("Parameter 'fdset-id' expects a non-negative value")
    fd = client.take_sent()
    number = daemon.graph.fd_sets.add(fd, arguments.fdset_id, arguments.opaque)
    return AddedFd(fdset_id=number, fd=fd)


@TABLE.command("remove-fd")
async def remove_fd(daemon: Daemon, arguments: RemoveFd) -> None:
    """Close a descriptor of a set, or all of them; nodes that were opened from it live on."""
    if not daemon.graph.fd_sets.remove(arguments.fdset_id, arguments.fd):
        name = f"fdset-id:{arguments.fdset_id}" + ("" if arguments.fd is None else f", fd:{arguments.fd}")
        raise QmpError(f"File descriptor named '{name}' not found")


@TABLE.command("query-fdsets")
async def query_fdsets(daemon: Daemon) -> list[FdSet]:
    """Show all sets."""
    return [
        FdSet(fdset_id=number, fds=[FdOfSet(fd=each.fd, opaque=each.opaque) for each in fds])
        for number, fds in daemon.graph.fd_sets.all()
    ]
