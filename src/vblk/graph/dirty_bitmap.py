"""Dirty bitmaps: what of a node was changed since somebody last looked.

Owns: the bits, their arithmetic, and who may do what with a bitmap. How a node
comes to mark them is `vblk.graph.recording`. It moves no bytes and never waits.

Ordering rule: a range is marked when its change has ended, whatever became of it.
Whoever copies what is dirty clears the marks first and reads then: what changes
in between is marked again.

Source: QEMU's QAPI reference, BlockDirtyInfo; its words for what is refused.
"""

from collections.abc import Iterator
from hashlib import sha256
from typing import Any, Final

from vblk.codec.bits import bit_runs, clear_bits, set_bits
from vblk.errors import GraphError, OptionError
from vblk.units import KIB, is_power_of_two

GRANULARITY_DEFAULT: Final = 64 * KIB
"""Bytes of the disk to a bit, unless the format's clusters are smaller."""

NAME_MAX: Final = 1023

UNITS_MAX: Final = 1 << 33
"""The most bits of a bitmap: 1 GiB of memory when dirt and cleanness are mixed everywhere."""

_CHUNK_SHIFT: Final = 18
_CHUNK: Final = 1 << _CHUNK_SHIFT
"""Bits that are kept together. Chunks without a mark take no memory, those all dirty share one."""

_FULL: Final = b"\xff" * (_CHUNK >> 3)

Chunks = dict[int, bytes | bytearray]
"""Marks by chunk; what is `bytes` is shared and not changed in place."""


def granularity_for(cluster_size: int) -> int:
    """Return the default granularity for a format's clusters or blocks, both in bytes; 0: it has none."""
    return min(GRANULARITY_DEFAULT, max(4 * KIB, cluster_size)) if cluster_size else GRANULARITY_DEFAULT


