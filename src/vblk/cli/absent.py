"""The verbs of qemu-img that this version does not have.

Owns: the one sentence with which each of them is refused.
"""

from dataclasses import dataclass
from typing import Any, Final

from vblk.cli.command import HelpWanted, Verb
from vblk.cli.console import Console
from vblk.cli.failure import FAILURE, Failure

_REASONS: Final = {
    "snapshot": "no format of this version has snapshots",
}


@dataclass(slots=True)
class Words:
    """The words behind the verb, as they are."""

    operands: tuple[str, ...]


class AbsentVerb(Verb[Words]):
    """A verb that takes any words and does nothing with them."""

    def read(self, words: "list[str] | tuple[str, ...]", program: str) -> Words:  # type: ignore[override]
        """Keep the words."""
        return Words(tuple(words))


def verb(name: str) -> Verb[Any]:
    """Return the verb that refuses itself."""

    def run(arguments: Words, console: Console) -> int:
        if {"-h", "--help"} & set(arguments.operands):
            raise HelpWanted
        raise Failure(f"'{name}' is not in this version of vblk: {_REASONS[name]}", status=FAILURE)

    return AbsentVerb(name, run, Words, [], operands="...", help="Not in this version.")
