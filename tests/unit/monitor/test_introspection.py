"""What `query-qmp-schema` says is what the commands take."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from vblk.monitor.arguments import read_arguments
from vblk.monitor.commands import daemon_commands
from vblk.monitor.introspection import Introspection
from vblk.monitor.schema import EVENTS
from vblk.wire.qmp import QmpError

Entry = dict[str, Any]


@pytest.fixture(scope="module")
def schema() -> dict[str, Entry]:
    described = Introspection()
    described.describe_command_table(daemon_commands())
    described.describe_events(EVENTS)
    names = [entry["name"] for entry in described.entries]
    assert len(names) == len(set(names))
    return {entry["name"]: entry for entry in described.entries}


def references(entry: Entry) -> Iterator[str]:
    for key in ("arg-type", "ret-type", "element-type"):
        if key in entry:
            yield entry[key]
    for member in (*entry.get("members", []), *entry.get("variants", [])):
        if "type" in member:
            yield member["type"]


def test_every_type_that_is_named_is_described(schema: dict[str, Entry]) -> None:
    assert [name for entry in schema.values() for name in references(entry) if name not in schema] == []


def test_every_command_and_event_is_described(schema: dict[str, Entry]) -> None:
    described = {name for name, entry in schema.items() if entry["meta-type"] in ("command", "event")}
    assert described == {command.name for command in daemon_commands()} | EVENTS.keys()


def value_of(schema: dict[str, Entry], name: str, depth: int) -> Any:
    """Return the smallest value of a type that the schema allows."""
    entry = schema[name]
    match entry["meta-type"]:
        case "builtin":
            return {"string": "x", "int": 1, "number": 1.5, "boolean": True}.get(entry["json-type"])
        case "enum":
            return entry["values"][0]
        case "array":
            element = schema[entry["element-type"]]
            if element["meta-type"] == "object" and depth:  # with all members, for one without any is none
                return [next(objects_of(schema, element, depth - 1, full=True))]
            return [value_of(schema, element["name"], depth - 1)] if depth else []
        case "alternate":
            return "x"
        case _:
            return next(objects_of(schema, entry, depth, full=False))


def objects_of(schema: dict[str, Entry], entry: Entry, depth: int, *, full: bool) -> Iterator[dict[str, Any]]:
    """Yield an object of each case of a type: with all members if `full`, else with those it needs."""

    def members(of: Entry) -> dict[str, Any]:
        return {
            member["name"]: value_of(schema, member["type"], depth - 1)
            for member in of["members"]
            if full or "default" not in member
        }

    if "tag" not in entry:
        yield members(entry)
        return
    for variant in entry["variants"]:
        yield members(entry) | {entry["tag"]: variant["case"]} | members(schema[variant["type"]])


@pytest.mark.parametrize("full", [False, True], ids=["needed members", "all members"])
def test_commands_take_what_the_schema_describes_and_nothing_else(
    schema: dict[str, Entry], full: bool
) -> None:
    for command in daemon_commands():
        if command.arguments is None:
            assert schema[schema[command.name]["arg-type"]]["members"] == []
            continue
        for arguments in objects_of(schema, schema[schema[command.name]["arg-type"]], 4, full=full):
            read_arguments(arguments, command.arguments)
            if command.name != "object-add":  # its options are checked by the object itself
                with pytest.raises(QmpError, match="Parameter 'no-such' is unexpected"):
                    read_arguments(arguments | {"no-such": 1}, command.arguments)


def test_each_member_that_is_needed_is_needed(schema: dict[str, Entry]) -> None:
    for command in daemon_commands():
        if command.arguments is None or command.name == "object-add":
            continue
        for arguments in objects_of(schema, schema[schema[command.name]["arg-type"]], 4, full=False):
            for name in arguments:
                less = {key: value for key, value in arguments.items() if key != name}
                with pytest.raises(QmpError, match=f"Parameter '{name}' is missing"):
                    read_arguments(less, command.arguments)


OWN = {"converge", "delete", "resume", "verify"}
"""Members that QEMU has not, in its commands."""


@pytest.mark.interop
def test_commands_that_qemu_has_need_what_qemu_needs(schema: dict[str, Entry]) -> None:
    talked = subprocess.run(
        ["qemu-storage-daemon", "--chardev", "stdio,id=m", "--monitor", "m"],
        input='{"execute": "qmp_capabilities"}\n{"execute": "query-qmp-schema"}\n{"execute": "quit"}\n',
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    entries = json.loads(talked.stdout.splitlines()[2])["return"]
    theirs = {entry["name"]: entry for entry in entries}
    shared = [command.name for command in daemon_commands() if command.name in theirs]
    assert len(shared) > 40
    for name in shared:
        ours, other = (known[known[name]["arg-type"]] for known in (schema, theirs))
        needed = {member["name"] for member in other["members"] if "default" not in member}
        assert {member["name"] for member in ours["members"] if "default" not in member} == needed, name
        if name not in ("blockdev-add", "object-add"):
            assert members_of(schema, ours) - OWN <= members_of(theirs, other), name


def members_of(schema: dict[str, Entry], entry: Entry) -> set[str]:
    """Return the names of all members that objects of a type may have."""
    entries = (entry, *(schema[variant["type"]] for variant in entry.get("variants", [])))
    return {member["name"] for each in entries for member in each["members"]}
