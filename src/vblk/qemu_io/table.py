"""What a command is, and the help that follows from it.

Owns: the declaration of a command. It knows no particular one; `commands` lists
them.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vblk.qemu_io.language import Call

if TYPE_CHECKING:
    from vblk.qemu_io.session import Session

Handler = Callable[["Session", Call], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its letter, what it is for, and whether it takes a value."""

    letter: str
    purpose: str
    takes_value: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """One command of the language.

    `least` and `most` bound the words behind its name, options counted; None
    is no bound. `synopsis` is its usage without the name. `closed`: it also
    works while no image is open. `writes`: it needs a writable one. The words of a
    command without options are operands, even those that look like options.
    """

    name: str
    run: Handler
    purpose: str
    synopsis: str | None = None
    alias: str | None = None
    least: int = 0
    most: int | None = 0
    options: tuple[Option, ...] = ()
    details: str = ""
    closed: bool = False
    writes: bool = False

    @property
    def letters(self) -> str:
        """The options as getopt(3) takes them."""
        return "".join(option.letter + ":" * option.takes_value for option in self.options)

    def usage(self) -> str:
        """Return the one line that says how to call it."""
        called = self.name if self.synopsis is None else f"{self.name} {self.synopsis}"
        return f"{called} -- {self.purpose}"

    def help(self) -> Iterator[str]:
        """Return the lines of its help."""
        yield self.usage()
        if self.details or self.options:
            yield ""
            for line in self.details.splitlines():
                yield f" {line}" if line else ""
            for option in self.options:
                yield f" -{option.letter}, -- {option.purpose}"
            yield ""

    def refusal(self, typed: str, count: int) -> str | None:
        """Return why `count` words behind the name are too few or too many; None: they are not."""
        if count >= self.least and (self.most is None or count <= self.most):
            return None
        if self.most is None:
            expected = f"at least {self.least}"
        elif self.least == self.most:
            expected = f"{self.least}"
        else:
            expected = f"between {self.least} and {self.most}"
        return f"bad argument count {count} to {typed}, expected {expected} arguments"
