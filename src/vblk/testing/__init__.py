"""What proves that a node keeps its promises: public, for nodes of others too.

Owns: the conformance suite, nodes and engines that fail, stop or dawdle on
demand, and the sweeps over them. It may use everything and nothing uses it; it
needs no test framework.
"""

from vblk.testing.conformance import CHECKS, check_conformance
from vblk.testing.faulty import FaultPlan, FaultyEngine, FaultyNode
from vblk.testing.passing import PassingNode
from vblk.testing.promises import Check, ConformanceError, Factory, Subject
from vblk.testing.reluctant import ReluctantNode
from vblk.testing.sweep import Leak, each_cancellation, each_failure, hold_everything_free

__all__ = [
    "CHECKS",
    "Check",
    "ConformanceError",
    "Factory",
    "FaultPlan",
    "FaultyEngine",
    "FaultyNode",
    "Leak",
    "PassingNode",
    "ReluctantNode",
    "Subject",
    "check_conformance",
    "each_cancellation",
    "each_failure",
    "hold_everything_free",
]
