"""The language of the io commands: words, options, numbers and patterns.

Owns: how a line becomes a call of a command, and the sentences for one that
cannot. Pure: it knows neither the commands nor the image.

A line is cut at blanks, without quoting. Options are read as getopt(3) reads
them: joined, with joined values, also behind operands, until `--`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from vblk.errors import OptionError
from vblk.options import SizeTooLarge, parse_size
from vblk.units import OFFSET_MAX

REQUEST_MAX = (1 << 31) - 512
"""The most bytes that one request may be long."""

SECTOR = 512

_INTEGER = re.compile(r"\s*([+-]?)(?:0[xX]([0-9a-fA-F]{1,32})|0([0-7]{0,32})|([1-9][0-9]{0,32}))", re.ASCII)


class Complaint(Exception):
    """A command cannot be carried out; the sentence goes to standard output."""


class Misuse(Exception):
    """An option is none of the command's, or lacks its value; its usage is shown.

    The sentence, if there is one, goes to standard error.
    """


@dataclass(slots=True)
class Call:
    """The words of one call: options in the order given, and operands."""

    name: str
    options: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    operands: list[str] = field(default_factory=list[str])

    def has(self, letter: str) -> bool:
        """Tell whether an option was given."""
        return any(given == letter for given, _ in self.options)

    def value(self, letter: str) -> str | None:
        """Return the last value of an option, or None."""
        return next((value for given, value in reversed(self.options) if given == letter), None)

    def values(self, letter: str) -> list[str]:
        """Return every value of an option."""
        return [value for given, value in self.options if given == letter]


def split_line(line: str) -> list[str]:
    """Cut a line at its blanks; several count as one, other white space does not."""
    return [word for word in line.split(" ") if word]


def parse_call(words: Sequence[str], letters: str) -> Call:
    """Divide a command's words into options and operands.

    Args:
        words: The command's name, as typed, and what follows.
        letters: The options, each followed by `:` if it takes a value.

    Raises:
        Misuse: A word is no option of the command, or lacks its value.
    """
    call = Call(words[0])
    rest = list(words[1:])
    while rest:
        word = rest.pop(0)
        if word == "--":
            call.operands += rest
            break
        if not word.startswith("-") or word == "-":
            call.operands.append(word)
            continue
        for index, letter in enumerate(word[1:], 1):
            place = letters.find(letter)
            if letter == ":" or place < 0:
                raise Misuse(f"{call.name}: invalid option -- '{letter}'")
            if letters[place + 1 : place + 2] != ":":
                call.options.append((letter, ""))
                continue
            value = word[index + 1 :]
            if not value and not rest:
                raise Misuse(f"{call.name}: option requires an argument -- '{letter}'")
            call.options.append((letter, value or rest.pop(0)))
            break
    return call


def read_number(text: str) -> int:
    """Read an offset or a length in bytes, with QEMU's suffixes, from 0 to 2^63 - 1.

    Raises:
        Complaint: It is none, or too great.
    """
    try:
        value = parse_size(text)
    except SizeTooLarge:
        value = OFFSET_MAX + 1
    except OptionError:
        raise Complaint(
            f"Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}"
        ) from None
    if value > OFFSET_MAX:
        raise Complaint(f"Parsing error: argument too large -- {text}")
    return value


def read_integer(text: str) -> int | None:
    """Read a whole number as C writes them: decimal, `0x` or, with a leading 0, octal; None: no number."""
    found = _INTEGER.fullmatch(text)
    if found is None:
        return None
    sign, hexadecimal, octal, decimal = found.groups()
    if hexadecimal is not None:
        value = int(hexadecimal, 16)
    elif decimal is not None:
        value = int(decimal)
    else:
        value = int(octal or "0", 8)
    return -value if sign == "-" else value


def read_pattern(text: str) -> int:
    """Read the value of a byte.

    Raises:
        Complaint: It is none.
    """
    value = read_integer(text)
    if value is None or not 0 <= value <= 0xFF:
        raise Complaint(f"{text} is not a valid pattern byte")
    return value


def read_lengths(texts: Sequence[str]) -> int:
    """Read the lengths of the buffers of a vectored request and return their sum.

    Raises:
        Complaint: One is no length, or they are too long for a request.
    """
    total = 0
    for text in texts:
        length = read_number(text)
        if length > REQUEST_MAX:
            raise Complaint(f"Argument '{text}' exceeds maximum size {REQUEST_MAX}")
        if total > REQUEST_MAX - length:
            raise Complaint(f"The total number of bytes exceed the maximum size {REQUEST_MAX}")
        total += length
    return total


def require_sectors(value: int, text_of: str) -> None:
    """Refuse what is no multiple of 512 bytes; `text_of` says what it is.

    Raises:
        Complaint: It is none.
    """
    if value % SECTOR:
        raise Complaint(f"{value} is not a sector-aligned value for '{text_of}'")
