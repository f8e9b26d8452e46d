"""`vblk info`: what an image is.

Owns: QEMU's report of an image, for people and as JSON, and a table for
terminals. The facts come from `vblk.describing`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from vblk.cli.command import Verb, flag, option
from vblk.cli.console import Console
from vblk.cli.failure import SUCCESS
from vblk.cli.images import ImageArguments, chain_of, image_graph, image_options, open_named
from vblk.cli.values import OUTPUT_TYPE
from vblk.describing import describe_image
from vblk.options import format_size


@dataclass(slots=True)
class Arguments(ImageArguments):
    """The words of one call."""

    output: str
    backing_chain: bool


async def run(arguments: Arguments, console: Console) -> int:
    """Open the image, with its chain if that was asked for, and report."""
    name = arguments.one_operand()
    async with image_graph(arguments) as graph:
        handle = await open_named(graph, name, arguments, console, backing=arguments.backing_chain)
        nodes = chain_of(handle.node) if arguments.backing_chain else [handle.node]
        reports = [await describe_image(node) for node in nodes]
        warnings = [warning for node in nodes for warning in node.warnings]
    if arguments.output == "json":
        import json

        console.print(json.dumps(reports if arguments.backing_chain else reports[0], indent=4))
    elif console.watched:
        from vblk.cli.terminal import show_reports

        show_reports(console, reports)
    else:
        for number, report in enumerate(reports):
            console.print(*([""] if number else []), *report_lines(report))
    for warning in warnings:
        console.warn(warning)
    return SUCCESS


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


VERB = Verb(
    "info",
    run,
    Arguments,
    [
        option("--output", metavar="human|json", type=OUTPUT_TYPE, default="human", help="How to report."),
        flag("--backing-chain", help="Report the image and all its parents."),
        *image_options(),
    ],
    operands="FILENAME",
    help="Tell what an image is: format, sizes, identity, log and parents.",
)
