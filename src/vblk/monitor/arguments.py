"""From what a client wrote to the Struct of a command, refused in QEMU's words.

Owns: the order of the checks and their sentences, for JSON and for the texts of a
command line. Must not know any command.

Ordering rule: members are looked at in the order of the schema; what is left over is
unexpected.

Source: the answers of qemu-storage-daemon 7.2.
"""

import enum
import re
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Any, Final, TypeVar, cast, get_args, get_origin, overload

from vblk.errors import OptionError
from vblk.monitor.reflection import alternatives, choices_of, is_object, members_of, tag_of
from vblk.options import Size, parse_bool, parse_number, parse_size
from vblk.wire.qmp import QmpError

T = TypeVar("T")

_NAMES: Final[dict[Any, str]] = {
    str: "string",
    int: "integer",
    Size: "integer",
    float: "number",
    bool: "boolean",
}
_EXPECTED: Final = {
    int: "integer",
    Size: "a non-negative number below 2^64",
    float: "number",
    bool: "'on' or 'off'",
}
_INTEGERS: Final = range(-(1 << 63), 1 << 63)
_SIZES: Final = range(1 << 64)


@overload
def read_arguments(value: Mapping[str, Any], kind: type[T], *, texts: bool = False) -> T: ...
@overload
def read_arguments(value: Mapping[str, Any], kind: UnionType, *, texts: bool = False) -> Any: ...
def read_arguments(value: Mapping[str, Any], kind: Any, *, texts: bool = False) -> Any:
    """Return the Struct `kind`, or the case of a union of Structs, that an object describes.

    With `texts` every value is a text, as on a command line.

    Raises:
        QmpError: The first member that is missing, unexpected, or of the wrong type.
    """
    return Reader(texts).value(value, kind, "")


class Reader:
    """One reading: of JSON, or of texts."""

    def __init__(self, texts: bool = False) -> None:
        self.texts = texts

    def object(self, value: Any, kind: Any, name: str) -> Any:
        """Read all members of an object."""
        rest = self.mapping(value, name)
        kind = self._case(rest, kind, name)
        result = kind(**self.members(rest, kind, name))
        refuse_rest(rest, name)
        return result

    def mapping(self, value: Any, name: str) -> dict[str, Any]:
        """Return an object's members, to be taken out one by one."""
        if not isinstance(value, dict):
            raise wrong_type(name, "object")
        return dict(cast("dict[str, Any]", value))

    def members(self, rest: dict[str, Any], kind: Any, prefix: str) -> dict[str, Any]:
        """Take the members of a type out of `rest`; return them by attribute."""
        values: dict[str, Any] = {}
        for member in members_of(kind):
            name = joined(prefix, member.name)
            if member.name in rest:
                values[member.attribute] = self.value(rest.pop(member.name), member.type, name)
            elif member.required:
                raise missing(name)
        return values

    def _case(self, rest: dict[str, Any], kind: Any, name: str) -> type[Any]:
        """Return the Struct that an object's tag chooses."""
        cases = alternatives(kind)
        tags = [tag_of(case) for case in cases]
        if tags[0] is None:
            return cast("type[Any]", kind)
        field = tags[0][0]
        chosen = self.choice(taken(rest, field, name), [tag[1] for tag in tags if tag is not None], field)
        return cast("type[Any]", cases[[tag[1] for tag in tags if tag is not None].index(chosen)])

    def value(self, value: Any, kind: Any, name: str) -> Any:
        """Read one value."""
        special: Callable[[Reader, Any, str], Any] | None = getattr(kind, "read_member", None)
        if special is not None:
            return special(self, value, name)
        if kind is Any:
            return value
        if get_origin(kind) is list:
            return self._items(value, get_args(kind)[0], name)
        choices = choices_of(kind)
        if choices is not None:
            chosen = self.choice(value, choices, name)
            return kind(chosen) if isinstance(kind, type) and issubclass(kind, enum.Enum) else chosen
        cases = alternatives(kind)
        if str in cases and len(cases) > 1:
            return self._alternate(value, cases[cases.index(str) - 1], name)
        if any(is_object(case) for case in cases):
            return self.object(value, kind, name)
        return self._text(value, kind, name) if self.texts else self._scalar(value, kind, name)

    def _alternate(self, value: Any, kind: Any, name: str) -> Any:
        """Read a text that stands for an object, or the object."""
        if isinstance(value, str):
            return value
        if not isinstance(value, dict):
            raise wrong_type("null" if name.endswith("]") else name, kind.alternate)
        return self.object(value, kind, name)

    def _items(self, value: Any, kind: Any, name: str) -> list[Any]:
        items = self.items(value, name)
        return [self.value(item, kind, f"{name}[{index}]") for index, item in enumerate(items)]

    def items(self, value: Any, name: str) -> list[Any]:
        """Return the items of an array, which texts number from 0."""
        if self.texts and isinstance(value, dict):
            by_number = cast("dict[str, Any]", value)
            return [taken(dict(by_number), str(index), name) for index in range(len(by_number))]
        if not isinstance(value, list):
            raise wrong_type(name, "array")
        return list(cast("Sequence[Any]", value))

    def choice(self, value: Any, choices: "list[str] | Any", name: str) -> str:
        """Read one of several texts."""
        if not isinstance(value, str):
            raise wrong_type(name, "string")
        if value not in choices:
            last = "null" if name.endswith("]") else name.rpartition(".")[2]
            raise QmpError(f"Parameter '{last}' does not accept value '{value}'")
        return value

    def _scalar(self, value: Any, kind: Any, name: str) -> Any:
        plain = int if kind is Size else kind
        right = isinstance(value, plain) and isinstance(value, bool) == (plain is bool)
        if plain is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if not right or (plain is int and value not in (_SIZES if kind is Size else _INTEGERS)):
            raise wrong_type(name, _NAMES[kind])
        return value

    def _text(self, value: Any, kind: Any, name: str) -> Any:
        if not isinstance(value, str):
            raise wrong_type(name, _NAMES[kind])
        if kind is str:
            return value
        try:
            return parse_bool(value) if kind is bool else _number(value, kind)
        except OptionError:
            raise QmpError(f"Parameter '{name}' expects {_EXPECTED[kind]}") from None


def _number(value: str, kind: Any) -> Any:
    if kind is float:
        try:
            return float(value)
        except ValueError:
            raise OptionError("not a number") from None
    return parse_size(value) if kind is Size else parse_number(value)


def joined(prefix: str, name: str) -> str:
    """Return the dotted name of a member."""
    return f"{prefix}.{name}" if prefix else name


def taken(rest: dict[str, Any], name: str, prefix: str) -> Any:
    """Take a member that has to be there out of an object."""
    if name not in rest:
        raise missing(joined(prefix, name))
    return rest.pop(name)


def missing(name: str) -> QmpError:
    """Word the error of a member that is not there."""
    return QmpError(f"Parameter '{name}' is missing")


def wrong_type(name: str, expected: str) -> QmpError:
    """Word the error of a value that is something else."""
    return QmpError(f"Invalid parameter type for '{name}', expected: {expected}")


def refuse_rest(rest: Mapping[str, Any], prefix: str) -> None:
    """Refuse members that nobody has taken."""
    for name in rest:
        raise QmpError(f"Parameter '{joined(prefix, name)}' is unexpected")


def require_identifier(text: str) -> None:
    """Refuse what is no identifier, as the ids of objects and devices are.

    Raises:
        QmpError: In QEMU's words.
    """
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", text) is None:
        raise QmpError(
            "Parameter 'id' expects an identifier\n"
            "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."
        )
