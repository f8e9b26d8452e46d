"""How a user says what `blkdebug` is to do.

Owns: the options of the driver, their checks, and the configuration file that
may stand behind them. It knows no request.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from vblk.errors import OptionError
from vblk.filters.events import Event
from vblk.filters.fault_rules import (
    CONFIG_MAX,
    SECTIONS,
    SECTOR,
    ErrorRule,
    Rules,
    StateRule,
    check_constraints,
    event_named,
    parse_config,
    renumbered,
    types_named,
)
from vblk.graph.alignment import PIECE_MAX
from vblk.graph.edge import Access, Permission
from vblk.graph.site import Site
from vblk.options import Scalar, Size, parse_number
from vblk.units import is_power_of_two

NO_LIMIT = Size(0)

BlockPermission = Literal["consistent-read", "write", "write-unchanged", "resize"]


@dataclass(slots=True)
class InjectError:
    """One error rule as a user writes it; `sector` counts 512 bytes, -1 is any."""

    event: str | None = None
    state: int = 0
    errno: int = 5
    sector: int = -1
    once: bool = False
    immediately: bool = False
    iotype: str | None = None


@dataclass(slots=True)
class SetState:
    """One state rule as a user writes it."""

    event: str | None = None
    state: int = 0
    new_state: int = field(default=0, metadata={"name": "new_state"})


@dataclass(slots=True)
class Options:
    """The options of `blkdebug`. Limits are in bytes, 0 is none.

    Parts of zero-writes and discards that are no whole `opt_write_zero` or
    `opt_discard` are written out, or left as they are. `random_rate` is the
    share of requests, 0 to 1, that fail with `random_errno`; `random_seed`
    makes the same ones fail again. `take_child_perms` are permissions that the node
    takes on its child whoever uses it, `unshare_child_perms` those that it forbids to
    others.
    """

    config: str | None = None
    align: Size = NO_LIMIT
    max_transfer: Size = NO_LIMIT
    opt_write_zero: Size = NO_LIMIT
    max_write_zero: Size = NO_LIMIT
    opt_discard: Size = NO_LIMIT
    max_discard: Size = NO_LIMIT
    inject_error: list[InjectError] = field(default_factory=list[InjectError])
    set_state: list[SetState] = field(default_factory=list[SetState])
    take_child_perms: list[BlockPermission] = field(default_factory=list[BlockPermission])
    unshare_child_perms: list[BlockPermission] = field(default_factory=list[BlockPermission])
    random_rate: float = 0.0
    random_seed: int = 0
    random_errno: int = 5


class Chance:
    """Errors by chance, the same ones for the same seed and the same requests."""

    def __init__(self, rate: float, seed: int, error: int) -> None:
        import random

        self._random = random.Random(seed)
        self._rate = rate
        self._rule = ErrorRule(Event.NONE, error=error, immediately=True)

    def failing(self) -> ErrorRule | None:
        """Draw for one request."""
        return self._rule if self._random.random() < self._rate else None


def check_options(options: Options) -> None:
    """Refuse limits that contradict each other.

    Raises:
        OptionError: With the name of the first that does.
    """
    align = options.align
    if align and not is_power_of_two(align):
        raise OptionError(f"Cannot meet constraints with align {align}")
    if align > PIECE_MAX:
        raise OptionError(f"align {align} is greater than this version takes, {PIECE_MAX}")
    block = max(1, align)
    check_constraints(
        block,
        [
            ("max-transfer", options.max_transfer),
            ("opt-write-zero", options.opt_write_zero),
            ("opt-discard", options.opt_discard),
        ],
    )
    check_constraints(max(block, options.opt_write_zero), [("max-write-zero", options.max_write_zero)])
    check_constraints(max(block, options.opt_discard), [("max-discard", options.max_discard)])
    if not 0 <= options.random_rate <= 1:
        raise OptionError(f"random-rate must be 0 to 1, not {options.random_rate}")


def access_of(options: Options) -> Access:
    """Return what the node does with its child and forbids there for its own sake."""
    forbidden = _permissions(options.unshare_child_perms)
    return Access(_permissions(options.take_child_perms), Permission.ALL & ~forbidden)


def _permissions(names: Sequence[BlockPermission]) -> Permission:
    found = Permission.NONE
    for name in names:
        found |= Permission[name.upper().replace("-", "_")]
    return found


def rules_of(options: Options) -> Rules:
    """Return the rules that the options list.

    Raises:
        OptionError: A rule has no event, or a value that cannot be.
    """
    errors: list[ErrorRule] = []
    states: list[StateRule] = []
    for error in options.inject_error:
        if error.event is None:
            raise OptionError("Missing event name for rule")
        if not 0 < error.errno < 4096:
            raise OptionError(f"errno must be 1 to 4095, not {error.errno}")
        errors.append(
            ErrorRule(
                event_named(error.event),
                error.state,
                error.errno,
                None if error.sector == -1 else error.sector * SECTOR,
                error.once,
                error.immediately,
                types_named(error.iotype),
            )
        )
    for change in options.set_state:
        if change.event is None:
            raise OptionError("Missing event name for rule")
        states.append(StateRule(event_named(change.event), change.state, change.new_state))
    return Rules(errors, states)


async def with_config(site: Site, own: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the options with those of the configuration file behind them.

    Raises:
        OptionError: The file cannot be read, or is wrong; the error names the line.
    """
    options = dict(own)
    filename = options.get("config")
    if filename is None:
        return options
    filename = options["config"] = str(filename)  # a number is a name that looks like one, as in QEMU

    def read() -> bytes:
        with open(filename, "rb") as file:
            return file.read(CONFIG_MAX + 1)

    try:
        text = (await site.graph.engine.run(read)).decode()
    except OSError as error:
        raise OptionError(f"Could not read blkdebug config file: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise OptionError(f"Could not parse blkdebug config file: {error.reason}") from error
    if len(text) > CONFIG_MAX:
        raise OptionError(f"The blkdebug config file is longer than {CONFIG_MAX} bytes")
    counts = {
        section: 1 + max((int(number) for number in _numbers(options, section)), default=-1)
        for section in SECTIONS
    }
    return options | renumbered(parse_config(text, filename), counts)


def _numbers(options: Mapping[str, Scalar], section: str) -> list[int]:
    found: list[int] = []
    for key in options:
        name, _, rest = key.partition(".")
        if name == section:
            try:
                found.append(parse_number(rest.partition(".")[0]))
            except OptionError:
                continue  # binding names the option that is wrong
    return found
