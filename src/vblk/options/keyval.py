"""Comma lists of `name=value`, as after `-o` and `--image-opts`.

Owns: the escaping of commas and the meaning of a bare name. Must not know what
any option means. Every function runs to completion and is pure.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from vblk.errors import OptionError

TEXT_MAX: Final = 1 << 20
"""The longest list that is read, in characters."""

_HELP: Final = ("help", "?")


class Pair(NamedTuple):
    """One `name=value`; `short` if it was a bare name, for on, or `noNAME`, for off."""

    name: str
    value: str
    short: bool = False


class CreateOptions(NamedTuple):
    """What `-o` said: values by name, and whether help was asked for."""

    values: dict[str, str]
    wants_help: bool = False


def split_pairs(text: str, *, implied: str | None = None) -> list[Pair]:
    """Cut a list at its commas; two commas together are one comma of a value.

    A name ends at the first `=`. A first element without `=` is the value of
    `implied`, if that is given.

    Raises:
        OptionError: The list is longer than `TEXT_MAX` or contains a NUL.
    """
    if "\0" in text:
        raise OptionError("An option list must not contain a NUL character")
    if len(text) > TEXT_MAX:
        raise OptionError(f"Option list longer than {TEXT_MAX} characters")
    pairs: list[Pair] = []
    for index, element in enumerate(split_escaped(text)):
        name, equals, value = element.partition("=")
        if equals:
            pairs.append(Pair(name, value))
        elif index == 0 and implied is not None:
            pairs.append(Pair(implied, element))
        elif element.startswith("no"):
            pairs.append(Pair(element.removeprefix("no"), "off", short=True))
        else:
            pairs.append(Pair(element, "on", short=True))
    return pairs


def split_escaped(text: str) -> list[str]:
    """Cut a text at its commas; two commas together are one comma of an element."""
    if not text:
        return []
    elements = [element.replace("\0", ",") for element in text.replace(",,", "\0").split(",")]
    if not elements[-1]:
        elements.pop()  # one comma may end the list
    return elements


def parse_create_options(texts: str | Iterable[str]) -> CreateOptions:
    """Read the values of one or more `-o`; a later value replaces an earlier one.

    Raises:
        OptionError: A list is empty or begins or ends with a comma.
    """
    values: dict[str, str] = {}
    wants_help = False
    for text in (texts,) if isinstance(texts, str) else texts:
        trailing_commas = len(text) - len(text.rstrip(","))
        if not text or text.startswith(",") or trailing_commas % 2:
            raise OptionError(f"Invalid option list: {text}")
        for pair in split_pairs(text):
            if pair.short and pair.name in _HELP:
                wants_help = True
            else:
                values[pair.name] = pair.value
    return CreateOptions(values, wants_help)
