"""Words and names that do not belong into the tree."""

import ast
import re

from tests.support.source_tree import REPOSITORY, imports_of, modules_under, package_modules, text_files

VAGUE_MODULES = {"utils", "util", "common", "helpers", "helper", "misc"}
# Written in pieces, so that this file does not contain what it forbids.
OPEN_ENDS = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X|NotImplemented" + r"Error)\b")
MACHINE = re.compile(
    r"(?<![\w.])/(?:wor" + r"k|roo" + r"t)/"
    r"|\b(?:pypi\.or" + r"g|pythonhosted\.or" + r"g|npmjs\.(?:co" + r"m|or" + r"g)|crates\.i" + r"o)\b"
)


def matches(pattern: re.Pattern[str], folders: tuple[str, ...] | None = None) -> list[str]:
    """Return path:line of every match in the project's files, or those of some folders."""
    return [
        f"{path.relative_to(REPOSITORY)}:{number}: {match.group()}"
        for path in text_files()
        if folders is None or path.relative_to(REPOSITORY).parts[0] in folders
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        for match in pattern.finditer(line)
    ]


def test_no_module_has_a_name_that_says_nothing() -> None:
    modules = (*package_modules(), *modules_under("tests", "bench", "scripts"))
    assert [module.at(1) for module in modules if VAGUE_MODULES & set(module.name.split("."))] == []


def test_no_work_is_left_open_in_the_code() -> None:
    assert matches(OPEN_ENDS, ("src", "bench", "scripts")) == []


def test_no_path_of_a_machine_and_no_registry_is_named() -> None:
    assert matches(MACHINE) == []


def test_every_module_says_what_it_owns() -> None:
    modules = (*package_modules(), *modules_under("tests", "bench", "scripts"))
    assert [module.at(1) for module in modules if not ast.get_docstring(module.tree)] == []


def is_waiting(call: ast.Call, sleepers: set[str]) -> bool:
    """Tell whether a call sleeps for a time that is not plainly zero."""
    function = call.func
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        name = f"{function.value.id}.{function.attr}"
    else:
        name = function.id if isinstance(function, ast.Name) else ""
    if name not in sleepers:
        return False
    return not (call.args and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0)


def test_no_test_sleeps() -> None:
    sleeping: list[str] = []
    for module in modules_under("tests"):
        sleepers = {"time.sleep", "asyncio.sleep"}
        sleepers |= {name for origin, name, _ in imports_of(module) if f"{origin}.{name}" in sleepers}
        sleeping += [
            module.at(node.lineno)
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Call) and is_waiting(node, sleepers)
        ]
    assert sleeping == []
