"""Requests that cannot be answered at once.

Owns: how each command is carried out on the export's handle, and which error of the
protocol says what went wrong. When it runs, and how its answer leaves, is for the
connection.
"""

import errno
from typing import Final, cast

from vblk.errors import BlockError, OutOfRange
from vblk.exports.nbd.export import NbdExport
from vblk.exports.nbd.status import statuses
from vblk.extent import Kind
from vblk.graph.node import Buffer, Span, coalesce
from vblk.units import KIB, MIB
from vblk.wire.nbd.numbers import Command, CommandFlag, ErrorCode, error_code
from vblk.wire.nbd.server_replies import SimpleReplies, StructuredReplies
from vblk.wire.nbd.server_session import Request, ServerSession

HOLES_FROM: Final = 32 * KIB
"""The shortest read, in bytes, whose holes are told as holes."""

CACHED_AT_ONCE: Final = 2 * MIB
"""How much a request to cache reads at a time, in bytes."""


async def carry_out(export: NbdExport, session: ServerSession, request: Request) -> tuple[list[Buffer], bool]:
    """Carry out a request that was not refused; return its answer, and whether it failed."""
    _, command, cookie, offset, _, _ = request
    try:
        return await _carried_out(export, session, request), False
    except BlockError as error:
        return [session.replies.error(cookie, offset, *failure(error, command))], True


async def _carried_out(export: NbdExport, session: ServerSession, request: Request) -> list[Buffer]:
    flags, command, cookie, offset, length, payload = request
    handle, replies = export.handle, session.replies
    fua = bool(flags & CommandFlag.FUA)
    if command == Command.READ:
        return await _read(export, replies, request)
    if command == Command.BLOCK_STATUS:
        return await _block_status(export, session, request)
    if command == Command.WRITE:
        await handle.write(offset, payload if payload is not None else b"", fua=fua)
    elif command == Command.WRITE_ZEROES:
        await handle.write_zeroes(
            offset,
            length,
            unmap=not flags & CommandFlag.NO_HOLE,
            no_fallback=bool(flags & CommandFlag.FAST_ZERO),
            fua=fua,
        )
    elif command == Command.TRIM:
        await handle.discard(offset, length)
        if fua:
            await handle.flush()
    elif command == Command.CACHE:
        for at in range(offset, offset + length, CACHED_AT_ONCE):
            await handle.read(at, min(CACHED_AT_ONCE, offset + length - at))
    else:
        assert command == Command.FLUSH
        await handle.flush()
    return [replies.done(cookie, offset)]


def failure(error: BlockError, command: int) -> tuple[ErrorCode, str]:
    """Return the protocol's error for one of ours, and its text."""
    if isinstance(error, OutOfRange) and command in (Command.WRITE, Command.WRITE_ZEROES):
        return error_code(errno.ENOSPC), error.message
    return error_code(error.errno), error.message


async def _read(export: NbdExport, replies: SimpleReplies, request: Request) -> list[Buffer]:
    flags, _, cookie, offset, length, _ = request
    if replies.chunked and length >= HOLES_FROM and not flags & CommandFlag.DF:
        spans = coalesce(await export.handle.resolve(offset, length))
        if any(span.kind is Kind.ZERO for span in spans):
            return await _read_around_holes(export, cast("StructuredReplies", replies), request, spans)
    if not length and replies.chunked:
        return [cast("StructuredReplies", replies).end(cookie, offset)]
    data = bytearray(length)
    await export.handle.read_into(offset, memoryview(data))
    return [replies.data(cookie, offset, length), data]


async def _read_around_holes(
    export: NbdExport, replies: StructuredReplies, request: Request, spans: list[Span]
) -> list[Buffer]:
    """Read what is data, and tell zeros as such."""
    _, _, cookie, offset, _, _ = request
    answer: list[Buffer] = []
    for is_zero, at, length in runs(spans):
        if is_zero:
            answer.append(replies.hole(cookie, offset, at, length))
        else:
            data = bytearray(length)
            await export.handle.read_into(at, memoryview(data))
            answer += (replies.piece(cookie, offset, at, length), data)
    return [*answer, replies.end(cookie, offset)]


def runs(spans: list[Span]) -> list[tuple[bool, int, int]]:
    """Return (is zero, offset, length) of the runs of zeros and of anything else."""
    found: list[tuple[bool, int, int]] = []
    for span in spans:
        is_zero = span.kind is Kind.ZERO
        if found and found[-1][0] == is_zero:
            found[-1] = (is_zero, found[-1][1], found[-1][2] + span.length)
        else:
            found.append((is_zero, span.guest_offset, span.length))
    return found


async def _block_status(export: NbdExport, session: ServerSession, request: Request) -> list[Buffer]:
    flags, _, cookie, offset, _, _ = request
    replies = cast("StructuredReplies", session.replies)
    length, contexts = session.status_asked(request)
    found = await statuses(export, contexts, offset, length, only_first=bool(flags & CommandFlag.REQ_ONE))
    answer: list[Buffer] = [
        replies.status(cookie, offset, context, extents) for context, extents in found if extents
    ]
    return [*answer, replies.end(cookie, offset)]
