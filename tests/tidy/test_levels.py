"""The levels of the architecture: a module imports only from its own level or below."""

import ast
import re

from tests.support.source_tree import PACKAGE, imports_of, package_modules

LEVELS = {
    "units": 0,
    "extent": 0,
    "errors": 0,
    "options": 0,
    "wording": 0,
    "codec": 1,
    "formats": 1,
    "wire": 1,
    "aio": 2,
    "runtime": 2,
    "graph": 3,
    "protocols": 4,
    "drivers": 4,
    "filters": 4,
    "creating": 4,
    "objects": 4,
    "opening": 4,
    "describing": 4,
    "qemu_io": 5,
    "jobs": 5,
    "disk": 5,
    "__init__": 5,
    "exports": 6,
    "monitor": 6,
    "cli": 7,
    "__main__": 7,
    "testing": 8,
}
PURE_MAX = 1
SYNCHRONOUS = re.compile(r"(?:parse_|encode_|lookup|plan_|try_)")
IMPURE = {
    "asyncio",
    "threading",
    "socket",
    "subprocess",
    "select",
    "selectors",
    "concurrent",
    "multiprocessing",
}


def unit_of(module_name: str) -> str:
    """Return the name that the table knows: the part after `vblk.`."""
    parts = module_name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported_unit(origin: str, name: str) -> str | None:
    """Return the unit that an import reaches, or None if it is not ours."""
    if origin == "vblk":
        return name if name in LEVELS else "__init__"
    return unit_of(origin) if origin.startswith("vblk.") else None


def test_every_unit_has_a_level() -> None:
    units = {
        path.stem if path.suffix == ".py" else path.name
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path.is_dir() and any(path.rglob("*.py")))
    }
    assert sorted(units - LEVELS.keys()) == []


def test_no_import_goes_up() -> None:
    violations = [
        f"{module.at(line)}: {unit_of(module.name)} (level {LEVELS[unit_of(module.name)]}) "
        f"imports {target} (level {LEVELS[target]})"
        for module in package_modules()
        for origin, name, line in imports_of(module)
        if (target := imported_unit(origin, name)) is not None
        and LEVELS.get(target, 99) > LEVELS[unit_of(module.name)]
    ]
    assert violations == []


def test_pure_levels_do_no_io_of_their_own() -> None:
    """What they must read comes through a function that they are given."""
    imports = [
        f"{module.at(line)}: imports {origin}"
        for module in package_modules()
        if LEVELS[unit_of(module.name)] <= PURE_MAX
        for origin, _, line in imports_of(module)
        if origin.partition(".")[0] in IMPURE
    ]
    assert imports == []


def test_a_verb_that_promises_not_to_wait_is_not_a_coroutine() -> None:
    waiting = [
        f"{module.at(node.lineno)}: {node.name}"
        for module in package_modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.AsyncFunctionDef) and SYNCHRONOUS.match(node.name)
    ]
    assert waiting == []
