"""Two children that must hold the same disk: QEMU's `blkverify`.

Owns: the comparison. One child, `raw`, is the truth; the other, `test`, is what is
being tested. A difference is an error that says where it is, at every read of it.
"""

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vblk.errors import BlockError, StorageError
from vblk.filters.copies import Answer, CopiesNode, first_difference, same_size, take
from vblk.graph.site import Site
from vblk.options import bind, check_children


@dataclass(slots=True)
class Options:
    """There are none."""


class ContentsMismatch(StorageError):
    """Children that must hold the same bytes do not."""


class VerifyNode(CopiesNode):
    """A node that asks two children everything and compares their answers."""

    driver: ClassVar[str] = "blkverify"

    def judge(self, operation: str, offset: int, length: int, answers: Sequence[Answer]) -> None:
        """Raise what the children raised, or that only one of them did."""
        raw, test = answers
        if isinstance(raw, BlockError) and isinstance(test, BlockError):
            raise test
        for answer, name in ((raw, "raw"), (test, "test")):
            if isinstance(answer, BlockError):
                raise ContentsMismatch(
                    errno.EIO,
                    f"blkverify: {operation} offset={offset} bytes={length} "
                    f"only the child '{name}' failed: {answer}",
                    filename=self.filename,
                ) from answer

    async def read(self, offset: int, length: int) -> bytes:
        """Read from both, and compare."""
        if not length:
            return b""
        async with self.locks.shared(offset, length):
            answers = await self.asked(lambda node: node.read(offset, length))
        self.judge("read", offset, length, answers)
        raw, test = answers
        assert isinstance(raw, bytes)
        assert isinstance(test, bytes)
        if raw != test:
            raise ContentsMismatch(
                errno.EIO,
                f"blkverify: read offset={offset} bytes={length} "
                f"contents mismatch at offset {offset + first_difference(raw, test)}",
                filename=self.filename,
            )
        return test

    def info(self) -> Mapping[str, Any]:
        """Nothing is special to this filter."""
        return {}


async def open_node(site: Site) -> VerifyNode:
    """Open the nodes under the keys `raw` and `test`, and compare them from now on."""
    check_children(site.options, "blkverify", "raw", "test")
    bind(site.options.own, Options, "blkverify")
    copies = [await site.child(key) for key in ("raw", "test")]
    same_size(copies, site.filename)
    node = VerifyNode(site.name, site.filename, read_only=site.read_only, copies=copies)
    await take(site, node, ("raw", "test"), copies)
    return node
