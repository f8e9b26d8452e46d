"""What `query-qmp-schema` says: every command, event and type, as they really are.

Owns: the turning of Structs, dataclasses and tables into QEMU's form of introspection.
Names of types have no meaning, as in QEMU: numbers, but for built-in ones and arrays.

Source: QEMU's documentation, "QAPI introspection" (docs/devel/qapi-code-gen).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, get_args, get_origin

from vblk.monitor.reflection import Member, alternatives, choices_of, is_object, members_of, tag_of
from vblk.monitor.table import CommandTable
from vblk.options import Size

_BUILTIN: Final[dict[Any, str]] = {str: "str", int: "int", Size: "int", float: "number", bool: "bool"}
_JSON: Final = {
    "str": "string",
    "int": "int",
    "number": "number",
    "bool": "boolean",
    "null": "null",
    "any": "value",
}


class Introspection:
    """A schema in the making: types are added as they are met, each once."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self._known: dict[Any, str] = {}
        self._nothing = self.object(())

    def describe_command_table(self, table: CommandTable) -> None:
        """Add the commands of a table, with all of their types."""
        for command in table:
            entry: dict[str, Any] = {
                "name": command.name,
                "meta-type": "command",
                "arg-type": self._nothing if command.arguments is None else self.type(command.arguments),
                "ret-type": self._nothing
                if command.returns in (None, type(None))
                else self.type(command.returns),
            }
            if command.out_of_band:
                entry["allow-oob"] = True
            self.entries.append(entry)

    def describe_events(self, events: Mapping[str, Any]) -> None:
        """Add events and the types of their data."""
        for name, data in events.items():
            self.entries.append({"name": name, "meta-type": "event", "arg-type": self.type(data)})

    def type(self, kind: Any) -> str:
        """Return the name of a type, which is added if it is new."""
        key = kind if _is_hashable(kind) else repr(kind)
        if key not in self._known:
            self._known[key] = self._new(kind)
        return self._known[key]

    def _new(self, kind: Any) -> str:
        special: Callable[[Introspection], str] | None = getattr(kind, "describe", None)
        if special is not None:
            return special(self)
        if kind in _BUILTIN:
            return self.builtin(_BUILTIN[kind])
        if get_origin(kind) is list:
            return self.array(self.type(get_args(kind)[0]))
        choices = choices_of(kind)
        if choices is not None:
            return self.enum(choices)
        cases = alternatives(kind)
        if str in cases and len(cases) > 1:
            return self.alternate([self.type(case) for case in cases])
        if is_object(cases[0]):
            return self._union(cases)
        return self.builtin("any")

    def _union(self, cases: list[Any]) -> str:
        tag = tag_of(cases[0])
        if tag is None:
            return self.object(members_of(cases[0]))
        shared = [
            member for member in members_of(cases[0]) if all(member in members_of(case) for case in cases)
        ]
        variants: dict[str, str] = {}
        for case in cases:
            own = tag_of(case)
            assert own is not None
            variants[own[1]] = self.object(member for member in members_of(case) if member not in shared)
        return self.union(tag[0], variants, self.members(shared))

    def builtin(self, name: str) -> str:
        """Return the name of a built-in type."""
        entry = {"name": name, "json-type": _JSON[name], "meta-type": "builtin"}
        if entry not in self.entries:
            self.entries.append(entry)
        return name

    def array(self, element: str) -> str:
        """Return the name of the type of arrays of a type."""
        entry = {"name": f"[{element}]", "element-type": element, "meta-type": "array"}
        if entry not in self.entries:
            self.entries.append(entry)
        return f"[{element}]"

    def enum(self, choices: Iterable[str]) -> str:
        """Add a type of texts."""
        values = list(choices)
        members = [{"name": value} for value in values]
        return self._add({"members": members, "values": values, "meta-type": "enum"})

    def alternate(self, types: Iterable[str]) -> str:
        """Add a type whose values are of one of several types."""
        return self._add({"members": [{"type": each} for each in types], "meta-type": "alternate"})

    def object(self, members: Iterable[Member]) -> str:
        """Add a type of objects."""
        return self.object_of(self.members(members))

    def object_of(self, members: "list[dict[str, Any]]") -> str:
        """Add a type of objects whose members are described already."""
        return self._add({"members": members, "meta-type": "object"})

    def union(self, tag: str, variants: Mapping[str, str], shared: "list[dict[str, Any]]") -> str:
        """Add a type of objects whose member `tag` says which further members there are."""
        return self._add(
            {
                "tag": tag,
                "variants": [{"case": case, "type": each} for case, each in variants.items()],
                "members": [{"name": tag, "type": self.enum(variants)}, *shared],
                "meta-type": "object",
            }
        )

    def members(self, members: Iterable[Member]) -> "list[dict[str, Any]]":
        """Return the members of an object; what may be left out has a `default`, which says no more."""
        return [
            {
                "name": member.name,
                "type": self.type(member.type),
                **({} if member.required else {"default": None}),
            }
            for member in members
        ]

    def _add(self, entry: dict[str, Any]) -> str:
        name = str(len(self.entries))
        self.entries.append({"name": name} | entry)
        return name

    def reserve(self, key: Any) -> str:
        """Name a type that is about to be added by `fill`: one that has itself among its members."""
        name = self._add({})
        self._known[key] = name
        return name

    def fill(self, name: str, like: str) -> None:
        """Let a reserved type be as another one, which goes."""
        (entry,) = (each for each in self.entries if each["name"] == like)
        self.entries.remove(entry)
        (place,) = (index for index, each in enumerate(self.entries) if each["name"] == name)
        self.entries[place] = entry | {"name": name}


def _is_hashable(kind: Any) -> bool:
    try:
        hash(kind)
    except TypeError:
        return False
    return True
