"""Exports of NBD servers as leaves.

Owns: how the requests of a node become those of the protocol: cut to what the
server takes, aligned to its blocks, and with the flags that it knows. Its
connections are `nbd_link`'s, its options `nbd`'s.

Ordering rule: a flush of the server covers every write that had returned when
it was asked for; where the server offers no flush, an answered write is as
stable as it will be.

Source: proto.md, "Request types", "Ordering of messages and writes".
"""

import errno
import os
from collections.abc import AsyncGenerator
from typing import Any, ClassVar, Final

from vblk.errors import BlockError, NoSpace, PeerError, StorageError, Unsupported
from vblk.extent import Kind
from vblk.graph.alignment import Aligner, whole_blocks
from vblk.graph.node import Buffer, Preallocation, Span, coalesce
from vblk.protocols.cache_mode import WRITEBACK, CacheMode
from vblk.protocols.nbd_pool import Pool
from vblk.protocols.remote_leaf import RemoteLeaf
from vblk.runtime.fan_out import in_pieces
from vblk.units import GIB, MIB, OFFSET_MAX, align_down, align_up
from vblk.wire.nbd import Command, CommandFlag, Exchange, Export, ExportFlag, Request, StatusFlag
from vblk.wire.nbd.numbers import error_number

PAYLOAD_MAX: Final = 32 * MIB
"""The most bytes of one read or write, whatever the server would take."""

EFFECT_MAX: Final = GIB
"""The most bytes that one request without a payload is about, unless headers are extended."""

STATUS_MAX: Final = 4 * GIB - 64 * 1024

SPANS_MAX: Final = 1 << 18
"""How many spans of one range are told apart; the rest of it is called data."""

_SECTOR: Final = 512


