"""When requests are made to fail: rules, states, and the file that lists them.

Owns: the state machine of `blkdebug` and the syntax of its configuration file.
Pure: it sees events and ranges, not requests, and reads no file.

A rule waits for its event. The event makes it active; an active rule fails every
request that it fits, until another event makes other rules active. Rules of one
event become active together.
"""

import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from vblk.errors import OptionError
from vblk.filters.events import Event
from vblk.options import Scalar

SECTOR = 512
CONFIG_MAX = 1 << 20
"""The longest configuration file, in bytes."""

LIMIT_MAX = 1 << 31
"""No limit reaches this many bytes: requests are shorter."""

SECTIONS = ("inject-error", "set-state")


_SECTION = re.compile(r'\[\s*([^\s\]"]+)(?:\s+"[^"]*")?\s*\]')
"""A section's name, and the identity that QEMU lets stand behind it."""


class IoType(Enum):
    """What a request does."""

    READ = "read"
    WRITE = "write"
    WRITE_ZEROES = "write-zeroes"
    DISCARD = "discard"
    FLUSH = "flush"
    BLOCK_STATUS = "block-status"


PAYLOAD_TYPES = frozenset(IoType) - {IoType.BLOCK_STATUS}
"""The requests that a rule without a type fails."""


@dataclass(frozen=True, slots=True, eq=False)
class ErrorRule:
    """Fail requests with `error` after `event`.

    `state` 0 fits every state. `offset` in bytes: only requests that reach it;
    None: all. `once`: the rule is used up by its first failure. `immediately`:
    fail without letting other requests run first.
    """

    event: Event
    state: int = 0
    error: int = errno.EIO
    offset: int | None = None
    once: bool = False
    immediately: bool = False
    types: frozenset[IoType] = PAYLOAD_TYPES

    def fits(self, kind: IoType, offset: int, length: int) -> bool:
        """Tell whether this rule fails such a request."""
        return kind in self.types and (self.offset is None or offset <= self.offset < offset + length)


@dataclass(frozen=True, slots=True)
class StateRule:
    """Go to `new_state` at `event`, from `state` or, if that is 0, from any."""

    event: Event
    state: int = 0
    new_state: int = 0


@dataclass(slots=True)
class Rules:
    """All rules of one node, and what is active now."""

    errors: list[ErrorRule] = field(default_factory=list[ErrorRule])
    states: list[StateRule] = field(default_factory=list[StateRule])
    state: int = 1
    active: list[ErrorRule] = field(default_factory=list[ErrorRule])

    def __post_init__(self) -> None:
        self.happened(Event.NONE)

    def happened(self, event: Event) -> None:
        """Make the rules of an event active, and change the state as it says."""
        fresh = [rule for rule in self.errors if rule.event is event and rule.state in (0, self.state)]
        if fresh:
            self.active = fresh[::-1]
        following = self.state
        for rule in self.states:
            if rule.event is event and rule.state in (0, self.state):
                following = rule.new_state
        self.state = following

    def failing(self, kind: IoType, offset: int, length: int) -> ErrorRule | None:
        """Return the rule that fails a request now, or None; a `once` rule is used up by it."""
        for rule in self.active:
            if rule.fits(kind, offset, length):
                if rule.once:
                    self.active.remove(rule)
                    self.errors.remove(rule)
                return rule
        return None


def parse_config(text: str, filename: str) -> dict[str, Scalar]:
    """Read a configuration file into options as they are given elsewhere.

    Sections are `[inject-error]` and `[set-state]`, their lines `name = "value"`;
    `#` begins a comment line.

    Returns: dotted options, `inject-error.0.event` and so on.

    Raises:
        OptionError: A line is none of these; the error names it.
    """
    options: dict[str, Scalar] = {}
    counts = dict.fromkeys(SECTIONS, 0)
    prefix: str | None = None
    for number, raw_line in enumerate(text.splitlines(), 1):
        line = raw_line.strip()
        if not line or line.startswith("#"):
            continue
        if found := _SECTION.fullmatch(line):
            section = found[1]
            if section not in counts:
                raise OptionError(f"{filename}:{number}: There is no section '{section}'")
            prefix = f"{section}.{counts[section]}"
            counts[section] += 1
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        quoted = len(value) >= 2 and value[0] == value[-1] == '"'
        if not (equals and name and quoted):
            raise OptionError(f'{filename}:{number}: Expected [section] or name = "value"')
        if prefix is None:
            raise OptionError(f"{filename}:{number}: '{name}' stands before the first section")
        key = f"{prefix}.{name}"
        if key in options:
            raise OptionError(f"{filename}:{number}: '{name}' is given twice")
        options[key] = value[1:-1]
    return options


def renumbered(options: dict[str, Scalar], counts: dict[str, int]) -> dict[str, Scalar]:
    """Return dotted list options with their numbers raised by `counts` of each section."""
    moved: dict[str, Scalar] = {}
    for key, value in options.items():
        section, index, name = key.split(".", 2)
        moved[f"{section}.{int(index) + counts[section]}.{name}"] = value
    return moved


def event_named(name: str) -> Event:
    """Return an event by its name.

    Raises:
        OptionError: Nothing in this version raises an event of this name.
    """
    try:
        return Event(name)
    except ValueError:
        raise OptionError(f"invalid parameter value: {name} (no layer of this version raises it)") from None


def types_named(name: str | None) -> frozenset[IoType]:
    """Return the request types that `iotype` says.

    Raises:
        OptionError: There is no such type.
    """
    if name is None:
        return PAYLOAD_TYPES
    try:
        return frozenset({IoType(name)})
    except ValueError:
        raise OptionError(f"invalid parameter value: {name}") from None


def check_constraints(align: int, limits: Sequence[tuple[str, int]]) -> None:
    """Refuse limits in bytes that are no multiples of the alignment; 0 is no limit.

    Raises:
        OptionError: With the name of the first that does.
    """
    for name, value in limits:
        if value % align or value >= LIMIT_MAX:
            raise OptionError(f"Cannot meet constraints with {name} {value}")
