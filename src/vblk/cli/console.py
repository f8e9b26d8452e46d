"""Where a command's words go: standard output, standard error, a terminal or a pipe.

Owns: the name under which the program was called, the prefix of its messages,
and whether a person is watching. Must not know any verb.
"""

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from vblk.cli.failure import Failure, notes, sentence
from vblk.errors import BlockError

if TYPE_CHECKING:
    import rich.console


class Console:
    """The two output streams of one run.

    Messages begin with the program's name. What a program may read is plain
    text; `rich` is a terminal, or None where no person is watching.
    """

    def __init__(self, name: str, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.name = name
        self.out = out if out is not None else sys.stdout
        self.err = err if err is not None else sys.stderr

    @property
    def watched(self) -> bool:
        """Whether standard output is a terminal that can show more than lines."""
        import os

        return self.out.isatty() and os.environ.get("TERM", "dumb") != "dumb" and self.name == "vblk"

    def terminal(self) -> "rich.console.Console":
        """Return the terminal behind standard output; rich honours NO_COLOR."""
        from rich.console import Console as Terminal

        return Terminal(file=self.out, highlight=False)

    def print(self, *lines: str) -> None:
        """Write lines to standard output."""
        for line in lines:
            self.out.write(line + "\n")

    def write(self, text: str) -> None:
        """Write text as it is to standard output and push it out, as a progress line needs."""
        self.out.write(text)
        self.out.flush()

    def message(self, *lines: str) -> None:
        """Write lines to standard error, each behind the program's name."""
        self._flush_out()
        for line in lines:
            self.err.write(f"{self.name}: {line}\n")
        self.err.flush()

    def plain_message(self, text: str) -> None:
        """Write lines to standard error without a prefix."""
        self._flush_out()
        self.err.write(text + "\n")
        self.err.flush()

    def _flush_out(self) -> None:
        """Keep the order of both streams; what standard output has to say is said when the run ends."""
        with suppress(OSError):
            self.out.flush()

    def warn(self, text: str) -> None:
        """Write a warning to standard error."""
        self.message(f"warning: {text}")

    def failed(self, error: Failure | BlockError) -> None:
        """Say why the command ends."""
        if isinstance(error, BlockError):
            self.message(sentence(error))
        else:
            self.message(*error.lines)
        if self.name == "vblk":  # QEMU's programs have no more to say
            self.message(*notes(error))
        if isinstance(error, BlockError):
            return
        if error.hint:
            self.plain_message(f"Try '{self.name} --help' for more information")
