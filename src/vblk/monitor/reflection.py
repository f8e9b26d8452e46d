"""What Structs and dataclasses say about themselves, in one form.

Owns: the members of a type, their names on the wire, and the cases of a union. Both
the reading of arguments and `query-qmp-schema` go by it, so that they cannot differ.
"""

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from vblk.options.binding import spelled


class Member(NamedTuple):
    """One member of an object: its name on the wire, the attribute that holds it, and its type."""

    name: str
    attribute: str
    type: Any
    required: bool


def is_object(kind: Any) -> bool:
    """Tell whether values of a type are objects with members."""
    return dataclasses.is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, msgspec.Struct))


def members_of(kind: Any) -> tuple[Member, ...]:
    """Return the members of a Struct or a dataclass, in order; the tag of a case is not among them."""
    return _members_of(kind)


@functools.cache
def _members_of(kind: Any) -> tuple[Member, ...]:
    if issubclass(kind, msgspec.Struct):
        return tuple(
            Member(member.encode_name, member.name, without_none(member.type), member.required)
            for member in msgspec.structs.fields(kind)
        )
    hints = typing.get_type_hints(kind)
    return tuple(
        Member(
            spelled(member, "-"),
            member.name,
            without_none(hints[member.name]),
            member.default is dataclasses.MISSING and member.default_factory is dataclasses.MISSING,
        )
        for member in dataclasses.fields(kind)
    )


def alternatives(kind: Any) -> list[Any]:
    """Return the types of a union; a type that is none stands alone."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return list(typing.get_args(kind))
    return [kind]


def without_none(kind: Any) -> Any:
    """Return the type of a member that may be left out."""
    kinds = tuple(
        each for each in alternatives(kind) if each is not types.NoneType and each is not msgspec.UnsetType
    )
    if len(kinds) == len(alternatives(kind)):
        return kind
    first, *others = kinds
    for other in others:
        first |= other
    return first


def tag_of(kind: type[Any]) -> tuple[str, str] | None:
    """Return the name and the value of the member that tells a case of a union from the others."""
    if not issubclass(kind, msgspec.Struct):
        return None
    config = kind.__struct_config__
    return None if config.tag_field is None else (config.tag_field, str(config.tag))


def choices_of(kind: Any) -> Sequence[str] | None:
    """Return the texts that an enumeration takes, or None if the type is none."""
    if typing.get_origin(kind) is typing.Literal:
        return [str(choice) for choice in typing.get_args(kind)]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return [str(member.value) for member in kind]
    return None
