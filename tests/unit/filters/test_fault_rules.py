"""Rules of errors: which event makes them active, which requests they fail, and how they are written."""

import errno

import pytest

from vblk.errors import OptionError
from vblk.filters.events import Event
from vblk.filters.fault_rules import (
    ErrorRule,
    IoType,
    Rules,
    StateRule,
    check_constraints,
    event_named,
    parse_config,
    renumbered,
    types_named,
)


def fails(rules: Rules, kind: IoType = IoType.READ, offset: int = 0, length: int = 512) -> bool:
    return rules.failing(kind, offset, length) is not None


def test_a_rule_without_event_is_active_from_the_start() -> None:
    assert fails(Rules([ErrorRule(Event.NONE)]))


def test_a_rule_waits_for_its_event() -> None:
    rules = Rules([ErrorRule(Event.WRITE_AIO, error=errno.ENOSPC)])
    assert not fails(rules)
    rules.happened(Event.READ_AIO)
    assert not fails(rules)
    rules.happened(Event.WRITE_AIO)
    assert fails(rules)
    assert fails(rules, IoType.FLUSH, 0, 0)


def test_rules_of_another_event_take_the_place_of_the_active_ones() -> None:
    first, second = ErrorRule(Event.READ_AIO), ErrorRule(Event.WRITE_AIO, offset=4096)
    rules = Rules([first, second])
    rules.happened(Event.READ_AIO)
    rules.happened(Event.WRITE_AIO)
    assert rules.active == [second]
    rules.happened(Event.PWRITEV)
    assert rules.active == [second]


def test_rules_of_one_event_become_active_together() -> None:
    rules = Rules([ErrorRule(Event.NONE, offset=0), ErrorRule(Event.NONE, offset=1024)])
    assert fails(rules, offset=0)
    assert fails(rules, offset=1024)
    assert not fails(rules, offset=512)


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [(0, 512, False), (512, 1, True), (0, 513, True), (0, 4096, True), (513, 512, False), (512, 0, False)],
)
def test_a_rule_for_a_sector_fails_what_reaches_it(offset: int, length: int, expected: bool) -> None:
    assert fails(Rules([ErrorRule(Event.NONE, offset=512)]), offset=offset, length=length) is expected


def test_a_rule_that_fails_once_is_used_up() -> None:
    rules = Rules([ErrorRule(Event.READ_AIO, once=True)])
    rules.happened(Event.READ_AIO)
    assert fails(rules)
    assert not fails(rules)
    rules.happened(Event.READ_AIO)
    assert not fails(rules)


def test_a_rule_without_type_leaves_the_block_status_alone() -> None:
    rules = Rules([ErrorRule(Event.NONE)])
    assert [kind for kind in IoType if not fails(rules, kind)] == [IoType.BLOCK_STATUS]


def test_a_rule_with_a_type_fails_that_type_alone() -> None:
    rules = Rules([ErrorRule(Event.NONE, types=types_named("discard"))])
    assert [kind for kind in IoType if fails(rules, kind)] == [IoType.DISCARD]


def test_states_decide_which_rules_an_event_makes_active() -> None:
    rules = Rules(
        [ErrorRule(Event.READ_AIO, state=2)],
        [StateRule(Event.WRITE_AIO, 1, 2), StateRule(Event.WRITE_AIO, 2, 3)],
    )
    rules.happened(Event.READ_AIO)
    assert not fails(rules)
    rules.happened(Event.WRITE_AIO)
    assert rules.state == 2, "one event makes one step"
    rules.happened(Event.READ_AIO)
    assert fails(rules)


CONFIG = """
# two rules and a step
[inject-error]
event = "read_aio"
sector = "2048"

[set-state "second"]
event = "write_aio"
new_state = "2"
[inject-error]
event = "none"
"""


def test_a_configuration_file_is_read_as_options() -> None:
    assert parse_config(CONFIG, "f") == {
        "inject-error.0.event": "read_aio",
        "inject-error.0.sector": "2048",
        "set-state.0.event": "write_aio",
        "set-state.0.new_state": "2",
        "inject-error.1.event": "none",
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[foo]", "f:1: There is no section 'foo'"),
        ('\nx = "1"', "f:2: 'x' stands before the first section"),
        ("[inject-error]\nfoo", "f:2: Expected"),
        ("[inject-error]\nevent = none", "f:2: Expected"),
        ('[inject-error]\n= "none"', "f:2: Expected"),
        ('[inject-error]\nevent = "', "f:2: Expected"),
        ('[inject-error]\nevent = "a"\nevent = "b"', "f:3: 'event' is given twice"),
        ("[inject-error", "f:1: Expected"),
        ("[]", "f:1: Expected"),
    ],
)
def test_a_wrong_line_of_a_configuration_file_is_named(text: str, reason: str) -> None:
    with pytest.raises(OptionError) as refused:
        parse_config(text, "f")
    assert str(refused.value).startswith(reason)


def test_sections_are_counted_on_from_options() -> None:
    moved = renumbered({"inject-error.0.event": "none"}, {"inject-error": 2, "set-state": 0})
    assert moved == {"inject-error.2.event": "none"}


def test_events_that_nothing_raises_are_refused() -> None:
    assert event_named("pwritev") is Event.PWRITEV
    with pytest.raises(OptionError, match="invalid parameter value: l1_update"):
        event_named("l1_update")
    with pytest.raises(OptionError, match="invalid parameter value: foo"):
        types_named("foo")


@pytest.mark.parametrize("value", [1, 511, 513, 1 << 31])
def test_limits_are_multiples_of_the_alignment_and_no_greater_than_a_request(value: int) -> None:
    check_constraints(512, [("max-transfer", 0), ("max-transfer", 1024)])
    with pytest.raises(OptionError, match=f"Cannot meet constraints with max-transfer {value}"):
        check_constraints(512, [("max-transfer", value)])
