"""The sample that the catalogue of bad inputs breaks, case by case.

Owns: the sample file, what a guest must still see of it, and the writing of
dirty logs over it. It must not know how a reader is called.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from tests.support.vhdx.chain import Chain
from tests.support.vhdx.image import Block, Parts, State, Vhdx
from tests.support.vhdx.journal import Entry, Page, Zeros
from tests.support.vhdx.model import Model, pattern
from tests.support.vhdx.records import GIB, MIB
from vblk.graph.site import ChainRules


def filled(tag: int, number: int, block_size: int = MIB) -> Block:
    """Return a present block whose bytes say `tag` and where they belong."""
    return Block(State.FULLY_PRESENT, pattern(tag, number * block_size, MIB))


def three_blocks(**own: Any) -> Vhdx:
    """Return a disk of 16 MiB whose first three blocks are filled."""
    vhdx = replace(Vhdx(), **own)
    for number in range(min(3, vhdx.block_count)):
        vhdx.blocks.setdefault(number, filled(number + 1, number, vhdx.block_size))
    return vhdx


class Subject:
    """One file under test; a case changes `parts`, or `path`, `model` and `rules` as a whole.

    `rules` are what the user says about parents. `damaged` are the guest
    ranges that must answer with an error; everything else equals `model`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "subject.vhdx"
        self.rules = ChainRules()
        self.damaged: list[tuple[int, int]] = []
        self.written = False
        self.rebuild()

    def rebuild(self, vhdx: Vhdx | None = None, **own: Any) -> Parts:
        """Start from another description: the three blocks with `own` changes, or `vhdx`."""
        self.vhdx = three_blocks(**own) if vhdx is None else vhdx
        self.parts = self.vhdx.assemble()
        self.model = self.vhdx.model() if self.vhdx.locator is None else Model(self.vhdx.size)
        return self.parts

    def chain(self, **own: Any) -> Chain:
        """Return a chain whose base has 16 MiB with data in its first three blocks."""
        chain = Chain(self.folder)
        same: dict[str, Any] = {"size": 16 * MIB}
        chain.base([(0, 3 * MIB)], **(same | own))
        return chain

    def use(self, chain: Chain) -> None:
        """Let the top of a chain be the file under test."""
        self.path, self.vhdx, self.model = chain.top.path, chain.top.vhdx, chain.top.model
        self.written = True

    def write(self) -> Path:
        """Write the file unless the case did so itself; return its path."""
        if not self.written:
            self.parts.write(self.path)
            self.written = True
        return self.path

    def write_bytes(self, data: bytes) -> None:
        """Let the file be these bytes."""
        self.path.write_bytes(data)
        self.written = True

    def lose(self, block: int, count: int = 1) -> None:
        """Expect errors from `count` blocks."""
        self.damaged.append((block * self.vhdx.block_size, count * self.vhdx.block_size))


class Journal:
    """A dirty log over the subject: a disk of 2 GiB whose blocks 512 apart lie in different BAT pages."""

    def __init__(self, subject: Subject, **own: Any) -> None:
        self.subject = subject
        same: dict[str, Any] = {"size": 2 * GIB}
        self.parts = subject.rebuild(**(same | own))
        self.guid: UUID = uuid4()
        self.parts.dirty(self.guid)

    def map(self, block: int, *, seen: bool = True) -> Page:
        """Put a block into the file and return the page that maps it; `seen` if replay must show it."""
        offset = self.parts.append(MIB)
        tag = 100 + block
        data = pattern(tag, block * MIB, MIB)
        self.parts.payload[1_000_000 + block] = (offset, data)
        if seen:
            self.subject.model.write(block * MIB, data)
        return self.page(block, offset | State.FULLY_PRESENT)

    def page(self, block: int, entry: int) -> Page:
        """Return a page of the BAT in which `block` has another entry, beside what the file has."""
        at, page = self.parts.bat_page(block, entry)
        return Page(at, page)

    def entry(self, sequence: int, *descriptors: Page | Zeros, **own: Any) -> Entry:
        """Return an entry of this log that fits the file as it is now."""
        sizes: dict[str, Any] = {"flushed": self.parts.length // MIB * MIB, "last": self.parts.length}
        return Entry(sequence, self.guid, list(descriptors), **(sizes | own))

    def put(self, position: int, *entries: Entry) -> int:
        """Put entries one after another; return the position after the last."""
        for entry in entries:
            position = self.parts.put_log(position, entry)
        return position
