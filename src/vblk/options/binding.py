"""From options as they were given to the typed options of one driver.

Owns: the conversion of `NodeOptions.own` and of `-o` lists into a driver's
dataclass, and the words in which a wrong value or an unknown name is
refused. Must not know any driver's options.
"""

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from typing import Any, Final, NoReturn, TypeVar, cast

from vblk.errors import OptionError
from vblk.options.model import PROTOCOLS, NodeOptions, NodeReference, Scalar
from vblk.options.sizes import SIZE_LIMIT, Size, SizeTooLarge, parse_bool, parse_number, parse_size

OptionsT = TypeVar("OptionsT")

_SIZE_HELP: Final = """
Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-
and exabytes, respectively."""
_TYPE_NAMES: Final = {str: "string", int: "integer", Size: "integer", float: "number", bool: "boolean"}

_Tree = dict[str, "_Tree | Scalar"]


def bind(own: Mapping[str, Scalar], struct: type[OptionsT], driver: str, *, strict: bool = False) -> OptionsT:
    """Convert a node's own options into its driver's options.

    The fields of the dataclass `struct` are the options, spelled with dashes,
    or as the field's metadata `name` says: `bool`, `int`, `float`, `str`,
    `Size`, `Literal` or `Enum` of texts, a list, a nested dataclass, or one of
    these or `None`. Nested ones are given under dotted names. Ranges are the
    dataclass's own to check, in `__post_init__`. Unless `strict`, texts are
    converted, as from a command line; `strict` is QMP's way.

    Raises:
        OptionError: An option is unknown to the driver, has a value of the
            wrong type, or is missing.
    """
    return _Binder(strict, "-", lambda name: _unsupported(driver, name)).struct(_unflatten(own), struct, "")


def says_not_which(options: NodeOptions) -> bool:
    """Tell whether options of a backing image leave it to the image above which one it is."""
    return options.driver is None and not options.own and not options.children.keys() - {"backing"}


def check_children(options: NodeOptions, driver: str, *names: str) -> None:
    """Refuse a child that the driver does not have; `names` are those it has.

    An explicitly absent child, as in `backing: null`, is always right.

    Raises:
        OptionError: There is another child.
    """
    for name, child in options.children.items():
        if child is not None and name not in names:
            raise OptionError(_unsupported(driver, _first_option(name, child)))


def _first_option(name: str, child: NodeOptions | NodeReference) -> str:
    """Return the dotted name of an option by which a child was given."""
    if isinstance(child, NodeReference):
        return name
    return f"{name}.{'driver' if child.driver is not None or not child.own else next(iter(child.own))}"


def _unsupported(driver: str, name: str) -> str:
    if driver in PROTOCOLS:
        return f"Block protocol '{driver}' doesn't support the option '{name}'"
    return f"Block format '{driver}' does not support the option '{name}'"


def bind_create(values: Mapping[str, str], struct: type[OptionsT]) -> OptionsT:
    """Convert the values of `-o` into the options of a format's creation.

    The fields of `struct` are as for `bind`, but spelled with underscores, as
    QEMU spells what creates an image.

    Raises:
        OptionError: As `bind`; an unknown name is an `Invalid parameter`.
    """
    return _Binder(False, "_", lambda name: f"Invalid parameter '{name}'").struct(
        _unflatten(values), struct, ""
    )


def bind_object(own: Mapping[str, Scalar], struct: type[OptionsT], *, strict: bool) -> OptionsT:
    """Convert the options of an object, which is no node; all as in `bind`.

    Raises:
        OptionError: As `bind`; an unknown name is unexpected.
    """
    return _Binder(strict, "-", lambda name: f"Parameter '{name}' is unexpected").struct(
        _unflatten(own), struct, ""
    )


def _unflatten(own: Mapping[str, Scalar]) -> _Tree:
    tree: _Tree = {}
    for name, value in own.items():
        *path, last = name.split(".")
        branch = tree
        for depth, part in enumerate(path, 1):
            below = branch.setdefault(part, {})
            if not isinstance(below, dict):
                raise OptionError(f"Option '{name}' contradicts the value of '{'.'.join(path[:depth])}'")
            branch = below
        if last in branch:
            raise OptionError(f"Option '{name}' contradicts the options inside it")
        branch[last] = value
    return tree


def _leaf_name(value: "_Tree | Scalar", name: str) -> str:
    """Return the full name of the first option in a tree."""
    while isinstance(value, dict):
        key, value = next(iter(value.items()))
        name = f"{name}.{key}" if name else key
    return name


