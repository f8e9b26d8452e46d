"""The shape of a command line: which words are options, values and operands.

Owns: GNU's conventions (joined short options, `--name=value`, abbreviated long
names, options after operands, `--`). Must not know what any option means.
Pure; nothing is printed here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


class ScanError(Exception):
    """A word of the command line is no option, or lacks its value."""


@dataclass(slots=True)
class Scan:
    """Options in the order given, as (spelling in the table, value), and operands."""

    options: list[tuple[str, str | None]] = field(default_factory=list[tuple[str, str | None]])
    operands: list[str] = field(default_factory=list[str])


def scan_arguments(words: Sequence[str], table: Mapping[str, bool], *, permute: bool = True) -> Scan:
    """Divide words into options and operands.

    Args:
        words: The command line, without the program's and the verb's name.
        table: `-x` or `--name` of every option, and whether it takes a value.
        permute: Whether options may follow operands; else the first operand
            ends the options, as before a verb.

    Raises:
        ScanError: With the sentence that names the word in question.
    """
    scan = Scan()
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word == "--":
            scan.operands += words[position:]
            break
        if word.startswith("--"):
            position = _scan_long(scan, word, words, position, table)
        elif word.startswith("-") and word != "-":
            position = _scan_short(scan, word, words, position, table)
        else:
            scan.operands.append(word)
            if not permute:
                scan.operands += words[position:]
                break
    return scan


def _scan_long(scan: Scan, word: str, words: Sequence[str], position: int, table: Mapping[str, bool]) -> int:
    given, equals, value = word.partition("=")
    name = _complete(given, table)
    if name is None or (equals and not table[name]):
        raise ScanError(f"unrecognized option '{word}'")
    if not table[name]:
        scan.options.append((name, None))
    elif equals:
        scan.options.append((name, value))
    else:
        if position == len(words):
            raise ScanError(f"missing argument for option '{word}'")
        scan.options.append((name, words[position]))
        position += 1
    return position


def _complete(given: str, table: Mapping[str, bool]) -> str | None:
    """Return the one long option that `given` is, or begins."""
    if given in table:
        return given
    fitting = [name for name in table if name.startswith(given) and len(given) > len("--")]
    return fitting[0] if len(fitting) == 1 else None


def _scan_short(scan: Scan, word: str, words: Sequence[str], position: int, table: Mapping[str, bool]) -> int:
    for index, letter in enumerate(word[1:], 1):
        name = f"-{letter}"
        if name not in table:
            raise ScanError(f"unrecognized option '{word}'")
        if not table[name]:
            scan.options.append((name, None))
            continue
        if index + 1 < len(word):
            scan.options.append((name, word[index + 1 :]))
            return position
        if position == len(words):
            raise ScanError(f"missing argument for option '{word}'")
        scan.options.append((name, words[position]))
        return position + 1
    return position
