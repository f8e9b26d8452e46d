"""The scanning of command lines: GNU's conventions, in GNU's words."""

import pytest

from vblk.cli.scan import ScanError, scan_arguments

TABLE = {
    "-f": True,
    "-U": False,
    "-p": False,
    "--format": True,
    "--output": True,
    "--object": True,
    "--image-opts": False,
}


def options(*words: str) -> list[tuple[str, str | None]]:
    return scan_arguments(words, TABLE).options


def test_short_options_are_joined_and_take_joined_or_following_values() -> None:
    assert options("-Upfraw") == [("-U", None), ("-p", None), ("-f", "raw")]
    assert options("-f", "raw") == [("-f", "raw")]


def test_long_options_are_abbreviated_while_one_fits() -> None:
    assert options("--out=json", "--im") == [("--output", "json"), ("--image-opts", None)]
    assert options("--form", "raw") == [("--format", "raw")]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-Z"], "unrecognized option '-Z'"),
        (["-UZ"], "unrecognized option '-UZ'"),
        (["--foo"], "unrecognized option '--foo'"),
        (["--o=json"], "unrecognized option '--o=json'"),
        (["--image-opts=1"], "unrecognized option '--image-opts=1'"),
        (["-f"], "missing argument for option '-f'"),
        (["--output"], "missing argument for option '--output'"),
    ],
)
def test_a_wrong_word_is_named(words: list[str], sentence: str) -> None:
    with pytest.raises(ScanError) as caught:
        scan_arguments(words, TABLE)
    assert str(caught.value) == sentence


def test_options_may_follow_operands_until_two_dashes() -> None:
    scan = scan_arguments(["a", "-U", "b", "--", "-p", "--output"], TABLE)
    assert scan.options == [("-U", None)]
    assert scan.operands == ["a", "b", "-p", "--output"]


def test_a_single_dash_is_an_operand() -> None:
    assert scan_arguments(["-"], TABLE).operands == ["-"]


def test_without_permutation_the_first_operand_ends_the_options() -> None:
    scan = scan_arguments(["-U", "info", "-p"], TABLE, permute=False)
    assert (scan.options, scan.operands) == ([("-U", None)], ["info", "-p"])