class NbdNode(RemoteLeaf):
    """An export of an NBD server.

    Its size is what the server said first. Requests of any alignment are
    accepted, and cut to the server's blocks.

    Concurrency: belongs to one event loop's thread, with any number of requests
    in flight; overlapping writes in flight leave either's bytes.
    """

    driver: ClassVar[str] = "nbd"

    def __init__(
        self,
        name: str,
        filename: str,
        *,
        read_only: bool,
        export: Export,
        pool: Pool,
        cache: CacheMode = WRITEBACK,
        discard: bool = True,
    ) -> None:
        """Take over an open `pool`; use `open_nbd` rather than this."""
        super().__init__(name, filename, read_only=read_only, cache=cache)
        self.export = export
        self.alignment = block_size(export)
        self._size = align_down(export.size, self.alignment)
        if self._size < export.size:
            self.warnings.append(
                f"the last {export.size - self._size} bytes of the export cannot be reached: "
                f"the server takes requests of whole blocks of {self.alignment} bytes only"
            )
        if not read_only and ExportFlag.SEND_FLUSH not in export.flags:
            self.warnings.append(
                "the server offers no flush: what is written is as stable as the server makes it"
            )
        self._pool = pool
        self._may_unmap = discard
        self._payload_max = max(self.alignment, min(PAYLOAD_MAX, export.maximum))
        most = OFFSET_MAX if export.extended else min(EFFECT_MAX, export.maximum if export.minimum else GIB)
        self._effect_max = align_down(most, self.alignment)
        self._status_max = align_down(most if export.extended else STATUS_MAX, self.alignment)
        self._aligner = Aligner(self, self.alignment) if self.alignment > 1 else None

    @property
    def size(self) -> int:
        """The length in bytes of what can be reached."""
        return self._size

    def _can(self, flag: ExportFlag) -> bool:
        return flag in self.export.flags

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer; see `Node.read_into`."""
        self._flusher.check_healthy()
        inside = max(0, min(len(buffer), self._size - offset))
        if inside < len(buffer):  # the rest of a last sector
            buffer[inside:] = bytes(len(buffer) - inside)
            buffer = buffer[:inside]
        if not inside:
            return
        if self._aligner is not None:
            await self._aligner.read_into(offset, buffer)
        else:
            await self.read_aligned(offset, buffer)

    async def read_aligned(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer from whole blocks."""
        await in_pieces(
            len(buffer),
            self._payload_max,
            lambda at, count: self._request(
                Request(Command.READ, offset + at, count, target=buffer[at : at + count])
            ),
        )

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write bytes; see `Node.write`."""
        self.require_writable()
        self._flusher.check_healthy()
        view = memoryview(data).cast("B")
        self._check_reach(offset, len(view))
        fua = fua or self.cache.write_through
        if self._aligner is not None:
            await self._aligner.write(offset, view)
        elif fua and self._can(ExportFlag.SEND_FUA):
            await self._write_pieces(offset, view, CommandFlag.FUA)
            return
        else:
            await self.write_aligned(offset, view)
        if fua:
            await self.flush()

    async def write_aligned(self, offset: int, data: memoryview) -> None:
        """Write whole blocks."""
        await self._write_pieces(offset, data, CommandFlag.NONE)

    async def _write_pieces(self, offset: int, data: memoryview, flags: CommandFlag) -> None:
        self._dirty = True
        await in_pieces(
            len(data),
            self._payload_max,
            lambda at, count: self._request(
                Request(Command.WRITE, offset + at, count, flags, data[at : at + count])
            ),
        )

    async def trim(self, size: int) -> None:
        """Nothing was added by padding: an export is whole blocks long, and stays so."""

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Zero a range on the server, or write zeros where it has no request for that."""
        self.require_writable()
        self._flusher.check_healthy()
        self._check_reach(offset, length)
        flags = CommandFlag.NONE if unmap and self._may_unmap else CommandFlag.NO_HOLE
        if no_fallback:
            if not self._can(ExportFlag.SEND_FAST_ZERO):
                raise Unsupported("the server does not promise that zeroing is fast", filename=self.filename)
            flags |= CommandFlag.FAST_ZERO

        async def zero(start: int, count: int) -> None:
            self._dirty = True
            if self._can(ExportFlag.SEND_WRITE_ZEROES):
                await self._effect(Command.WRITE_ZEROES, start, count, flags)
            else:
                await self._write_zeros_out(start, count)

        if self._aligner is not None:
            await self._aligner.write_zeroes(offset, length, zero)
        else:
            await zero(offset, length)
        if fua or self.cache.write_through:
            await self.flush()

    async def _write_zeros_out(self, offset: int, length: int) -> None:
        zeros = memoryview(bytes(min(length, align_down(MIB, self.alignment), self._payload_max)))
        await in_pieces(
            length,
            len(zeros),
            lambda at, count: self._request(
                Request(Command.WRITE, offset + at, count, payload=zeros[:count])
            ),
        )

    async def discard(self, offset: int, length: int) -> None:
        """Trim whole blocks, where the server can; see `Node.discard`."""
        self.require_writable()
        self._flusher.check_healthy()
        start, count = whole_blocks(offset, min(length, max(0, self._size - offset)), self.alignment)
        if count and self._may_unmap and self._can(ExportFlag.SEND_TRIM):
            self._dirty = True
            await self._effect(Command.TRIM, start, count)

    async def _effect(
        self, command: Command, offset: int, length: int, flags: CommandFlag = CommandFlag.NONE
    ) -> None:
        """Carry out a request without a payload on a range of any length."""
        await in_pieces(
            length,
            self._effect_max,
            lambda at, count: self._request(Request(command, offset + at, count, flags)),
        )

    async def _flush_server(self) -> None:
        if self._can(ExportFlag.SEND_FLUSH):
            await self._request(Request(Command.FLUSH))

    async def allocation(self, offset: int, length: int) -> list[Span]:
        """Ask the server for its holes, where it tells them."""
        self._flusher.check_healthy()
        end = min(offset + length, self._size)
        spans: list[Span] = []
        async for start, count, kind in self._statuses(offset, end):
            spans.append(Span(kind, start, count, self, start))
            if len(spans) == SPANS_MAX:
                spans = coalesce(spans)
                if len(spans) > SPANS_MAX // 2:
                    break
        reached = spans[-1].guest_offset + spans[-1].length if spans else offset
        if reached < end:
            spans.append(Span(Kind.DATA, reached, end - reached, self, reached))
        if end < offset + length:
            start = max(offset, end)
            spans.append(Span(Kind.ZERO, start, offset + length - start, self, start))
        return spans

    async def _statuses(self, offset: int, end: int) -> AsyncGenerator[tuple[int, int, Kind]]:
        """Yield what the server says about a range, as far as it says anything."""
        while self.export.allocation is not None and offset < end:
            start = align_down(offset, self.alignment)
            count = min(self._status_max, align_up(end, self.alignment) - start)
            exchange = await self._request(Request(Command.BLOCK_STATUS, start, count))
            assert exchange.extents is not None
            for length, status in exchange.extents:
                stop = min(start + length, end)
                if offset < stop:
                    yield offset, stop - offset, Kind.ZERO if status & StatusFlag.ZERO else Kind.DATA
                    offset = stop
                start += length
            if start <= offset < end and start % self.alignment:
                raise PeerError(f"a block status ends within a block, at {start:#x}", filename=self.filename)

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        """Accept what asks for nothing: the protocol has no way to resize; see `Node.resize`."""
        self.require_writable()
        if preallocation is not Preallocation.OFF:
            raise Unsupported(
                f"Unsupported preallocation mode: {preallocation.value}", filename=self.filename
            )
        if size != self._size and exact:
            raise Unsupported("Cannot resize NBD nodes", filename=self.filename)
        if size > self._size:
            raise Unsupported("Cannot grow NBD nodes", filename=self.filename)

    async def reopen(self, *, read_only: bool) -> None:
        """Take on the new access, if the export allows it."""
        if read_only and not self.read_only:
            await self.flush()
        if not read_only:
            require_writable_export(self.export, self.filename)
        self.read_only = read_only

    async def _leave(self) -> None:
        await self._pool.close()

    def _check_reach(self, offset: int, length: int) -> None:
        if offset + length > self._size:
            raise StorageError(
                errno.ENOSPC, "an export does not grow", filename=self.filename, offset=offset, length=length
            )

    async def _request(self, request: Request) -> Exchange:
        """Return the answer to a request, which is no error.

        Raises:
            StorageError: The server refused, or went away.
            NoSpace: Its storage is full.
            Unsupported: It cannot do this.
            PeerError: It breaks the protocol.
        """
        try:
            exchange = await self._pool.request(request)
        except BlockError as error:
            error.filename = error.filename or self.filename
            raise
        if exchange.error:
            raise _refusal(exchange, self.filename)
        return exchange


def block_size(export: Export) -> int:
    """Return what requests must be multiples of, in bytes.

    Where the server does not say, one that has structured replies, or an odd
    length, is taken to accept everything; others are as old as whole sectors.
    """
    if export.minimum:
        return export.minimum
    return 1 if export.structured or export.size % _SECTOR else _SECTOR


def _refusal(exchange: Exchange, filename: str) -> BlockError:
    number = error_number(exchange.error)
    text = os.strerror(number)
    if exchange.error_text:
        text += f" (the server says: {exchange.error_text})"
    where: dict[str, Any] = {
        "filename": filename,
        "operation": exchange.command.name.lower().replace("_", "-"),
        "offset": exchange.offset,
        "length": exchange.length,
    }
    if number == errno.ENOSPC:
        return NoSpace(text, **where)
    if number == errno.ENOTSUP:
        return Unsupported(text, **where)
    return StorageError(number, text, **where)


def require_writable_export(export: Export, filename: str) -> None:
    """Refuse to write to what the server serves for reading only.

    Raises:
        StorageError: It does.
    """
    if export.read_only:
        raise StorageError(errno.EACCES, "the server serves this export for reading only", filename=filename)
