"""How a disk is mirrored: what the user decides.

Owns: the choices of a mirror, under QEMU's names where it has them, and which cannot be.

Source: qapi/block-core.json of QEMU's documentation, "blockdev-mirror".
"""

import enum
from dataclasses import dataclass
from typing import Final

from vblk.errors import JobError
from vblk.jobs.block_job import OnError
from vblk.units import MIB, is_power_of_two

WORKERS: Final = 8
BUFFER: Final = MIB
"""The most bytes that one worker passes through memory at a time."""
BUFFER_DEFAULT: Final = WORKERS * BUFFER
GRANULARITY_LEAST: Final = 512
GRANULARITY_MOST: Final = 64 * MIB


class CopyMode(enum.Enum):
    """When what users write comes to the target."""

    BACKGROUND = "background"
    """Later, with what else is marked."""
    WRITE_BLOCKING = "write-blocking"
    """Before they are answered."""


class Sync(enum.Enum):
    """What is copied of the disk as it is at the start."""

    FULL = "full"
    TOP = "top"
    """What the top image holds itself."""
    NONE = "none"
    """Nothing: only what changes from now on."""


class End(enum.Enum):
    """How a job that is ready ends when the user says so."""

    PIVOT = "pivot"
    """The disk's users go to the target."""
    LEAVE = "leave"
    """They stay; the target is what the disk was at this instant."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a disk is mirrored; sizes in bytes.

    `granularity` 0 takes the format's clusters for it. `unmap`: what reads as
    zeros takes no space in the target. `target_is_zero`: the target reads as
    zeros already. `target_may_be_larger`: what it has behind the disk is left alone.
    `converge`: after so many seconds the disk's users wait while the rest is copied,
    however much it is. `buffer` is what passes through memory at most. `verify`:
    what was copied is compared before the job is ready, and before it ends.
    """

    sync: Sync = Sync.FULL
    granularity: int = 0
    on_source_error: OnError = OnError.REPORT
    on_target_error: OnError = OnError.REPORT
    unmap: bool = True
    target_is_zero: bool = False
    target_may_be_larger: bool = False
    converge: float | None = None
    copy_mode: CopyMode = CopyMode.BACKGROUND
    buffer: int = BUFFER_DEFAULT
    verify: bool = False

    def check(self) -> None:
        """Raise JobError, in QEMU's words, for what cannot be."""
        if self.granularity and not GRANULARITY_LEAST <= self.granularity <= GRANULARITY_MOST:
            raise JobError("Parameter 'granularity' expects a value in range [512B, 64MB]")
        if self.granularity and not is_power_of_two(self.granularity):
            raise JobError("Parameter 'granularity' expects a power of 2")
        if self.buffer < 0:
            raise JobError("Invalid parameter 'buf-size'")
        check_deadline(self.converge)


def check_deadline(converge: float | None) -> None:
    """Raise JobError for a number of seconds that is none."""
    if converge is not None and converge < 0:
        raise JobError("Invalid parameter 'converge'")
