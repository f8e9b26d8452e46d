"""`vblk chain`: an image and all its parents as a tree.

Owns: who is whose parent, how it was found, the identities that link them, what
is dirty, and what each image holds. Where a parent is missing the tree ends with
the reason, and the exit status is 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vblk.cli.command import Verb, option
from vblk.cli.console import Console
from vblk.cli.failure import FAILURE, SUCCESS, Failure, could_not_open, sentence
from vblk.cli.images import ImageArguments, chain_of, image_graph, image_options, named_options, open_named
from vblk.cli.values import OUTPUT_TYPE
from vblk.describing import allocated_bytes
from vblk.errors import BlockError, ImageError, PermissionConflict
from vblk.extent import Kind
from vblk.graph.handle import Handle
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.jobs.walk import walk
from vblk.opening import open_image
from vblk.options import format_size


@dataclass(slots=True)
class Arguments(ImageArguments):
    """The words of one call."""

    output: str


@dataclass(slots=True)
class Layer:
    """One image of a chain. Sizes are bytes; `seen` are those that the top shows from here."""

    depth: int
    filename: str
    form: str
    size: int
    on_disk: int | None
    seen: int = 0
    seen_zeros: int = 0
    found: dict[str, Any] | None = None
    identity: dict[str, Any] = field(default_factory=dict[str, Any])
    log: str | None = None
    blocks: dict[str, int] = field(default_factory=dict[str, int])
    warnings: list[str] = field(default_factory=list[str])

    @property
    def title(self) -> str:
        """The image's name, with its place in the chain."""
        return f"{self.filename} ({self.form}, {format_size(self.size)})"

    def lines(self) -> list[str]:
        """Return what is said about the image, line by line."""
        lines: list[str] = []
        if self.found is not None:
            key = f"{self.found['key']}: " if self.found["key"] else ""
            lines.append(f"found: {key}{self.found['path']} ({self.found['how']})")
            lines += [f"tried before: {path}: {why}" for path, why in self.found["tried"]]
        lines += [f"{name.replace('-', ' ')}: {value}" for name, value in self.identity.items()]
        if self.blocks:
            lines.append("blocks: " + ", ".join(f"{count} {state}" for state, count in self.blocks.items()))
        if self.on_disk is not None:
            lines.append(f"disk size: {format_size(self.on_disk)}")
        lines.append(
            f"holds: {format_size(self.seen)} of the data and "
            f"{format_size(self.seen_zeros)} of the zeros that are seen"
        )
        if self.log is not None:
            lines.append(f"log: {self.log}")
        lines += [f"warning: {warning}" for warning in self.warnings]
        return lines

    def facts(self) -> dict[str, Any]:
        """Return the same for JSON."""
        facts: dict[str, Any] = {
            "depth": self.depth,
            "filename": self.filename,
            "format": self.form,
            "virtual-size": self.size,
            "actual-size": self.on_disk,
            "data-bytes": self.seen,
            "zero-bytes": self.seen_zeros,
            "dirty": self.log is not None,
            **self.identity,
        }
        if self.log is not None:
            facts["log"] = self.log
        if self.blocks:
            facts["blocks"] = self.blocks
        if self.found is not None:
            facts["found"] = {
                **self.found,
                "tried": [{"path": path, "reason": why} for path, why in self.found["tried"]],
            }
        if self.warnings:
            facts["warnings"] = self.warnings
        return facts


async def run(arguments: Arguments, console: Console) -> int:
    """Open the chain as far as it goes, look at each image, show it."""
    name = arguments.one_operand()
    async with image_graph(arguments, console) as graph:
        handle, failure = await _open_as_far(graph, name, arguments, console)
        layers = [await _look_at(depth, node) for depth, node in enumerate(chain_of(handle.node))]
        _link(layers, chain_of(handle.node))
        if failure is None:
            await _count(handle, layers)
    if arguments.output == "json":
        import json

        facts: dict[str, Any] = {"chain": [layer.facts() for layer in layers]}
        if failure is not None:
            facts["error"] = failure
        console.print(json.dumps(facts, indent=4))
    elif console.watched:
        from vblk.cli.terminal import show_chain

        show_chain(console, layers, failure)
    else:
        console.print(*_tree_lines(layers, failure))
    return SUCCESS if failure is None else FAILURE


