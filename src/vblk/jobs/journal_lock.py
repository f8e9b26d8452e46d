"""The lock on the journal beside a target, for whoever works by it.

Owns: that one job at a time works by a journal. What stands in it is the business
of `vblk.jobs.journal_file`, of `vblk.jobs.ledger` and of the jobs.

Ordering rule: a journal is locked before it is read, and a new one before it takes
its name.
"""

import fcntl
import os

from vblk.errors import JobError


def open_locked(path: str, target: str) -> int:
    """Open the journal at `path`, making an empty one where there is none, and lock it.

    Raises:
        JobError: Somebody else works by it.
        OSError: It cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        descriptor = os.open(path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise JobError("somebody copies to this target now", filename=target) from None
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # whoever held it has come to the end, or has put another in its place
