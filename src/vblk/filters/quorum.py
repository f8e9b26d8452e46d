"""Several children that vote on what the disk holds: QEMU's `quorum`.

Owns: the vote, and what becomes of those who lose it. A child that fails, or reads
what most others do not, is reported (QUORUM_REPORT_BAD); no majority fails the
request (QUORUM_FAILURE).

Ordering rule: what is written over a bad child's bytes is voted on anew while
nobody else may change the range.
"""

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from vblk.errors import BlockError, OptionError, StorageError
from vblk.filters.blkverify import ContentsMismatch
from vblk.filters.copies import Answer, CopiesNode, first_difference, same_size, take
from vblk.graph.edge import Access, Permission
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.graph.site import Site
from vblk.options import bind, check_children

SECTOR = 512
CHILDREN_MAX = 32


@dataclass(slots=True)
class Options:
    """How many must agree, and what else.

    `blkverify`: two children that differ are an error that says where.
    `rewrite_corrupted`: what most children read is written to the others.
    `read_pattern` "fifo": the first child that can be read is believed.
    """

    vote_threshold: int
    blkverify: bool = False
    rewrite_corrupted: bool = False
    read_pattern: Literal["quorum", "fifo"] = "quorum"


class QuorumNode(CopiesNode):
    """A node whose children vote."""

    driver: ClassVar[str] = "quorum"

    def __init__(
        self,
        name: str,
        filename: str,
        *,
        read_only: bool,
        copies: Sequence[Node],
        options: Options,
        graph: Graph,
    ) -> None:
        """Ask `copies`; events are reported to the graph's listeners."""
        super().__init__(name, filename, read_only=read_only, copies=copies)
        self._options = options
        self._graph = graph
        if options.rewrite_corrupted and not read_only:
            self.own_access = Access(Permission.WRITE, self.own_access.shared)

    @property
    def vote_threshold(self) -> int:
        """How many children must agree."""
        return self._options.vote_threshold

    # Votes

    def judge(self, operation: str, offset: int, length: int, answers: Sequence[Answer]) -> None:
        """Raise the most frequent error when too few children made a change."""
        errors = self._report_errors(operation, offset, length, answers)
        if len(answers) - len(errors) < self._options.vote_threshold:
            self._fail(offset, length, errors)

    def _report_errors(
        self, operation: str, offset: int, length: int, answers: Sequence[Answer]
    ) -> list[BlockError]:
        errors: list[BlockError] = []
        for node, answer in zip(self.copies, answers, strict=True):
            if isinstance(answer, BlockError):
                errors.append(answer)
                self._report_bad(node, operation, offset, length, answer)
        return errors

    def _report_bad(
        self, node: Node, operation: str, offset: int, length: int, error: BlockError | None = None
    ) -> None:
        data: dict[str, Any] = {"type": operation}
        if error is not None:
            data["error"] = error.message
        self._graph.report("QUORUM_REPORT_BAD", {**data, "node-name": node.name, **_sectors(offset, length)})

    def _fail(self, offset: int, length: int, errors: Sequence[BlockError]) -> None:
        self._graph.report("QUORUM_FAILURE", {"reference": self.name, **_sectors(offset, length)})
        if errors:
            numbers = [error.errno for error in errors]
            raise max(errors, key=lambda error: numbers.count(error.errno))
        raise StorageError(errno.EIO, "too few children agree", filename=self.filename, offset=offset)

    async def read(self, offset: int, length: int) -> bytes:
        """Read what most children do."""
        if not length:
            return b""
        if self._options.read_pattern == "fifo":
            return await self._first(offset, length)
        async with self.locks.shared(offset, length):
            data, bad = self._counted(offset, length, await self._votes(offset, length))
        if bad and self._options.rewrite_corrupted and not self.read_only:
            await self._rewrite(offset, length)
        return data

    async def _votes(self, offset: int, length: int) -> list[Answer]:
        return await self.asked(lambda node: node.read(offset, length))

    async def _first(self, offset: int, length: int) -> bytes:
        errors: list[BlockError] = []
        async with self.locks.shared(offset, length):
            for node in self.copies:
                try:
                    return await node.read(offset, length)
                except BlockError as error:
                    errors.append(error)
                    self._report_bad(node, "read", offset, length, error)
        self._fail(offset, length, errors)
        raise AssertionError("unreachable")

    def _counted(
        self, offset: int, length: int, votes: Sequence[Answer], *, quiet: bool = False
    ) -> tuple[bytes, list[Node]]:
        """Return what most children read, and the children that read something else.

        Raises:
            StorageError: Too few agree.
        """
        errors = [] if quiet else self._report_errors("read", offset, length, votes)
        texts = [vote for vote in votes if isinstance(vote, bytes)]
        if len(texts) < self._options.vote_threshold:
            self._fail(offset, length, errors)
        if self._options.blkverify and texts[0] != texts[-1]:
            at = offset + first_difference(texts[0], texts[-1])
            raise ContentsMismatch(
                errno.EIO,
                f"quorum: offset={offset} bytes={length} contents mismatch at offset {at}",
                filename=self.filename,
            )
        winner = max(texts, key=texts.count)
        if texts.count(winner) < self._options.vote_threshold:
            self._fail(offset, length, [])
        bad = [
            node
            for node, vote in zip(self.copies, votes, strict=True)
            if isinstance(vote, bytes) and vote != winner
        ]
        for node in () if quiet else bad:
            self._report_bad(node, "read", offset, length)
        return winner, bad

    async def _rewrite(self, offset: int, length: int) -> None:
        """Write what most children read to those that read something else; their errors are reported."""
        async with self.locks.exclusive(offset, length):
            votes = await self._votes(offset, length)
            try:
                data, bad = self._counted(offset, length, votes, quiet=True)
            except StorageError:
                return  # the reader has its answer; the next one hears of this
            for node in bad:
                try:
                    await node.write(offset, data)
                except BlockError as error:
                    self._report_bad(node, "write", offset, length, error)

    def info(self) -> Mapping[str, Any]:
        """Nothing is special to this node."""
        return {}


