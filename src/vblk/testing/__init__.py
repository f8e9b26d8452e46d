"""Test kit: storage that remembers, crashes and fails, and the truth to compare with.

`Recorder` and `RecordingLeaf` record a run, `Explorer` enumerates what a crash
may leave of it, `Witness` drives a disk and remembers what each of its sectors
may hold, `Expectation` judges.
"""

from vblk.testing.content import Content
from vblk.testing.crash import CrashState, Effort, Explorer, Tally
from vblk.testing.expectation import Expectation, Violation
from vblk.testing.recording import Action, Fault, Operation, Recorder, RecordingLeaf
from vblk.testing.witness import Witness

__all__ = [
    "Action",
    "Content",
    "CrashState",
    "Effort",
    "Expectation",
    "Explorer",
    "Fault",
    "Operation",
    "Recorder",
    "RecordingLeaf",
    "Tally",
    "Violation",
    "Witness",
]
