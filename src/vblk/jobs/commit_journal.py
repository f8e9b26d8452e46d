"""How far a commit of layers is, durably: so that a later run goes on from there.

Owns: what the journal of a commit says, and what tells that a layer or the base is not
what it was. The journal stands beside the base; its file is `vblk.jobs.journal_file`'s.

The first line says which layers go into which base. Each further one tells that
everything before an offset of the disk is in the base, which data write GUIDs a VHDX
base may have, and at last that the files of the images above name the base.

A layer is known by its inode, length and time of writing, a VHDX layer by its inode and
data write GUID, for its locator changes. Other bases than VHDX may have been written to
since the last line; so the time of the journal's last change is kept up with the job's
writes, and a base that was written to later is not believed.

Ordering rules:
- What a line says is durable before the line is written; but the coming GUID of a base
  is noted before the base gets it.
- The journal goes when nothing is left to be done.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from vblk.codec.guid import Guid
from vblk.drivers.vhdx import VhdxNode
from vblk.errors import JobError, Unsupported
from vblk.graph.node import Node
from vblk.jobs.identity import GRACE, boot_id
from vblk.jobs.journal_file import JournalFile
from vblk.jobs.live_chain import Stretch, storage_of, without_filters

GRACE_POWER: Final = 60 * 10**9
"""As `GRACE`, where the machine went down: then either file's time may not have become durable."""

_VERSION: Final = 1


class Member(msgspec.Struct, frozen=True, array_like=True):
    """A layer: its file's name, inode, length in bytes and time of writing; or for these two its GUID."""

    name: str
    inode: int
    length: int
    modified: int
    identity: str

    @property
    def state(self) -> tuple[int, int, str]:
        """What is another when somebody has changed it."""
        return self.length, self.modified, self.identity


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    commit: tuple[Member, ...]
    """The layers, the uppermost first."""
    base: int
    """The base's inode."""
    boot: str


class _Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    done: int
    base: tuple[str, ...] = ()
    """The data write GUIDs that the base may have, if it is VHDX."""
    at_rest: int = 0
    """When the base was last written, in nanoseconds, if the job has let go of it."""
    above: int = 0
    """So many images stand on the top, and will name the base."""
    is_linked: bool = False
    """Whether all of them do."""


def _file_of(node: Node) -> tuple[str, os.stat_result]:
    """Return the local file below a node, and its status."""
    leaf = storage_of(node)
    status = None
    if leaf.driver == "file":
        with suppress(OSError):
            status = os.stat(leaf.filename)
    if status is None:
        text = "a commit of it cannot be resumed: nobody can tell whether it has changed meanwhile"
        raise Unsupported(text, filename=node.filename)
    return leaf.filename, status


def _identity(node: Node) -> str:
    """Return the data write GUID of a VHDX image; of others the empty string."""
    return str(node.image.data_write_guid) if isinstance(node, VhdxNode) else ""


def _member(layer: Node) -> Member:
    path, status = _file_of(layer)
    identity = _identity(layer)
    times = (0, 0) if identity else (status.st_size, status.st_mtime_ns)
    return Member(path, status.st_ino, *times, identity)


def _inodes(layers: Iterable[Member]) -> list[int]:
    return [layer.inode for layer in layers]


