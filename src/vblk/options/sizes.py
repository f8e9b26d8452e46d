"""Numbers and switches as people write them on a command line.

Owns: sizes with suffixes, switches, and the short text of a size. Must not
know what a size is of. Every function runs to completion and is pure.
"""

import math
import re
from typing import Final, NewType

from vblk.errors import OptionError

Size = NewType("Size", int)
"""A number of bytes, from 0 to 2^64 - 1; an option of this type takes suffixes."""

SIZE_LIMIT: Final = 1 << 64

_SUFFIXES: Final = "BKMGTPE"
_UNIT_NAMES: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_DECIMAL: Final = r"([0-9]{1,40})(?:\.([0-9]{0,40}))?([bkmgtpe]?)"
_HEXADECIMAL: Final = r"0x([0-9a-f]{1,40})([kmgtp]?)"
_NUMBER: Final = r"(-?)(?:0x([0-9a-f]{1,40})|([0-9]{1,40}))"
_ON: Final = frozenset(("on", "yes", "true", "y"))
_OFF: Final = frozenset(("off", "no", "false", "n"))


def parse_size(text: str, default_unit: int = 1) -> int:
    """Read a size such as `512`, `64k`, `1.5G` or `0x200`.

    A suffix is one of b, k, M, G, T, P, E in either case, in powers of 1024;
    without one the number counts `default_unit` bytes. A fraction needs a unit
    greater than a byte, and is rounded to whole bytes.

    Returns: Bytes, from 0 to 2^64 - 1.

    Raises:
        OptionError: Not a size (`EINVAL`), or one too great for 64 bits, which
            `SizeTooLarge` tells apart.
    """
    stripped = text.lstrip(" \t\n\v\f\r").removeprefix("+")
    if found := _match(_HEXADECIMAL, stripped):
        value = int(found[1], 16) * _unit(found[2], default_unit)
    elif found := _match(_DECIMAL, stripped):
        unit = _unit(found[3], default_unit)
        fraction: str = found[2] or ""
        if fraction.strip("0") and unit == 1:
            raise OptionError(f"'{text}' is not a whole number of bytes")
        value = int(found[1]) * unit + math.floor(float(f"0.{fraction}") * unit + 0.5)
    else:
        raise OptionError(f"'{text}' is not a size")
    if value >= SIZE_LIMIT:
        raise SizeTooLarge(f"'{text}' is too large for a size")
    return value


class SizeTooLarge(OptionError):
    """A size is well written, and does not fit 64 bits."""


def _match(pattern: str, text: str) -> re.Match[str] | None:
    """Compile a pattern when it is first needed: many commands read no number."""
    return re.fullmatch(pattern, text, re.ASCII | re.IGNORECASE)


def _unit(suffix: str, default_unit: int) -> int:
    return 1024 ** _SUFFIXES.index(suffix.upper()) if suffix else default_unit


def parse_number(text: str) -> int:
    """Read a whole number, decimal or with `0x`.

    Raises:
        OptionError: Not a number.
    """
    found = _match(_NUMBER, text.strip())
    if found is None:
        raise OptionError(f"'{text}' is not a number")
    value = int(found[2], 16) if found[2] else int(found[3])
    return -value if found[1] else value


def parse_bool(text: str) -> bool:
    """Read a switch: on, yes, true, y, or off, no, false, n, in lower case.

    Raises:
        OptionError: Anything else.
    """
    if text in _ON:
        return True
    if text in _OFF:
        return False
    raise OptionError(f"'{text}' is neither 'on' nor 'off'")


def format_size(size: int) -> str:
    """Write bytes in the greatest fitting unit with three digits: `1.5 GiB`.

    A unit fits from 1000 of the unit below on, so 1000 bytes are `0.977 KiB`.
    `size` is in bytes, at least 0.
    """
    step = 0
    while step + 1 < len(_UNIT_NAMES) and size >= 1000 << 10 * step:
        step += 1
    return f"{size / (1 << 10 * step):.3g} {_UNIT_NAMES[step]}"
