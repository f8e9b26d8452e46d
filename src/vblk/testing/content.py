"""The bytes of a file that is mostly holes, cheap to copy and to take apart by sectors.

Owns: `Content`. Pages are immutable, so that copies share them; a page of zeros
is never kept.
"""

from collections.abc import Iterator
from pathlib import Path

PAGE = 4096
SECTOR = 512
ZERO_PAGE = bytes(PAGE)
ZERO_SECTOR = bytes(SECTOR)
SECTORS_PER_PAGE = PAGE // SECTOR


class Content:
    """A sparse file of `length` bytes in memory.

    What lies past the end is gone: growing the file again shows zeros there.
    """

    __slots__ = ("length", "pages")

    def __init__(self, length: int = 0, pages: dict[int, bytes] | None = None) -> None:
        self.length = length
        self.pages: dict[int, bytes] = {} if pages is None else pages

    @classmethod
    def load(cls, path: Path) -> "Content":
        """Return what is in a file."""
        content = cls(path.stat().st_size)
        with path.open("rb") as file:
            for index in range(-(-content.length // PAGE)):
                content.put_page(index, file.read(PAGE).ljust(PAGE, b"\0"))
        return content

    def save(self, path: Path) -> None:
        """Write a sparse file with the same bytes."""
        with path.open("wb") as file:
            for index, page in sorted(self.pages.items()):
                file.seek(index * PAGE)
                file.write(page)
            file.truncate(self.length)

    def copy(self) -> "Content":
        """Return a copy that shares the pages."""
        return Content(self.length, dict(self.pages))

    def put_page(self, index: int, page: bytes) -> None:
        """Replace page number `index` by PAGE bytes."""
        if page == ZERO_PAGE:
            self.pages.pop(index, None)
        else:
            self.pages[index] = page

    def sector(self, number: int) -> bytes:
        """Return the SECTOR bytes of a sector, zeros past the end."""
        index, within = divmod(number, SECTORS_PER_PAGE)
        page = self.pages.get(index)
        return ZERO_SECTOR if page is None else page[within * SECTOR : (within + 1) * SECTOR]

    def sectors(self, first: int = 0) -> Iterator[int]:
        """Yield the numbers of the sectors, from `first` on, that lie in pages with content."""
        for index in sorted(self.pages):
            yield from range(max(first, index * SECTORS_PER_PAGE), (index + 1) * SECTORS_PER_PAGE)

    def patch(self, sectors: dict[int, bytes]) -> None:
        """Replace sectors, given by number."""
        touched: dict[int, bytearray] = {}
        for number, data in sectors.items():
            index, within = divmod(number, SECTORS_PER_PAGE)
            page = touched.get(index)
            if page is None:
                page = touched[index] = bytearray(self.pages.get(index, ZERO_PAGE))
            page[within * SECTOR : (within + 1) * SECTOR] = data
        for index, page in touched.items():
            self.put_page(index, bytes(page))

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes, zeros past the end."""
        first, start = divmod(offset, PAGE)
        if start + length <= PAGE:
            return self.pages.get(first, ZERO_PAGE)[start : start + length]
        last = (offset + length - 1) // PAGE
        data = b"".join([self.pages.get(index, ZERO_PAGE) for index in range(first, last + 1)])
        return data[start : start + length]

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Put bytes in, growing the file where they pass its end."""
        position = 0
        while position < len(data):
            index, start = divmod(offset + position, PAGE)
            count = min(PAGE - start, len(data) - position)
            page = bytearray(self.pages.get(index, ZERO_PAGE))
            page[start : start + count] = data[position : position + count]
            self.put_page(index, bytes(page))
            position += count
        self.length = max(self.length, offset + len(data))

    def clear(self, offset: int, length: int) -> None:
        """Make a range read as zeros, without growing the file."""
        end = offset + length
        for index in [each for each in self.pages if offset < (each + 1) * PAGE and each * PAGE < end]:
            start, stop = max(offset - index * PAGE, 0), min(end - index * PAGE, PAGE)
            page = self.pages[index]
            self.put_page(index, page[:start] + bytes(stop - start) + page[stop:])

    def truncate(self, length: int) -> None:
        """Cut the file, or grow it with a hole."""
        if length < self.length:
            self.clear(length, self.length - length)
        self.length = length