class DirtyBitmap:
    """One bitmap of one node. Offsets and lengths are guest bytes.

    `enabled` says whether changes are marked; `busy` that an export or a job
    holds it, so that nobody else may change or remove it; `persistent` that the
    node's image keeps it, and `inconsistent` that it kept it when nobody marked.
    """

    def __init__(self, name: str, size: int, granularity: int, *, enabled: bool = True) -> None:
        """Make a bitmap without marks for a disk of `size` bytes.

        Raises:
            OptionError: The name or the granularity cannot be.
        """
        if not name:
            raise OptionError("Bitmap name cannot be empty")
        if len(name.encode()) > NAME_MAX:
            raise OptionError("Bitmap name too long")
        if granularity < 512 or not is_power_of_two(granularity):
            raise OptionError("Granularity must be power of 2 and at least 512")
        self.name = name
        self.granularity = granularity
        self.require_room(size)
        self.enabled = enabled
        self.busy = False
        self.persistent = False
        self.inconsistent = False
        self.size = size
        self._shift = granularity.bit_length() - 1
        self._chunks: Chunks = {}
        self._aside: Chunks | None = None

    def require_room(self, size: int) -> None:
        """Raise OptionError when a disk of `size` bytes would take too much memory."""
        if size > self.granularity * UNITS_MAX:
            raise OptionError(
                f"A granularity of {self.granularity} bytes is too small for a disk of {size} bytes"
            )

    def mark(self, offset: int, length: int) -> None:
        """Note a change, if the bitmap is enabled."""
        if self.enabled:
            self.set(offset, length)

    def set(self, offset: int, length: int) -> None:
        """Make every unit dirty that has a byte of a range; the range may reach beyond the disk."""
        end = min(offset + length, self.size)
        if offset >= end:
            return
        first, last = offset >> self._shift, end - 1 >> self._shift
        for index, start, count in _by_chunk(first, last + 1 - first):
            if count == _CHUNK:
                self._chunks[index] = _FULL
            else:
                set_bits(self._own(index), start, count)

    def reset(self, offset: int, length: int) -> None:
        """Make every unit clean that lies in a range wholly; a last unit may be cut by the disk's end."""
        end = min(offset + length, self.size)
        first = -(-offset >> self._shift)
        stop = -(-end >> self._shift) if end == self.size else end >> self._shift
        for index, start, count in _by_chunk(first, max(0, stop - first)):
            if count == _CHUNK:
                self._chunks.pop(index, None)
            elif index in self._chunks:
                clear_bits(self._own(index), start, count)

    def _own(self, index: int) -> bytearray:
        """Return a chunk that may be changed in place."""
        chunk = self._chunks.get(index)
        if not isinstance(chunk, bytearray):
            chunk = bytearray(chunk or _CHUNK >> 3)
            self._chunks[index] = chunk
        return chunk

    def clear(self) -> Chunks:
        """Make everything clean; return the marks, for `give_back`."""
        chunks, self._chunks = self._chunks, {}
        return chunks

    def give_back(self, chunks: Chunks) -> None:
        """Add marks that `clear` or `marks` returned."""
        for index, chunk in chunks.items():
            mine = self._chunks.get(index)
            if mine is None:
                self._chunks[index] = bytes(chunk)
            else:
                joined = int.from_bytes(mine, "little") | int.from_bytes(chunk, "little")
                self._chunks[index] = joined.to_bytes(_CHUNK >> 3, "little")

    def bits_at(self, start: int, length: int) -> bytes:
        """Return `length` bytes of bits from byte `start` on, the lowest first; b"" for zeros alone."""
        pieces: list[bytes] = []
        at, end = start, start + length
        while at < end:
            index, within = divmod(at, _CHUNK >> 3)
            count = min((_CHUNK >> 3) - within, end - at)
            chunk = self._chunks.get(index)
            pieces.append(bytes(count) if chunk is None else bytes(chunk[within : within + count]))
            at += count
        data = b"".join(pieces)
        return data if any(data) else b""

    def set_bits_at(self, start: int, data: bytes) -> None:
        """Set the bits that `data`, from byte `start` on, has set, as far as the disk reaches."""
        for at in range(0, len(data), _CHUNK >> 3):
            piece = data[at : at + (_CHUNK >> 3)]
            first = (start + at) * 8
            for bit, run in bit_runs(piece, 0, len(piece) * 8):
                if bit:
                    self.set(first << self._shift, run << self._shift)
                first += run

    def set_aside(self) -> None:
        """Be busy, and begin without marks: whoever holds the bitmap copies what was marked.

        It ends with `forget_aside`, when that was copied, or else with `take_back`.
        """
        self.busy = True
        self._aside = self.clear()

    def forget_aside(self) -> None:
        """Keep the marks since `set_aside` alone, and be free."""
        self._aside = None
        self.busy = False

    def take_back(self) -> None:
        """Have all marks again, those since `set_aside` as well, and be free."""
        if self._aside is not None:
            self.give_back(self._aside)
        self.forget_aside()

    def restore(self, chunks: Chunks) -> None:
        """Have the marks that `marks` returned, and no others."""
        self._chunks = {index: bytes(chunk) for index, chunk in chunks.items()}

    def marks(self) -> Chunks:
        """Return the marks as they are now."""
        return {index: bytes(chunk) for index, chunk in self._chunks.items()}

    def merge(self, other: "DirtyBitmap") -> None:
        """Add the marks of another bitmap of the same disk, whatever its granularity.

        Raises:
            GraphError: It is of a disk of another size.
        """
        if other.size != self.size:
            raise GraphError(
                f"Bitmaps are of different sizes (destination size is {self.size},"
                f" source size is {other.size}) and can't be merged"
            )
        if other.granularity == self.granularity:
            self.give_back(other.marks())
            return
        for offset, length, dirty in other.ranges(0, self.size):
            if dirty:
                self.set(offset, length)

    @property
    def count(self) -> int:
        """The bytes of all dirty units."""
        return self._count(self._chunks)

    @property
    def guest_bytes(self) -> int:
        """The bytes of the disk in all dirty units: the disk's end may cut the last one."""
        cut = -self.size % self.granularity if self.size and self.is_dirty(self.size - 1) else 0
        return self.count - cut

    def _count(self, chunks: Chunks) -> int:
        return sum(int.from_bytes(chunk, "little").bit_count() for chunk in chunks.values()) << self._shift

    def is_dirty(self, offset: int) -> bool:
        """Tell whether the unit of one byte is dirty."""
        unit = offset >> self._shift
        chunk = self._chunks.get(unit >> _CHUNK_SHIFT)
        at = unit & _CHUNK - 1
        return chunk is not None and bool(chunk[at >> 3] >> (at & 7) & 1)

    def ranges(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (offset, length, dirty): gapless, neighbours different, lengths summing to `length`.

        The range lies within the disk. What changes while somebody iterates may
        show or not.
        """
        end = offset + length
        begun, held = offset, False
        first = offset >> self._shift
        position = offset
        for run, dirty in self._runs(first, (end - 1 >> self._shift) + 1 - first if length else 0):
            if dirty is not held:
                if position > begun:
                    yield begun, position - begun, held
                begun, held = position, dirty
            first += run
            position = min(end, first << self._shift)
        if end > begun:
            yield begun, end - begun, held

    def _runs(self, first: int, count: int) -> Iterator[tuple[int, bool]]:
        for index, start, length in _by_chunk(first, count):
            chunk = self._chunks.get(index)
            if chunk is None:
                yield length, False
            elif chunk is _FULL:
                yield length, True
            else:
                for bit, run in bit_runs(bytes(chunk), start, length):
                    yield run, bit

    def digest(self) -> str:
        """Return SHA-256 of all bits, the lowest first, in whole words of 64 bits, in hexadecimal."""
        total = -(-self.size >> self._shift)
        length = -(-total // 64) * 8
        hash = sha256()
        for index in range(-(-length // (_CHUNK >> 3))):
            chunk = self._chunks.get(index) or bytes(_CHUNK >> 3)
            hash.update(memoryview(chunk)[: min(_CHUNK >> 3, length - index * (_CHUNK >> 3))])
        return hash.hexdigest()

    def resize(self, size: int) -> None:
        """Follow the disk: what is cut off is forgotten, what is new is marked as any other change."""
        before = self.size
        self.reset(size, before)
        self.size = size
        self.mark(before, size - before)

    def require_free(self) -> None:
        """Raise GraphError when somebody holds the bitmap."""
        if self.busy:
            raise GraphError(
                f"Bitmap '{self.name}' is currently in use by another operation and cannot be used"
            )

    def require_usable(self) -> None:
        """Raise GraphError when somebody holds the bitmap, or its marks are not to be trusted."""
        self.require_free()
        self.require_consistent()

    def require_consistent(self) -> None:
        """Raise GraphError when the marks are not to be trusted: there was nobody to make them."""
        if self.inconsistent:
            raise GraphError(f"Bitmap '{self.name}' is inconsistent and cannot be used")

    def info(self) -> dict[str, Any]:
        """Return what QEMU's queries show of a bitmap."""
        trusted = {"inconsistent": True} if self.inconsistent else {}
        return trusted | {
            "name": self.name,
            "recording": self.enabled,
            "persistent": self.persistent,
            "busy": self.busy,
            "granularity": self.granularity,
            "count": self._count(self._chunks if self._aside is None else self._aside),
        }


def _by_chunk(first: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Yield (chunk, first bit in it, bits) for a range of units."""
    end = first + count
    while first < end:
        start = first & _CHUNK - 1
        piece = min(_CHUNK - start, end - first)
        yield first >> _CHUNK_SHIFT, start, piece
        first += piece
