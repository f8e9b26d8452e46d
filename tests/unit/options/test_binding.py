"""Options become a driver's struct, and what does not fit is refused by name."""

import enum
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from vblk.errors import OptionError
from vblk.options import (
    NodeOptions,
    NodeReference,
    Scalar,
    Size,
    bind,
    bind_create,
    check_children,
)

SIZE_HELP = (
    "Parameter 'size' expects a non-negative number below 2^64\n"
    "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
    "and exabytes, respectively."
)


class Mode(enum.Enum):
    FAST = "fast"
    SAFE = "safe"


@dataclass
class Server:
    type: Literal["inet", "unix"]
    host: str | None = None
    keep_alive: bool = False


SEVEN = Size(7)


@dataclass
class Everything:
    size: Size = SEVEN
    limit: Size | None = None
    read_zeroes: bool = False
    count: int = 3
    ratio: float = 0.5
    mode: Mode = Mode.SAFE
    label: str = ""
    server: Server | None = None
    names: list[str] = field(default_factory=list[str])
    servers: list[Server] = field(default_factory=list[Server])


@dataclass
class File:
    filename: str


@pytest.mark.parametrize(
    ("own", "name", "value"),
    [
        ({}, "size", 7),
        ({"size": "1.5k"}, "size", 1536),
        ({"size": 1024}, "size", 1024),
        ({"size": 512.0}, "size", 512),
        ({"size": None}, "size", 7),
        ({"limit": "0x10"}, "limit", 16),
        ({"read-zeroes": "yes"}, "read_zeroes", True),
        ({"read-zeroes": True}, "read_zeroes", True),
        ({"count": "9"}, "count", 9),
        ({"ratio": "0.25"}, "ratio", 0.25),
        ({"ratio": 2}, "ratio", 2.0),
        ({"mode": "fast"}, "mode", Mode.FAST),
        ({"label": "on"}, "label", "on"),
        ({"names.1": "b", "names.0": "a"}, "names", ["a", "b"]),
        ({"server.type": "inet", "server.keep-alive": "on"}, "server", Server("inet", keep_alive=True)),
        ({"servers.0.type": "unix"}, "servers", [Server("unix")]),
    ],
)
def test_a_value_takes_the_type_of_its_field(own: dict[str, Scalar], name: str, value: object) -> None:
    bound = getattr(bind(own, Everything, "raw"), name)
    assert bound == value
    assert type(bound) is type(value)


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ({"foo": 1}, "Block format 'raw' does not support the option 'foo'"),
        ({"foo.bar": 1}, "Block format 'raw' does not support the option 'foo.bar'"),
        ({"size.0": 1}, "Block format 'raw' does not support the option 'size.0'"),
        ({"server.type": "inet", "server.x": 1}, "Block format 'raw' does not support the option 'server.x'"),
        ({"size": "4x"}, SIZE_HELP),
        ({"size": ""}, SIZE_HELP),
        ({"size": -1}, SIZE_HELP),
        ({"size": 1.5}, SIZE_HELP),
        ({"size": True}, SIZE_HELP),
        ({"size": float("inf")}, SIZE_HELP),
        ({"size": 1 << 64}, SIZE_HELP),
        ({"size": "16E"}, "Value '16E' is out of range for parameter 'size'"),
        ({"read-zeroes": "ON"}, "Parameter 'read-zeroes' expects 'on' or 'off'"),
        ({"read-zeroes": 1}, "Parameter 'read-zeroes' expects 'on' or 'off'"),
        ({"count": "x"}, "Parameter 'count' expects a number"),
        ({"count": True}, "Parameter 'count' expects a number"),
        ({"ratio": "x"}, "Parameter 'ratio' expects a number"),
        ({"mode": "slow"}, "Parameter 'mode' does not accept value 'slow'"),
        ({"mode": 1}, "Invalid parameter type for 'mode', expected: string"),
        ({"label": 1}, "Invalid parameter type for 'label', expected: string"),
        ({"server": "x"}, "Invalid parameter type for 'server', expected: object"),
        ({"names": "x"}, "Invalid parameter type for 'names', expected: array"),
        ({"names.0": "a", "names.2": "c"}, "Parameter 'names.1' is missing"),
        ({"server.host": "h"}, "Parameter 'server.type' is missing"),
        ({"server": "x", "server.type": "inet"}, "Option 'server.type' contradicts the value of 'server'"),
        ({"server.type": "inet", "server": "x"}, "Option 'server' contradicts the options inside it"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(own: dict[str, Scalar], reason: str) -> None:
    with pytest.raises(OptionError) as caught:
        bind(own, Everything, "raw")
    assert caught.value.message == reason


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ({"size": "1k"}, "Invalid parameter type for 'size', expected: integer"),
        ({"size": 1.0}, "Invalid parameter type for 'size', expected: integer"),
        ({"size": True}, "Invalid parameter type for 'size', expected: integer"),
        ({"read-zeroes": "on"}, "Invalid parameter type for 'read-zeroes', expected: boolean"),
        ({"count": "1"}, "Invalid parameter type for 'count', expected: integer"),
        ({"label": 1}, "Invalid parameter type for 'label', expected: string"),
    ],
)
def test_strict_binding_converts_no_texts(own: dict[str, Scalar], reason: str) -> None:
    with pytest.raises(OptionError) as caught:
        bind(own, Everything, "raw", strict=True)
    assert caught.value.message == reason


def test_strict_binding_takes_typed_values() -> None:
    bound = bind({"size": 5, "read-zeroes": True, "mode": "fast"}, Everything, "raw", strict=True)
    assert (bound.size, bound.read_zeroes, bound.mode) == (5, True, Mode.FAST)


def test_a_protocol_is_called_a_protocol() -> None:
    with pytest.raises(OptionError, match="Block protocol 'file' doesn't support the option 'foo'"):
        bind({"filename": "x", "foo": 1}, File, "file")
    with pytest.raises(OptionError, match="Parameter 'filename' is missing"):
        bind({}, File, "file")


def test_create_options_have_words_of_their_own() -> None:
    assert bind_create({"size": "1M"}, Everything).size == 1 << 20
    assert bind_create({"read_zeroes": "on"}, Everything).read_zeroes
    with pytest.raises(OptionError, match=r"^Invalid parameter 'read-zeroes'$"):
        bind_create({"read-zeroes": "on"}, Everything)
    with pytest.raises(OptionError, match=r"^Invalid parameter 'foo'$"):
        bind_create({"foo": "1"}, Everything)


@pytest.mark.parametrize(
    ("children", "name"),
    [
        ({"backing": NodeReference("x")}, "backing"),
        ({"backing": NodeOptions(driver="null-co")}, "backing.driver"),
        ({"backing": NodeOptions(own={"filename": "x"})}, "backing.filename"),
    ],
)
def test_a_child_that_the_driver_does_not_have_is_refused(children: dict[str, Any], name: str) -> None:
    options = NodeOptions(driver="raw", children=children)
    check_children(options, "raw", "file", "backing")
    with pytest.raises(OptionError) as caught:
        check_children(options, "raw", "file")
    assert caught.value.message == f"Block format 'raw' does not support the option '{name}'"


def test_an_absent_child_is_no_child() -> None:
    check_children(NodeOptions(children={"backing": None}), "raw", "file")
