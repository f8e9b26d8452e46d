"""What a daemon says of itself: JSON lines, or plain ones for a person.

Owns: the form. Each happening is said once, by whoever knows that it is over.
"""

import json
import os
import sys
import time
import traceback
from typing import Any, TextIO


class Log:
    """Where a daemon's words go.

    With `structured` each is a JSON object with `time` (seconds since the epoch),
    `event` and more; without, only what a person should know is a line behind
    `name`.
    """

    def __init__(self, name: str, stream: TextIO | None = None, *, structured: bool = False) -> None:
        self._name = name
        self._stream = stream if stream is not None else sys.stderr
        self._structured = structured

    def say(self, event: str, **facts: Any) -> None:
        """Tell of something ordinary: only a structured log has it."""
        if self._structured:
            self._write(json.dumps({"time": round(time.time(), 6), "event": event, **facts}))

    def note(self, event: str, text: str, **facts: Any) -> None:
        """Tell of something that a person should know, in a sentence."""
        if self._structured:
            self.say(event, message=text, **facts)
        else:
            self._write(f"{self._name}: {text}")

    def defect(self, where: str, error: BaseException) -> None:
        """Tell of a defect of ours; `VBLK_DEBUG=1` shows where it came from."""
        self.note("defect", f"internal error in {where}: {type(error).__name__}: {error}")
        if os.environ.get("VBLK_DEBUG"):
            self._write("".join(traceback.format_exception(error)))

    def _write(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            pass  # whoever listened has gone; the daemon goes on
