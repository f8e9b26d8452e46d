"""The options of a node as QMP takes them: which a driver has, and that none is wrong.

Owns: the children of each driver, and the strict check of `blockdev-add`. What the
options mean is decided in `vblk.options` and by the drivers themselves.

Source: qapi/block-core.json of QEMU's documentation, "BlockdevOptions".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib import import_module
from typing import Any, Final, cast

import msgspec

from vblk.monitor.arguments import Reader, joined, missing, refuse_rest, taken, wrong_type
from vblk.monitor.introspection import Introspection
from vblk.monitor.reflection import members_of
from vblk.opening import FILTERS, FORMATS, PROTOCOLS
from vblk.options import NodeOptions, from_mapping
from vblk.wire.qmp import QmpError


class Child(Enum):
    """How a driver takes a child."""

    NEEDED = "BlockdevRef"
    OPTIONAL = "optional BlockdevRef"
    OR_NULL = "BlockdevRefOrNull"
    LIST = "list of BlockdevRef"


_FILE: Final = {"file": Child.NEEDED}
_WITH_BACKING: Final = {"file": Child.NEEDED, "backing": Child.OR_NULL}

CHILDREN: Final[dict[str, Mapping[str, Child]]] = {
    "blkdebug": {"image": Child.NEEDED},
    "blkverify": {"test": Child.NEEDED, "raw": Child.NEEDED},
    "copy-before-write": {"file": Child.NEEDED, "target": Child.NEEDED},
    "copy-on-read": _FILE,
    "delay": _FILE,
    "luks": _FILE,
    "qcow2": _WITH_BACKING,
    "quorum": {"children": Child.LIST},
    "raw": _FILE,
    "snapshot-access": _FILE,
    "throttle": _FILE,
    "vhdx": _WITH_BACKING,
}
"""The children of each driver; one that is not here has none."""


class Discard(Enum):
    """What becomes of discards."""

    IGNORE = "ignore"
    UNMAP = "unmap"


class DetectZeroes(Enum):
    """Whether zeros that are written are looked for."""

    OFF = "off"
    ON = "on"
    UNMAP = "unmap"


class Cache(msgspec.Struct, rename="kebab", forbid_unknown_fields=True):
    """How requests go through the system's cache."""

    direct: bool | None = None
    no_flush: bool | None = None


class BlockdevCommon(msgspec.Struct, rename="kebab", forbid_unknown_fields=True):
    """The options that every node has."""

    node_name: str | None = None
    discard: Discard | None = None
    cache: Cache | None = None
    read_only: bool | None = None
    auto_read_only: bool | None = None
    force_share: bool | None = None
    detect_zeroes: DetectZeroes | None = None


@dataclass(slots=True)
class Blockdev:
    """A node's options, checked."""

    options: NodeOptions

    @classmethod
    def read_member(cls, reader: Reader, value: Any, name: str) -> "Blockdev":
        """Read the options of a node."""
        check_node(reader, value, name)
        return cls(node_options(value))

    @classmethod
    def describe(cls, schema: Introspection) -> str:
        """Add the type of a node's options, and those of all drivers."""
        name = schema.reserve(cls)
        common = schema.members(members_of(BlockdevCommon))
        reference = schema.alternate([name, "str"])
        kinds = {
            Child.NEEDED: reference,
            Child.OPTIONAL: reference,
            Child.OR_NULL: schema.alternate([name, "str", schema.builtin("null")]),
            Child.LIST: schema.array(reference),
        }
        variants: dict[str, str] = {}
        for driver in drivers():
            own = schema.members(members_of(options_of(driver)))
            children = [
                {"name": role, "type": kinds[child]}
                | ({} if child in (Child.NEEDED, Child.LIST) else {"default": None})
                for role, child in CHILDREN.get(driver, {}).items()
            ]
            variants[driver] = schema.object_of([*children, *own])
        schema.fill(name, schema.union("driver", variants, common))
        return name


def node_options(value: Mapping[str, Any]) -> NodeOptions:
    """Return the model of options that were checked; objects and arrays without members say nothing."""
    return from_mapping(_without_empty(value))


def _without_empty(value: Mapping[str, Any]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, member in value.items():
        kept = _without_empty(cast("Mapping[str, Any]", member)) if isinstance(member, dict) else member
        if kept not in ({}, []):
            members[name] = kept
    return members


@cache
def drivers() -> tuple[str, ...]:
    """Return the names of all drivers, in alphabetical order."""
    return tuple(sorted({*PROTOCOLS, *FORMATS, *FILTERS}))


@cache
def options_of(driver: str) -> type[Any]:
    """Return the dataclass whose fields are a driver's own options."""
    module = PROTOCOLS.get(driver) or FORMATS.get(driver) or FILTERS[driver]
    return cast("type[Any]", import_module(module).Options)


def check_node(reader: Reader, value: Any, name: str) -> None:
    """Refuse options of a node, and of those under it, that its driver does not have.

    Raises:
        QmpError: In QEMU's words.
    """
    rest = reader.mapping(value, name)
    driver = reader.choice(taken(rest, "driver", name), drivers(), joined(name, "driver"))
    reader.members(rest, BlockdevCommon, name)
    for role, child in CHILDREN.get(driver, {}).items():
        _check_child(reader, rest, role, child, joined(name, role))
    reader.members(rest, options_of(driver), name)
    refuse_rest(rest, name)


def _check_child(reader: Reader, rest: dict[str, Any], role: str, child: Child, name: str) -> None:
    if role not in rest:
        if child in (Child.NEEDED, Child.LIST):
            raise missing(name)
        return
    value = rest.pop(role)
    if child is Child.OR_NULL and value is None:
        return
    if child is Child.LIST:
        for index, item in enumerate(reader.items(value, name)):
            _check_reference(reader, item, f"{name}[{index}]", Child.NEEDED)
    else:
        _check_reference(reader, value, name, child)


def _check_reference(reader: Reader, value: Any, name: str, child: Child) -> None:
    if isinstance(value, dict):
        check_node(reader, value, name)
    elif not isinstance(value, str):
        raise wrong_type(name, "BlockdevRefOrNull" if child is Child.OR_NULL else "BlockdevRef")


def require_name(options: NodeOptions) -> str:
    """Return the name that a node which stands by itself has to have.

    Raises:
        QmpError: It has none.
    """
    if options.node_name is None:
        raise QmpError("'node-name' must be specified for the root node")
    return options.node_name
