"""The NBD protocol without its sockets.

Owns: the numbers and records of the wire, the client's side of the handshake,
and the client's side of the transmission phase.

Source: the NBD protocol, doc/proto.md of the NetworkBlockDevice project.
"""

from vblk.wire.nbd.client_handshake import ClientHandshake
from vblk.wire.nbd.client_session import ClientSession, Exchange, Request
from vblk.wire.nbd.export import Export
from vblk.wire.nbd.numbers import Command, CommandFlag, ExportFlag, StatusFlag

__all__ = [
    "ClientHandshake",
    "ClientSession",
    "Command",
    "CommandFlag",
    "Exchange",
    "Export",
    "ExportFlag",
    "Request",
    "StatusFlag",
]
