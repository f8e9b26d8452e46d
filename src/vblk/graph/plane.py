"""The data plane: everything that moves payload.

Owns: reading resolved spans into memory, and moving spans to another node by
the cheapest means there is. It knows no format; it sees leaves, descriptors and
offsets. Formats never move bytes, this module never edits a mapping.

Ordering rule: a target range is placed first, its bytes are moved next, and the
placement is published only when all of them arrived (`Node.place`).
"""

from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from vblk.aio.engine import Engine, storage_error
from vblk.errors import BlockError
from vblk.extent import Kind
from vblk.graph.digests import Digests
from vblk.graph.kernel_copy import KernelCopier, Means
from vblk.graph.node import Buffer, Leaf, Node, Span, coalesce, cut
from vblk.graph.sparse_copy import units_with_data
from vblk.runtime.fan_out import fan_out
from vblk.units import KIB, MIB

READS_AT_ONCE = 8
"""How many pieces of one request are read side by side."""

PIECE_MAX = 32 * MIB
"""The most bytes moved by one call, so that cancellation and progress stay prompt."""

BUFFER_MAX = 2 * MIB
"""The most bytes of one piece that pass through memory when the kernel cannot copy."""

PROBE = 4 * KIB
"""The first bytes that are looked at where zeros are searched."""

_ZEROS = bytes(MIB)


Read = Callable[[int, memoryview], Coroutine[Any, Any, None]]
"""Fills a buffer from an offset."""


async def read_spans(spans: Sequence[Span], guest_offset: int, buffer: memoryview) -> None:
    """Fill `buffer`, which begins at `guest_offset`, from resolved spans."""
    waiting: list[tuple[Read, int, memoryview]] = []
    for span in coalesce(spans):
        start = span.guest_offset - guest_offset
        piece = buffer[start : start + span.length]
        if span.kind is Kind.ZERO:
            piece[:] = bytes(span.length)
            continue
        assert span.leaf is not None
        if span.kind is Kind.ENCODED:
            waiting.append((span.leaf.read_encoded, span.leaf_offset, piece))
            continue
        data = span.leaf.try_read(span.leaf_offset, span.length) if span.length <= BUFFER_MAX // 8 else None
        if data is None:
            waiting.append((span.leaf.read_into, span.leaf_offset, piece))
        else:
            piece[:] = data
    if len(waiting) == 1:
        read, offset, piece = waiting[0]
        await read(offset, piece)
    elif waiting:
        await fan_out((read(offset, piece) for read, offset, piece in waiting), READS_AT_ONCE)


async def reads_zero(node: Node, offset: int, length: int) -> bool:
    """Tell whether a range holds zeros alone; holes of the storage are not read.

    Data mostly shows at its beginning, so little is read first.
    """
    start = node.try_read(offset, min(length, PROBE))
    if start is not None and any(start):
        return False
    for span in await node.allocation(offset, length):
        if span.kind is Kind.ZERO:
            continue
        at, end = span.guest_offset, span.guest_offset + span.length
        step = PROBE
        while at < end:
            data = await node.read(at, min(step, end - at))
            if not _ZEROS.startswith(data):
                return False
            at += len(data)
            step = min(step * 4, len(_ZEROS))
    return True


@dataclass(slots=True)
class Moved:
    """How many bytes went by which means."""

    by_means: dict[Means, int] = field(default_factory=dict[Means, int])

    def add(self, means: Means, length: int) -> None:
        """Count `length` bytes."""
        self.by_means[means] = self.by_means.get(means, 0) + length


class Receiver(Protocol):
    """Where bytes may be brought: a node, or one who knows the way into it."""

    def place(self, offset: int, length: int) -> AbstractAsyncContextManager[list[Span]]:
        """Make room; see `Node.place`."""
        ...

    async def write(self, offset: int, data: Buffer) -> None:
        """Write; see `Node.write`."""
        ...

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool = False) -> None:
        """Write zeros; see `Node.write_zeroes`."""
        ...


