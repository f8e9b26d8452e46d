"""A name that a comment or a docstring quotes still exists.

Only quoted words that can hardly be anything but a name of this project are
looked at: `snake_case`, `CamelCase` and `vblk.dotted` ones. Names of Python and
of the operating system are known; a few of neither stand in a list.
"""

import ast
import asyncio
import builtins
import errno
import fcntl
import functools
import io
import mmap
import os
import re
import socket
import types
from collections.abc import Iterator

from tests.support.source_tree import (
    REPOSITORY,
    Module,
    docstrings_and_comments,
    modules_under,
    package_modules,
)

QUOTED = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)(?:\(\))?`(?!`)")
LOOKS_LIKE_A_NAME = re.compile(r"[a-z0-9]+_[a-z0-9_]+|[A-Z]+_[A-Z0-9_]+|[A-Z][a-z0-9]+[A-Z]\w*|vblk\.[\w.]+")
PYTHON: tuple[types.ModuleType, ...] = (builtins, os, asyncio, errno, fcntl, io, mmap, socket)
FOREIGN = {"off_t", "size_t", "sync_file_range", "io_uring"}


def names_in(module: Module) -> Iterator[str]:
    """Yield every word that the code of a module uses, its text constants included."""
    for node in ast.walk(module.tree):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.keyword(arg=str(name)):
                yield name
            case ast.alias(name=name):
                yield from name.split(".")
            case ast.Constant(value=str(text)) if len(text) < 200 and "`" not in text:
                yield from re.findall(r"\w+", text)
            case _:
                pass
    yield from module.name.split(".")


@functools.cache
def known_names() -> frozenset[str]:
    modules = (*package_modules(), *modules_under("tests", "bench", "scripts"))
    return frozenset(name for module in modules for name in names_in(module)) | FOREIGN


def exists(name: str) -> bool:
    if name.startswith("vblk."):
        module = REPOSITORY / "src" / name.replace(".", "/")
        if module.is_dir() or module.with_suffix(".py").exists():
            return True
    last = name.rpartition(".")[2]
    return last in known_names() or any(hasattr(module, last) for module in PYTHON)


def test_every_quoted_name_exists() -> None:
    rotten = [
        f"{module.at(line)}: `{name}`"
        for module in (*package_modules(), *modules_under("bench", "scripts"))
        for text, line in docstrings_and_comments(module)
        for name in QUOTED.findall(text)
        if LOOKS_LIKE_A_NAME.fullmatch(name) and not exists(name)
    ]
    assert rotten == []
