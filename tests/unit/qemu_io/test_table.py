"""The table of io commands, and the help that follows from it."""

import pytest

from vblk.qemu_io.commands import COMMANDS, by_name
from vblk.qemu_io.table import Command

NAMES = [command.name for command in COMMANDS]


def test_no_name_or_alias_is_given_twice() -> None:
    words = [word for command in COMMANDS for word in (command.name, command.alias) if word]
    assert len(words) == len(set(words))
    assert set(by_name()) == set(words)


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_no_option_is_declared_twice(command: Command) -> None:
    letters = [option.letter for option in command.options]
    assert len(letters) == len(set(letters))


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_help_begins_with_the_usage_and_names_every_option(command: Command) -> None:
    lines = list(command.help())
    assert lines[0] == command.usage()
    for option in command.options:
        assert any(line.startswith(f" -{option.letter}, -- ") for line in lines)


@pytest.mark.parametrize(
    ("name", "usage"),
    [
        ("map", "map  -- prints the allocated areas of a file"),
        ("length", "length -- gets the length of the current file"),
        ("alloc", "alloc offset [count] -- checks if offset is allocated in the file"),
        ("reopen", "reopen [(-r|-w)] [-c cache] [-o options] -- reopens an image with new options"),
    ],
)
def test_usage_is_one_line(name: str, usage: str) -> None:
    assert by_name()[name].usage() == usage


@pytest.mark.parametrize(
    ("name", "count", "refusal"),
    [
        ("length", 0, None),
        ("length", 1, "bad argument count 1 to l, expected 0 arguments"),
        ("read", 1, "bad argument count 1 to l, expected at least 2 arguments"),
        ("read", 9, None),
        ("alloc", 3, "bad argument count 3 to l, expected between 1 and 2 arguments"),
        ("sleep", 0, "bad argument count 0 to l, expected 1 arguments"),
    ],
)
def test_too_few_and_too_many_words_are_counted(name: str, count: int, refusal: str | None) -> None:
    assert by_name()[name].refusal("l", count) == refusal
