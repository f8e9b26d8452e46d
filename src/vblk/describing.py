"""What an image is: its facts under QEMU's names and in QEMU's order.

Owns: the report of one image, for `vblk info` and the monitor, and its lines for
people. What is special to a format comes from its node.

Source: qapi/block-core.json of QEMU's documentation, "ImageInfo".
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, cast

from vblk.graph.edge import Role
from vblk.graph.node import Leaf, Node
from vblk.options import format_size
from vblk.units import align_up

SECTOR = 512
"""Bytes: a disk is whole sectors long, also where a file is not."""

SECOND = 1_000_000_000
"""Nanoseconds."""


async def describe_image(node: Node) -> dict[str, Any]:
    """Return the facts of one image, under QEMU's names and in QEMU's order."""
    specific = await _specific(node)
    backing = _backing(node, specific)
    report: dict[str, Any] = {}
    snapshots = await _snapshots(node)
    if snapshots:
        report["snapshots"] = snapshots
    if backing is not None and backing.format is not None:
        report["backing-filename-format"] = backing.format
    report["virtual-size"] = align_up(node.size, SECTOR)
    report["filename"] = node.filename
    if "block-size" in specific:
        report["cluster-size"] = specific["block-size"]
    elif node.allocation_unit:
        report["cluster-size"] = node.allocation_unit
    report["format"] = node.driver
    taken = await allocated_bytes(node)
    if taken is not None:
        report["actual-size"] = taken
    if node.driver == "luks":
        report["encrypted"] = True
    if specific:
        report["format-specific"] = {"type": node.driver, "data": specific}
    if backing is not None:
        if backing.path is not None:
            report["full-backing-filename"] = backing.path
        report["backing-filename"] = backing.name
    report["dirty-flag"] = _is_dirty(node, specific)
    return report


async def _specific(node: Node) -> dict[str, Any]:
    if node.driver == "vhdx":
        from vblk.drivers.vhdx import VhdxNode

        if isinstance(node, VhdxNode):
            await node.scan()
    return dict(node.info())


class _Backing(NamedTuple):
    """The parent's name and format as the image has them, and where it is, if that is known."""

    name: str
    format: str | None
    path: str | None


def _backing(node: Node, specific: Mapping[str, Any]) -> _Backing | None:
    opened = node.child(Role.BACKING)
    path = None if opened is None else opened.filename
    if node.driver == "qcow2":
        from vblk.drivers.qcow2 import Qcow2Node

        if isinstance(node, Qcow2Node) and node.image.header.backing_file is not None:
            header = node.image.header
            return _Backing(node.image.header.backing_file, header.backing_format, node.backing_path)
    parent = specific.get("parent")
    if parent is None:
        return None if opened is None else _Backing(opened.filename, node.driver, path)
    paths = cast("Mapping[str, str]", parent.get("paths", {}))
    return _Backing(next(iter(paths.values()), ""), node.driver, path)


def _is_dirty(node: Node, specific: Mapping[str, Any]) -> bool:
    if node.driver == "qcow2":
        from vblk.drivers.qcow2 import Qcow2Node

        return isinstance(node, Qcow2Node) and node.image.is_dirty
    return bool(cast("Mapping[str, Any]", specific.get("log", {})).get("dirty", False))


async def _snapshots(node: Node) -> list[dict[str, Any]]:
    """Return the internal snapshots of an image under QEMU's names."""
    if node.driver != "qcow2":
        return []
    from vblk.drivers.qcow2 import Qcow2Node

    if not isinstance(node, Qcow2Node):
        return []
    return [
        {
            **({} if snapshot.instructions is None else {"icount": snapshot.instructions}),
            "vm-clock-nsec": snapshot.ran % SECOND,
            "name": snapshot.name,
            "date-sec": snapshot.taken // SECOND,
            "date-nsec": snapshot.taken % SECOND,
            "vm-clock-sec": snapshot.ran // SECOND,
            "id": snapshot.identifier,
            "vm-state-size": snapshot.state_size,
        }
        for snapshot in await node.snapshots()
    ]


async def allocated_bytes(node: Node) -> int | None:
    """Return the bytes that an image takes on its storage, its parents left out; None if unknown."""
    total = 0
    stack = [node]
    while stack:
        member = stack.pop()
        if isinstance(member, Leaf):
            taken = await member.allocated_bytes()
            if taken is None:
                return None
            total += taken
        stack += [edge.node for edge in member.children.values() if edge.role is not Role.BACKING]
    return total


def report_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield QEMU's lines about one image."""
    size = report["virtual-size"]
    yield f"image: {report['filename']}"
    yield f"file format: {report['format']}"
    yield f"virtual size: {format_size(size)} ({size} bytes)"
    yield f"disk size: {format_size(report['actual-size']) if 'actual-size' in report else 'unavailable'}"
    if "cluster-size" in report:
        yield f"cluster_size: {report['cluster-size']}"
    if report.get("encrypted"):
        yield "encrypted: yes"
    if report["dirty-flag"]:
        yield "cleanly shut down: no"
    if "backing-filename" in report:
        named, full = report["backing-filename"], report.get("full-backing-filename")
        yield f"backing file: {named}" + (f" (actual path: {full})" if full not in (None, named) else "")
        if "backing-filename-format" in report:
            yield f"backing file format: {report['backing-filename-format']}"
    if "snapshots" in report:
        yield "Snapshot list:"
        yield from snapshot_lines(report["snapshots"])
    if "format-specific" in report:
        yield "Format specific information:"
        yield from nested_lines(report["format-specific"]["data"], 1)


def snapshot_lines(snapshots: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield QEMU's table of internal snapshots."""
    yield f"{'ID':<10}{'TAG':<15}{'VM SIZE':>10}{'DATE':>20}{'VM CLOCK':>13}{'ICOUNT':>11}"
    for snapshot in snapshots:
        seconds, rest = snapshot["vm-clock-sec"], snapshot["vm-clock-nsec"] // 1_000_000
        clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{rest:03}"
        taken = datetime.fromtimestamp(snapshot["date-sec"]).strftime("%Y-%m-%d %H:%M:%S")
        size = format_size(snapshot["vm-state-size"])
        yield (
            f"{snapshot['id']:<9} {snapshot['name']:<16}{size:>9}{taken:>20}{clock:>13}"
            f"{snapshot.get('icount', ''):>11}"
        )


def nested_lines(value: Mapping[str, Any] | Sequence[Any], depth: int) -> Iterator[str]:
    """Yield the lines of a tree as QEMU indents it."""
    pairs: Iterator[tuple[str, Any]]
    if isinstance(value, Mapping):
        pairs = ((key.replace("-", " "), member) for key, member in value.items())
    else:
        pairs = ((f"[{index}]", member) for index, member in enumerate(value))
    for key, member in pairs:
        if isinstance(member, dict | list | tuple):
            yield f"{'    ' * depth}{key}:"
            yield from nested_lines(cast("Mapping[str, Any] | Sequence[Any]", member), depth + 1)
        else:
            yield f"{'    ' * depth}{key}: {scalar_text(member)}"


def scalar_text(value: object) -> str:
    """Write one value as QEMU does."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
