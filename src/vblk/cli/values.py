"""Values of options, checked, with QEMU's words for those that are wrong.

Owns: sizes, counts, cache modes and the other small languages of options. Must
not know which verb asks.
"""

import math
from typing import Any, Final

import click

from vblk.cli.failure import Failure
from vblk.errors import OptionError
from vblk.options import SizeTooLarge, parse_number, parse_size
from vblk.units import OFFSET_MAX

CACHE_MODES: Final = ("none", "off", "writeback", "writethrough", "directsync", "unsafe")
OUTPUTS: Final = ("human", "json")


def size_refusal(what: str) -> Failure:
    """Return the failure of a size that cannot be read."""
    return Failure(
        f"Invalid {what} specified. You may use k, M, G, T, P or E suffixes for",
        "kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.",
    )


def bounded_size(text: str, what: str, least: int = 0, most: int = OFFSET_MAX) -> int:
    """Read a size in bytes between two bounds.

    Raises:
        Failure: It is no size, or lies outside the bounds.
    """
    try:
        value = parse_size(text)
    except SizeTooLarge:
        value = OFFSET_MAX + 1
    except OptionError:
        raise size_refusal(what) from None
    if not least <= value <= most:
        raise Failure(f"Invalid {what} specified. Must be between {least} and {most}.")
    return value


class SizeType(click.ParamType[int]):
    """A size in bytes with QEMU's suffixes; `what` names it in errors."""

    name = "size"

    def __init__(self, what: str, least: int = 0, most: int = OFFSET_MAX) -> None:
        self.what = what
        self.least = least
        self.most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the text of the option."""
        return bounded_size(value, self.what, self.least, self.most) if isinstance(value, str) else value


class NumberType(click.ParamType[int]):
    """A whole number between two bounds; `refusal` is the sentence for all others."""

    name = "number"

    def __init__(self, refusal: str, least: int = 0, most: int = (1 << 31) - 1) -> None:
        self.refusal = refusal
        self.least = least
        self.most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the text of the option."""
        if not isinstance(value, str):
            return int(value)
        try:
            number = parse_number(value)
        except OptionError:
            raise Failure(self.refusal) from None
        if not self.least <= number <= self.most:
            raise Failure(self.refusal)
        return number


class WordType(click.ParamType[str]):
    """One of a few words; `refusal` has `{}` for the word that is not one of them."""

    name = "word"

    def __init__(self, words: tuple[str, ...], refusal: str, *, hint: bool = False) -> None:
        self.words = words
        self.refusal = refusal
        self.hint = hint

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the word."""
        if value not in self.words:
            raise Failure(self.refusal.replace("{}", str(value)), hint=self.hint)
        return str(value)


class SecondsType(click.ParamType[float]):
    """A number of seconds; `option` names it in errors."""

    name = "seconds"

    def __init__(self, option: str) -> None:
        self.option = option

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read the number."""
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < math.inf:
            raise Failure(f"{self.option} takes a number of seconds, not '{value}'")
        return seconds


OUTPUT_TYPE: Final = WordType(OUTPUTS, "--output must be used with human or json as argument.")
SOURCE_CACHE_TYPE: Final = WordType(CACHE_MODES, "Invalid source cache option: {}")
TARGET_CACHE_TYPE: Final = WordType(CACHE_MODES, "Invalid cache option: {}")


class PathMapType(click.ParamType["tuple[str, str]"]):
    r"""`FROM=TO`: a Windows path and the local folder that holds what is there."""

    name = "path map"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Cut the text at its first equals sign."""
        if isinstance(value, tuple):
            return value  # pyright: ignore[reportUnknownVariableType] click converts a value once more
        source, equals, target = str(value).partition("=")
        if not (source and equals and target):
            raise Failure(f"--path-map wants FROM=TO, not '{value}'")
        return source, target
