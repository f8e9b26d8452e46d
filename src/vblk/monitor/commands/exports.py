"""Commands on exports, and on the NBD server that offers some of them.

Owns: QEMU's words for what an export cannot be, and which of its nodes' bitmaps it may
show.

Ordering rule: an export is in the daemon's table before a client can find it.
"""

import re

from vblk.exports.export import Export
from vblk.exports.fuse import FuseExport
from vblk.exports.nbd import NamedBitmap, NbdExport, NbdServer
from vblk.graph.dirty_bitmap import DirtyBitmap
from vblk.graph.edge import READING, Permission
from vblk.graph.node import Node
from vblk.graph.recording import find_below, find_bitmap
from vblk.monitor.client import Client
from vblk.monitor.daemon import Daemon
from vblk.monitor.schema import (
    AnyAddress,
    BitmapOfNode,
    ExportDel,
    ExportInfo,
    ExportOptions,
    FdAddressOf,
    FuseExportOptions,
    InetAddressOf,
    InetLegacy,
    InetSocket,
    LegacyAddress,
    NbdExportOptions,
    NbdServerAdd,
    NbdServerOptions,
    NbdServerRemove,
    NbdServerStart,
    RemoveMode,
    UnixAddressOf,
    UnixLegacy,
    UnixSocket,
)
from vblk.monitor.table import CommandTable
from vblk.options.address import FdAddress, InetAddress, SocketAddress, UnixAddress
from vblk.wire.qmp import QmpError

TABLE = CommandTable()

_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_SHARED = Permission.ALL & ~Permission.RESIZE
"""A client was told the size."""


@TABLE.command("nbd-server-start", for_client=True)
async def nbd_server_start(daemon: Daemon, client: Client | None, arguments: NbdServerStart) -> None:
    """Listen for NBD clients."""
    options = NbdServerOptions(
        addr=_flat(arguments.addr),
        tls_creds=arguments.tls_creds,
        tls_authz=arguments.tls_authz,
        max_connections=arguments.max_connections,
    )
    await start_nbd_server(daemon, client, options)


def _flat(address: LegacyAddress) -> AnyAddress:
    if isinstance(address, InetLegacy):
        data = address.data
        return InetAddressOf(data.host, data.port, data.numeric, data.to, data.ipv4, data.ipv6)
    if isinstance(address, UnixLegacy):
        return UnixAddressOf(address.data.path)
    return FdAddressOf(address.data.str)


async def start_nbd_server(daemon: Daemon, client: Client | None, options: NbdServerOptions) -> None:
    """Listen for NBD clients.

    Raises:
        QmpError: A server is there already, or the address makes no sense.
        BlockError: The system refuses.
    """
    if daemon.nbd_server is not None:
        raise QmpError("NBD server already running")
    if options.max_connections < 0:
        raise QmpError("Parameter 'max-connections' expects a number that is not negative")
    if options.tls_authz is not None and options.tls_creds is None:
        raise QmpError("tls-authz is not permitted without tls-creds")
    objects = daemon.graph.objects
    server = NbdServer(
        daemon.graph,
        tls=None if options.tls_creds is None else objects.credentials(options.tls_creds, "server"),
        authorization=None if options.tls_authz is None else objects.authorization(options.tls_authz),
        max_connections=options.max_connections,
        report=lambda text: daemon.log.note("nbd-client", text),
    )
    await server.listen(_socket_address(options.addr, client))
    daemon.nbd_server = server
    daemon.log.say("nbd-server-started", addresses=[str(address) for address in server.addresses])


def _socket_address(address: AnyAddress, client: Client | None) -> SocketAddress:
    if isinstance(address, UnixSocket):
        return UnixAddress(address.path)
    if isinstance(address, InetSocket):
        if address.to is not None:
            raise QmpError("a range of ports ('to') is not in this version of vblk")
        return InetAddress(address.host, address.port, address.ipv4, address.ipv6, bool(address.numeric))
    if address.str.isdecimal():
        return FdAddress(int(address.str))
    if client is None:
        raise QmpError(f"Unable to parse FD number {address.str}")
    return FdAddress(client.take(address.str))


@TABLE.command("nbd-server-stop")
async def nbd_server_stop(daemon: Daemon) -> None:
    """End the NBD server and all of its exports."""
    server = daemon.nbd_server
    if server is None:
        raise QmpError("NBD server not running")
    daemon.nbd_server = None
    await server.close()
    daemon.log.say("nbd-server-stopped")


