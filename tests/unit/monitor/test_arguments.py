"""Arguments are read, and refused, in QEMU's order and words."""

import enum
from typing import Any

import pytest
from msgspec import Struct

from vblk.monitor.arguments import read_arguments
from vblk.monitor.keyval import parse_option
from vblk.options import Size
from vblk.wire.qmp import QmpError


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Inner(Struct, rename="kebab"):
    some_path: str
    count: int = 0


class One(Struct, tag_field="type", tag="one"):
    data: Inner


class Two(Struct, tag_field="type", tag="two"):
    name: str


class Either(Inner):
    alternate = "EitherOrStr"


class Outer(Struct, rename="kebab"):
    node_name: str
    is_on: bool = False
    size: Size | None = None
    ratio: float | None = None
    colour: Colour = Colour.RED
    inner: Inner | None = None
    case: One | Two | None = None
    names: list[str] = []
    either: list[str | Either] = []


def test_members_of_all_kinds_are_read() -> None:
    outer = read_arguments(
        {
            "node-name": "n",
            "is-on": True,
            "size": 1 << 63,
            "ratio": 2,
            "colour": "blue",
            "inner": {"some-path": "p"},
            "case": {"type": "two", "name": "x"},
            "names": ["a"],
            "either": ["b", {"some-path": "q", "count": -1}],
        },
        Outer,
    )
    assert outer == Outer(
        "n", True, Size(1 << 63), 2.0, Colour.BLUE, Inner("p"), Two("x"), ["a"], ["b", Either("q", -1)]
    )


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({}, "Parameter 'node-name' is missing"),
        ({"x": 1}, "Parameter 'node-name' is missing"),
        ({"x": 1, "node-name": 1}, "Invalid parameter type for 'node-name', expected: string"),
        ({"x": 1, "node-name": "n"}, "Parameter 'x' is unexpected"),
        ({"node-name": None}, "Invalid parameter type for 'node-name', expected: string"),
        ({"node-name": "n", "is-on": 1}, "Invalid parameter type for 'is-on', expected: boolean"),
        ({"node-name": "n", "size": True}, "Invalid parameter type for 'size', expected: integer"),
        ({"node-name": "n", "size": 1.0}, "Invalid parameter type for 'size', expected: integer"),
        ({"node-name": "n", "size": -1}, "Invalid parameter type for 'size', expected: integer"),
        ({"node-name": "n", "size": "1M"}, "Invalid parameter type for 'size', expected: integer"),
        ({"node-name": "n", "ratio": "2"}, "Invalid parameter type for 'ratio', expected: number"),
        ({"node-name": "n", "colour": "grey"}, "Parameter 'colour' does not accept value 'grey'"),
        ({"node-name": "n", "colour": 1}, "Invalid parameter type for 'colour', expected: string"),
        ({"node-name": "n", "inner": 1}, "Invalid parameter type for 'inner', expected: object"),
        ({"node-name": "n", "inner": {}}, "Parameter 'inner.some-path' is missing"),
        (
            {"node-name": "n", "inner": {"some-path": "p", "y": 1}},
            "Parameter 'inner.y' is unexpected",
        ),
        ({"node-name": "n", "case": {}}, "Parameter 'case.type' is missing"),
        ({"node-name": "n", "case": {"type": "three"}}, "Parameter 'type' does not accept value 'three'"),
        (
            {"node-name": "n", "case": {"type": "one", "data": {}}},
            "Parameter 'case.data.some-path' is missing",
        ),
        ({"node-name": "n", "names": "a"}, "Invalid parameter type for 'names', expected: array"),
        ({"node-name": "n", "names": ["a", 1]}, "Invalid parameter type for 'names[1]', expected: string"),
        ({"node-name": "n", "either": [1]}, "Invalid parameter type for 'null', expected: EitherOrStr"),
    ],
)
def test_the_first_wrong_member_is_named(members: dict[str, Any], said: str) -> None:
    with pytest.raises(QmpError) as refused:
        read_arguments(members, Outer)
    assert str(refused.value) == said


def test_texts_of_a_command_line_are_converted() -> None:
    values, texts = parse_option(
        "n,is-on=on,size=1M,ratio=0.5,inner.some-path=a,,b,inner.count=7,names.0=x,names.1=y", "node-name"
    )
    assert texts
    outer = read_arguments(values, Outer, texts=True)
    assert outer == Outer("n", True, Size(1 << 20), 0.5, inner=Inner("a,b", 7), names=["x", "y"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("node-name=n,is-on=perhaps", "Parameter 'is-on' expects 'on' or 'off'"),
        ("node-name=n,inner.some-path=p,inner.count=x", "Parameter 'inner.count' expects integer"),
        ("node-name=n,names.1=y", "Parameter 'names.0' is missing"),
        ("node-name=n,lonely", "Expected '=' after parameter 'lonely'"),
        ("node-name=n,inner=1,inner.some-path=p", "Parameters 'inner.*' used inconsistently"),
        ("node-name=n,.=1", "Invalid parameter '.'"),
        ("{", "JSON parse error, premature EOI"),
        ("{}", "Parameter 'node-name' is missing"),
        ('{"node-name": "n", "is-on": "on"}', "Invalid parameter type for 'is-on', expected: boolean"),
    ],
)
def test_a_wrong_option_of_a_command_line_is_named(text: str, said: str) -> None:
    def read() -> Outer:
        values, texts = parse_option(text)
        return read_arguments(values, Outer, texts=texts)

    with pytest.raises(QmpError) as refused:
        read()
    assert str(refused.value) == said
