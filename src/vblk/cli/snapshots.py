"""`-l`: snapshots inside an image, which no format of this version has.

Owns: the reading of a snapshot's name, so that a wrong one is called wrong, and
the sentence for a right one.
"""

from vblk.cli.failure import Failure
from vblk.options.keyval import split_pairs

_PREFIX = "snapshot."
_NAMES = ("snapshot.id", "snapshot.name")


def check_snapshot_name(text: str) -> None:
    """Refuse a name in the long form with members that it does not have.

    Raises:
        Failure: With QEMU's lines.
    """
    if not text.startswith(_PREFIX):
        return
    for pair in split_pairs(text):
        if pair.name not in _NAMES:
            raise Failure(f"Invalid parameter '{pair.name}'", f"Failed in parsing snapshot param '{text}'")


def no_snapshots(driver: str) -> Failure:
    """Return the failure of every snapshot."""
    return Failure(
        f"Failed to load snapshot: Block format '{driver}' used by device '' does not support "
        "temporarily loading internal snapshots"
    )
