"""A way into a running daemon, over its QMP socket.

Owns: one question and its answer at a time. What is asked, and who is told of events,
is the verb's.
"""

import json
import socket
from collections.abc import Callable
from typing import Any, Final, cast

from vblk.cli.failure import Failure

ANSWER_MAX: Final = 64 << 20
"""The longest answer that is taken, in bytes."""


class Refused(Failure):
    """The daemon answered with an error; `kind` is its class."""

    def __init__(self, text: str, kind: str) -> None:
        super().__init__(text)
        self.kind = kind


class Connection:
    """A QMP connection: one question at a time. `on_event` is told of events that come before an answer."""

    def __init__(self, path: str, on_event: Callable[[dict[str, Any]], None]) -> None:
        """Connect, and end the negotiation.

        Raises:
            Failure: Nobody is there, or it is no QMP monitor.
        """
        self._on_event = on_event
        self._socket = socket.socket(socket.AF_UNIX)
        self._pending = b""
        try:
            self._socket.connect(path)
            if "QMP" not in self._next():
                raise Failure(f"'{path}' is no QMP monitor")
            self.ask({"execute": "qmp_capabilities"})
        except OSError as error:
            self.close()
            raise Failure(f"Failed to connect to '{path}': {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def ask(self, question: "dict[str, Any] | str") -> dict[str, Any]:
        """Send a command; return its reply, and tell of the events before it.

        Raises:
            Failure: The daemon has gone.
        """
        text = question if isinstance(question, str) else json.dumps(question)
        try:
            self._socket.sendall(text.encode() + b"\n")
        except OSError as error:
            raise Failure("the daemon has closed the connection") from error
        while True:
            message = self._next()
            if "event" not in message:
                return message
            self._on_event(message)

    def call(self, command: str, **arguments: Any) -> Any:
        """Carry out a command and return its result; `_` in names of members is a dash.

        Raises:
            Failure: The daemon refuses, or has gone.
        """
        members = {name.replace("_", "-"): value for name, value in arguments.items() if value is not None}
        reply = self.ask({"execute": command, "arguments": members})
        if "error" in reply:
            raise Refused(str(reply["error"].get("desc")), str(reply["error"].get("class")))
        return reply["return"]

    def human(self, line: str) -> str:
        """Carry out a line of the human monitor; return its answer."""
        reply = self.ask({"execute": "human-monitor-command", "arguments": {"command-line": line}})
        if "error" in reply:
            return f"Error: {reply['error'].get('desc')}\n"
        return str(reply["return"]).replace("\r\n", "\n")

    def _next(self) -> dict[str, Any]:
        while b"\n" not in self._pending:
            try:
                data = self._socket.recv(1 << 16)
            except OSError:
                data = b""
            if not data or len(self._pending) > ANSWER_MAX:
                raise Failure("the daemon has closed the connection")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError as error:
            raise Failure("the answer is no QMP") from error
        if not isinstance(message, dict):
            raise Failure("the answer is no QMP")
        return cast("dict[str, Any]", message)
