"""A cache of metadata pages, with pins.

Owns: which pages are in memory and which leave first. It does no I/O and knows
no format: `Page` is bytes, or what a format has parsed them into. Its ordering
rule: a pinned page never leaves, so a lookup that pinned what it missed finds
it at the next try.
"""

from collections import OrderedDict
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Generic, TypeVar

Page = TypeVar("Page")


class PageCache(Generic[Page]):
    """Pages by their offset; the least recently used unpinned page leaves first.

    "Recently" is counted in two generations: a page that is used moves from the
    old one to the young one, pages leave from the old one, the longest there
    first, and when the young one is half of all it joins the old one's end. So
    a hot page costs one dictionary lookup, and whatever was used during the
    last half of a cache's worth of new pages is still there.

    Concurrency: every method runs to completion.
    """

    def __init__(self, page_size: int = 4096, *, limit_pages: int) -> None:
        """Keep at most `limit_pages` (1 or more) unless more than that are pinned.

        `page_size` is in bytes; all offsets must be multiples of it.
        """
        if page_size < 1 or limit_pages < 1:
            raise ValueError("a page cache needs a page size and room for at least one page")
        self.page_size = page_size
        self._limit = limit_pages
        self._young: dict[int, Page] = {}
        self._old: OrderedDict[int, Page] = OrderedDict()
        self._pinned: dict[int, Page] = {}
        self._pins: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old) + len(self._pinned)

    def __contains__(self, offset: int) -> bool:
        return offset in self._young or offset in self._old or offset in self._pinned

    def get(self, offset: int) -> Page | None:
        """Return the page at `offset` and count it as used, or None."""
        try:
            return self._young[offset]
        except KeyError:
            page = self._pinned.get(offset)
        if page is not None:
            return page
        page = self._old.pop(offset, None)
        if page is not None:
            self._make_young(offset, page)
        return page

    def put(self, offset: int, page: Page) -> None:
        """Keep or replace the page at `offset`, and let others go beyond the limit."""
        assert offset % self.page_size == 0, "not the offset of a page"
        if offset in self._pins:
            self._pinned[offset] = page
        else:
            self._old.pop(offset, None)
            self._make_young(offset, page)
        self._evict()

    def _make_young(self, offset: int, page: Page) -> None:
        self._young[offset] = page
        if len(self._young) > self._limit // 2:
            self._age()

    def _age(self) -> None:
        self._old.update(self._young)
        self._young.clear()

    def _evict(self) -> None:
        while len(self) > self._limit and len(self) > len(self._pinned):
            if not self._old:
                self._age()
            self._old.popitem(last=False)

    def pin(self, offset: int) -> None:
        """Keep the page at `offset`, here already or put later, until `unpin`. Pins count."""
        count = self._pins.get(offset, 0)
        self._pins[offset] = count + 1
        if count == 0:
            for generation in (self._young, self._old):
                page = generation.pop(offset, None)
                if page is not None:
                    self._pinned[offset] = page

    def unpin(self, offset: int) -> None:
        """Take one pin back; without pins the page counts as just used."""
        count = self._pins[offset] - 1
        if count:
            self._pins[offset] = count
            return
        del self._pins[offset]
        page = self._pinned.pop(offset, None)
        if page is not None:
            self._make_young(offset, page)
            self._evict()

    @contextmanager
    def pinned(self, offsets: Iterable[int]) -> Generator[None, None, None]:
        """Pin all of `offsets` for the length of a `with` block."""
        taken: list[int] = []
        try:
            for offset in offsets:
                self.pin(offset)
                taken.append(offset)
            yield
        finally:
            for offset in taken:
                self.unpin(offset)

    def drop(self, offset: int) -> None:
        """Forget the page at `offset`; a pin on it stays, for what is put next."""
        for generation in (self._young, self._old, self._pinned):
            generation.pop(offset, None)

    def clear(self) -> None:
        """Forget all pages; pins stay."""
        for generation in (self._young, self._old, self._pinned):
            generation.clear()
