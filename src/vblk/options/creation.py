"""The options of `-o`: what a format says of its own, and QEMU's prints of them.

Owns: a field that describes itself, the help made of such fields, and the list
of values that announces a new image. Must not know any format's options. Every
function runs to completion and is pure.

A format's creation options are a dataclass for `bind_create`, spelled with
underscores; a field has its help text, and whether its default is announced too.
Dataclasses may be nested: their fields are given under dotted names.
"""

import dataclasses
import types
import typing
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final, TypeVar

from vblk.options.binding import spelled
from vblk.options.sizes import Size

T = TypeVar("T")

_TYPE_NAMES: Final = {Size: "size", bool: "bool (on/off)", int: "num"}
_TYPE_NAME_OTHER: Final = "str"


def described(default: T, help: str, *, name: str | None = None, announced: bool = False) -> T:
    """Return a dataclass field for one option; `name` if it is not spelled like the field.

    `announced` says that its value is shown even if it was not given.
    """
    metadata: dict[str, Any] = {"help": help, "announced": announced}
    if name is not None:
        metadata["name"] = name
    return dataclasses.field(default=default, metadata=metadata)


def option_names(struct: type[Any]) -> set[str]:
    """Return the dotted names of all options."""
    return {name for name, _, _ in _fields(struct, "")}


def help_lines(structs: Iterable[type[Any]]) -> list[str]:
    """Return a line for each option, in order of their names; the first of a name counts."""
    lines: dict[str, str] = {}
    for struct in structs:
        for name, kind, member in _fields(struct, ""):
            declared = f"  {name}=<{_TYPE_NAMES.get(kind, _TYPE_NAME_OTHER)}>"
            lines.setdefault(name, f"{declared:<24} - {member.metadata['help']}")
    return [lines[name] for name in sorted(lines)]


def announcement(options: Any, given: Collection[str]) -> str:
    """Return ` name=value` of each option that was given or is announced anyway, in the order declared."""
    texts: list[str] = []
    for name, member, value in _values(options, ""):
        if value is not None and (name in given or member.metadata.get("announced")):
            texts.append(f" {name}={_text(value)}")
    return "".join(texts)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    text = str(value)
    return text.replace(",", ",,")


def _fields(struct: type[Any], prefix: str) -> Iterator[tuple[str, Any, "dataclasses.Field[Any]"]]:
    kinds = typing.get_type_hints(struct)
    for member in dataclasses.fields(struct):
        name = prefix + spelled(member, "_")
        kind = _plain(kinds[member.name])
        if dataclasses.is_dataclass(kind):
            yield from _fields(typing.cast("type[Any]", kind), f"{name}.")
        else:
            yield name, kind, member


def _values(options: Any, prefix: str) -> Iterator[tuple[str, "dataclasses.Field[Any]", Any]]:
    for member in dataclasses.fields(options):
        name = prefix + spelled(member, "_")
        value = getattr(options, member.name)
        if dataclasses.is_dataclass(value):
            yield from _values(value, f"{name}.")
        else:
            yield name, member, value


def _plain(kind: Any) -> Any:
    """Return the type of an option, without the None of one that need not be given."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (kind,) = (member for member in typing.get_args(kind) if member is not types.NoneType)
    return kind
