"""`vblk check`: what is wrong with an image's tables.

Owns: QEMU's report of a check and its exit statuses, for people and as JSON.
The findings come from the format,
and so do repairs.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vblk.cli.command import Verb, flag, option
from vblk.cli.console import Console
from vblk.cli.failure import (
    CHECK_CORRUPT,
    CHECK_LEAKS,
    CHECK_UNSUPPORTED,
    SUCCESS,
    Failure,
    could_not_open,
    sentence,
)
from vblk.cli.images import ImageArguments, image_graph, image_options, named_options, open_named
from vblk.cli.values import OUTPUT_TYPE, WordType
from vblk.errors import BlockError
from vblk.graph.registry import Graph
from vblk.opening import open_storage
from vblk.options import format_size

if TYPE_CHECKING:
    from vblk.drivers.vhdx_repair import Repair
    from vblk.formats.vhdx import CheckReport, Finding, VhdxImage


@dataclass(slots=True)
class Arguments(ImageArguments):
    """The words of one call."""

    output: str
    quiet: bool
    repair: str | None
    platform: str | None


async def run(arguments: Arguments, console: Console) -> int:
    """Open the image without its chain, check it, repair it if asked to, report."""
    name = arguments.one_operand()
    async with image_graph(arguments, console) as graph:
        handle = await open_named(graph, name, arguments, console, backing=False)
        node = handle.node
        if node.driver == "qcow2":
            from vblk.cli.check_clusters import check_clusters

            if arguments.repair is not None or arguments.platform is not None:
                raise Failure(
                    "qcow2 images are checked without -r and --for: this version has neither for them"
                )
            return await check_clusters(node, arguments.output, arguments.quiet, console)
        if node.driver != "vhdx":
            raise Failure("This image format does not support checks", status=CHECK_UNSUPPORTED)
        from vblk.drivers.vhdx import VhdxNode

        if not isinstance(node, VhdxNode):
            raise Failure("This image format does not support checks", status=CHECK_UNSUPPORTED)
        filename, image = node.filename, node.image
        repair = None
        if arguments.repair is None:
            report = await node.check()
        else:
            await graph.release(handle)
            repair = await _repair(arguments, name, filename, graph, console)
            report, image = repair.after, repair.image
        objections = await _objections(arguments, name, report, graph, console)
    if arguments.output == "json":
        import json

        facts = _json_report(report, image, filename, repair)
        if objections is not None:
            facts["hyper-v"] = [_json_finding(finding) for finding in objections]
        console.print(json.dumps(facts, indent=4))
    else:
        if repair is not None:
            _print_repair(repair, arguments.quiet, console)
        _print_report(report, image, arguments.quiet, console)
        if objections is not None:
            _print_objections(objections, arguments.quiet, console)
    if report.errors or any(each.severity.value == "error" for each in objections or ()):
        return CHECK_CORRUPT
    return CHECK_LEAKS if report.leaks else SUCCESS


async def _repair(arguments: Arguments, name: str, filename: str, graph: Graph, console: Console) -> "Repair":
    """Repair the image in its file, which nobody else may use meanwhile."""
    from vblk.drivers.vhdx_repair import repair_image

    options = named_options(name, image_opts=arguments.image_opts, format=arguments.format, console=console)
    try:
        file = await open_storage(
            graph,
            options,
            cache=arguments.source_cache,
            force_share=arguments.force_share,
        )
    except BlockError as error:
        raise could_not_open(name, error) from error
    try:
        return await repair_image(file.node, filename, leaks_only=arguments.repair == "leaks")
    except BlockError as error:
        raise Failure(f"Check failed: {sentence(error).removeprefix(f'{filename}: ')}") from error
    finally:
        await graph.release(file)


async def _objections(
    arguments: Arguments, name: str, report: "CheckReport", graph: Graph, console: Console
) -> "list[Finding] | None":
    """Return what stands against an image's use by Hyper-V, or None if nobody asked."""
    if arguments.platform is None:
        return None
    from vblk.drivers.vhdx import VhdxNode
    from vblk.drivers.vhdx_hosting import host_file
    from vblk.formats.vhdx.hyper_v import check_for_hyper_v

    trouble = None
    handle = await open_named(graph, name, arguments, console, backing=False)
    assert isinstance(handle.node, VhdxNode)
    image = handle.node.image
    host = await host_file(handle.node, graph)
    await graph.release(handle)
    if image.has_parent:
        try:
            await graph.release(await open_named(graph, name, arguments, console))
        except Failure as failure:
            trouble = failure.lines[0].removeprefix(f"Could not open '{name}': ")
    return check_for_hyper_v(image, report.counts, report.allocated_blocks, host, trouble)


