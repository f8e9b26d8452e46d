"""The states of a job, what may follow each, and which commands each accepts.

Owns: the two tables, and the sentence for a command that comes at the wrong time.

Source: qapi/job.json of QEMU's documentation, "JobStatus" and "JobVerb".
"""

import enum
from typing import Final

from vblk.errors import JobError


class Status(enum.Enum):
    """Where a job is in its life, in QEMU's words."""

    UNDEFINED = "undefined"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    READY = "ready"
    STANDBY = "standby"
    WAITING = "waiting"
    PENDING = "pending"
    ABORTING = "aborting"
    CONCLUDED = "concluded"
    NULL = "null"


class Verb(enum.Enum):
    """What a user may ask of a job."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    SET_SPEED = "set-speed"
    COMPLETE = "complete"
    FINALIZE = "finalize"
    DISMISS = "dismiss"
    CHANGE = "change"


_S = Status

FOLLOWING: Final[dict[Status, frozenset[Status]]] = {
    _S.UNDEFINED: frozenset({_S.CREATED}),
    _S.CREATED: frozenset({_S.RUNNING, _S.ABORTING, _S.NULL}),
    _S.RUNNING: frozenset({_S.PAUSED, _S.READY, _S.WAITING, _S.ABORTING}),
    _S.PAUSED: frozenset({_S.RUNNING}),
    _S.READY: frozenset({_S.STANDBY, _S.WAITING, _S.ABORTING}),
    _S.STANDBY: frozenset({_S.READY}),
    _S.WAITING: frozenset({_S.PENDING, _S.ABORTING}),
    _S.PENDING: frozenset({_S.ABORTING, _S.CONCLUDED}),
    _S.ABORTING: frozenset({_S.CONCLUDED}),
    _S.CONCLUDED: frozenset({_S.NULL}),
    _S.NULL: frozenset(),
}

AT_WORK: Final = frozenset({_S.CREATED, _S.RUNNING, _S.PAUSED, _S.READY, _S.STANDBY})
"""The states in which the work has not come to an end."""

ACCEPTED: Final[dict[Verb, frozenset[Status]]] = {
    Verb.CANCEL: AT_WORK | {_S.WAITING, _S.PENDING},
    Verb.PAUSE: AT_WORK,
    Verb.RESUME: AT_WORK,
    Verb.SET_SPEED: AT_WORK,
    Verb.CHANGE: AT_WORK,
    Verb.COMPLETE: frozenset({_S.READY}),
    Verb.FINALIZE: frozenset({_S.PENDING}),
    Verb.DISMISS: frozenset({_S.CONCLUDED}),
}


def require_accepted(job: str, status: Status, verb: Verb) -> None:
    """Raise JobError when a job in that state does not take that command."""
    if status not in ACCEPTED[verb]:
        raise JobError(f"Job '{job}' in state '{status.value}' cannot accept command verb '{verb.value}'")
