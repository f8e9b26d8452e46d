"""The pure VHDX reader, driven over bytes in memory, without an event loop.

Owns: the smallest shell around `load_image`, `lookup`, `scan_image` and
`check_image` that reads what a guest sees. Fuzzing and properties use it; it
bounds what a case may cost.
"""

from collections.abc import Coroutine
from typing import Any, TypeVar

from vblk.extent import Kind, Missing
from vblk.formats.vhdx import VhdxImage, load_image

T = TypeVar("T")

PAGE = 4096
LOADS_MAX = 4
"""A lookup asks for BAT pages, then for bitmap pages, then has its answer."""


class OverBudget(AssertionError):
    """The reader asked for more than any image is worth."""


class SparseBytes:
    """A file of pieces in a sea of zeros, with a budget of bytes and calls."""

    def __init__(self, pieces: list[tuple[int, bytes]], length: int, budget: int = 256 << 20) -> None:
        self.pieces = [(at, data) for at, data in pieces if data]
        self.length = length
        self.budget = budget
        self.calls = 0

    def at(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes; fewer only at the end."""
        assert offset >= 0
        assert length >= 0
        length = max(0, min(length, self.length - offset))
        self.budget -= length
        self.calls += 1
        if self.budget < 0 or length > 16 << 20 or self.calls > 200_000:
            raise OverBudget(f"{length} bytes at {offset:#x}, call {self.calls}")
        end = offset + length
        here = [(at, data) for at, data in self.pieces if at < end and at + len(data) > offset]
        if not here:
            return bytes(length)
        page = bytearray(length)
        for start, data in here:
            first, last = max(start, offset), min(start + len(data), end)
            page[first - offset : last - offset] = data[first - start : last - start]
        return bytes(page)

    async def read(self, offset: int, length: int) -> bytes:
        """Return as `at`; never suspends."""
        return self.at(offset, length)


def run(call: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends."""
    try:
        call.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    finally:
        call.close()
    raise AssertionError("the pure reader suspended")


class DirectDisk:
    """An image and, for a differencing one, its parent, read without drivers."""

    def __init__(
        self,
        file: SparseBytes,
        parent: "DirectDisk | None" = None,
        *,
        strict: bool = False,
        name: str = "fuzzed",
    ) -> None:
        self.file = file
        self.parent = parent
        self.image: VhdxImage = run(load_image(file.read, file.length, filename=name, strict=strict))
        self.pages: dict[int, bytes] = {}

    @property
    def size(self) -> int:
        """The virtual size in bytes."""
        return self.image.virtual_size

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes."""
        result = bytearray()
        while len(result) < length:
            at = offset + len(result)
            result += self._read_step(at, min(length - len(result), self.image.lookup_step))
        return bytes(result)

    def _read_step(self, offset: int, length: int) -> bytes:
        simple = self.image.locate(offset, length, self.pages)
        extents = self._lookup(offset, length)
        assert sum(extent.length for extent in extents) == length
        assert extents[0].guest_offset == offset
        if simple is not None:
            assert len(extents) == 1
            assert (extents[0].kind, extents[0].file_offset) == (Kind.DATA, simple)
        result = bytearray()
        for extent in extents:
            assert extent.length > 0
            assert extent.guest_offset == offset + len(result)
            if extent.kind is Kind.DATA:
                assert extent.file_offset is not None
                data = self.file.at(extent.file_offset, extent.length)
                assert len(data) == extent.length, "an extent reaches beyond the file"
                result += data
            elif extent.kind is Kind.ABSENT and self.parent is not None:
                result += self._read_parent(self.parent, extent.guest_offset, extent.length)
            else:
                result += bytes(extent.length)
        return bytes(result)

    @staticmethod
    def _read_parent(parent: "DirectDisk", offset: int, length: int) -> bytes:
        inside = max(0, min(length, parent.size - offset))
        return (parent.read(offset, inside) if inside else b"").ljust(length, b"\0")

    def _lookup(self, offset: int, length: int) -> list[Any]:
        for _ in range(LOADS_MAX):
            answer = self.image.lookup(offset, length, self.pages)
            if not isinstance(answer, Missing):
                return answer
            assert answer.ranges
            for start, count in answer.ranges:
                assert start % PAGE == count % PAGE == 0
                assert count
                data = self.image.patch(start, self.file.at(start, count), count)
                for at in range(0, count, PAGE):
                    assert start + at not in self.pages, "a page was asked for twice"
                    self.pages[start + at] = data[at : at + PAGE]
        raise OverBudget("a lookup that never has all its pages")
