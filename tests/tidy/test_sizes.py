"""Modules and functions stay small enough to be read in one go."""

import ast

from tests.support.source_tree import Module, modules_under, package_modules

MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70

MODULES = (*package_modules(), *modules_under("bench", "scripts"))


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines that a function takes, its docstring left out."""
    total = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        total -= (first.end_lineno or first.lineno) - first.lineno + 1
    return total


def long_functions(module: Module) -> list[str]:
    return [
        f"{module.at(node.lineno)}: {node.name} has {code_lines(node)} lines"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and code_lines(node) > FUNCTION_LINES_MAX
    ]


def test_no_module_is_longer_than_the_limit() -> None:
    lengths = {module.at(1): module.text.count("\n") for module in MODULES}
    assert {place: lines for place, lines in lengths.items() if lines > MODULE_LINES_MAX} == {}


def test_no_function_is_longer_than_the_limit() -> None:
    assert [text for module in MODULES for text in long_functions(module)] == []
