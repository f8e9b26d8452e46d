"""Clients that send anything to a monitor, for the fuzzer and for the tests.

Owns: what is done with the bytes of such a client: everything short of carrying
commands out.
"""

from functools import cache
from typing import Any

from vblk.errors import BlockError
from vblk.monitor.arguments import read_arguments, refuse_rest
from vblk.monitor.commands import daemon_commands
from vblk.monitor.daemon import VERSION
from vblk.monitor.table import CommandTable
from vblk.wire.qmp import QmpError, QmpSession, Request


@cache
def _commands() -> CommandTable:
    return daemon_commands()


def exercise(data: bytes) -> set[str]:
    """Let a client say some bytes, in two pieces; return what became of its requests.

    Anything but a `QmpError` or a `BlockError` is a defect, and is raised.
    """
    session = QmpSession(VERSION)
    session.negotiate(["oob"] if data[:1] == b"\0" else [])
    ends: set[str] = set()
    half = len(data) // 2
    for piece in (data[:half], data[half:], b"\n"):
        for request in session.receive(piece):
            try:
                ends.add(_take(session, request))
            except QmpError as error:
                ends.add(error.kind.value)
                session.failure(request, error)
            except BlockError as error:
                ends.add(type(error).__name__)
    return ends


def _take(session: QmpSession, request: Request) -> str:
    session.admit(request)
    command = _commands().find(request.command)
    if command.arguments is None:
        refuse_rest(request.arguments, "")
    else:
        kind: Any = command.arguments
        read_arguments(request.arguments, kind)
    assert session.result(request, {}).endswith(b"\r\n")
    return "accepted"
