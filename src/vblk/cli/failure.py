"""How a command fails: its sentence, and its exit status.

Owns: the one table from errors to exit statuses, and the wording of an error of
the library for a terminal. Must not print; `Console` does.
"""

from typing import Final

from vblk.errors import BlockError

SUCCESS: Final = 0
FAILURE: Final = 1
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


class Failure(Exception):
    """A command ends here, with one or more lines for its user.

    `status` None asks the table; `hint` adds the line that points to the help.
    """

    def __init__(self, *lines: str, status: int | None = None, hint: bool = False) -> None:
        super().__init__(*lines)
        self.lines = lines
        self.status = status
        self.hint = hint


def exit_status(verb: str, error: Failure | BlockError) -> int:
    """Return the exit status of a verb that failed with `error`."""
    if isinstance(error, Failure) and error.status is not None:
        return error.status
    if isinstance(error, Failure) and error.hint:
        return FAILURE
    return FAILED.get(verb, FAILURE)


def sentence(error: BlockError) -> str:
    """Return an error's text for a user, with the file's name unless the text has it."""
    text = error.message
    if error.offset is not None:
        text += f" (offset {error.offset:#x})"
    name = error.filename
    if not name or any(spelled in text for spelled in (f"'{name}'", f"[{name}]", f"{name}: ")):
        return text
    return f"{name}: {text}"


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
