"""Requests of the kernel that cannot be answered at once.

Owns: how each is carried out on the export's handle. When it runs, and what the
kernel is told of an error, is for the export.
"""

import asyncio
import errno
import os
from time import perf_counter_ns, time_ns
from typing import TYPE_CHECKING, Final

from vblk.describing import allocated_bytes
from vblk.errors import StorageError, Unsupported
from vblk.extent import Kind
from vblk.graph.node import Preallocation
from vblk.graph.statistics import Operation
from vblk.units import GIB, MIB
from vblk.wire.fuse import replies
from vblk.wire.fuse.numbers import FallocateFlag, Opcode, SetFlag
from vblk.wire.fuse.requests import Fallocate, Read, Request, Seek, SetAttributes, Write

if TYPE_CHECKING:
    from vblk.exports.fuse.export import FuseExport

LOOKED_AT_FIRST: Final = 64 * MIB
LOOKED_AT_ONCE: Final = 64 * GIB
"""How much of a disk is looked at for data or a hole, in bytes: first, doubled each time, and at most."""

OPERATIONS: Final[dict[int, Operation | None]] = {
    Opcode.READ: Operation.READ,
    Opcode.WRITE: Operation.WRITE,
    Opcode.FALLOCATE: Operation.ZERO,
    Opcode.FLUSH: Operation.FLUSH,
    Opcode.FSYNC: Operation.FLUSH,
    Opcode.GETATTR: None,
    Opcode.SETATTR: None,
    Opcode.LOOKUP: None,
    Opcode.LSEEK: None,
    Opcode.STATFS: None,
}
"""The kinds of request that are carried out here, and what they count as."""


async def carry_out(
    export: "FuseExport", request: Request, room: bytearray
) -> tuple[bytes | memoryview, ...]:
    """Carry out a request; return its answer, which may be in `room`, where there is room for it.

    Raises:
        BlockError: It fails.
    """
    operation = OPERATIONS[request.opcode]
    started = perf_counter_ns()
    record, length = await _carried_out(export, request, memoryview(room))
    if operation is not None:
        export.statistics.account(operation, length, perf_counter_ns() - started)
    return replies.header(request.unique, len(record)), record


async def _carried_out(
    export: "FuseExport", request: Request, room: memoryview
) -> tuple[bytes | memoryview, int]:
    """Return the record of a request's answer, and how many bytes the request was about."""
    body, handle, opcode = request.body, export.handle, request.opcode
    if isinstance(body, Read):
        return await _read(export, body, room)
    if isinstance(body, Write):
        count = await _write(export, body)
        return replies.write_record(count), count
    if isinstance(body, SetAttributes):
        await _set_attributes(export, body)
    elif isinstance(body, Fallocate):
        await _fallocate(export, body)
        return b"", body.length
    elif isinstance(body, Seek):
        return replies.seek_record(await _seek(export, body)), 0
    elif opcode in (Opcode.FLUSH, Opcode.FSYNC):
        await handle.flush()
        return b"", 0
    elif opcode == Opcode.STATFS:
        return replies.statfs_record(handle.size, 1), 0
    node = export.files.disk if opcode == Opcode.LOOKUP else request.node
    about = export.files.attributes(node, handle.size, await allocated_bytes(handle.node))
    return (replies.entry_record if opcode == Opcode.LOOKUP else replies.attributes_record)(about), 0


async def _read(export: "FuseExport", body: Read, room: memoryview) -> tuple[memoryview, int]:
    handle = export.handle
    data = room[: max(0, min(body.size, handle.size - body.offset))]
    if data:
        await handle.read_into(body.offset, data)
    return data, len(data)


async def _write(export: "FuseExport", body: Write) -> int:
    """Write what fits; return how much that was."""
    handle = export.handle
    end = body.offset + len(body.payload)
    if end > handle.size and export.growable:
        async with export.resizing:
            if end > handle.size:
                await handle.resize(end)
    count = max(0, min(len(body.payload), handle.size - body.offset))
    if count:
        await handle.write(body.offset, body.payload[:count])
        export.files.mtime = time_ns()
    return count


async def _set_attributes(export: "FuseExport", body: SetAttributes) -> None:
    if body.which & SetFlag.SIZE and not export.writable:
        raise StorageError(errno.EACCES)
    number = export.files.change(body)
    if number:
        raise StorageError(number)
    if body.which & SetFlag.SIZE:
        async with export.resizing:
            await export.handle.resize(body.size)


async def _fallocate(export: "FuseExport", body: Fallocate) -> None:
    """Give a range space, or zeros, or neither."""
    if not export.writable:
        raise StorageError(errno.EACCES)
    handle, mode, offset = export.handle, body.mode, body.offset
    end = offset + body.length
    if mode == FallocateFlag.NONE:
        async with export.resizing:
            if offset < handle.size:
                raise Unsupported("space is only given to what is new at the end")
            if offset > handle.size:
                await handle.resize(offset)
            await handle.resize(end, preallocation=Preallocation.FALLOC)
        return
    keep_size = bool(mode & FallocateFlag.KEEP_SIZE)
    kind = mode & ~FallocateFlag.KEEP_SIZE
    if kind not in (FallocateFlag.PUNCH_HOLE, FallocateFlag.ZERO_RANGE):
        raise Unsupported("this is not done to a range")
    if kind == FallocateFlag.PUNCH_HOLE and not keep_size:
        raise StorageError(errno.EINVAL)
    if end > handle.size and not keep_size:
        async with export.resizing:
            await handle.resize(max(end, handle.size))
    length = min(end, handle.size) - offset
    if length > 0:
        await handle.write_zeroes(offset, length, unmap=kind == FallocateFlag.PUNCH_HOLE)
        export.files.mtime = time_ns()


async def _seek(export: "FuseExport", body: Seek) -> int:
    """Return where the next data, or the next hole, begins; the end of the file is a hole."""
    handle, offset = export.handle, body.offset
    if body.whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        raise StorageError(errno.EINVAL)
    size = handle.size
    if offset >= size:
        raise StorageError(errno.ENXIO)
    wants_hole = body.whence == os.SEEK_HOLE
    piece = LOOKED_AT_FIRST
    while offset < size:
        for span in await handle.allocation(offset, min(piece, size - offset)):
            if (span.kind is Kind.ZERO) == wants_hole:
                return span.guest_offset
            offset = span.guest_offset + span.length
        piece = min(piece * 2, LOOKED_AT_ONCE)
        await asyncio.sleep(0)
    if wants_hole:
        return size
    raise StorageError(errno.ENXIO)
