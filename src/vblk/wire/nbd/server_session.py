"""The server's side of the transmission phase.

Owns: the memory into which a client's bytes are received, the division of these
bytes into requests, and which requests are refused before anybody looks at a disk.
How answers look is `server_replies`; when they are sent is the caller's affair.

Ordering rule: a request is handed out when it is there with all of its payload, so
that of a write which is cut off in the middle nothing is known to anybody.

Source: proto.md, "Transmission phase", "Request message", "Extended request message",
"Terminating the transmission phase", "Error values".
"""

import struct
from collections.abc import Iterator
from typing import Final

from vblk.errors import PeerError
from vblk.units import KIB
from vblk.wire.nbd.numbers import (
    EXTENDED_REQUEST_MAGIC,
    REQUEST_MAGIC,
    Command,
    CommandFlag,
    ErrorCode,
    ExportFlag,
)
from vblk.wire.nbd.server_handshake import Agreement
from vblk.wire.nbd.server_replies import ExtendedReplies, SimpleReplies, StructuredReplies

BUFFER: Final = 256 * KIB
"""The memory for headers and short payloads, in bytes."""

SHORT_MAX: Final = 128 * KIB
"""The longest payload that stays in this memory, to be used at once; longer ones get memory of their own."""

Request = tuple[int, int, int, int, int, memoryview | None]
"""Flags, command, cookie, offset, length and payload of a request, as the client sent them."""

_REQUEST: Final = struct.Struct(">IHHQQI")
_EXTENDED_REQUEST: Final = struct.Struct(">IHHQQQ")
_FLAGS_KNOWN: Final = {
    int(command): int(flags | CommandFlag.FUA)
    for command, flags in {
        Command.READ: CommandFlag.DF,
        Command.WRITE: CommandFlag.PAYLOAD_LEN,
        Command.FLUSH: CommandFlag.NONE,
        Command.TRIM: CommandFlag.NONE,
        Command.CACHE: CommandFlag.NONE,
        Command.WRITE_ZEROES: CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO,
        Command.BLOCK_STATUS: CommandFlag.REQ_ONE | CommandFlag.PAYLOAD_LEN,
    }.items()
}
"""What may stand beside each command. FUA means nothing to reads, but is allowed everywhere."""

# Plain numbers: every operator of an enum costs as much as the rest of a request.
_READ: Final = int(Command.READ)
_WRITE: Final = int(Command.WRITE)
_DISC: Final = int(Command.DISC)
_FLUSH: Final = int(Command.FLUSH)
_STATUS: Final = int(Command.BLOCK_STATUS)
_PAYLOAD_LEN: Final = int(CommandFlag.PAYLOAD_LEN)
_CHANGING: Final = frozenset({_WRITE, int(Command.TRIM), int(Command.WRITE_ZEROES)})
_GROWING: Final = frozenset({_WRITE, int(Command.WRITE_ZEROES)})


