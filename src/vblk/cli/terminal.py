"""What a person at a terminal sees instead of plain lines: tables, trees and colour.

Owns: the pictures. rich is imported here and nowhere else but for progress bars,
and this module only when standard output is a terminal.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from vblk.cli.console import Console
from vblk.options import format_size

if TYPE_CHECKING:
    from vblk.cli.chain import Layer


def show_reports(console: Console, reports: Sequence[Mapping[str, Any]]) -> None:
    """Show what `info` found, one table an image."""
    terminal = console.terminal()
    for report in reports:
        table = Table(
            title=escape(str(report["filename"])), title_justify="left", show_header=False, box=None
        )
        table.add_column(style="bold cyan", no_wrap=True)
        table.add_column(overflow="fold")
        size = report["virtual-size"]
        table.add_row("format", str(report["format"]))
        table.add_row("virtual size", f"{format_size(size)} ({size} bytes)")
        if "actual-size" in report:
            table.add_row("disk size", format_size(report["actual-size"]))
        if report["dirty-flag"]:
            table.add_row("log", "[yellow]not written back[/]")
        if "backing-filename" in report:
            full = report.get("full-backing-filename")
            table.add_row("parent", escape(str(full or report["backing-filename"])))
        specific = report.get("format-specific", {}).get("data", {})
        for key, value in cast("Mapping[str, Any]", specific).items():
            table.add_row(escape(key.replace("-", " ")), _cell(value))
        terminal.print(table)


def _cell(value: Any) -> str:
    """Write a value on as few lines as it needs."""
    if isinstance(value, Mapping):
        members = cast("Mapping[str, Any]", value)
        return "\n".join(
            f"[dim]{escape(key.replace('-', ' '))}[/] {_cell(member)}" for key, member in members.items()
        )
    if isinstance(value, list | tuple):
        return "\n".join(_line(member) for member in cast("Sequence[Any]", value))
    return escape({True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value))


def _line(value: Any) -> str:
    if isinstance(value, Mapping):
        return "  ".join(escape(str(member)) for member in cast("Mapping[str, Any]", value).values())
    return _cell(value)


def show_chain(console: Console, layers: "Sequence[Layer]", failure: str | None) -> None:
    """Show a chain as a tree, the top image at the root."""
    tree: Tree | None = None
    branch: Tree | None = None
    for layer in layers:
        label = "\n".join([f"[bold cyan]{escape(layer.title)}[/]", *(escape(line) for line in layer.lines())])
        if branch is None:
            tree = branch = Tree(label)
        else:
            branch = branch.add(label)
    if branch is not None and failure is not None:
        branch.add(f"[red]{escape(failure)}[/]")
    if tree is not None:
        console.terminal().print(tree)
