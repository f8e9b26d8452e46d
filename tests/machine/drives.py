"""Drives: what `-drive` names, and the block devices that a machine's monitor shows.

Owns: the translation of a drive's options into those of a node, the names of drives
that were given none, and who holds the nodes.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from vblk.errors import OptionError
from vblk.exports.export import Export
from vblk.graph.handle import Handle
from vblk.graph.node import Node
from vblk.opening import FILTERS, FORMATS
from vblk.options import NodeOptions, from_mapping, merge, parse_filename, with_filename
from vblk.options.keyval import split_pairs

_OF_THE_DRIVE: Final = frozenset("if id media aio werror rerror index bus unit serial snapshot".split())
_CACHES: Final[dict[str, dict[str, str]]] = {
    "writeback": {},
    "none": {"cache.direct": "on"},
    "unsafe": {"cache.no-flush": "on"},
}
"""What a cache mode says of the node; those that write through concern the guest's device."""


@dataclass(eq=False)
class Drive:
    """One block device of the machine. `handle` is None when there is no medium."""

    name: str
    handle: Handle | None
    path: str = ""
    """The device of the guest that has it, in QEMU's object model."""
    removable: bool = True

    @property
    def node(self) -> Node | None:
        """The medium."""
        return None if self.handle is None else self.handle.node


@dataclass(frozen=True)
class DriveOptions:
    """What `-drive` says: of the drive, and of the node under it."""

    interface: str
    name: str
    node: NodeOptions | None
    snapshot: bool = False
    """Whether the medium stays as it is: what is written goes elsewhere."""


class Names:
    """Names for drives that have none: the interface and a number."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()

    def next(self, interface: str) -> str:
        """Return the next name."""
        number = self._count[interface]
        self._count[interface] += 1
        return f"{interface}{number // 2}-hd{number % 2}" if interface == "ide" else f"{interface}{number}"


def read_drive(text: str, names: Names) -> DriveOptions:
    """Read the value of `-drive`.

    Raises:
        OptionError: It cannot be right.
    """
    own: dict[str, str] = {}
    node: dict[str, Any] = {}
    file = None
    for pair in split_pairs(text):
        if pair.name in _OF_THE_DRIVE:
            own[pair.name] = pair.value
        elif pair.name == "file":
            file = pair.value
        elif pair.name == "format":
            node["driver"] = pair.value
        elif pair.name == "cache":
            if pair.value not in _CACHES:
                raise OptionError(f"the machine of these tests has no cache mode '{pair.value}'")
            node.update(_CACHES[pair.value])
        elif pair.name == "readonly":
            node["read-only"] = pair.value
        else:
            node[pair.name] = pair.value
    interface = own.get("if", "ide")
    name = own.get("id") or names.next(interface)
    if file is None and not node:
        return DriveOptions(interface, name, None)
    if own.get("media") == "cdrom":
        node.setdefault("read-only", "on")
    return DriveOptions(interface, name, with_file(node, file), own.get("snapshot") == "on")


def with_file(node: dict[str, Any], file: str | None) -> NodeOptions:
    """Return the options of a node whose innermost protocol is named by `file`."""
    if file is None:
        return from_mapping(node)
    level, driver = "", str(node.get("driver", ""))
    while f"{level}file.driver" in node:
        driver = str(node[f"{level}file.driver"])
        level += "file."
    if driver == "blkdebug" and not level:
        return with_filename(from_mapping(node), file)
    if driver and driver not in FORMATS and driver not in FILTERS:
        return from_mapping({**node, f"{level}filename": file})
    if any(name.startswith(f"{level}file.") for name in node):
        return from_mapping({**node, f"{level}file.filename": file})
    return _merged(node, level, file)


def _merged(node: dict[str, Any], level: str, file: str) -> NodeOptions:
    """Put what a file name says under the options."""
    named = parse_filename(file, format="raw")
    below = NodeOptions(children={"file": named.children["file"]})
    for _ in range(level.count(".")):
        below = NodeOptions(children={"file": below})
    return merge(from_mapping(node), below)


def exports_of(drive: Drive, exports: "dict[str, Export]") -> list[Export]:
    """Return the exports of a drive's medium."""
    return [export for export in exports.values() if export.handle.node is drive.node]
