"""Talking QMP to a process, ours or QEMU's: one line out, lines in until the reply.

Owns: the process and its pipes.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.command_line import REPOSITORY

OURS = (sys.executable, "-c", "from vblk.cli.main import run; run()", "daemon")
QEMU = ("qemu-storage-daemon",)
ON_STDIO = ("--chardev", "stdio,id=m", "--monitor", "m")


class Talk:
    """A daemon with its monitor on standard input and output."""

    def __init__(
        self,
        program: Sequence[str] = OURS,
        *options: str | Path,
        folder: Path,
        monitor: Sequence[str] = ON_STDIO,
    ) -> None:
        """Start the program in a folder; options come before the monitor."""
        self.process = subprocess.Popen(
            [*program, *map(str, options), *monitor],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={"PYTHONPATH": str(REPOSITORY / "src"), "PATH": "/usr/bin:/bin"},
        )
        self.events: list[dict[str, Any]] = []
        self.greeting = self.line()

    def __enter__(self) -> "Talk":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()

    def line(self) -> str:
        """Return the next line as it came."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode()

    def send(self, text: str | bytes) -> None:
        """Send a text and a line's end."""
        assert self.process.stdin is not None
        self.process.stdin.write((text if isinstance(text, bytes) else text.encode()) + b"\n")
        self.process.stdin.flush()

    def ask(self, text: str | bytes) -> str:
        """Send a text and return the text of the reply; events before it are kept."""
        self.send(text)
        while True:
            line = self.line()
            assert line, f"no reply to {text!r}: {self.process.stderr and self.process.stderr.read()!r}"
            if '"event"' not in line.partition("data")[0]:
                return line
            self.events.append(json.loads(line))

    def raw(self, command: str, /, **arguments: Any) -> Any:
        """Carry out a command and return its whole reply; `_` in names of members is a dash."""
        members = {name.replace("_", "-"): value for name, value in arguments.items()}
        return json.loads(self.ask(json.dumps({"execute": command, "arguments": members})))

    def call(self, command: str, /, **arguments: Any) -> Any:
        """Carry out a command that goes well."""
        reply = self.raw(command, **arguments)
        assert "return" in reply, reply
        return reply["return"]

    def refused(self, command: str, /, **arguments: Any) -> str:
        """Carry out a command that fails, and return why."""
        reply = self.raw(command, **arguments)
        assert "error" in reply, reply
        return str(reply["error"]["desc"])

    def begin(self) -> "Talk":
        """End the negotiation."""
        self.call("qmp_capabilities")
        return self

    def end(self) -> int:
        """Quit; return the exit status."""
        self.call("quit")
        return self.process.wait(20)
