"""The regions of a disk, and what a file says of each: that it is done, or not.

Owns: what is to stand in the file, what stands there, and what may stand there while
it is being written. It reads and writes nothing.

Ordering rule: between `changes` and `stored` nobody else calls them. What was set or
cleared meanwhile is of the next time.
"""

from collections.abc import Iterable, Iterator
from typing import Final

PAGE: Final = 4096
"""Regions whose bytes are written to the file together."""

_NO, _YES, _TO_NO, _TO_YES = range(4)
_WANTED: Final = bytes((0, 1, 0, 1)) + bytes(252)
"""What the file is to say for each of the four."""


class RegionMap:
    """A byte a region. All are not done at first, and the file says so."""

    def __init__(self, count: int, content: bytes = b"") -> None:
        """Know `count` regions; `content` is what the file says already, a 0 or a 1 for each."""
        self._regions = bytearray(content or count)
        assert len(self._regions) == count
        self._moved: set[int] = set()
        """Regions of which the file is to say something else since it was last written."""
        self._leaving: dict[int, int] = {}
        """What is being written of those that had moved then."""

    def __len__(self) -> int:
        return len(self._regions)

    def surely_undone(self, first: int, stop: int) -> bool:
        """Tell whether the file says of none of a range that it is done, whatever happens."""
        return self._regions.count(_NO, first, stop) == stop - first

    def surely_done(self, first: int, stop: int) -> bool:
        """Tell whether the file says of all of a range that it is done, whatever happens."""
        return self._regions.count(_YES, first, stop) == stop - first

    def is_wanted(self, region: int) -> bool:
        """Tell whether the file is to say that a region is done."""
        return bool(self._regions[region] & 1)

    def set(self, regions: Iterable[int]) -> None:
        """Let the file say, when it is next written, that these are done."""
        for region in regions:
            if self._regions[region] != _YES:
                self._regions[region] = _TO_YES
                self._moved.add(region)

    def clear(self, first: int, stop: int) -> bool:
        """Let it say that none of a range is; tell whether it did not say so surely."""
        if self.surely_undone(first, stop):
            return False
        for region in range(first, stop):
            if self._regions[region] != _NO:
                self._regions[region] = _TO_NO
                self._moved.add(region)
        return True

    def content(self) -> bytes:
        """Return what the file is to say."""
        return bytes(self._regions.translate(_WANTED))

    def undone(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the runs of a range of which the file is not to say that they are done: (first, stop)."""
        content = self._regions[first:stop].translate(_WANTED)
        at = content.find(0)
        while at >= 0:
            end = content.find(1, at)
            end = len(content) if end < 0 else end
            yield first + at, first + end
            at = content.find(0, end)

    def changes(self) -> dict[int, bytes]:
        """Return the pages, by number, as they are to be in the file."""
        self._leaving = {region: self._regions[region] & 1 for region in self._moved}
        self._moved.clear()
        pages = {region // PAGE for region in self._leaving}
        return {page: bytes(self._page(page)) for page in pages}

    def _page(self, page: int) -> bytearray:
        return self._regions[page * PAGE : (page + 1) * PAGE].translate(_WANTED)

    def stored(self) -> None:
        """Note that the file says, durably, what `changes` returned."""
        for region, said in self._leaving.items():
            if self._regions[region] & 1 == said:
                self._regions[region] = said
