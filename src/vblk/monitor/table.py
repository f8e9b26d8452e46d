"""The table of commands: names, types, and how one is carried out.

Owns: the way from a request to a function, and from what it returns to JSON. Tables
can be joined, so that a daemon of another kind has commands of its own.
"""

import enum
import typing
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec

from vblk.monitor.arguments import read_arguments, refuse_rest
from vblk.monitor.reflection import members_of, tag_of
from vblk.wire.qmp import ErrorClass, QmpError

if TYPE_CHECKING:
    from vblk.monitor.client import Client

Run = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Command:
    """One command. `arguments` is a Struct, a union of them, or None; `returns` a type.

    `for_client` says that it concerns the connection it came by, `out_of_band` that
    it may overtake others.
    """

    name: str
    run: Run
    arguments: Any
    returns: Any
    for_client: bool = False
    out_of_band: bool = False

    async def execute(self, daemon: Any, arguments: Mapping[str, Any], client: "Client | None" = None) -> Any:
        """Read the arguments, run, and return what JSON can say.

        Raises:
            QmpError: The arguments are wrong, or the command refuses.
            BlockError: The command failed.
        """
        words: list[Any] = [daemon]
        if self.for_client:
            words.append(client)
        if self.arguments is None:
            refuse_rest(arguments, "")
        else:
            words.append(read_arguments(arguments, self.arguments))
        result = plain(await self.run(*words))
        return {} if result is None else result


class CommandTable:
    """Commands by name."""

    def __init__(self, *tables: "CommandTable") -> None:
        """Begin with the commands of other tables; a later one replaces an earlier one of its name."""
        self._by_name: dict[str, Command] = {}
        for table in tables:
            self._by_name.update(table._by_name)

    def __iter__(self) -> Iterator[Command]:
        return iter(self._by_name.values())

    def find(self, name: str) -> Command:
        """Return the command of that name.

        Raises:
            QmpError: There is none.
        """
        try:
            return self._by_name[name]
        except KeyError:
            text = f"The command {name} has not been found"
            raise QmpError(text, ErrorClass.COMMAND_NOT_FOUND) from None

    def enter(self, name: str, run: Run, arguments: Any, returns: Any = None) -> None:
        """Make a coroutine function a command of this name."""
        self._by_name[name] = Command(name, run, arguments, returns)

    def command(
        self, name: str, *, for_client: bool = False, out_of_band: bool = False
    ) -> Callable[[Run], Run]:
        """Make a coroutine function a command of this name; its annotations are the command's types."""

        def enter(run: Run) -> Run:
            hints = typing.get_type_hints(run)
            returns = hints.pop("return")
            arguments = hints.get("arguments")
            self._by_name[name] = Command(name, run, arguments, returns, for_client, out_of_band)
            return run

        return enter


def plain(value: Any) -> Any:
    """Turn Structs into objects for `encode_json`: members that share a place there are turned round."""
    if isinstance(value, msgspec.Struct):
        tag = tag_of(type(value))
        members = {} if tag is None else {tag[0]: tag[1]}
        for member in members_of(type(value)):
            held = getattr(value, member.attribute)
            if held is not None:
                members[member.name] = plain(held)
        return dict(reversed(members.items()))
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {name: plain(member) for name, member in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in cast("list[Any]", value)]
    return value
