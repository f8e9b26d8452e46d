"""Disks of nothing: writes vanish, reads find nothing in particular.

Owns: `null-co` and `null-aio`, which differ in name only. For measuring
everything but the storage.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vblk.aio.clock import Clock, LoopClock
from vblk.errors import OptionError, OutOfRange, Unsupported
from vblk.extent import Kind
from vblk.graph.node import Buffer, Leaf, Preallocation, Span
from vblk.graph.site import Site
from vblk.options import Size, bind, check_children
from vblk.units import GIB, OFFSET_MAX

_NANOSECOND = 1e-9
_SIZE_DEFAULT = Size(GIB)


@dataclass(slots=True)
class Options:
    """`size` in bytes; `latency_ns`: how long every request takes.

    `read_zeroes`: promise zeros; without, what a read finds is undefined (and
    still zeros, so that no memory of this process ever leaves it).
    """

    size: Size = _SIZE_DEFAULT
    latency_ns: int = 0
    read_zeroes: bool = False


class NullNode(Leaf):
    """A disk that stores nothing."""

    driver: ClassVar[str] = "null-co"

    def __init__(
        self, name: str, options: Options, *, read_only: bool = False, clock: Clock | None = None
    ) -> None:
        """Make a disk of nothing; `clock` is what latency is waited on."""
        super().__init__(name, f"{self.driver}://", read_only=read_only)
        if options.latency_ns < 0:
            raise OptionError("latency-ns is invalid")
        if not 0 <= options.size <= OFFSET_MAX:
            raise OptionError(f"the size of a null disk must be 0 to {OFFSET_MAX}, not {options.size}")
        self._size: int = options.size
        self._latency = options.latency_ns * _NANOSECOND
        self._read_zeroes = options.read_zeroes
        self._clock = clock if clock is not None else LoopClock()

    @property
    def size(self) -> int:
        """The length in bytes."""
        return self._size

    async def _wait(self) -> None:
        if self._latency:
            await self._clock.sleep(self._latency)

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Return zeros, unless there is a latency to wait for."""
        return None if self._latency else bytes(length)

    async def read(self, offset: int, length: int) -> bytes:
        """Return zeros."""
        await self._wait()
        return bytes(length)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill with zeros."""
        await self._wait()
        buffer[:] = bytes(len(buffer))

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Lose the data."""
        self.require_writable()
        await self._wait()

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Do nothing."""
        self.require_writable()
        await self._wait()

    async def discard(self, offset: int, length: int) -> None:
        """Do nothing."""
        self.require_writable()
        await self._wait()

    async def flush(self) -> None:
        """Do nothing, and take the time for it."""
        await self._wait()

    async def allocation(self, offset: int, length: int) -> list[Span]:
        """Answer zeros where they are promised, and data where nothing is."""
        return [Span(Kind.ZERO if self._read_zeroes else Kind.DATA, offset, length, self, offset)]

    async def allocated_bytes(self) -> int | None:
        """Nothing takes no space."""
        return 0

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        """Change the length."""
        self.require_writable()
        if preallocation is not Preallocation.OFF:
            raise Unsupported(
                f"Unsupported preallocation mode: {preallocation.value}", filename=self.filename
            )
        if not 0 <= size <= OFFSET_MAX:
            raise OutOfRange(f"a disk cannot be {size} bytes long", filename=self.filename)
        self._size = size

    async def reopen(self, *, read_only: bool) -> None:
        """Take on the new access."""
        self.read_only = read_only

    def info(self) -> Mapping[str, Any]:
        """Nothing is special to nothing."""
        return {}

    async def close(self) -> None:
        """There is nothing to release."""


class NullAioNode(NullNode):
    """The same under the name of QEMU's other implementation."""

    driver: ClassVar[str] = "null-aio"


def open_null(options: Options, *, name: str, read_only: bool, driver: str = "null-co") -> NullNode:
    """Make a disk of nothing; `driver` is `null-co` or `null-aio`.

    Raises:
        OptionError: The size or the latency is out of range.
    """
    return (NullAioNode if driver == "null-aio" else NullNode)(name, options, read_only=read_only)


async def open_node(site: Site) -> NullNode:
    """Make the disk that the site's options describe.

    Raises:
        OptionError: They describe none.
    """
    driver = site.options.driver or "null-co"
    check_children(site.options, driver)
    node = open_null(
        bind(site.options.own, Options, driver), name=site.name, read_only=site.read_only, driver=driver
    )
    site.graph.add(node)
    return node