class Mover:
    """Moves spans of one graph to nodes of the same or another graph.

    `moved` tells afterwards which means carried how many bytes. `digests`, if there
    are any, are told what passes through memory. Concurrency:
    any number of `move` calls may run side by side on ranges that do not
    overlap in the target.
    """

    def __init__(self, engine: Engine) -> None:
        self.digests: Digests | None = None
        self.engine = engine
        self._copiers: dict[tuple[int, int], KernelCopier] = {}
        self.moved = Moved()

    async def move(
        self,
        source: Span,
        target: Receiver,
        target_offset: int,
        *,
        zero_unit: int = 0,
        placed: Callable[[], None] | None = None,
    ) -> None:
        """Copy one DATA span to `target_offset`.

        `zero_unit`, in bytes, says that the target reads as zeros there: runs of
        that many zero bytes may be left out, unless the storage can share the
        span or bytes have to pass through the nodes. `placed` is called when the
        target has made room.

        The bytes are in the target's storage on return, and as stable as its
        cache mode makes writes: flush the target to be sure.

        Raises:
            StorageError: A side failed.
            NoSpace: The target is full.
        """
        assert source.kind is Kind.DATA
        assert source.leaf is not None
        async with target.place(target_offset, source.length) as places:
            if placed is not None:
                placed()
            for place in places:
                assert place.leaf is not None
                start = source.leaf_offset + place.guest_offset - target_offset
                await self._move_piece(source.leaf, start, place, zero_unit if place.present else 0)

    async def saw(self, offset: int, data: Buffer) -> None:
        """Note, where that is wanted, what is copied to `offset` of the target."""
        digests = self.digests
        if digests is not None:
            await self.engine.run(lambda: digests.note(offset, data))

    async def bring(self, span: Span, target: Receiver) -> None:
        """Let the same range of a target read as a span does.

        Raises: as `move`.
        """
        offset = span.guest_offset
        if span.kind is Kind.ZERO:
            await target.write_zeroes(offset, span.length, unmap=True)
        elif span.kind is Kind.DATA:
            await self.move(span, target, offset)
        else:
            assert span.leaf is not None
            for done in range(0, span.length, BUFFER_MAX):
                buffer = bytearray(min(BUFFER_MAX, span.length - done))
                await span.leaf.read_encoded(span.leaf_offset + done, memoryview(buffer))
                await self.saw(offset + done, buffer)
                await target.write(offset + done, buffer)

    async def worth_space(self, source: Span, target: Node, target_offset: int) -> list[tuple[int, int]]:
        """Return (start, end) in a DATA span of all but the units of the target that would be zeros.

        Raises:
            StorageError: Reading the source failed.
        """
        unit = target.allocation_unit
        descriptor = source.leaf.descriptor() if isinstance(source.leaf, Leaf) else None
        if not unit or descriptor is None:
            return [(0, source.length)]
        try:
            return await self.engine.run(
                lambda: units_with_data(
                    descriptor, source.leaf_offset, source.length, unit=unit, phase=target_offset % unit
                )
            )
        except BlockError as error:
            assert source.leaf is not None
            error.filename = error.filename or source.leaf.filename
            raise

    async def _move_piece(self, source: Node, source_offset: int, place: Span, zero_unit: int) -> None:
        done = await self._move_by_descriptors(source, source_offset, place, zero_unit)
        while done < place.length:
            assert place.leaf is not None
            piece = min(BUFFER_MAX, place.length - done)
            data = await source.read(source_offset + done, piece)
            await self.saw(place.guest_offset + done, data)
            await place.leaf.write(place.leaf_offset + done, data)
            self.moved.add(Means.MEMORY, piece)
            done += piece

    async def _move_by_descriptors(
        self, source: Node, source_offset: int, place: Span, zero_unit: int
    ) -> int:
        """Move bytes between descriptors, as far as that goes; return how many went."""
        assert place.leaf is not None
        copier = self._copier(source, place.leaf)
        if copier is None:
            return 0
        done = 0
        while done < place.length and copier.usable:
            rest = cut(place, done, place.length - done)
            count = await self._copy_once(copier, source_offset + done, rest, zero_unit)
            if not count:
                break
            done += count
        return done

    async def _copy_once(self, copier: KernelCopier, source_offset: int, place: Span, zero_unit: int) -> int:
        """Let the kernel copy one piece, and note what arrived even if nobody waits for it any more."""
        target, digests = place.leaf, self.digests
        assert isinstance(target, Leaf)
        means, count = Means.NONE, 0

        def saw(at: int, data: memoryview) -> None:
            if digests is not None:
                digests.note(place.guest_offset + at, data)

        def copy() -> None:
            nonlocal means, count
            means, count = copier.copy(
                source_offset, place.leaf_offset, place.length, zero_unit=zero_unit, saw=saw
            )

        try:
            await self.engine.run(copy)
        except OSError as error:
            raise storage_error(error, filename=target.filename, operation="copy") from error
        except BlockError as error:
            error.filename = error.filename or target.filename
            raise
        finally:
            if count:
                target.written(place.leaf_offset, count)
                self.moved.add(means, count)
        return count

    def _copier(self, source: Node, target: Node) -> KernelCopier | None:
        if not isinstance(source, Leaf) or not isinstance(target, Leaf):
            return None
        source_descriptor, target_descriptor = source.descriptor(), target.descriptor()
        if source_descriptor is None or target_descriptor is None:
            return None
        key = (source_descriptor, target_descriptor)
        if key not in self._copiers:
            self._copiers[key] = KernelCopier(source_descriptor, target_descriptor, piece_max=PIECE_MAX)
        return self._copiers[key]
