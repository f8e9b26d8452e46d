"""What tells that a disk is the one that a job knew before its process died, and unchanged since.

Owns: which fact tells it for which file, and the comparison. Where the facts are kept
meanwhile is `vblk.jobs.ledger`'s business.

- An image of VHDX has a data write GUID that every writer changes with its first
  change: `IDENTITY`. While the job's own users write it has one that was noted before.
- A file that nobody writes has the time of its last change: `STILL`.
- A file that the job's users write has been changed no later than they did: `WRITTEN`.
  Where something was under way at the death, or the format writes tables on its own
  time, a moment later is allowed, but nothing since this process began.
- A VHDX image below another is named by that one: `LINKED`.

Ordering rule: images get the GUID of the present writer after `Facts.pending` was noted.

Source: [MS-VHDX] "Headers", DataWriteGuid.
"""

import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Final

import msgspec

from vblk.codec.guid import Guid, new_guid
from vblk.drivers.vhdx import VhdxNode
from vblk.errors import Unsupported
from vblk.graph.edge import Role
from vblk.graph.mapper import Mapper
from vblk.graph.node import Leaf, Node

GRACE: Final = 10 * 10**9
"""So many nanoseconds after the last change that is known the dead process may have made another."""
NOT_YET: Final = 20 * 10**6
"""So many nanoseconds after its begin a process has not changed any file yet."""


class Kind(Enum):
    """How a file is known again."""

    IDENTITY = "identity"
    STILL = "still"
    WRITTEN = "written"
    LAGGING = "lagging"
    """As `WRITTEN`, and its format also writes when no change is under way."""
    CLOSING = "closing"
    """As `LAGGING`, and it is closed when the job has come to its end, which writes as well."""
    LINKED = "linked"


class Fact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a file: its name, its inode, when it was last written, in nanoseconds."""

    name: str
    inode: int
    kind: Kind
    modified: int
    identities: tuple[str, ...] = ()
    """The data write GUIDs of an image of VHDX: it has one of these."""


class LastChange(msgspec.Struct, frozen=True, array_like=True):
    """When users last changed files, in nanoseconds, and whether that is all: nothing was under way."""

    time: int
    is_all: bool
    has_rested: bool
    """Whether the job came to an end of its own, and nothing was written later at all."""


class Facts:
    """The facts of a disk's files as they are now, those of its backing images included.

    Args:
        node: The disk.
        leaving_out: What is below it and none of its own.
        alone: Whether it is the target: backing images are left out.
        linked: Whether what says which images stand on this one are the images themselves.

    Raises:
        Unsupported: Nobody can tell whether one of the files was changed.
    """

    def __init__(
        self, node: Node, *, leaving_out: Node | None = None, alone: bool = False, linked: bool = False
    ) -> None:
        self._found: list[tuple[Fact, Mapper | None]] = []
        waiting: list[tuple[Node, Mapper | None]] = [(node, None)]
        seen: dict[Node, None] = {}
        while waiting:
            member, image = waiting.pop()
            if member in seen or member is leaving_out:
                continue
            seen[member] = None
            if isinstance(member, Leaf):
                self._found.append((_fact(member, image, alone=alone, linked=linked), image))
            owner = member if isinstance(member, Mapper) and member.has_tables else image
            for edge in member.children.values():
                if edge.role is not Role.BACKING:
                    waiting.append((edge.node, owner))
                elif not alone:
                    waiting.append((edge.node, None))
        written = (each for each in seen if isinstance(each, VhdxNode) and not each.read_only)
        self._images = [] if linked else list(written)

    @property
    def found(self) -> tuple[Fact, ...]:
        """The facts, in an order that is always the same."""
        return tuple(fact for fact, _ in self._found)

    async def prepare(self) -> None:
        """Do what takes long in an image before its first change."""
        for image in self._images:
            await image.writer.prepared()

    def pending(self) -> tuple[Fact, ...]:
        """Return the facts, with the GUIDs that `take_on` gives to images that are written."""
        coming: dict[Node, Guid] = {}
        for image in self._images:
            if not image.writer.changed:
                coming[image] = new_guid()
                image.writer.become(coming[image])
        return tuple(
            fact
            if image not in coming
            else msgspec.structs.replace(fact, identities=(*fact.identities, str(coming[image])))
            for fact, image in self._found
        )

    async def take_on(self) -> None:
        """Let images have the GUIDs of their present writers, durably."""
        for image in self._images:
            await image.writer.begin()

    def forget(self) -> None:
        """Let images get further ones with their next change; nothing may be in flight on them."""
        for image in self._images:
            if not image.read_only:
                image.writer.forget_identity()


def _fact(leaf: Leaf, image: Mapper | None, *, alone: bool, linked: bool) -> Fact:
    descriptor = leaf.descriptor()
    status = None if descriptor is None else os.fstat(descriptor)
    if status is None or not stat.S_ISREG(status.st_mode):
        text = "a job with a journal wants local files: nobody could tell whether this has changed meanwhile"
        raise Unsupported(text, filename=leaf.filename)
    kind = Kind.STILL if leaf.read_only else Kind.WRITTEN
    identities: tuple[str, ...] = ()
    if isinstance(image, VhdxNode):
        kind = Kind.LINKED if linked else Kind.IDENTITY
        identities = () if linked else (str(image.image.data_write_guid),)
    elif image is not None and kind is Kind.WRITTEN:
        kind = Kind.CLOSING if alone else Kind.LAGGING
    return Fact(os.path.realpath(leaf.filename), status.st_ino, kind, status.st_mtime_ns, identities)


def difference(then: Sequence[Fact], now: Sequence[Fact], last: LastChange) -> str | None:
    """Say in words what is not as it was; None where all is."""
    for before, present in zip(then, now, strict=False):
        if before.inode != present.inode:
            return f"'{present.name}' is another file than '{before.name}' was"
        if not _is_same(before, present, last):
            return f"'{present.name}' has changed since"
    return None if len(then) == len(now) else "other images belong to the disk"


def _is_same(before: Fact, present: Fact, last: LastChange) -> bool:
    if before.kind is Kind.LINKED:
        return True
    if before.kind is Kind.IDENTITY:
        return bool(present.identities) and present.identities[0] in before.identities
    if before.kind is Kind.STILL:
        return present.modified == before.modified
    if last.has_rested:
        return present.modified <= last.time + (GRACE if before.kind is Kind.CLOSING else 0)
    if last.is_all and before.kind is Kind.WRITTEN:
        return present.modified <= last.time
    return present.modified <= last.time + GRACE and present.modified < _process_began() + NOT_YET


def _process_began() -> int:
    """Return when this process began, in nanoseconds of the system's time."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[19])
    age = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - ticks * 10**9 // os.sysconf("SC_CLK_TCK")
    return time.time_ns() - age


def boot_id() -> str:
    """Return what is another after each start of the machine; the empty string where nobody says."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""
