"""The one model behind every way of naming an image.

Owns: `NodeOptions`, the options of one node and of the nodes under it, and the
rules that turn nested or dotted names into it. Must not know which drivers this
version has, nor open anything: an unknown driver or option is refused by
whoever opens the node, through `bind`.

Order: mappings are flattened to dotted names first, so that `{"file":
{"filename": ...}}` and `file.filename=...` cannot mean different things; then
one flat mapping is divided into the node's common options, its children, and
what is left, its driver's own options.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, cast

from vblk.errors import OptionError
from vblk.options.sizes import parse_bool

DEPTH_MAX: Final = 64
"""The deepest nesting of options that is read."""

NAME_MAX: Final = 1024
"""The longest dotted name of an option, in characters."""

Scalar = None | bool | int | float | str
"""The value of one option. `None` is a JSON null: as if the option were not given."""

_FILES: Final = frozenset(("file", "host_device", "host_cdrom"))
_NETWORK: Final = frozenset(("nbd", "ssh", "gluster", "http", "https", "ftp", "ftps", "rbd", "iscsi", "nfs"))
LEAF_DRIVERS: Final = _FILES | _NETWORK | {"memory", "null-co", "null-aio", "vvfat", "nvme"}
"""Protocols: they have no children, so `file` or `image` is an option of their own."""

PROTOCOLS: Final = LEAF_DRIVERS | {"blkdebug", "blkverify"}
"""Drivers that a file name can choose by its prefix."""

_CHILD_NAMES: Final = frozenset(("file", "backing", "data-file", "image", "raw", "test", "log", "target"))
_CHILD_LIST: Final = "children"
_NODE_NAME: Final = r"[A-Za-z][A-Za-z0-9._-]*"
_NODE_NAME_MAX: Final = 31
_DISCARD: Final = {"ignore": "ignore", "off": "ignore", "unmap": "unmap", "on": "unmap"}
_DETECT_ZEROES: Final = ("off", "on", "unmap")


class NodeReference(NamedTuple):
    """A child named by the node name of a node that exists already."""

    name: str


@dataclass(slots=True)
class NodeOptions:
    """How one node is to be opened.

    `driver` is `None` where it was not said: the root and a backing image are
    then probed for their format, any other child is a protocol node chosen by
    its file name (`file`, or `host_device` for a device). `own` holds the
    driver's own options under dotted names, as given. A child is described,
    referred to by name, or `None`: explicitly absent (`backing: null`).
    The other options are `None` where they were not given.
    """

    driver: str | None = None
    node_name: str | None = None
    read_only: bool | None = None
    auto_read_only: bool | None = None
    force_share: bool | None = None
    cache_direct: bool | None = None
    cache_no_flush: bool | None = None
    discard: str | None = None
    detect_zeroes: str | None = None
    own: dict[str, Scalar] = field(default_factory=dict[str, Scalar])
    children: "dict[str, NodeOptions | NodeReference | None]" = field(
        default_factory=dict[str, "NodeOptions | NodeReference | None"]
    )


_SWITCHES: Final = {
    "read-only": "read_only",
    "auto-read-only": "auto_read_only",
    "force-share": "force_share",
    "cache.direct": "cache_direct",
    "cache.no-flush": "cache_no_flush",
}
"""The common options that are on or off, and the fields that hold them."""


def from_mapping(mapping: Mapping[str, object]) -> NodeOptions:
    """Build the model from nested options, as in `json:` or QMP.

    Dotted names may stand at any level, lists count as names `0`, `1`, ...

    Raises:
        OptionError: An option is given twice with different values, has a value
            of the wrong type, or the nesting is too deep.
    """
    flat: dict[str, Scalar | Empty] = {}
    for name, value in flattened(mapping):
        put_option(flat, name, value)
    return from_flat(flat)


def flattened(mapping: Mapping[str, object]) -> "Iterator[tuple[str, Scalar | Empty]]":
    """Yield nested options under dotted names.

    Raises:
        OptionError: A value is no JSON, or the nesting is too deep.
    """
    return _flatten(mapping, "", 0)


class Empty:
    """The value of an option that was given as `{}` or `[]`; there is but `EMPTY`."""

    def __str__(self) -> str:
        return "{}"


EMPTY: Final = Empty()


def put_option(flat: "dict[str, Scalar | Empty]", name: str, value: "Scalar | Empty") -> None:
    """Add one dotted option, refusing a second value for the same name.

    Raises:
        OptionError: The name is malformed or has another value already.
    """
    _check_name(name)
    if not all(name.split(".")):
        raise OptionError(f"Invalid parameter '{name}'")
    if name in flat and (flat[name] != value or type(flat[name]) is not type(value)):
        raise OptionError(f"Option '{name}' is given twice, as '{flat[name]}' and as '{value}'")
    if isinstance(value, str) and "\0" in value:
        raise OptionError(f"Parameter '{name}' must not contain a NUL character")
    flat[name] = value


def _check_name(name: str) -> None:
    """Refuse a name that would make the work on it more than its text is worth."""
    if len(name) > NAME_MAX:
        raise OptionError(f"The name of an option is longer than {NAME_MAX} characters: '{name[:32]}...'")
    if name.count(".") > DEPTH_MAX:
        raise OptionError(f"Options are nested deeper than {DEPTH_MAX}")


def _flatten(value: object, name: str, depth: int) -> "Iterator[tuple[str, Scalar | Empty]]":
    _check_name(name)
    if value is None or isinstance(value, bool | int | float | str):
        yield name, value
        return
    if depth == DEPTH_MAX:
        raise OptionError(f"Options are nested deeper than {DEPTH_MAX}")
    items: list[tuple[object, object]]
    if isinstance(value, Mapping):
        items = list(cast("Mapping[object, object]", value).items())
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        items = list(enumerate(cast("Sequence[object]", value)))
    else:
        raise OptionError(f"Invalid parameter type for '{name}', expected: a JSON value")
    if not items and name:
        yield name, EMPTY
    for key, member in items:
        if not isinstance(key, str | int):
            raise OptionError(f"Invalid parameter type for a name in '{name}', expected: string")
        yield from _flatten(member, f"{name}.{key}" if name else str(key), depth + 1)


def from_flat(flat: "Mapping[str, Scalar | Empty]", depth: int = 0) -> NodeOptions:
    """Divide dotted options into one node's own and its children's.

    Raises:
        OptionError: As `from_mapping`.
    """
    if depth == DEPTH_MAX:
        raise OptionError(f"Nodes are nested deeper than {DEPTH_MAX}")
    options = NodeOptions()
    rest = _take_common(options, flat)
    nested: dict[str, dict[str, Scalar | Empty]] = {}
    for name, value in rest.items():
        child, inner = _split_child(options.driver, name)
        if child is None:
            if isinstance(value, Empty):
                raise OptionError(f"Parameter '{name}' has no value")
            options.own[name] = value
        elif inner:
            nested.setdefault(child, {})[inner] = value
        elif isinstance(value, Empty):
            nested.setdefault(child, {})
        else:
            options.children[child] = _reference(child, value)
    for child, members in nested.items():
        if child in options.children:
            raise reference_conflict(child, f"{child}.{next(iter(members), 'driver')}")
        options.children[child] = from_flat(members, depth + 1)
    return options


def reference_conflict(reference: str, option: str) -> OptionError:
    """Word the error of a child that is both referred to and described."""
    return OptionError(
        "Cannot reference an existing block device with additional options or a new filename:"
        f" '{reference}' and '{option}'"
    )


def _split_child(driver: str | None, name: str) -> tuple[str | None, str]:
    """Return the child that an option belongs to, and the option's name there."""
    if driver in LEAF_DRIVERS:
        return None, name
    head, _, inner = name.partition(".")
    if head in _CHILD_NAMES:
        return head, inner
    if head == _CHILD_LIST and inner:
        index, _, inner = inner.partition(".")
        if index.isdecimal() and index.isascii():
            return f"{head}.{index}", inner
    return None, name


