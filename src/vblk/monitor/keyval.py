"""Nested options on a command line: `a.b=1,a.c=2`, or a JSON object.

Owns: the text form of what QMP takes as objects. Must not know what it means.
"""

from typing import Any

from vblk.errors import OptionError
from vblk.options.jsontext import parse_json_text
from vblk.options.keyval import split_escaped
from vblk.wire.qmp import QmpError


def parse_option(text: str, implied: str | None = None) -> tuple[dict[str, Any], bool]:
    """Read one option's value; tell whether its values are texts, as they are unless it is JSON.

    Raises:
        QmpError: It is no list of names and values, or two of them contradict each other.
    """
    if text.startswith("{"):
        return _json(text), False
    tree: dict[str, Any] = {}
    for index, element in enumerate(split_escaped(text)):
        name, equals, value = element.partition("=")
        if not equals:
            if index or implied is None:
                raise QmpError(f"Expected '=' after parameter '{name}'")
            name, value = implied, element
        _put(tree, name, value)
    return tree, True


def _json(text: str) -> dict[str, Any]:
    try:
        value = parse_json_text(text)
    except OptionError as error:
        raise QmpError(error.message.removeprefix("Could not parse the JSON options: ")) from error
    if not isinstance(value, dict):
        raise QmpError("Invalid JSON object given")
    return value


def _put(tree: dict[str, Any], name: str, value: str) -> None:
    *path, last = name.split(".")
    if not all((*path, last)):
        raise QmpError(f"Invalid parameter '{name}'")
    branch = tree
    for depth, part in enumerate(path, 1):
        if not isinstance(branch.setdefault(part, {}), dict):
            raise QmpError(f"Parameters '{'.'.join(path[:depth])}.*' used inconsistently")
        branch = branch[part]
    if isinstance(branch.get(last), dict):
        raise QmpError(f"Parameters '{name}.*' used inconsistently")
    branch[last] = value