def _print_objections(objections: "list[Finding]", quiet: bool, console: Console) -> None:
    for finding in objections:
        _print_finding(finding, console)
    if quiet:
        return
    errors = sum(finding.severity.value == "error" for finding in objections)
    console.print(
        f"For Hyper-V: {errors} errors and {len(objections) - errors} warnings."
        if objections
        else "For Hyper-V: nothing stands against it."
    )


def _print_repair(repair: "Repair", quiet: bool, console: Console) -> None:
    """Write what was found first, what was done about it, and what was not."""
    unsaid = _unsaid(console)
    for finding in repair.before.findings:
        if finding.code != unsaid:
            _print_finding(finding, console)
    for act in repair.done:
        if act.code != unsaid:
            console.plain_message(f"Repaired: {act.message} [{act.code}]")
    for act in repair.left:
        console.plain_message(f"Not repaired: {act.message} [{act.code}]")
    if quiet or not (repair.leaks_fixed or repair.corruptions_fixed):
        return
    console.print(
        "The following inconsistencies were found and repaired:",
        "",
        f"    {repair.leaks_fixed} leaked clusters",
        f"    {repair.corruptions_fixed} corruptions",
        "",
    )
    if repair.lost_bytes:
        console.print(f"{repair.lost_bytes} bytes of the disk were lost, and are zeros now.", "")
    console.print("Double checking the fixed image now...")


def _unsaid(console: Console) -> str | None:
    """Return the code of what QEMU's program repairs without a word, or None under our name."""
    return "L29" if console.name == "qemu-img" else None


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
    if console.name == "qemu-img":
        return  # QEMU gives no figures of VHDX images
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


def _json_report(
    report: "CheckReport", image: "VhdxImage", filename: str, repair: "Repair | None"
) -> dict[str, Any]:
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
        facts["findings"] = [_json_finding(finding) for finding in report.findings]
    if image.dirty_log is not None:
        facts["log"] = image.describe()["log"]
    if repair is not None:
        facts |= _json_repair(repair)
    return facts


def _json_finding(finding: "Finding") -> dict[str, Any]:
    return {
        "code": finding.code,
        "severity": finding.severity.value,
        "message": finding.message,
        "offset": finding.offset,
    }


def _json_repair(repair: "Repair") -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if repair.corruptions_fixed:
        facts["corruptions-fixed"] = repair.corruptions_fixed
    if repair.leaks_fixed:
        facts["leaks-fixed"] = repair.leaks_fixed
    if repair.lost_bytes:
        facts["lost-bytes"] = repair.lost_bytes
    for key, acts in (("repaired", repair.done), ("not-repaired", repair.left)):
        if acts:
            facts[key] = [{"code": act.code, "message": act.message} for act in acts]
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
            help="Repair: all that is safe to repair, or only what wastes space. What is lost is said, and "
            "what is left, and why.",
        ),
        option(
            "--for",
            "platform",
            metavar="PLATFORM",
            type=WordType(("hyper-v",), "Unknown platform for --for (expecting 'hyper-v'): {}", hint=True),
            help="Say too what stands against the image there: hyper-v is the only one known.",
        ),
        *image_options(),
    ],
    operands="FILENAME",
    help="Look for damage in an image's tables, and repair it with -r. Exit status: 0 sound by now, "
    "2 damaged, 3 space leaked, 63 nothing to check in this format, 1 the check itself failed.",
)
