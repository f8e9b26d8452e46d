"""`vblk check`: what is wrong with an image's tables.

Owns: QEMU's report of a check and its exit statuses, for people and as JSON.
The findings come from the format.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vblk.cli.command import Verb, flag, option
from vblk.cli.console import Console
from vblk.cli.failure import CHECK_CORRUPT, CHECK_LEAKS, CHECK_UNSUPPORTED, SUCCESS, Failure
from vblk.cli.images import ImageArguments, image_graph, image_options, open_named
from vblk.cli.values import OUTPUT_TYPE, WordType
from vblk.options import format_size

if TYPE_CHECKING:
    from vblk.formats.vhdx import CheckReport, Finding, VhdxImage


@dataclass(slots=True)
class Arguments(ImageArguments):
    """The words of one call."""

    output: str
    quiet: bool
    repair: str | None


async def run(arguments: Arguments, console: Console) -> int:
    """Open the image without its chain, check it, report."""
    name = arguments.one_operand()
    if arguments.repair is not None:
        raise Failure("this version of vblk repairs no images: check without -r tells what is wrong")
    async with image_graph(arguments) as graph:
        handle = await open_named(graph, name, arguments, console, backing=False)
        node = handle.node
        if node.driver != "vhdx":
            raise Failure("This image format does not support checks", status=CHECK_UNSUPPORTED)
        from vblk.drivers.vhdx import VhdxNode

        if not isinstance(node, VhdxNode):
            raise Failure("This image format does not support checks", status=CHECK_UNSUPPORTED)
        report = await node.check()
        image = node.image
    if arguments.output == "json":
        import json

        console.print(json.dumps(_json_report(report, image, node.filename), indent=4))
    else:
        _print_report(report, image, arguments.quiet, console)
    if report.errors:
        return CHECK_CORRUPT
    return CHECK_LEAKS if report.leaks else SUCCESS


def _print_report(report: "CheckReport", image: "VhdxImage", quiet: bool, console: Console) -> None:
    for finding in report.findings:
        _print_finding(finding, console)
    if quiet:
        return
    if image.dirty_log is not None:
        console.print(log_sentence(image))
    if not (report.errors or report.leaks):
        console.print("No errors were found on the image.")
    if report.errors:
        console.print(
            "",
            f"{report.errors} errors were found on the image.",
            "Data may be corrupted, or further writes to the image may corrupt it.",
        )
    if report.leaks:
        console.print(
            "",
            f"{report.leaks} leaked clusters were found on the image.",
            "This means waste of disk space, but no harm to data.",
        )
    if report.total_blocks:
        allocated, total = report.allocated_blocks, report.total_blocks
        part = allocated * 100 / total
        torn = report.fragmented_blocks * 100 / allocated if allocated else 0.0
        console.print(
            f"{allocated}/{total} = {part:0.2f}% allocated, "
            f"{torn:0.2f}% fragmented, 0.00% compressed clusters"
        )
    console.print(f"Image end offset: {report.image_end_offset}")


def _print_finding(finding: "Finding", console: Console) -> None:
    """Write errors and leaks where QEMU writes them: to standard error, without a prefix."""
    word = {"error": "ERROR", "leak": "Leaked", "warning": "Warning:"}[finding.severity.value]
    console.plain_message(f"{word} {finding} [{finding.code}]")


def log_sentence(image: "VhdxImage") -> str:
    """Say what the log of a dirty image would change."""
    log = image.dirty_log
    assert log is not None
    if not log.replayable:
        return "The log is marked as in use, and holds no complete entry: nothing would be replayed."
    touched = ", ".join(f"{name} {format_size(count)}" for name, count in log.touches.items() if count)
    grown = log.target_length - image.file_size
    return (
        f"The log was not written back: its replay ({log.entries} entries, {log.pages} pages of data, "
        f"{log.zeroed_bytes} bytes of zeros) would change {touched or 'nothing'}"
        + (f" and lengthen the file by {grown} bytes" if grown > 0 else "")
        + ". The check is of the image as it is after replay; the file was not touched."
    )


def _json_report(report: "CheckReport", image: "VhdxImage", filename: str) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "image-end-offset": report.image_end_offset,
        "total-clusters": report.total_blocks,
        "check-errors": 0,
        "filename": filename,
        "format": "vhdx",
        "allocated-clusters": report.allocated_blocks,
        "fragmented-clusters": report.fragmented_blocks,
    }
    if report.errors:
        facts["corruptions"] = report.errors
    if report.leaks:
        facts["leaks"] = report.leaks
    if report.warnings:
        facts["warnings"] = report.warnings
    if report.findings:
        facts["findings"] = [
            {
                "code": finding.code,
                "severity": finding.severity.value,
                "message": finding.message,
                "offset": finding.offset,
            }
            for finding in report.findings
        ]
    if image.dirty_log is not None:
        facts["log"] = image.describe()["log"]
    return facts


VERB = Verb(
    "check",
    run,
    Arguments,
    [
        option("--output", metavar="human|json", type=OUTPUT_TYPE, default="human", help="How to report."),
        flag("-q", "--quiet", help="Say nothing but errors."),
        option(
            "-r",
            "--repair",
            "repair",
            metavar="leaks|all",
            type=WordType(
                ("leaks", "all"), "Unknown option value for -r (expecting 'leaks' or 'all'): {}", hint=True
            ),
            help="Refused: this version repairs nothing.",
        ),
        *image_options(),
    ],
    operands="FILENAME",
    help="Look for damage in an image's tables. Exit status: 0 sound, 2 damaged, 3 space leaked, "
    "63 nothing to check in this format, 1 the check itself failed.",
)
