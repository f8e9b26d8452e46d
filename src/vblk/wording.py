"""How an error reads for a person.

Owns: the sentence of an error, and the failure of a command. Must not print, and knows
no exit status but the one that a failure brings.
"""

from typing import Final

from vblk.errors import BlockError

SUCCESS: Final = 0
FAILURE: Final = 1

GUESSED: Final = (
    "WARNING: Image format was not specified for '{}' and probing guessed raw.\n"
    "         Automatically detecting the format is dangerous for raw images, "
    "write operations on block 0 will be restricted.\n"
    "         Specify the 'raw' format explicitly to remove the restrictions."
)
"""What is said of an image whose format nobody named."""


class Failure(Exception):
    """A command ends here, with one or more lines for its user.

    `status` None asks the table of exit statuses; `hint` adds the line that points to
    the help.
    """

    def __init__(self, *lines: str, status: int | None = None, hint: bool = False) -> None:
        super().__init__(*lines)
        self.lines = lines
        self.status = status
        self.hint = hint


def sentence(error: BlockError) -> str:
    """Return an error's text for a user, with the file's name unless the text has it."""
    text = error.message
    if error.offset is not None:
        text += f" (offset {error.offset:#x})"
    name = error.filename
    if not name or any(spelled in text for spelled in (f"'{name}'", f"[{name}]", f"{name}: ")):
        return text
    return f"{name}: {text}"
