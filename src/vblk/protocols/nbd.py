"""Opening exports of NBD servers.

Owns: the options of the driver, and what a server that comes back must still
be. The node stands in `nbd_node`, its connections in `nbd_link`.

Ordering rule: an export that came back is compared with the one that was opened
before any request is sent to it.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from vblk.aio.clock import Clock, LoopClock
from vblk.aio.tls import TlsSession
from vblk.errors import OptionError, StorageError
from vblk.graph.site import Site
from vblk.options import bind, check_children
from vblk.options.nbd import with_server
from vblk.protocols.cache_mode import WRITEBACK, CacheMode, cache_mode_of
from vblk.protocols.nbd_connection import Address, Connection, connect
from vblk.protocols.nbd_link import Link
from vblk.protocols.nbd_node import NbdNode, block_size, require_writable_export
from vblk.protocols.nbd_pool import Pool
from vblk.protocols.nbd_tls import TlsOptions
from vblk.wire.nbd import Export, ExportFlag
from vblk.wire.nbd.numbers import ALLOCATION_CONTEXT

CONNECTIONS: Final = 4
"""How many connections are made to a server that takes several."""

CONNECTIONS_MAX: Final = 16


@dataclass(slots=True)
class ServerOptions:
    """Where the server listens."""

    type: Literal["unix", "inet"]
    path: str | None = None
    host: str | None = None
    port: str | None = None


@dataclass(slots=True)
class Options(TlsOptions):
    """The options of `nbd`; times are in seconds.

    `reconnect_delay`: how long requests wait for a server that went away.
    `open_timeout`: how long opening waits for one that is not there yet.
    `connections`: how many are made, of servers that say that they are as one.
    `x_dirty_bitmap`: the context that is asked for holes in the place of
    `base:allocation`, as QEMU's tests do it.
    """

    server: ServerOptions | None = None
    export: str = ""
    reconnect_delay: int = 0
    open_timeout: int = 0
    connections: int = CONNECTIONS
    x_dirty_bitmap: str | None = None

    def address(self) -> Address:
        """Return the address.

        Raises:
            OptionError: Something of it is missing, or does not fit.
        """
        if not 1 <= self.connections <= CONNECTIONS_MAX:
            raise OptionError(f"Parameter 'connections' expects a number from 1 to {CONNECTIONS_MAX}")
        for name, value in (("reconnect-delay", self.reconnect_delay), ("open-timeout", self.open_timeout)):
            if not 0 <= value < 1 << 32:
                raise OptionError(f"Parameter '{name}' expects uint32_t")
        server = self.server
        if server is None:
            raise OptionError("NBD server address missing")
        given = {name: getattr(server, name) for name in ("path", "host", "port")}
        needed = ("path",) if server.type == "unix" else ("host", "port")
        for name, value in given.items():
            if name in needed and value is None:
                raise OptionError(f"Parameter '{name}' is missing")
            if name not in needed and value is not None:
                raise OptionError(f"Parameter 'server.{name}' is unexpected")
        return Address(server.path, server.host or "", server.port or "")


async def open_nbd(
    options: Options,
    *,
    name: str,
    filename: str,
    read_only: bool,
    auto_read_only: bool = False,
    cache: CacheMode = WRITEBACK,
    discard: bool = True,
    clock: Clock | None = None,
    secure: Callable[[], TlsSession] | None = None,
) -> NbdNode:
    """Connect to an export.

    Args:
        options: Where it is, and how long to wait for it.
        name: The node's name.
        filename: What a user would type.
        read_only: Nothing is written.
        auto_read_only: Open for reading only where the server forbids writing.
        cache: How writes reach the medium.
        discard: Give space back when asked to; without, it is kept.
        clock: What waiting is done on.
        secure: Begins TLS, if it is wanted.

    Raises:
        OptionError: The options name no server.
        StorageError: There is no server, or it refuses.
        PeerError: It breaks the protocol.

    An error of the opening names the server in its text, and no file.
    """
    address = options.address()
    clock = clock if clock is not None else LoopClock()
    agreed: list[Export] = []

    async def make() -> Connection:
        connection, export = await connect(
            address, options.export, clock, secure, options.x_dirty_bitmap or ALLOCATION_CONTEXT
        )
        if options.x_dirty_bitmap is not None and export.allocation is None:
            refusal = StorageError(
                errno.EINVAL, f"requested x-dirty-bitmap {options.x_dirty_bitmap} not found"
            )
            connection.abort(refusal)
            raise refusal
        if agreed:
            problem = _difference(agreed[0], export, read_only)
            if problem:
                refusal = StorageError(errno.EIO, f"the server came back with another export: {problem}")
                connection.abort(refusal)
                raise refusal
        else:
            agreed.append(export)
        return connection

    def link() -> Link:
        return Link(make, delay=options.reconnect_delay, clock=clock)

    pool = Pool(link)
    try:
        await pool.open(options.open_timeout)
        if ExportFlag.CAN_MULTI_CONN in agreed[0].flags:
            pool.limit = options.connections
        if agreed[0].read_only and not read_only:
            if not auto_read_only:
                require_writable_export(agreed[0], filename)
            read_only = True
    except BaseException:
        await pool.close()
        raise
    return NbdNode(
        name, filename, read_only=read_only, export=agreed[0], pool=pool, cache=cache, discard=discard
    )


def _dialect(export: Export) -> tuple[bool, bool, bool]:
    return export.structured, export.extended, export.allocation is None


def _difference(before: Export, now: Export, read_only: bool) -> str:
    """Say what of an export is not as it was, and matters; empty if nothing is."""
    if now.size != before.size:
        return f"it has {now.size} bytes, not {before.size}"
    if now.read_only and not read_only:
        return "it is for reading only now"
    if block_size(now) > block_size(before) or now.maximum < before.maximum:
        return "it has other block sizes"
    lost = before.flags & ~now.flags & ~ExportFlag.READ_ONLY
    if lost:
        return f"it has lost {lost!r}"
    if _dialect(now) != _dialect(before):
        return "its server speaks otherwise"
    return ""


async def open_node(site: Site) -> NbdNode:
    """Connect as the site's options say.

    Raises as `open_nbd`, and OptionError for what the options cannot mean.
    """
    check_children(site.options, "nbd")
    options = bind(with_server(site.options.own), Options, "nbd")
    node = await open_nbd(
        options,
        name=site.name,
        filename=site.filename,
        read_only=site.read_only,
        auto_read_only=bool(site.options.auto_read_only),
        cache=cache_mode_of(site.request.cache, site.options),
        discard=site.options.discard != "ignore",
        secure=options.begin(site.graph.objects, options.address().host or None),
    )
    try:
        site.graph.add(node)
    except BaseException:
        await node.close()
        raise
    return node
