"""Transactions: several actions, all of them or none.

Owns: which actions there are, and the taking back. Every action but `abort` is a command too.

Ordering rule: requests that reach the nodes of a transaction are held back from its
first action to its last. When an action fails those before it are taken back, the
last one first.
"""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from vblk.errors import BlockError
from vblk.jobs.job import Transaction
from vblk.monitor.actions import Action, ActionTable, Batch, Undo, batch
from vblk.monitor.arguments import Reader, joined, taken
from vblk.monitor.commands import backup, bitmaps, surgery
from vblk.monitor.daemon import Daemon
from vblk.monitor.introspection import Introspection
from vblk.monitor.schema import Object
from vblk.monitor.table import CommandTable
from vblk.wire.qmp import QmpError

ABORT: Final = "abort"
ACTIONS: Final = ActionTable(backup.ACTIONS, bitmaps.ACTIONS, surgery.ACTIONS)
"""What transactions of this daemon can do."""


class Abort(Object):
    """What `abort` takes: nothing."""


@ACTIONS.action(ABORT)
async def abort(daemon: Daemon, arguments: Abort) -> Undo:
    """Fail, so that the transaction is taken back: for tests."""
    raise QmpError("Transaction aborted using Abort action")


@dataclass(slots=True)
class Chosen:
    """One action of a transaction, with its arguments."""

    action: Action
    arguments: Any

    @classmethod
    def read_member(cls, reader: Reader, value: Any, name: str) -> "Chosen":
        """Read an action: a `type`, and the `data` that it takes."""
        rest = reader.mapping(value, name)
        kind = reader.choice(taken(rest, "type", name), ACTIONS.names(), joined(name, "type"))
        action = ACTIONS.find(kind)
        data = reader.value(taken(rest, "data", name), action.arguments, joined(name, "data"))
        return cls(action, data)

    @classmethod
    def describe(cls, schema: Introspection) -> str:
        """Add the type of an action."""
        variants = {
            action.name: schema.object_of([{"name": "data", "type": schema.type(action.arguments)}])
            for action in ACTIONS
        }
        return schema.union("type", variants, [])


class CompletionMode(Enum):
    """Whether jobs of a transaction end together."""

    INDIVIDUAL = "individual"
    GROUPED = "grouped"


class Properties(Object):
    """What is said of a transaction as a whole."""

    completion_mode: CompletionMode = CompletionMode.INDIVIDUAL


class TransactionArguments(Object):
    """The arguments of `transaction`."""

    actions: list[Chosen]
    properties: Properties | None = None


TABLE = CommandTable(
    bitmaps.TABLE, backup.ACTIONS.commands(), bitmaps.ACTIONS.commands(), surgery.ACTIONS.commands()
)


@TABLE.command("transaction")
async def transaction(daemon: Daemon, arguments: TransactionArguments) -> None:
    """Carry out actions, all of them or none."""
    done: list[Undo] = []
    grouped = arguments.properties is not None and (
        arguments.properties.completion_mode is CompletionMode.GROUPED
    )
    made = Batch(Transaction() if grouped else None)
    batch.set(made)
    async with AsyncExitStack() as stack:
        for node in daemon.graph.nodes():
            await stack.enter_async_context(daemon.graph.drained(node))
        try:
            for chosen in arguments.actions:
                undo = await chosen.action.act(daemon, chosen.arguments)
                done.append(undo)
        except (QmpError, BlockError):
            for undo in reversed(done):
                await undo()
            raise
        made.begin()
