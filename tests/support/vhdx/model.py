"""What a guest sees, as plainly as it can be said: pages of bytes with holes.

Owns: the truth that readers are compared with. It must not know any format.
"""

import hashlib
import struct

_PAGE = 64 * 1024


class Model:
    """A disk of `size` bytes, zero where nothing was written."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._pages: dict[int, bytearray] = {}

    def copy(self, size: int | None = None) -> "Model":
        """Return a copy cut or grown with zeros to `size`."""
        twin = Model(self.size if size is None else size)
        twin._pages = {index: bytearray(page) for index, page in self._pages.items()}
        if twin.size < self.size:
            tail = twin.size % _PAGE
            last = twin.size // _PAGE
            twin._pages = {index: page for index, page in twin._pages.items() if index * _PAGE < twin.size}
            if last in twin._pages:
                twin._pages[last][tail:] = bytes(_PAGE - tail)
        return twin

    def write(self, offset: int, data: bytes) -> None:
        """Put `data` at `offset`; what lies past the end is lost."""
        data = data[: max(0, self.size - offset)]
        position = 0
        while position < len(data):
            index, within = divmod(offset + position, _PAGE)
            count = min(_PAGE - within, len(data) - position)
            page = self._pages.setdefault(index, bytearray(_PAGE))
            page[within : within + count] = data[position : position + count]
            position += count

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros."""
        end = min(offset + length, self.size)
        for index in [each for each in self._pages if offset < (each + 1) * _PAGE and each * _PAGE < end]:
            first = max(offset - index * _PAGE, 0)
            last = min(end - index * _PAGE, _PAGE)
            self._pages[index][first:last] = bytes(last - first)

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes."""
        result = bytearray(length)
        position = 0
        while position < length:
            index, within = divmod(offset + position, _PAGE)
            count = min(_PAGE - within, length - position)
            page = self._pages.get(index)
            if page is not None:
                result[position : position + count] = page[within : within + count]
            position += count
        return bytes(result)

    def pages(self) -> list[int]:
        """Return the offsets of all 64 KiB pages that were ever written."""
        return sorted(index * _PAGE for index in self._pages)

    def sha256(self) -> str:
        """Return the digest of the whole disk."""
        digest = hashlib.sha256()
        for offset in range(0, self.size, 1 << 20):
            digest.update(self.read(offset, min(1 << 20, self.size - offset)))
        return digest.hexdigest()


def pattern(tag: int, offset: int, length: int) -> bytes:
    """Return bytes of which every 16 say `tag` and where on the disk they belong."""
    first = offset // 16
    count = -(-(offset + length) // 16) - first
    words = [value for index in range(first, first + count) for value in (tag, index)]
    whole = struct.pack(f"<{2 * count}Q", *words)
    return whole[offset - first * 16 :][:length]
