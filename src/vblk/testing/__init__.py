"""What proves that a node keeps its promises: public, for nodes of others too.

Owns: the conformance suite, nodes and engines that fail, stop or dawdle on
demand, the sweeps over them, and storage that remembers and crashes: `Recorder`
and `RecordingLeaf` record a run, `Explorer` enumerates what a crash may leave of
it, `Witness` drives a disk and remembers what each of its sectors may hold,
`Expectation` judges. It may use everything and nothing uses it; it needs no test
framework.
"""

from vblk.filters.passing import PassingNode
from vblk.testing.conformance import CHECKS, check_conformance
from vblk.testing.content import Content
from vblk.testing.crash import CrashState, Effort, Explorer, Tally
from vblk.testing.expectation import Expectation, Violation
from vblk.testing.faulty import FaultPlan, FaultyEngine, FaultyNode
from vblk.testing.promises import Check, ConformanceError, Factory, Subject
from vblk.testing.recording import Action, Fault, Operation, Recorder, RecordingLeaf
from vblk.testing.reluctant import ReluctantNode
from vblk.testing.sweep import Leak, each_cancellation, each_failure, hold_everything_free
from vblk.testing.witness import Witness

__all__ = [
    "CHECKS",
    "Action",
    "Check",
    "ConformanceError",
    "Content",
    "CrashState",
    "Effort",
    "Expectation",
    "Explorer",
    "Factory",
    "Fault",
    "FaultPlan",
    "FaultyEngine",
    "FaultyNode",
    "Leak",
    "Operation",
    "PassingNode",
    "Recorder",
    "RecordingLeaf",
    "ReluctantNode",
    "Subject",
    "Tally",
    "Violation",
    "Witness",
    "check_conformance",
    "each_cancellation",
    "each_failure",
    "hold_everything_free",
]