def _reference(child: str, value: Scalar) -> NodeReference | None:
    if isinstance(value, str) and (value or child != "backing"):
        return NodeReference(value)
    if value is None or value == "":
        if child == "backing":
            return None
        raise OptionError(f'A block device must be specified for "{child}"')
    raise OptionError(f"Invalid parameter type for '{child}', expected: BlockdevRef")


def _take_common(options: NodeOptions, flat: "Mapping[str, Scalar | Empty]") -> "dict[str, Scalar | Empty]":
    """Move the options that every node has into `options`; return the others."""
    rest = dict(flat)
    options.driver = _text(rest, "driver")
    options.node_name = _text(rest, "node-name")
    options.discard = _text(rest, "discard")
    options.detect_zeroes = _text(rest, "detect-zeroes")
    if options.node_name is not None:
        check_node_name(options.node_name)
    if options.discard is not None:
        if options.discard not in _DISCARD:
            raise OptionError("Invalid discard option")
        options.discard = _DISCARD[options.discard]
    if options.detect_zeroes is not None and options.detect_zeroes not in _DETECT_ZEROES:
        raise OptionError(f"Parameter 'detect-zeroes' does not accept value '{options.detect_zeroes}'")
    for name, attribute in _SWITCHES.items():
        value = rest.pop(name, None)
        if value is not None:
            setattr(options, attribute, _switch(name, value))
    return rest


