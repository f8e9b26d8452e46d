"""An export as it was negotiated.

Owns: what both sides agreed on before the first request, and the block sizes
that may be believed.

Source: proto.md, "Block size constraints" and "Transmission flags".
"""

from dataclasses import dataclass

from vblk.errors import PeerError
from vblk.units import KIB, MIB, OFFSET_MAX, is_power_of_two
from vblk.wire.nbd.numbers import ExportFlag

MINIMUM_MAX = 64 * KIB
PREFERRED_MIN = 512
MAXIMUM_UNSAID = 32 * MIB
"""The most bytes of payload that every server takes unless it says otherwise."""


@dataclass(slots=True)
class Export:
    """What is served, and how to ask for it.

    `size`, `minimum`, `preferred` and `maximum` are in bytes; `minimum` 0 says
    that the server named no block sizes. `structured` and `extended` are the
    forms of the replies. `allocation` is the number under which the server tells
    which ranges are holes, or None.
    """

    size: int = 0
    flags: ExportFlag = ExportFlag.NONE
    minimum: int = 0
    preferred: int = 0
    maximum: int = MAXIMUM_UNSAID
    structured: bool = False
    extended: bool = False
    allocation: int | None = None

    @property
    def read_only(self) -> bool:
        """Whether the server refuses every change."""
        return ExportFlag.READ_ONLY in self.flags

    def set_size(self, size: int, flags: int) -> None:
        """Take over size and transmission flags from the wire.

        Raises:
            PeerError: No disk is that large.
        """
        if size > OFFSET_MAX:
            raise PeerError(f"the server says that the export has {size} bytes, which no disk has")
        self.size = size
        # Without HAS_FLAGS the other bits mean nothing.
        self.flags = ExportFlag(flags) if flags & ExportFlag.HAS_FLAGS else ExportFlag.NONE

    def set_block_sizes(self, minimum: int, preferred: int, maximum: int) -> None:
        """Take over the server's constraints.

        Raises:
            PeerError: They contradict the specification.
        """
        if not is_power_of_two(minimum) or minimum > MINIMUM_MAX:
            raise PeerError(f"the server advertises a minimum block size of {minimum}")
        if not is_power_of_two(preferred) or preferred < max(minimum, PREFERRED_MIN):
            raise PeerError(
                f"the server advertises a preferred block size of {preferred} beside a minimum of {minimum}"
            )
        if maximum < minimum:
            raise PeerError(
                f"the server advertises a maximum block size of {maximum} below its minimum of {minimum}"
            )
        self.minimum = minimum
        self.preferred = preferred
        self.maximum = maximum - maximum % minimum
