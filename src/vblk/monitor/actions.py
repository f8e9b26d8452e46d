"""Actions: commands that can be taken back, and so be parts of a transaction.

Owns: the table of them, and the jobs that they make. It knows no particular one.
"""

import typing
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

from vblk.jobs.job import Job, Transaction
from vblk.monitor.daemon import Daemon
from vblk.monitor.table import CommandTable

Undo = Callable[[], Awaitable[None]]
"""Takes an action back; it cannot fail."""

Act = Callable[[Daemon, Any], Awaitable[Undo]]


@dataclass(slots=True)
class Batch:
    """What the actions of one command share: their jobs begin when all actions are done.

    `group` is what the jobs belong to if they end together.
    """

    group: Transaction | None = None
    jobs: list[Job] = field(default_factory=list[Job])

    def begin(self) -> None:
        """Start the jobs."""
        for job in self.jobs:
            job.start()


batch: Final[ContextVar[Batch]] = ContextVar("batch")
"""The batch of the command that runs in this context."""


@dataclass(frozen=True, slots=True)
class Action:
    """One action: its name, what it takes, and what carries it out."""

    name: str
    arguments: type[Any]
    act: Act


class ActionTable:
    """Actions by name."""

    def __init__(self, *tables: "ActionTable") -> None:
        """Begin with the actions of other tables."""
        self._by_name: dict[str, Action] = {}
        for table in tables:
            self.include(table)

    def include(self, table: "ActionTable") -> None:
        """Add the actions of another table."""
        self._by_name.update(table._by_name)

    def __iter__(self) -> Iterator[Action]:
        return iter(self._by_name.values())

    def find(self, name: str) -> Action:
        """Return the action of that name, which there is."""
        return self._by_name[name]

    def names(self) -> list[str]:
        """Return the names of all actions."""
        return list(self._by_name)

    def action(self, name: str) -> Callable[[Act], Act]:
        """Make a coroutine function an action of this name; its annotations are the action's types."""

        def enter(act: Act) -> Act:
            self._by_name[name] = Action(name, typing.get_type_hints(act)["arguments"], act)
            return act

        return enter

    def commands(self) -> CommandTable:
        """Return all actions as commands, which are not taken back."""
        table = CommandTable()
        for action in self:
            table.enter(action.name, _alone(action.act), action.arguments)
        return table


def _alone(act: Act) -> Callable[[Daemon, Any], Awaitable[None]]:
    async def run(daemon: Daemon, arguments: Any) -> None:
        alone = Batch()
        batch.set(alone)
        await act(daemon, arguments)
        alone.begin()

    return run
