"""Sockets that listen: for the NBD server and the monitor.

Owns: how an address becomes sockets, and how a socket in the file system is made.

Ordering rule: a socket in the file system is its owner's alone from the moment in
which it is there; one that somebody serves is never taken away.
"""

import asyncio
import errno
import os
import socket
import stat
from typing import Final

from vblk.aio.engine import storage_error
from vblk.errors import OptionError, StorageError
from vblk.options.address import FdAddress, InetAddress, SocketAddress, UnixAddress

BACKLOG: Final = 128
_PATH_MAX: Final = 107


async def listening_sockets(address: SocketAddress) -> list[socket.socket]:
    """Return sockets that listen at an address; a host may have several.

    Raises:
        StorageError: The system refuses.
        OptionError: There can be no such address.
    """
    if isinstance(address, UnixAddress):
        return [_bound_unix(address.path)]
    if isinstance(address, InetAddress):
        return await _bound_inet(address)
    try:
        sock = socket.socket(fileno=address.fd)
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.detach()
            raise OptionError(f"the descriptor {address.fd} is no socket that listens")
    except OSError as error:
        raise OptionError(f"the descriptor {address.fd} is no socket: {error.strerror}") from error
    return [sock]


def _bound_unix(path: str) -> socket.socket:
    if len(os.fsencode(path)) > _PATH_MAX:
        raise OptionError(
            f"UNIX socket path '{path}' is too long\nPath must be less than {_PATH_MAX + 1} bytes"
        )
    sock = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        _remove_stale(path)
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        number = error.errno or errno.EIO
        raise StorageError(number, f"Failed to bind socket to {path}: {os.strerror(number)}") from error
    finally:
        os.umask(before)
    return sock


def _remove_stale(path: str) -> None:
    """Remove a socket that a server has left behind; what is in use, or no socket, stays."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            return


async def _bound_inet(address: InetAddress) -> list[socket.socket]:
    loop = asyncio.get_running_loop()
    family = socket.AF_UNSPEC
    if address.ipv6 is False or (address.ipv4 and address.ipv6 is None):
        family = socket.AF_INET
    elif address.ipv4 is False or (address.ipv6 and address.ipv4 is None):
        family = socket.AF_INET6
    try:
        found = await loop.getaddrinfo(
            address.host or None,
            address.port,
            family=family,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE | (socket.AI_NUMERICHOST if address.numeric else 0),
        )
    except (OSError, UnicodeError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise StorageError(
            errno.EADDRNOTAVAIL, f"address resolution failed for {address.host}:{address.port}: {text}"
        ) from error
    sockets: list[socket.socket] = []
    try:
        for each_family, kind, protocol, _, place in dict.fromkeys(found):
            sock = socket.socket(each_family, kind, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if each_family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(place)
            sock.listen(BACKLOG)
    except OSError as error:
        for sock in sockets:
            sock.close()
        number = error.errno or errno.EIO
        what = "find an available port" if number == errno.EADDRINUSE else "bind socket"
        text = f"Failed to {what}: {os.strerror(number)}"
        raise storage_error(OSError(number, text)) from error
    return sockets


def address_of(sock: socket.socket, wanted: SocketAddress) -> SocketAddress:
    """Return where a socket really listens."""
    if isinstance(wanted, InetAddress):
        host, port = sock.getsockname()[:2]
        return InetAddress(host, str(port))
    return wanted if isinstance(wanted, UnixAddress) else FdAddress(sock.fileno())
