"""The client's side of the transmission phase.

Owns: which requests are in flight, how their headers look, and what is believed
of the replies. Payload is not copied: the session says into which memory the
next bytes belong, and that is the caller's buffer wherever it can be.

Ordering rule: a reply is checked against the request that it answers before a
byte of it is stored: its kind, its length, its place. Cookies are never used
twice in one session.

Source: proto.md, "Transmission phase", "Structured reply chunk message",
"Extended headers".
"""

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from vblk.codec.ranges import RangeSet
from vblk.errors import PeerError
from vblk.wire.nbd.export import Export
from vblk.wire.nbd.numbers import (
    EXTENDED_REPLY_MAGIC,
    EXTENDED_REQUEST_MAGIC,
    REPLY_DONE,
    REPLY_ERROR,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRING_MAX,
    STRUCTURED_REPLY_MAGIC,
    Command,
    CommandFlag,
    ReplyType,
    shown,
)

BUFFER: Final = 256 * 1024
"""The memory for headers and small replies, in bytes."""

EXTENTS_TAKEN: Final = 65536
"""How many extents of one reply are believed; what is beyond is asked for again."""

EXTENTS_MAX: Final = 1 << 20
"""The most extents that one reply may have."""

PIECES_MAX: Final = 65536
"""In how many places a reply to a read may have gaps on the way."""

_REQUEST: Final = struct.Struct(">IHHQQI")
_EXTENDED_REQUEST: Final = struct.Struct(">IHHQQQ")
_SIMPLE: Final = struct.Struct(">IIQ")
_CHUNK: Final = struct.Struct(">IHHQI")
_EXTENDED_CHUNK: Final = struct.Struct(">IHHQQQ")
_ERROR: Final = struct.Struct(">IH")
_HOLE: Final = struct.Struct(">QI")
_DATA_OFFSET: Final = 8
_ERROR_OFFSET: Final = 8


class Request(NamedTuple):
    """A request to be sent, over whichever connection.

    `offset` and `length` are in bytes; a `payload` and a `target`, the memory for
    what is read, are `length` bytes long.
    """

    command: Command
    offset: int = 0
    length: int = 0
    flags: CommandFlag = CommandFlag.NONE
    payload: bytes | bytearray | memoryview | None = None
    target: memoryview | None = None


class Exchange:
    """A request and what has come back for it.

    `error` is the protocol's error code, 0 for none, and `error_text` what the
    server says about it. `extents` are the (length, status) of a block status
    from the request's offset on. `target` is where a read goes.
    """

    __slots__ = (
        "command",
        "cookie",
        "error",
        "error_text",
        "extents",
        "filled",
        "length",
        "offset",
        "target",
    )

    def __init__(
        self, cookie: int, command: Command, offset: int, length: int, target: memoryview | None
    ) -> None:
        self.cookie = cookie
        self.command = command
        self.offset = offset
        self.length = length
        self.target = target
        self.error = 0
        self.error_text = ""
        self.extents: list[tuple[int, int]] | None = None
        self.filled = RangeSet()