def _text(rest: "dict[str, Scalar | Empty]", name: str) -> str | None:
    value = rest.pop(name, None)
    if value is not None and not isinstance(value, str):
        raise OptionError(f"Invalid parameter type for '{name}', expected: string")
    return value


def _switch(name: str, value: "Scalar | Empty") -> bool:
    if isinstance(value, bool):
        return value
    try:
        return parse_bool(value if isinstance(value, str) else "")
    except OptionError:
        raise OptionError(f"Parameter '{name}' expects 'on' or 'off'") from None


def check_node_name(name: str) -> None:
    """Refuse what cannot be a node name: a letter, then letters, digits, `-._`.

    Raises:
        OptionError: Not a node name, or longer than 31 characters.
    """
    if re.fullmatch(_NODE_NAME, name, re.ASCII) is None:
        raise OptionError(f"Invalid node-name: '{name}'")
    if len(name) > _NODE_NAME_MAX:
        raise OptionError("Node name too long")


def check_consistent(options: NodeOptions) -> None:
    """Refuse common options that contradict each other, once all are known.

    Raises:
        OptionError: Sharing is forced on a writable node, or zeroes are to be
            unmapped where discarding is off.
    """
    if options.force_share and options.read_only is False:
        raise OptionError("force-share=on can only be used with read-only images")
    if options.detect_zeroes == "unmap" and options.discard != "unmap":
        raise OptionError(
            "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap"
        )


def merge(first: NodeOptions, second: NodeOptions, where: str = "") -> NodeOptions:
    """Unite two descriptions of one node.

    `where` is the dotted name of the node, with its final dot, for errors.

    Raises:
        OptionError: Both give an option, with different values.
    """
    result = NodeOptions()
    for attribute in ("driver", "node_name", *_SWITCHES.values(), "discard", "detect_zeroes"):
        ours, theirs = getattr(first, attribute), getattr(second, attribute)
        if ours is not None and theirs is not None and ours != theirs:
            spelled = next((name for name, held in _SWITCHES.items() if held == attribute), attribute)
            _contradiction(where + spelled.replace("_", "-"), ours, theirs)
        setattr(result, attribute, theirs if ours is None else ours)
    result.own = dict(first.own)
    for name, value in second.own.items():
        if name in result.own and result.own[name] != value:
            _contradiction(where + name, result.own[name], value)
        result.own[name] = value
    result.children = dict(first.children)
    for name, child in second.children.items():
        ours = result.children.get(name)
        if isinstance(ours, NodeOptions) and isinstance(child, NodeOptions):
            result.children[name] = merge(ours, child, f"{where}{name}.")
        elif name in result.children and ours != child:
            raise reference_conflict(where + name, f"{where}{name}.*")
        else:
            result.children[name] = child
    return result


def _contradiction(name: str, first: object, second: object) -> None:
    raise OptionError(f"Option '{name}' is given twice, as '{first}' and as '{second}'")