def spelled(member: "dataclasses.Field[Any]", separator: str) -> str:
    """Return the name by which an option is given."""
    return str(member.metadata.get("name", member.name.replace("_", separator)))


def _is_required(member: "dataclasses.Field[Any]") -> bool:
    return member.default is dataclasses.MISSING and member.default_factory is dataclasses.MISSING


class _Binder:
    """One conversion: how strict it is, and how it spells known and words unknown names."""

    def __init__(self, strict: bool, separator: str, unknown: typing.Callable[[str], str]) -> None:
        self._strict = strict
        self._separator = separator
        self._unknown = unknown

    def struct(self, tree: _Tree, kind: type[OptionsT], prefix: str) -> OptionsT:
        fields = {
            spelled(member, self._separator): member for member in dataclasses.fields(cast("Any", kind))
        }
        types_of = typing.get_type_hints(kind, include_extras=True)
        values: dict[str, Any] = {}
        for key, value in tree.items():
            name = prefix + key
            if key not in fields:
                raise OptionError(self._unknown(_leaf_name(value, name)))
            if value is not None:
                member = fields[key]
                values[member.name] = self._value(value, types_of[member.name], name)
        for key, member in fields.items():
            if member.name not in values and _is_required(member):
                raise OptionError(f"Parameter '{prefix + key}' is missing")
        return kind(**values)

    def _value(self, value: "_Tree | Scalar", kind: Any, name: str) -> Any:
        origin = typing.get_origin(kind)
        if origin in (typing.Union, types.UnionType):
            (kind,) = (member for member in typing.get_args(kind) if member is not types.NoneType)
            return self._value(value, kind, name)
        if origin is list:
            return self._list(value, typing.get_args(kind)[0], name)
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise OptionError(f"Invalid parameter type for '{name}', expected: object")
            return self.struct(value, cast("type[Any]", kind), f"{name}.")
        if isinstance(value, dict):
            raise OptionError(self._unknown(_leaf_name(value, name)))
        if origin is typing.Literal:
            return _choice(value, typing.get_args(kind), name)
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return kind(_choice(value, tuple(member.value for member in kind), name))
        return self._scalar(value, kind, name)

    def _list(self, value: "_Tree | Scalar", kind: Any, name: str) -> list[Any]:
        if not isinstance(value, dict):
            raise OptionError(f"Invalid parameter type for '{name}', expected: array")
        items: list[Any] = []
        for index in range(len(value)):
            if str(index) not in value:
                raise OptionError(f"Parameter '{name}.{index}' is missing")
            items.append(self._value(value[str(index)], kind, f"{name}.{index}"))
        return items

    def _scalar(self, value: Scalar, kind: Any, name: str) -> Scalar:
        plain = int if kind is Size else kind
        typed = isinstance(value, plain) and isinstance(value, bool) == (plain is bool)
        if self._strict and not typed:
            raise OptionError(f"Invalid parameter type for '{name}', expected: {_TYPE_NAMES[kind]}")
        if kind is Size:
            return _size(value, name)
        if typed:
            return value
        if kind is bool:
            return _bool(value, name)
        if kind is int:
            return _number(value, name)
        if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
            return _float(value, name)
        raise OptionError(f"Invalid parameter type for '{name}', expected: {_TYPE_NAMES[kind]}")


def _choice(value: Scalar, choices: tuple[Any, ...], name: str) -> Any:
    if not isinstance(value, str):
        raise OptionError(f"Invalid parameter type for '{name}', expected: string")
    if value not in choices:
        raise OptionError(f"Parameter '{name}' does not accept value '{value}'")
    return value


def _bool(value: Scalar, name: str) -> bool:
    try:
        return parse_bool(value if isinstance(value, str) else "")
    except OptionError:
        raise OptionError(f"Parameter '{name}' expects 'on' or 'off'") from None


def _size(value: Scalar, name: str) -> int:
    try:
        if isinstance(value, str):
            return parse_size(value)
    except SizeTooLarge:
        raise OptionError(f"Value '{value}' is out of range for parameter '{name}'") from None
    except OptionError:
        _refuse_size(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < SIZE_LIMIT:
        _refuse_size(name)
    return value


def _refuse_size(name: str) -> NoReturn:
    raise OptionError(f"Parameter '{name}' expects a non-negative number below 2^64{_SIZE_HELP}") from None


def _number(value: Scalar, name: str) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    try:
        return parse_number(value if isinstance(value, str) else "")
    except OptionError:
        raise OptionError(f"Parameter '{name}' expects a number") from None


def _float(value: int | str, name: str) -> float:
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise OptionError(f"Parameter '{name}' expects a number") from None