class ServerSession:
    """The requests of one connection.

    Concurrency: every method runs to completion. After a `PeerError` the
    connection must be closed: nobody knows where the next request begins.
    """

    def __init__(self, agreement: Agreement, received: bytes = b"") -> None:
        """Begin where the handshake has ended, with what came behind it."""
        self.agreement = agreement
        self.over = False
        """Whether the client took its leave."""
        self.replies: SimpleReplies = (
            ExtendedReplies()
            if agreement.extended
            else StructuredReplies()
            if agreement.structured
            else SimpleReplies()
        )
        self._extended = agreement.extended
        self._maximum = agreement.offer.maximum
        self._read_only = ExportFlag.READ_ONLY in agreement.offer.flags
        self._buffer = memoryview(bytearray(BUFFER))
        self._start: int = 0
        self._end = len(received)
        self._buffer[: self._end] = received
        self._long: memoryview | None = None
        """The memory of a long payload that is arriving, of which `_arrived` bytes are there."""
        self._arrived = 0
        self._head: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)

    def room(self) -> memoryview:
        """Return the memory, at least a byte, for what the client sends next.

        Short payloads that were handed out are lost then: their memory is used again.
        """
        if self._long is not None:
            return self._long[self._arrived :]
        if self._start == self._end:
            self._start = self._end = 0
            return self._buffer
        if BUFFER - self._start < SHORT_MAX + _EXTENDED_REQUEST.size:
            rest = bytes(self._buffer[self._start : self._end])
            self._buffer[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        return self._buffer[self._end :]

    def received(self, count: int) -> None:
        """Note that `count` bytes have come into the memory of the last `room`."""
        if self._long is not None:
            self._arrived += count
        else:
            self._end += count

    def requests(self) -> Iterator[Request]:
        """Yield the requests that are there as a whole; the next call goes on behind the last one.

        Raises:
            PeerError: The client breaks the protocol.
        """
        buffer, extended = self._buffer, self._extended
        layout, right = (_EXTENDED_REQUEST, EXTENDED_REQUEST_MAGIC) if extended else (_REQUEST, REQUEST_MAGIC)
        size: int = layout.size
        unpack_from = layout.unpack_from
        if self._long is not None:
            if self._arrived < len(self._long):
                return
            payload, self._long = self._long, None
            yield (*self._head, payload)
        at: int = self._start
        end = self._end
        while at + size <= end and not self.over:
            magic, flags, command, cookie, offset, length = unpack_from(buffer, at)
            if magic != right:
                raise PeerError(f"a request begins with {magic:#x}")
            if command == _READ:
                self._start = at = at + size
                yield flags, command, cookie, offset, length, None
                continue
            if command == _DISC:
                self._start = at + size
                self.over = True
                return
            if not self._has_payload(flags, command, length):
                self._start = at = at + size
                yield flags, command, cookie, offset, length, None
                continue
            if length > self._maximum:
                raise PeerError(f"a request has a payload of {length} bytes")
            first = at + size
            if length > SHORT_MAX:
                self._head = (flags, command, cookie, offset, length)
                payload = memoryview(bytearray(length))
                count = min(length, end - first)
                payload[:count] = buffer[first : first + count]
                self._start = at = first + count
                if count < length:
                    self._long, self._arrived = payload, count
                    return
                yield (*self._head, payload)
                continue
            if first + length > end:
                return
            self._start = at = first + length
            yield flags, command, cookie, offset, length, buffer[first:at]

    def _has_payload(self, flags: int, command: int, length: int) -> bool:
        """Tell whether the length of a request is that of bytes which follow it."""
        if not length:
            return False
        if self._extended:
            if flags & _PAYLOAD_LEN:
                return True
            if command == _WRITE:
                raise PeerError("a write does not say that it has a payload")
            return False
        return command == _WRITE

    def refusal(self, request: Request, size: int) -> tuple[ErrorCode, str] | None:
        """Return the error, with its text, that answers a request whatever is on the disk, or None.

        `size` is that of the disk now, in bytes.
        """
        flags, command, _, offset, length, _ = request
        known = _FLAGS_KNOWN.get(command)
        if known is None:
            return ErrorCode.EINVAL, f"unknown request {command}"
        unknown = flags & ~known
        if not self._extended:
            unknown |= flags & _PAYLOAD_LEN
        if unknown:
            return ErrorCode.EINVAL, f"unsupported flags {unknown:#x} of request {command}"
        if command == _FLUSH:
            return None
        if command in _CHANGING and self._read_only:
            return ErrorCode.EPERM, "the export is read-only"
        if command == _READ and length > self._maximum:
            return ErrorCode.EINVAL, f"a read is longer than {self._maximum} bytes"
        if command == _STATUS:
            if not self.agreement.contexts:
                return ErrorCode.EINVAL, "no metadata context was negotiated"
            length, contexts = self.status_asked(request)
            if not length or not contexts:
                return ErrorCode.EINVAL, "a block status asks for nothing that there is"
        if offset + length > size:
            beyond = f"{length} bytes at {offset} are beyond the {size} bytes of the export"
            return (ErrorCode.ENOSPC if command in _GROWING else ErrorCode.EINVAL), beyond
        return None

    def status_asked(self, request: Request) -> tuple[int, tuple[int, ...]]:
        """Return the length that a block status is about, and its contexts; none if it is malformed."""
        flags, _, _, _, length, payload = request
        if not flags & _PAYLOAD_LEN:
            return length, self.agreement.contexts
        if payload is None or len(payload) < 12 or len(payload) % 4:
            return 0, ()
        effect, *wanted = struct.unpack(f">Q{(len(payload) - 8) // 4}I", payload)
        if len(set(wanted)) < len(wanted) or not set(wanted) <= set(self.agreement.contexts):
            return 0, ()
        return effect, tuple(wanted)
