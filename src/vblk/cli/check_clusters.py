"""`vblk check` of qcow2 images: QEMU's report, line for line.

Owns: the words and the JSON. What is wrong, the format says.
"""

from typing import Any

from vblk.cli.console import Console
from vblk.cli.failure import CHECK_CORRUPT, CHECK_LEAKS, CHECK_UNSUPPORTED, SUCCESS, Failure
from vblk.drivers.qcow2 import Qcow2Node
from vblk.formats.qcow2.check import CheckReport
from vblk.graph.node import Node


async def check_clusters(node: Node, output: str, quiet: bool, console: Console) -> int:
    """Check a qcow2 image, report, and return the exit status."""
    if not isinstance(node, Qcow2Node):
        raise Failure("This image format does not support checks", status=CHECK_UNSUPPORTED)
    report = await node.check()
    if output == "json":
        import json

        console.print(json.dumps(_json_report(report, node.filename), indent=4))
    else:
        for message in report.messages:
            console.plain_message(message)
        if not quiet:
            console.print(*_lines(report))
    if report.errors:
        return CHECK_CORRUPT
    return CHECK_LEAKS if report.leaks else SUCCESS


def _lines(report: CheckReport) -> list[str]:
    lines: list[str] = []
    if not (report.errors or report.leaks):
        lines.append("No errors were found on the image.")
    if report.errors:
        lines += [
            "",
            f"{report.errors} errors were found on the image.",
            "Data may be corrupted, or further writes to the image may corrupt it.",
        ]
    if report.leaks:
        lines += [
            "",
            f"{report.leaks} leaked clusters were found on the image.",
            "This means waste of disk space, but no harm to data.",
        ]
    allocated, total = report.allocated_clusters, report.total_clusters
    if allocated and total:
        lines.append(
            f"{allocated}/{total} = {allocated * 100 / total:0.2f}% allocated, "
            f"{report.fragmented_clusters * 100 / allocated:0.2f}% fragmented, "
            f"{report.compressed_clusters * 100 / allocated:0.2f}% compressed clusters"
        )
    lines.append(f"Image end offset: {report.image_end_offset}")
    return lines


def _json_report(report: CheckReport, filename: str) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "image-end-offset": report.image_end_offset,
        "total-clusters": report.total_clusters,
        "check-errors": 0,
        "corruptions": report.errors or None,
        "leaks": report.leaks or None,
        "allocated-clusters": report.allocated_clusters or None,
        "filename": filename,
        "format": "qcow2",
        "fragmented-clusters": report.fragmented_clusters or None,
        "compressed-clusters": report.compressed_clusters or None,
    }
    return {name: value for name, value in facts.items() if value is not None}