async def _open_as_far(
    graph: Graph, name: str, arguments: Arguments, console: Console
) -> tuple[Handle, str | None]:
    """Open the whole chain, or, when a parent is missing, the top and the reason."""
    options = named_options(name, image_opts=arguments.image_opts, format=arguments.format, console=console)
    try:
        handle = await open_image(
            graph,
            options,
            cache=arguments.source_cache,
            force_share=arguments.force_share,
            rules=arguments.rules(),
        )
    except PermissionConflict as error:
        raise could_not_open(name, error) from error
    except ImageError as error:
        try:
            return await open_named(graph, name, arguments, console, backing=False), sentence(error)
        except Failure:
            raise could_not_open(name, error) from error
    except BlockError as error:
        raise could_not_open(name, error) from error
    return handle, None


async def _look_at(depth: int, node: Node) -> Layer:
    layer = Layer(depth, node.filename, node.driver, node.size, await allocated_bytes(node))
    layer.warnings = list(node.warnings)
    if node.driver != "vhdx":
        return layer
    from vblk.cli.check import log_sentence
    from vblk.drivers.vhdx import VhdxNode

    if not isinstance(node, VhdxNode):
        return layer
    image = node.image
    layer.identity["type"] = image.type
    layer.identity["data-write-guid"] = str(image.data_write_guid)
    if image.locator is not None:
        for key, linkage in (("linkage", image.locator.linkage), ("linkage2", image.locator.linkage2)):
            if linkage is not None:
                layer.identity[key] = str(linkage)
    if image.dirty_log is not None:
        layer.log = log_sentence(image)
    report = await node.check()
    layer.blocks = {state.lower().replace("_", "-"): count for state, count in report.states.items() if count}
    layer.warnings += [str(finding) for finding in report.findings]
    return layer


def _link(layers: Sequence[Layer], nodes: Sequence[Node]) -> None:
    """Say of each parent how its child's names led to it."""
    for child, layer in zip(nodes, layers[1:], strict=False):
        search = getattr(child, "search", None)
        if search is not None and search.found is not None:
            layer.found = {
                "key": search.found.key,
                "path": search.found.path,
                "how": search.found.found.value,
                "tried": list(search.tried),
            }


async def _count(handle: Handle, layers: Sequence[Layer]) -> None:
    """Count what a reader of the top sees from each image."""
    async for span in walk(handle, 0, handle.size, refined=False):
        layer = layers[min(span.depth, len(layers) - 1)]
        if span.kind is not Kind.ZERO:
            layer.seen += span.length
        elif span.present:
            layer.seen_zeros += span.length


def _tree_lines(layers: Sequence[Layer], failure: str | None) -> list[str]:
    lines: list[str] = []
    for layer in layers:
        indent = "    " * layer.depth
        branch = "└── " if layer.depth else ""
        lines.append(f"{indent[4:]}{branch}{layer.title}")
        lines += [f"{indent}    {line}" for line in layer.lines()]
    if failure is not None:
        indent = "    " * (len(layers) - 1)
        lines.append(f"{indent}└── parent not opened: {failure}")
    return lines


VERB = Verb(
    "chain",
    run,
    Arguments,
    [
        option("--output", metavar="human|json", type=OUTPUT_TYPE, default="human", help="How to report."),
        *image_options(),
    ],
    operands="FILENAME",
    help="Show an image and all its parents as a tree: how each parent was found, the identities that link "
    "them, whose log was not written back, and what each image holds.",
)
