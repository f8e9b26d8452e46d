"""`vblk nbd --list`: what another server exports, in qemu-nbd's words.

Owns: the connection that asks, and the text.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from vblk.aio.tls import TlsSession
from vblk.cli.console import Console
from vblk.cli.failure import SUCCESS, Failure
from vblk.cli.objects import objects_of
from vblk.errors import BlockError
from vblk.options.address import InetAddress, UnixAddress
from vblk.wire.nbd.client_listing import ClientListing, ListedExport
from vblk.wire.nbd.numbers import ExportFlag

if TYPE_CHECKING:
    from vblk.cli.nbd import Arguments

PATIENCE: Final = 30.0
"""Seconds in which everything has to be told."""

_ROOM: Final = 64 * 1024
_WORDS: Final = {
    ExportFlag.READ_ONLY: "readonly",
    ExportFlag.SEND_FLUSH: "flush",
    ExportFlag.SEND_FUA: "fua",
    ExportFlag.ROTATIONAL: "rotational",
    ExportFlag.SEND_TRIM: "trim",
    ExportFlag.SEND_WRITE_ZEROES: "zeroes",
    ExportFlag.SEND_DF: "df",
    ExportFlag.CAN_MULTI_CONN: "multi",
    ExportFlag.SEND_RESIZE: "resize",
    ExportFlag.SEND_CACHE: "cache",
    ExportFlag.SEND_FAST_ZERO: "fast-zero",
    ExportFlag.BLOCK_STAT_PAYLOAD: "block-status-payload",
}


Named = UnixAddress | InetAddress


async def list_exports(address: Named, arguments: "Arguments", console: Console) -> int:
    """Ask a server, and print what it tells."""
    try:
        secure = _security(address, arguments)
        async with asyncio.timeout(PATIENCE):
            listed = await _asked(address, secure)
    except TimeoutError:
        raise Failure(f"the server has not told its exports in {PATIENCE:.0f} seconds") from None
    except BlockError as error:
        raise Failure(error.message) from error
    console.print(f"exports available: {len(listed)}")
    for each in listed:
        console.print(*_lines(each))
    return SUCCESS


def _security(address: Named, arguments: "Arguments") -> Callable[[], TlsSession] | None:
    if arguments.tls_creds is None:
        return None
    try:
        credentials = objects_of(arguments.objects).credentials(arguments.tls_creds, "client")
    except BlockError as error:
        raise Failure(f"Failed to get TLS creds: {error.message}") from error
    host = address.host if isinstance(address, InetAddress) else None
    return lambda: credentials.client_session(arguments.tls_hostname or host)


async def _asked(address: Named, secure: Callable[[], TlsSession] | None) -> list[ListedExport]:
    try:
        if isinstance(address, UnixAddress):
            reader, writer = await asyncio.open_unix_connection(address.path)
        else:
            reader, writer = await asyncio.open_connection(address.host, address.port)
    except OSError as error:
        where = address.path if isinstance(address, UnixAddress) else f"{address.host}:{address.port}"
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise Failure(f"Failed to connect to '{where}': {reason}") from error
    listing = ClientListing(tls=secure is not None)
    session: TlsSession | None = None
    try:
        while listing.export is None:
            data = await reader.read(_ROOM)
            if not data:
                if listing.awaits_tls:
                    raise Failure("TLS handshake failed: The TLS connection was non-properly terminated.")
                raise Failure("Failed to read data: Unexpected end-of-file before all data were read")
            if session is not None:
                try:
                    data = session.receive(data)
                finally:
                    writer.write(session.to_send())
            if session is not None and listing.awaits_tls and session.handshake_done:
                _send(writer, session, listing.secured())
            _send(writer, session, listing.receive(data))
            if listing.awaits_tls and session is None:
                assert secure is not None
                session = secure()
                writer.write(session.to_send())
        _send(writer, session, listing.farewell())
    except OSError as error:
        raise Failure(f"Failed to read data: {error.strerror}") from error
    finally:
        writer.close()
    return listing.listed


def _send(writer: asyncio.StreamWriter, session: TlsSession | None, data: bytes) -> None:
    if session is None:
        writer.write(data)
    elif data:
        session.send(data)
        writer.write(session.to_send())


def _lines(listed: ListedExport) -> Iterator[str]:
    export = listed.export
    yield f" export: '{listed.name}'"
    if listed.description:
        yield f"  description: {listed.description}"
    yield f"  size:  {export.size}"
    flags = export.flags
    words = "".join(f" {word}" for flag, word in _WORDS.items() if flag in flags)
    if flags:
        yield f"  flags: {flags:#x} ({words} )"
    if export.minimum:
        yield f"  min block: {export.minimum}"
        yield f"  opt block: {export.preferred}"
        yield f"  max block: {export.maximum}"
    if listed.contexts is not None:
        yield f"  available meta contexts: {len(listed.contexts)}"
        for context in listed.contexts:
            yield f"   {context}"
