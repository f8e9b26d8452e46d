"""How a command fails: its exit status, and what is said of an image that does not open.

Owns: the one table from errors to exit statuses. The sentence of an error is
`vblk.wording`'s. Must not print; `Console` does.
"""

from collections.abc import Mapping
from typing import Final

from vblk.errors import BlockError
from vblk.wording import FAILURE, SUCCESS, Failure, sentence

__all__ = [
    "CHECK_CORRUPT",
    "CHECK_LEAKS",
    "CHECK_UNSUPPORTED",
    "COMPARE_DIFFERENT",
    "COMPARE_FAILED",
    "COMPARE_READ_FAILED",
    "COMPARE_STATUS_FAILED",
    "FAILURE",
    "INTERNAL",
    "INTERRUPTED",
    "PIPE_CLOSED",
    "SUCCESS",
    "TERMINATED",
    "Failure",
    "could_not_open",
    "exit_status",
    "notes",
    "refuse",
    "sentence",
]

INTERNAL: Final = 70
"""A defect of vblk itself, `EX_SOFTWARE` of sysexits."""
INTERRUPTED: Final = 130
"""128 and the number of SIGINT, as shells tell it."""
PIPE_CLOSED: Final = 141
"""128 and the number of SIGPIPE: whoever read our output has gone."""
TERMINATED: Final = 143
"""128 and the number of SIGTERM."""

COMPARE_DIFFERENT: Final = 1
COMPARE_FAILED: Final = 2
COMPARE_STATUS_FAILED: Final = 3
COMPARE_READ_FAILED: Final = 4

CHECK_CORRUPT: Final = 2
CHECK_LEAKS: Final = 3
CHECK_UNSUPPORTED: Final = 63

FAILED: Final = {"compare": COMPARE_FAILED}
"""Verb to exit status of a failure; FAILURE for the others. `Failure.status` overrules it."""


def exit_status(verb: str, error: Failure | BlockError) -> int:
    """Return the exit status of a verb that failed with `error`."""
    if isinstance(error, Failure) and error.status is not None:
        return error.status
    if isinstance(error, Failure) and error.hint:
        return FAILURE
    return FAILED.get(verb, FAILURE)


def could_not_open(name: str, error: BlockError) -> Failure:
    """Return the failure of an image that did not open, in QEMU's words."""
    text = error.message if error.filename in (None, name) else sentence(error)
    if error.offset is not None and error.filename in (None, name):
        text += f" (offset {error.offset:#x})"
    return Failure(f"Could not open '{name}': {text}")


def notes(error: BaseException) -> list[str]:
    """Return what an error, or the one behind it, notes beside its sentence: who holds a lock."""
    behind = error if isinstance(error, BlockError) else error.__cause__
    return list(getattr(behind, "__notes__", ()))


def refuse(given: Mapping[str, object], why: str) -> None:
    """Raise Failure for the first option that has a value."""
    for name, value in given.items():
        if value:
            raise Failure(f"{name} {why}")