class CommitJournal:
    """The journal of the commits into one base.

    Every method runs to completion, and may wait for the disk.
    """

    def __init__(self, stretch: Stretch) -> None:
        """Look at the layers and the base as they are before the job begins.

        Raises:
            Unsupported: One of them is no file here.
        """
        assert stretch.base is not None
        base = without_filters(stretch.base)
        self._path, status = _file_of(base)
        self._file = JournalFile(self._path)
        self._layers = tuple(_member(layer) for layer in stretch.layers)
        self._identity = _identity(base)
        self._modified = status.st_mtime_ns
        self._inode = status.st_ino
        self._mark = _Mark(0)
        self._begun = False

    @property
    def done(self) -> int:
        """Everything before this offset of the disk is in the base, durably."""
        return self._mark.done

    @property
    def path(self) -> str:
        """Where the journal is."""
        return self._file.path

    def claim(self) -> None:
        """Hold the journal until `close`, and know what it says.

        Raises:
            JobError: Somebody else holds it, or it is about something else than what is there now.
            StorageError: It cannot be read or made.
        """
        self._file.open()
        try:
            said = self._file.read(_Head, _Mark)
            if said is not None:
                head, marks = said
                self._judge(head, marks[-1] if marks else _Mark(0))
            self._file.cut(keep=self._begun)
        except BaseException:
            self._file.close()
            raise

    def _judge(self, head: _Head, mark: _Mark) -> None:
        """Take over what the journal says, unless it is of a commit that came to its end."""
        if head.version != _VERSION:
            raise self._file.not_mine(f"it is of version {head.version}")
        if mark.is_linked and _inodes(head.commit) != _inodes(self._layers):
            return
        if _inodes(head.commit) != _inodes(self._layers):
            names = ", ".join(f"'{each.name}'" for each in head.commit)
            raise self._file.not_mine(f"the commit that was begun is of {names}")
        for then, now in zip(head.commit, self._layers, strict=True):
            if then.state != now.state:
                raise self._file.not_mine(f"'{now.name}' has changed since the commit was begun")
        if head.base != self._inode or not self._is_as_left(head, mark):
            raise self._file.not_mine(f"'{self._path}' has changed since the commit was begun")
        self._begun, self._mark = True, mark

    def _is_as_left(self, head: _Head, mark: _Mark) -> bool:
        """Tell whether nobody but the job has changed the base."""
        if mark.base:
            return self._identity in mark.base
        if mark.at_rest:
            return self._modified == mark.at_rest
        grace = GRACE if head.boot == boot_id() else GRACE_POWER
        return self._modified <= self._file.touched + grace

    def begin(self, coming: Guid | None) -> None:
        """Note what is committed, before the base is changed; a VHDX base gets a GUID that is coming.

        Raises:
            StorageError: The journal cannot be written; for the other methods too.
        """
        if not self._begun:
            self._file.append(_Head(_VERSION, self._layers, self._inode, boot_id()))
            self._begun = True
        names = () if coming is None else (self._identity, str(coming))
        self._add(_Mark(self.done, names))

    def note(self, done: int) -> None:
        """Note that everything before an offset of the disk is durable in the base."""
        self._add(_Mark(done, self._mark.base))

    def touch(self) -> None:
        """Note that the base is being written to."""
        self._file.touch()

    def linking(self, above: int) -> None:
        """Note that all is in the base, and that so many images will name it."""
        self._add(_Mark(self.done, self._mark.base, above=above))

    def linked(self) -> None:
        """Note that they do."""
        self._add(msgspec.structs.replace(self._mark, is_linked=True))

    def rest(self) -> None:
        """Note that the job has let go of the base, which may be written by nobody else."""
        if self._begun:
            modified = os.stat(self._path).st_mtime_ns
            self._add(msgspec.structs.replace(self._mark, at_rest=modified))

    def _add(self, mark: _Mark) -> None:
        self._file.append(mark)
        self._mark = mark

    def end(self) -> None:
        """Forget the commit: nothing is left to be done."""
        self._file.remove()

    def close(self) -> None:
        """Let go of the journal. Idempotent."""
        if not self._begun:
            self._file.remove()
        self._file.close()


class FinishedCommit:
    """What is left of a commit that died when its layers were out of the chain already.

    Every method runs to completion, and may wait for the disk.
    """

    def __init__(self, chain: Sequence[Node]) -> None:
        """Claim the journal beside the last image of a chain, if it is about such a commit.

        Raises:
            JobError: It is not, or somebody else holds it.
            BlockError: There can be none.
        """
        path, status = _file_of(without_filters(chain[-1]))
        self._file = JournalFile(path)
        self._file.open()
        try:
            said = self._file.read(_Head, _Mark)
            if said is None:
                self._file.remove()
                raise JobError("no commit to it is to be resumed", filename=path)
            head, marks = said
            there = {_file_of(without_filters(node))[1].st_ino for node in chain}
            mark = marks[-1] if marks else _Mark(0)
            if head.base != status.st_ino or not mark.above or there & set(_inodes(head.commit)):
                raise self._file.not_mine("it is about another chain")
        except BaseException:
            self._file.close()
            raise
        self._layers = head.commit
        self.is_linked = mark.is_linked or mark.above == 1
        """Whether nobody stands on the layers any more, as far as the commit knew of them."""

    def left(self) -> list[str]:
        """Return the layers' files that are still there, the uppermost first."""
        paths: list[str] = []
        for layer in self._layers:
            with suppress(OSError):
                if os.stat(layer.name).st_ino == layer.inode:
                    paths.append(layer.name)
        return paths

    def end(self) -> None:
        """Forget the commit: nothing is left to be done."""
        self._file.remove()

    def close(self) -> None:
        """Let go of the journal. Idempotent."""
        self._file.close()