@TABLE.command("nbd-server-add")
async def nbd_server_add(daemon: Daemon, arguments: NbdServerAdd) -> None:
    """Export a node over NBD, in the older way: read-only if the node is."""
    node = daemon.find_either(arguments.device)
    name = arguments.name if arguments.name is not None else arguments.device
    options = NbdExportOptions(
        id=name,
        node_name=node.name,
        name=name,
        description=arguments.description,
        writable=arguments.writable and not node.read_only,
        bitmaps=[] if arguments.bitmap is None else [arguments.bitmap],
    )
    await _add(daemon, node, options)


@TABLE.command("block-export-add")
async def block_export_add(daemon: Daemon, arguments: ExportOptions) -> None:
    """Export a node."""
    if _ID.fullmatch(arguments.id) is None:
        raise QmpError("Invalid block export id")
    node = daemon.find_device(None, arguments.node_name)
    if arguments.writable and node.read_only:
        raise QmpError("Cannot export read-only node as writable")
    await _add(daemon, node, arguments)


async def _add(daemon: Daemon, node: Node, options: ExportOptions) -> None:
    if options.id in daemon.exports:
        raise QmpError(f"Block export id '{options.id}' is already in use")
    if isinstance(options, FuseExportOptions):
        await _add_fuse(daemon, node, options)
        return
    server = daemon.nbd_server
    if server is None:
        raise QmpError("NBD server not running")
    bitmaps = [_bitmap(daemon, node, each, writable=options.writable) for each in options.bitmaps]
    permissions = READING | (Permission.WRITE if options.writable else Permission.NONE)
    handle = daemon.graph.hold(node, f"export '{options.id}'", permissions, _SHARED)
    try:
        export = NbdExport(
            options.id,
            daemon.graph,
            handle,
            name=options.name if options.name is not None else options.node_name,
            description=options.description or "",
            writable=options.writable,
            bitmaps=[NamedBitmap(each.name, each) for each in bitmaps],
            allocation_depth=options.allocation_depth,
        )
        server.add(export)
        daemon.add_export(export)
    except BaseException:
        await daemon.graph.release(handle)
        raise
    await export.start()


async def _add_fuse(daemon: Daemon, node: Node, options: FuseExportOptions) -> None:
    permissions = READING
    if options.writable:
        permissions |= Permission.WRITE | (Permission.RESIZE if options.growable else Permission.NONE)
    handle = daemon.graph.hold(node, f"export '{options.id}'", permissions)
    try:
        export = FuseExport(
            options.id,
            daemon.graph,
            handle,
            mountpoint=options.mountpoint,
            writable=options.writable,
            growable=options.growable,
            allow_other=options.allow_other,
        )
        await export.start()
    except BaseException:
        await daemon.graph.release(handle)
        raise
    daemon.add_export(export)


def _bitmap(daemon: Daemon, node: Node, wanted: str | BitmapOfNode, *, writable: bool) -> DirtyBitmap:
    if isinstance(wanted, str):
        bitmap = find_below(node, wanted)
        if bitmap.enabled and not (writable or node.read_only):
            raise QmpError(f"Enabled bitmap '{wanted}' incompatible with readonly export")
        return bitmap
    bitmap = find_bitmap(daemon.find_either(wanted.node), wanted.name)
    bitmap.require_consistent()
    return bitmap


@TABLE.command("block-export-del")
async def block_export_del(daemon: Daemon, arguments: ExportDel) -> None:
    """End an export; the event tells when it has ended."""
    await _remove(daemon, arguments.id, arguments.mode)


@TABLE.command("nbd-server-remove")
async def nbd_server_remove(daemon: Daemon, arguments: NbdServerRemove) -> None:
    """End an export of the NBD server, in the older way."""
    export = daemon.exports.get(arguments.name)
    if export is not None and not isinstance(export, NbdExport):
        raise QmpError(f"Block export '{arguments.name}' is not an NBD export")
    await _remove(daemon, arguments.name, arguments.mode)


async def _remove(daemon: Daemon, id: str, mode: RemoveMode) -> None:
    export = daemon.exports.get(id)
    if export is None:
        raise QmpError(f"Export '{id}' is not found")
    if export.shutting_down:
        raise QmpError(f"export '{id}' is already shutting down")
    if mode is RemoveMode.SAFE and export.users:
        raise QmpError(f"export '{id}' still in use")
    await export.stop(hard=mode is RemoveMode.HARD)


@TABLE.command("query-block-exports")
async def query_block_exports(daemon: Daemon) -> list[ExportInfo]:
    """Show all exports, the newest first."""
    return [_info(export) for export in reversed(daemon.exports.values())]


def _info(export: Export) -> ExportInfo:
    return ExportInfo(
        id=export.id,
        type=export.type,
        node_name=export.handle.node.name,
        shutting_down=export.shutting_down,
    )
