"""A package's public names stand in its `__init__`, and exist."""

import ast
import importlib

from tests.support.source_tree import PACKAGE, Module, imports_of, package_modules

PACKAGES = [module for module in package_modules() if module.is_package]


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert sorted(str(f.relative_to(PACKAGE)) for f in folders if not (f / "__init__.py").exists()) == []


def lists_names(module: Module) -> bool:
    """Tell whether a package's `__init__` assigns `__all__`."""
    targets = [
        target
        for node in module.tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    return any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets)


def test_every_package_that_has_names_lists_them() -> None:
    """A package whose `__init__` is a docstring offers its modules, and nothing else."""
    silent = [module.at(1) for module in PACKAGES if len(module.tree.body) > 1 and not lists_names(module)]
    assert silent == []


def test_every_listed_name_exists() -> None:
    absent = [
        f"{module.name}.{name}"
        for module in PACKAGES
        for name in getattr(importlib.import_module(module.name), "__all__", ())
        if not hasattr(importlib.import_module(module.name), name)
    ]
    assert absent == []


def test_no_module_takes_a_private_name_of_another_package() -> None:
    borrowed = [
        f"{module.at(line)}: {origin}.{name}"
        for module in package_modules()
        for origin, name, line in imports_of(module)
        if origin.startswith("vblk")
        and name.startswith("_")
        and not name.startswith("__")
        and origin.split(".")[:2] != module.name.split(".")[:2]
    ]
    assert borrowed == []