def _sectors(offset: int, length: int) -> dict[str, int]:
    first = offset // SECTOR
    return {"sector-num": first, "sectors-count": -(-(offset + length) // SECTOR) - first}


def _check(options: Options, count: int) -> None:
    if count < 1:
        raise OptionError("Number of provided children must be 1 or more")
    if count > CHILDREN_MAX:
        raise OptionError(f"a quorum has at most {CHILDREN_MAX} children")
    if options.vote_threshold < 1:
        raise OptionError("Parameter 'vote-threshold' expects a value >= 1")
    if options.vote_threshold > count:
        raise OptionError("threshold may not exceed children count")
    if options.read_pattern == "fifo":
        if options.blkverify or options.rewrite_corrupted:
            name = "blkverify" if options.blkverify else "rewrite-corrupted"
            raise OptionError(f"{name}=on has no meaning with read-pattern=fifo: children are not compared")
        return
    if options.blkverify and (count != 2 or options.vote_threshold != 2):
        raise OptionError(
            "blkverify=on can only be set if there are exactly two files and vote-threshold is 2"
        )
    if options.rewrite_corrupted and options.blkverify:
        raise OptionError("rewrite-corrupted=on cannot be used with blkverify=on")


async def open_node(site: Site) -> QuorumNode:
    """Open the nodes of the list `children`, and let them vote from now on.

    Raises:
        OptionError: So many cannot vote so.
        StorageError: The children differ in size.
    """
    keys = [f"children.{number}" for number in range(len(site.options.children))]
    check_children(site.options, "quorum", *keys)
    options = bind(site.options.own, Options, "quorum")
    _check(options, len(keys))
    copies = [await site.child(key) for key in keys]
    same_size(copies, site.filename)
    node = QuorumNode(
        site.name,
        site.filename,
        read_only=site.read_only,
        copies=copies,
        options=options,
        graph=site.graph,
    )
    await take(site, node, keys, copies)
    return node
