"""Metadata pages that were changed and are not in their places yet.

Owns: which pages those are, and how far each has come. It must not know what is
in them or how they are made durable.

Ordering rule: a page goes from `edit` to `freeze` (it is being logged), to
`logged` (the log has it, durably), to `applied` (its place has it, durably). In
memory there is one truth, the newest: pages are never changed, only replaced,
so that what is being logged stays as it was. A page is pinned until it is
applied: nobody may read its place in the file before.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from vblk.units import MIB

Range = tuple[int, int]
"""(file offset, length) in bytes."""


class PageStore(Protocol):
    """Where pages are kept in memory, by their file offsets."""

    def get(self, offset: int, /) -> bytes | None:
        """Return the page, or None: not in memory."""
        ...

    def put(self, offset: int, page: bytes, /) -> None:
        """Keep or replace the page."""
        ...

    def drop(self, offset: int, /) -> None:
        """Forget the page."""
        ...

    def pin(self, offset: int, /) -> None:
        """Keep the page in memory until `unpin`."""
        ...

    def unpin(self, offset: int, /) -> None:
        """Take one pin back."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes that become durable together.

    With `barrier` all payload must be durable before any of it may be.
    `released` is space that nothing names any more once it is.
    """

    pages: dict[int, bytes]
    barrier: bool
    released: list[Range]


class EditedPages:
    """The edited pages of one image.

    Args:
        store: Where pages are kept.
        batch_max: The most pages that one batch may have.

    Concurrency: every method runs to completion.
    """

    def __init__(self, store: PageStore, batch_max: int = MIB) -> None:
        self._store = store
        self.batch_max = batch_max
        self._dirty: dict[int, bytes] = {}
        self._logging: dict[int, bytes] = {}
        self._unapplied: dict[int, bytes] = {}
        self._barrier = False
        self._released: list[Range] = []
        self._reserved = 0

    @property
    def store(self) -> PageStore:
        """Where pages are kept."""
        return self._store

    @property
    def is_dirty(self) -> bool:
        """Whether something was edited that no batch has yet."""
        return bool(self._dirty)

    @property
    def unapplied(self) -> dict[int, bytes]:
        """The pages that are durable in the log and not in place."""
        return dict(self._unapplied)

    def try_reserve(self, pages: int) -> bool:
        """Reserve room in the next batch, or return False: log what there is first."""
        if pages > self.batch_max:
            raise ValueError(f"a change of {pages} pages is larger than the log can take at once")
        if len(self._dirty) + self._reserved + pages > self.batch_max:
            return False
        self._reserved += pages
        return True

    def unreserve(self, pages: int) -> None:
        """Give room back, used or not."""
        self._reserved -= pages

    def edit(self, offset: int, page: bytes) -> None:
        """Replace a page."""
        if not self._holds(offset):
            self._store.pin(offset)
        self._store.put(offset, page)
        self._dirty[offset] = page

    def require(self, *, barrier: bool, released: list[Range]) -> None:
        """Say what holds for the batch in which the latest edits go."""
        self._barrier = self._barrier or barrier
        self._released += released

    def freeze(self) -> Batch:
        """Take everything that was edited; what is edited from now on is the next batch's."""
        assert not self._logging, "a batch is being logged"
        batch = Batch(self._dirty, self._barrier, self._released)
        self._logging = self._dirty
        self._dirty, self._barrier, self._released = {}, False, []
        return batch

    def thaw(self, batch: Batch) -> None:
        """Take a batch back that could not be logged."""
        self._logging = {}
        self._dirty = {**batch.pages, **self._dirty}
        self._barrier = self._barrier or batch.barrier
        self._released = batch.released + self._released

    def logged(self, batch: Batch) -> None:
        """Take note that a batch is durable in the log."""
        self._logging = {}
        self._unapplied.update(batch.pages)

    def applied(self, pages: dict[int, bytes]) -> None:
        """Take note that pages are durable in their places."""
        for offset, page in pages.items():
            if self._unapplied.get(offset) is page:
                del self._unapplied[offset]
                if not self._holds(offset):
                    self._store.unpin(offset)

    def _holds(self, offset: int) -> bool:
        return offset in self._dirty or offset in self._logging or offset in self._unapplied


class PageEditor:
    """Pages under edit, each copied once however many edits it takes."""

    def __init__(self, edits: EditedPages) -> None:
        self._edits = edits
        self._open: dict[int, bytearray] = {}

    def at(self, offset: int) -> bytearray:
        """Return the page, to be changed in place; it is in memory."""
        page = self._open.get(offset)
        if page is None:
            present = self._edits.store.get(offset)
            assert present is not None, "a plan pins the pages that it edits"
            page = self._open[offset] = bytearray(present)
        return page

    def peek(self, offset: int) -> bytes | bytearray | None:
        """Return the page as it is now, or None: not in memory."""
        return self._open.get(offset) or self._edits.store.get(offset)

    def opened(self) -> Iterable[tuple[int, bytearray]]:
        """Return all pages under edit, by their file offsets."""
        return self._open.items()

    def finish(self) -> None:
        """Let what was changed be the pages from now on."""
        for offset, page in self._open.items():
            self._edits.edit(offset, bytes(page))