class ClientSession:
    """The requests in flight over one connection.

    Concurrency: every method runs to completion. After a `PeerError` the
    session must be given up: nobody knows where the next reply begins.
    """

    def __init__(self, export: Export) -> None:
        """Begin where the handshake has ended."""
        self._structured = export.structured
        self._extended = export.extended
        self._allocation = export.allocation
        self._cookie = 0
        self._in_flight: dict[int, Exchange] = {}
        self._buffer = memoryview(bytearray(BUFFER))
        self._start = 0
        self._end = 0
        self._sink: memoryview | None = None
        """Where the payload that is arriving belongs; what is left of it."""
        self._sunk: Callable[[], Exchange | None] = lambda: None
        """What follows when the payload is there."""

    def begin(self, request: Request) -> tuple[Exchange, bytes]:
        """Start a request; return it and its header, to be sent before any payload."""
        command, offset, length, flags, _, target = request
        self._cookie += 1
        exchange = Exchange(self._cookie, command, offset, length, target)
        self._in_flight[exchange.cookie] = exchange
        if not self._extended:
            return exchange, _REQUEST.pack(REQUEST_MAGIC, flags, command, exchange.cookie, offset, length)
        if command is Command.WRITE:
            flags |= CommandFlag.PAYLOAD_LEN
        header = _EXTENDED_REQUEST.pack(
            EXTENDED_REQUEST_MAGIC, flags, command, exchange.cookie, offset, length
        )
        return exchange, header

    def farewell(self) -> bytes:
        """Return the request that ends the session; nothing may be sent after it."""
        layout, magic = (
            (_EXTENDED_REQUEST, EXTENDED_REQUEST_MAGIC) if self._extended else (_REQUEST, REQUEST_MAGIC)
        )
        return layout.pack(magic, 0, Command.DISC, 0, 0, 0)

    def room(self) -> memoryview:
        """Return the memory, at least a byte, for what the server sends next."""
        if self._sink is not None and self._start == self._end:
            return self._sink
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == BUFFER:
            rest = bytes(self._buffer[self._start : self._end])
            self._buffer[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        return self._buffer[self._end :]

    def received(self, count: int) -> list[Exchange]:
        """Note that `count` bytes have come into the memory of the last `room`.

        Returns: the requests that are answered now.

        Raises:
            PeerError: The server breaks the protocol.
        """
        finished: list[Exchange] = []
        if self._sink is not None and self._start == self._end:
            self._sink = self._sink[count:]
        else:
            self._end += count
        while True:
            if self._sink is not None:
                self._fill_sink()
                if self._sink:
                    break
                self._sink = None
                exchange = self._sunk()
            else:
                available = self._end - self._start
                if available < 4:
                    break
                header = self._header_size()
                if available < header:
                    break
                at = self._start
                self._start += header
                exchange = self._read_header(at)
            if exchange is not None:
                finished.append(exchange)
        return finished

    def _fill_sink(self) -> None:
        """Copy what has arrived already to where it belongs."""
        assert self._sink is not None
        count = min(len(self._sink), self._end - self._start)
        if count:
            self._sink[:count] = self._buffer[self._start : self._start + count]
            self._start += count
            self._sink = self._sink[count:]

    def _header_size(self) -> int:
        """Return how long the header is that begins here."""
        magic = int.from_bytes(self._buffer[self._start : self._start + 4], "big")
        if self._extended:
            if magic == EXTENDED_REPLY_MAGIC:
                return _EXTENDED_CHUNK.size
        elif magic == SIMPLE_REPLY_MAGIC:
            return _SIMPLE.size
        elif magic == STRUCTURED_REPLY_MAGIC and self._structured:
            # Over many chunks the offset of data is wanted too, but an error of 6 bytes may be the last.
            return _CHUNK.size
        raise PeerError(f"a reply begins with {magic:#x}")

    def _read_header(self, at: int) -> Exchange | None:
        """Take a header; return the request that it finishes, or None: there is more to come."""
        if self._extended:
            _, flags, kind, cookie, offset, length = _EXTENDED_CHUNK.unpack_from(self._buffer, at)
            exchange = self._find(cookie)
            if offset != exchange.offset:
                raise PeerError(f"a reply speaks of offset {offset:#x} instead of {exchange.offset:#x}")
            return self._read_chunk(exchange, flags, kind, length)
        if int.from_bytes(self._buffer[at : at + 4], "big") == STRUCTURED_REPLY_MAGIC:
            _, flags, kind, cookie, length = _CHUNK.unpack_from(self._buffer, at)
            return self._read_chunk(self._find(cookie), flags, kind, length)
        _, error, cookie = _SIMPLE.unpack_from(self._buffer, at)
        return self._read_simple(self._find(cookie), error)

    def _find(self, cookie: int) -> Exchange:
        exchange = self._in_flight.get(cookie)
        if exchange is None:
            raise PeerError(f"a reply has the cookie {cookie:#x}, which no request has")
        return exchange

    def _finish(self, exchange: Exchange) -> Exchange:
        del self._in_flight[exchange.cookie]
        return exchange

    def _read_simple(self, exchange: Exchange, error: int) -> Exchange | None:
        if exchange.command is Command.BLOCK_STATUS and not error:
            raise PeerError("a block status was answered without one")
        if self._structured and exchange.command is Command.READ:
            raise PeerError("a read was answered by a simple reply, though structured ones were agreed on")
        exchange.error = error
        if error or exchange.command is not Command.READ:
            return self._finish(exchange)
        self._sink = exchange.target
        self._sunk = lambda: self._finish(exchange)
        return None

    def _read_chunk(self, exchange: Exchange, flags: int, kind: int, length: int) -> Exchange | None:
        is_last = bool(flags & REPLY_DONE)
        if kind == ReplyType.NONE:
            if length or not is_last:
                raise PeerError(f"an empty chunk has {length} bytes, or is not the last")
            return self._end_of_reply(exchange)
        if kind == ReplyType.OFFSET_DATA and exchange.command is Command.READ:
            if not _DATA_OFFSET < length <= _DATA_OFFSET + exchange.length:
                raise PeerError(f"a chunk of data has {length} bytes for a read of {exchange.length}")
            self._collect(_DATA_OFFSET, lambda offset: self._begin_data(exchange, offset, length, is_last))
            return None
        take, limits = self._taker(exchange, kind)
        if not limits[0] <= length <= limits[1]:
            raise PeerError(f"a chunk of kind {kind} has {length} bytes")

        def taken(payload: bytes) -> Exchange | None:
            take(exchange, payload)
            return self._end_of_reply(exchange) if is_last else None

        self._collect(length, taken)
        return None

    def _taker(
        self, exchange: Exchange, kind: int
    ) -> tuple[Callable[[Exchange, bytes], None], tuple[int, int]]:
        """Return what takes the payload of a kind of chunk, and the lengths that it may have."""
        if kind & REPLY_ERROR:
            tail = _ERROR_OFFSET if kind == ReplyType.ERROR_OFFSET else 0
            most = _ERROR.size + STRING_MAX + (tail if kind in _ERRORS_KNOWN else STRING_MAX)
            return (_take_error_offset if tail else _take_error), (_ERROR.size + tail, most)
        if kind == ReplyType.OFFSET_HOLE and exchange.command is Command.READ:
            return self._take_hole, (_HOLE.size, _HOLE.size)
        if exchange.command is Command.BLOCK_STATUS and self._allocation is not None:
            if kind == ReplyType.BLOCK_STATUS:
                return self._take_status, (4 + 8, 4 + 8 * EXTENTS_MAX)
            if kind == ReplyType.BLOCK_STATUS_EXT and self._extended:
                return self._take_extended_status, (8 + 16, 8 + 16 * EXTENTS_MAX)
        raise PeerError(f"a chunk of kind {kind} answers a request of kind {exchange.command.value}")

    def _collect(self, length: int, then: Callable[[bytes], Exchange | None]) -> None:
        """Go on with `then` when the next `length` bytes are there."""
        payload = bytearray(length)
        self._sink = memoryview(payload)
        self._sunk = lambda: then(bytes(payload))

    def _begin_data(self, exchange: Exchange, prefix: bytes, length: int, is_last: bool) -> Exchange | None:
        assert exchange.target is not None
        start, end = _claim(exchange, int.from_bytes(prefix, "big"), length - _DATA_OFFSET)
        self._sink = exchange.target[start:end]
        self._sunk = lambda: self._end_of_reply(exchange) if is_last else None
        return None

    def _take_hole(self, exchange: Exchange, payload: bytes) -> None:
        assert exchange.target is not None
        offset, length = _HOLE.unpack(payload)
        start, end = _claim(exchange, offset, length)
        exchange.target[start:end] = bytes(end - start)

    def _take_status(self, exchange: Exchange, payload: bytes) -> None:
        if (len(payload) - 4) % 8:
            raise PeerError(f"a block status has {len(payload)} bytes")
        self._take_extents(exchange, payload, 4, struct.Struct(">II"))

    def _take_extended_status(self, exchange: Exchange, payload: bytes) -> None:
        count = int.from_bytes(payload[4:8], "big")
        if (len(payload) - 8) % 16 or count not in (0, (len(payload) - 8) // 16):
            raise PeerError(f"a block status of {count} extents has {len(payload)} bytes")
        self._take_extents(exchange, payload, 8, struct.Struct(">QQ"))

    def _take_extents(self, exchange: Exchange, payload: bytes, start: int, layout: struct.Struct) -> None:
        if int.from_bytes(payload[:4], "big") != self._allocation or exchange.extents is not None:
            raise PeerError("a block status is of another context than was asked for, or comes twice")
        extents: list[tuple[int, int]] = []
        exchange.extents = extents
        covered = 0
        for length, status in layout.iter_unpack(memoryview(payload)[start:]):
            if not length or covered >= exchange.length:
                raise PeerError("a block status has an empty extent, or more than were asked for")
            extents.append((min(length, exchange.length - covered), status))
            covered += length
            if len(extents) == EXTENTS_TAKEN:
                break

    def _end_of_reply(self, exchange: Exchange) -> Exchange:
        if not exchange.error:
            if exchange.command is Command.READ and not exchange.filled.contains(0, exchange.length):
                raise PeerError("a read has ended well without all of its data")
            if exchange.command is Command.BLOCK_STATUS and exchange.extents is None:
                raise PeerError("a block status has ended well without one")
        return self._finish(exchange)


_ERRORS_KNOWN: Final = (ReplyType.ERROR, ReplyType.ERROR_OFFSET)


def _claim(exchange: Exchange, offset: int, length: int) -> tuple[int, int]:
    """Return the part of a read's memory that a chunk fills, and count it as filled."""
    start = offset - exchange.offset
    end = start + length
    if length < 1 or start < 0 or end > exchange.length:
        raise PeerError(
            f"a chunk of {length} bytes at {offset:#x} answers a read of {exchange.length} "
            f"at {exchange.offset:#x}"
        )
    if exchange.filled.within(start, end):
        raise PeerError(f"two chunks of one read overlap at {offset:#x}")
    exchange.filled.add(start, end)
    if len(exchange.filled) > PIECES_MAX:
        raise PeerError(f"a read is answered in more than {PIECES_MAX} places at a time")
    return start, end


def _take_error(exchange: Exchange, payload: bytes, tail: int = 0) -> None:
    code, length = _ERROR.unpack_from(payload)
    if length > min(len(payload) - _ERROR.size - tail, STRING_MAX) or not code:
        raise PeerError(f"an error {code} has a text of {length} bytes in {len(payload)}")
    if not exchange.error:
        exchange.error = code
        exchange.error_text = shown(payload[_ERROR.size : _ERROR.size + length])


def _take_error_offset(exchange: Exchange, payload: bytes) -> None:
    _take_error(exchange, payload, _ERROR_OFFSET)
    offset = int.from_bytes(payload[-_ERROR_OFFSET:], "big")
    if not exchange.offset <= offset < exchange.offset + max(exchange.length, 1):
        raise PeerError(f"an error is said to be at {offset:#x}, outside of its request")
