"""`vblk monitor`: a person's way into a running daemon, over its QMP socket.

Owns: the prompt, its history and completion, and how answers and events are shown.
Lines of the human monitor are carried out by the daemon; what begins with `{` is sent
as it is.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vblk.cli.command import Verb, option
from vblk.cli.connection import Connection
from vblk.cli.console import Console
from vblk.cli.failure import FAILURE, SUCCESS, Failure

PROMPT: Final = "(vblk) "
HISTORY_MAX: Final = 1000


@dataclass(slots=True)
class Arguments:
    """The words of one call."""

    operands: tuple[str, ...]
    cmd: tuple[str, ...]


def run(arguments: Arguments, console: Console) -> int:
    """Carry out the commands of the call, or those that are typed."""
    if len(arguments.operands) != 1:
        raise Failure("Expecting the path of a QMP socket", hint=True)
    connection = Connection(arguments.operands[0], lambda event: _show_event(event, console))
    try:
        if arguments.cmd:
            return _carry_out(connection, console, iter(arguments.cmd))
        if sys.stdin.isatty():
            return _carry_out(connection, console, _typed(connection))
        return _carry_out(connection, console, (line.rstrip("\n") for line in sys.stdin))
    finally:
        connection.close()


def _show_event(event: dict[str, Any], console: Console) -> None:
    data = event.get("data")
    console.print(f"event {event['event']}" + (f" {json.dumps(data)}" if data else ""))


def _carry_out(connection: Connection, console: Console, lines: Iterator[str]) -> int:
    status = SUCCESS
    for line in lines:
        text = line.strip()
        if not text:
            continue
        if text.startswith("{"):
            reply = connection.ask(text)
            console.print(json.dumps(reply))
            status = FAILURE if "error" in reply else status
        else:
            answer = connection.human(text)
            console.out.write(answer)
            status = FAILURE if answer.startswith(("Error: ", "unknown command")) else status
        console.out.flush()
        if text in ("quit", "q"):
            break
    return status


def _typed(connection: Connection) -> Iterator[str]:
    """Yield the lines of a person, with history and completion."""
    import readline

    history = _history_file()
    with suppress(OSError):
        readline.read_history_file(history)
    readline.set_history_length(HISTORY_MAX)
    readline.set_completer_delims(" ")
    completion = Completion(connection)
    readline.set_completer(lambda text, state: completion.candidate(readline.get_line_buffer(), text, state))
    readline.parse_and_bind("tab: complete")
    try:
        while True:
            try:
                yield input(PROMPT)
            except EOFError:
                print()
                return
    finally:
        with suppress(OSError):
            history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            readline.write_history_file(history)
            history.chmod(0o600)


def _history_file() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state) / "vblk" / "monitor_history"


class Completion:
    """What the word before the cursor may become: the daemon is asked."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._found: list[str] = []

    def candidate(self, line: str, text: str, number: int) -> str | None:
        """Return the candidate of a number, or None when there are no more."""
        if number == 0:
            self._found = [
                word for word in self._words(line.split()[: -1 if text else None]) if word.startswith(text)
            ]
        return f"{self._found[number]} " if number < len(self._found) else None

    def _words(self, before: list[str]) -> list[str]:
        if before in ([], ["help"]):
            return sorted({name for line in self._help("help") for name in line.split()[0].split("|")})
        if before in (["info"], ["help", "info"]):
            return sorted(line.split()[1] for line in self._help("info"))
        nodes = self._names("query-named-block-nodes", "node-name")
        return sorted([*nodes, *self._names("query-block-exports", "id")])

    def _help(self, command: str) -> list[str]:
        return [
            line for line in self._connection.human(command).splitlines() if line and not line[0].isspace()
        ]

    def _names(self, command: str, member: str) -> list[str]:
        reply = self._connection.ask({"execute": command})
        return [str(each[member]) for each in reply.get("return", [])]


VERB = Verb(
    "monitor",
    run,
    Arguments,
    [
        option(
            "-c",
            "--cmd",
            "cmd",
            metavar="COMMAND",
            multiple=True,
            help="Carry out a command; may be repeated.",
        ),
    ],
    operands="SOCKET",
    help="Talk to a running daemon by its QMP socket: lines of the human monitor, or QMP that begins with {.",
)
