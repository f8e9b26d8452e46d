"""Going into the background.

Owns: how a command that serves leaves its terminal, and how whoever started it
learns that everything is set up, or is not.

Ordering rule: the process forks before it has an event loop, threads or open images.
"""

import os
from contextlib import suppress

from vblk.cli.console import Console
from vblk.cli.failure import FAILURE, SUCCESS


class Readiness:
    """How a command in the background tells who started it that everything is set up."""

    def __init__(self, pipe: int | None) -> None:
        self._pipe = pipe

    def tell(self, *, keep_errors: bool = False) -> None:
        """Say so, and let go of the terminal, with `keep_errors` all but its standard error."""
        if self._pipe is None:
            return
        with open(os.devnull, "r+b", buffering=0) as null:
            for descriptor in (0, 1) if keep_errors else (0, 1, 2):
                os.dup2(null.fileno(), descriptor)
        with suppress(OSError):  # whoever started it may be gone
            os.write(self._pipe, b"\0")
        self.close()

    def close(self) -> None:
        """Close the pipe: without a word before, that says that it failed."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None


def fork(console: Console) -> int:
    """Go on in a child of its own session; the parent ends as soon as it knows how that went.

    Returns: the end of a pipe into which the child tells that it is ready.
    """
    reading, writing = os.pipe()
    console.out.flush()
    console.err.flush()
    if os.fork():
        os.close(writing)
        said = os.read(reading, 1)
        os._exit(SUCCESS if said else FAILURE)
    os.close(reading)
    os.setsid()
    return writing
