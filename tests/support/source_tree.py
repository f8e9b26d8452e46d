"""The project's own source as data, for the tests that keep it tidy.

Owns: finding files and parsing them once. It knows no rule; the tests do.
"""

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "src" / "vblk"


@dataclass(frozen=True, slots=True, eq=False)
class Module:
    """One Python file, parsed."""

    path: Path
    name: str
    """The dotted name: `vblk.graph.node`, or the path's dotted form outside of src."""
    text: str
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        """Tell whether this is a package's `__init__`."""
        return self.path.name == "__init__.py"

    def at(self, line: int) -> str:
        """Name a place in this module as an editor understands it."""
        return f"{self.path.relative_to(REPOSITORY)}:{line}"


def _parse(path: Path, root: Path) -> Module:
    text = path.read_text(encoding="utf-8")
    name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    return Module(path, name, text, ast.parse(text, str(path)))


@functools.cache
def package_modules() -> tuple[Module, ...]:
    """Return every module of the product."""
    return tuple(_parse(path, PACKAGE.parent) for path in sorted(PACKAGE.rglob("*.py")))


@functools.cache
def modules_under(*folders: str) -> tuple[Module, ...]:
    """Return every module under these folders of the repository."""
    paths = sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))
    return tuple(_parse(path, REPOSITORY) for path in paths)


def text_files() -> Iterator[Path]:
    """Yield every file of the project that a person wrote."""
    folders = ("src", "tests", "bench", "scripts", "docs", ".ci")
    suffixes = {".py", ".md", ".toml", ".sh", ".txt", ".json", ""}
    for folder in folders:
        for path in sorted((REPOSITORY / folder).rglob("*")):
            parents = path.relative_to(REPOSITORY / folder).parts[:-1]
            generated = any(part.startswith((".", "__")) or part == "corpus" for part in parents)
            if path.is_file() and path.suffix in suffixes and not generated:
                yield path
    for path in sorted(REPOSITORY.iterdir()):
        if path.is_file() and not path.name.startswith(".") and path.suffix in suffixes:
            yield path


def imports_of(module: Module) -> Iterator[tuple[str, str, int]]:
    """Yield (module, name or "", line) for every import, wherever it stands in the file."""
    base = module.name if module.is_package else module.name.rpartition(".")[0]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, "", node.lineno
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                parts = base.split(".")[: len(base.split(".")) - node.level + 1]
                origin = ".".join([*parts, origin] if origin else parts)
            for alias in node.names:
                yield origin, alias.name, node.lineno


def docstrings_and_comments(module: Module) -> Iterator[tuple[str, int]]:
    """Yield (text, line) for every docstring, attribute docstring and comment."""
    for node in ast.walk(module.tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield text, node.lineno
            case _:
                pass
    for number, line in enumerate(module.text.splitlines(), 1):
        start = line.find("#")
        if start >= 0 and line[:start].count('"') % 2 == 0 and line[:start].count("'") % 2 == 0:
            yield line[start + 1 :], number
