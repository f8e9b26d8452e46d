"""Nested options become one node, its common options and its children."""

import pytest

from vblk.errors import OptionError
from vblk.options import NodeOptions, NodeReference, check_consistent, check_node_name, from_mapping


def refusal_of(mapping: dict[str, object]) -> str:
    with pytest.raises(OptionError) as caught:
        from_mapping(mapping)
    return caught.value.message


def test_common_options_leave_the_drivers_own() -> None:
    options = from_mapping(
        {
            "driver": "raw",
            "node-name": "n_1.a-b",
            "read-only": "yes",
            "auto-read-only": False,
            "force-share": True,
            "cache": {"direct": True, "no-flush": "off"},
            "discard": "on",
            "detect-zeroes": "unmap",
            "size": 512,
        }
    )
    assert options == NodeOptions(
        driver="raw",
        node_name="n_1.a-b",
        read_only=True,
        auto_read_only=False,
        force_share=True,
        cache_direct=True,
        cache_no_flush=False,
        discard="unmap",
        detect_zeroes="unmap",
        own={"size": 512},
    )


def test_unknown_options_stay_dotted_for_the_driver_to_refuse() -> None:
    options = from_mapping({"driver": "raw", "foo": {"bar": 1, "baz": [2, {"x": None}]}, "cache.size": 3})
    assert options.own == {"foo.bar": 1, "foo.baz.0": 2, "foo.baz.1.x": None, "cache.size": 3}


def test_children_are_described_referred_to_or_absent() -> None:
    options = from_mapping({"driver": "qcow2", "file": "node", "backing": None, "data-file": {}})
    assert options.children == {"file": NodeReference("node"), "backing": None, "data-file": NodeOptions()}
    assert from_mapping({"backing": ""}).children == {"backing": None}
    quorum = from_mapping({"driver": "quorum", "children": [{"driver": "raw"}, "b"]})
    assert quorum.children == {"children.0": NodeOptions(driver="raw"), "children.1": NodeReference("b")}


def test_a_protocol_has_no_children() -> None:
    options = from_mapping({"driver": "file", "filename": "x", "file": "y", "image": {"driver": "z"}})
    assert options.own == {"filename": "x", "file": "y", "image.driver": "z"}


@pytest.mark.parametrize(
    ("mapping", "reason"),
    [
        ({"driver": 1}, "Invalid parameter type for 'driver', expected: string"),
        ({"driver": {"a": 1}, "driver.a": 2}, "Option 'driver.a' is given twice, as '1' and as '2'"),
        ({"read-only": 1}, "Parameter 'read-only' expects 'on' or 'off'"),
        ({"cache": {"direct": "maybe"}}, "Parameter 'cache.direct' expects 'on' or 'off'"),
        (
            {"cache.direct": True, "cache": {"direct": False}},
            "Option 'cache.direct' is given twice, as 'True' and as 'False'",
        ),
        ({"discard": "x"}, "Invalid discard option"),
        ({"detect-zeroes": "ON"}, "Parameter 'detect-zeroes' does not accept value 'ON'"),
        ({"node-name": "1a"}, "Invalid node-name: '1a'"),
        ({"node-name": "a" * 32}, "Node name too long"),
        ({"file": 3}, "Invalid parameter type for 'file', expected: BlockdevRef"),
        ({"file": None}, 'A block device must be specified for "file"'),
        ({"size": []}, "Parameter 'size' has no value"),
        ({"size": b"1"}, "Invalid parameter type for 'size', expected: a JSON value"),
        ({"a": {1.5: 1}}, "Invalid parameter type for a name in 'a', expected: string"),
        ({"file": {"filename": "a\0b"}}, "Parameter 'file.filename' must not contain a NUL character"),
        ({"a.": 1}, "Invalid parameter 'a.'"),
    ],
)
def test_a_wrong_value_is_named(mapping: dict[str, object], reason: str) -> None:
    assert refusal_of(mapping) == reason


def test_hostile_nesting_and_names_are_bounded() -> None:
    endless: dict[str, object] = {}
    endless["file"] = endless
    assert refusal_of(endless) == "Options are nested deeper than 64"
    assert refusal_of({".".join(["file"] * 200): 1}) == "Options are nested deeper than 64"
    name = "n" * 5000
    assert refusal_of({name: 1}) == f"The name of an option is longer than 1024 characters: '{'n' * 32}...'"
    assert refusal_of({"n" * 900: {"n" * 900: 1}}).startswith("The name of an option is longer")


def test_contradictions_among_common_options_are_refused_once_all_are_known() -> None:
    check_consistent(NodeOptions(force_share=True, read_only=True))
    with pytest.raises(OptionError, match="force-share=on can only be used with read-only images"):
        check_consistent(NodeOptions(force_share=True, read_only=False))
    with pytest.raises(OptionError, match="without setting discard operation to unmap"):
        check_consistent(NodeOptions(detect_zeroes="unmap"))


@pytest.mark.parametrize("name", ["", "-a", "a:b", "a/b", "ä", "a\n"])
def test_a_node_name_is_a_letter_and_then_letters_digits_and_marks(name: str) -> None:
    with pytest.raises(OptionError, match="Invalid node-name"):
        check_node_name(name)
