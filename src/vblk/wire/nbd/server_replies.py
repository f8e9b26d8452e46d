"""How a server's answers look in the three dialects of the transmission phase.

Owns: the bytes of every answer but payload. An answer is for a request that is
known by its cookie and its offset.

Source: proto.md, "Simple reply message", "Structured reply chunk message",
"Extended reply chunk message", "Structured reply types".
"""

import struct
from collections.abc import Sequence
from typing import Final

from vblk.wire.nbd.numbers import (
    EXTENDED_REPLY_MAGIC,
    REPLY_DONE,
    SIMPLE_REPLY_MAGIC,
    STRING_MAX,
    STRUCTURED_REPLY_MAGIC,
    ReplyType,
)

STATUS_MAX: Final = (1 << 32) - 1
"""The greatest length of an extent, unless headers are extended."""

_SIMPLE: Final = struct.Struct(">IIQ")
_CHUNK: Final = struct.Struct(">IHHQI")
_CHUNK_AT: Final = struct.Struct(">IHHQIQ")
_EXTENDED: Final = struct.Struct(">IHHQQQ")
_EXTENDED_AT: Final = struct.Struct(">IHHQQQQ")
_pack_simple = _SIMPLE.pack
_pack_chunk_at = _CHUNK_AT.pack
_pack_extended_at = _EXTENDED_AT.pack


class SimpleReplies:
    """Every answer is one header; a read that fails has no payload."""

    chunked = False

    def done(self, cookie: int, offset: int) -> bytes:
        """Return the answer to a request that ended well and asked for nothing back."""
        return _pack_simple(SIMPLE_REPLY_MAGIC, 0, cookie)

    def error(self, cookie: int, offset: int, code: int, text: str) -> bytes:
        """Return the answer to a request that failed."""
        return _SIMPLE.pack(SIMPLE_REPLY_MAGIC, code, cookie)

    def data(self, cookie: int, offset: int, length: int) -> bytes:
        """Return what stands before the payload of a read that is answered in one piece."""
        return _pack_simple(SIMPLE_REPLY_MAGIC, 0, cookie)


class StructuredReplies(SimpleReplies):
    """Reads and block status are answered by chunks, everything else by one header."""

    chunked = True

    def error(self, cookie: int, offset: int, code: int, text: str) -> bytes:
        """Return the last chunk of a request that failed."""
        payload = _error(code, text)
        return self._chunk(REPLY_DONE, ReplyType.ERROR, cookie, offset, len(payload)) + payload

    def data(self, cookie: int, offset: int, length: int) -> bytes:
        """Return what stands before the payload of a read that is answered in one piece."""
        return _pack_chunk_at(
            STRUCTURED_REPLY_MAGIC, REPLY_DONE, ReplyType.OFFSET_DATA, cookie, length + 8, offset
        )

    def piece(self, cookie: int, offset: int, at: int, length: int) -> bytes:
        """Return what stands before one of several pieces of payload; `end` ends them."""
        header = self._chunk(0, ReplyType.OFFSET_DATA, cookie, offset, length + 8)
        return header + at.to_bytes(8, "big")

    def hole(self, cookie: int, offset: int, at: int, length: int) -> bytes:
        """Return a run of zeros; `end` ends the pieces."""
        header = self._chunk(0, ReplyType.OFFSET_HOLE, cookie, offset, 12)
        return header + struct.pack(">QI", at, length)

    def end(self, cookie: int, offset: int) -> bytes:
        """Return the last chunk of an answer of several pieces."""
        return self._chunk(REPLY_DONE, ReplyType.NONE, cookie, offset, 0)

    def status(self, cookie: int, offset: int, context: int, extents: Sequence[tuple[int, int]]) -> bytes:
        """Return what a context says, as (length, status) from the offset on; `end` ends the contexts."""
        payload = context.to_bytes(4, "big") + b"".join(struct.pack(">II", *each) for each in extents)
        return self._chunk(0, ReplyType.BLOCK_STATUS, cookie, offset, len(payload)) + payload

    def _chunk(self, flags: int, kind: int, cookie: int, offset: int, length: int) -> bytes:
        return _CHUNK.pack(STRUCTURED_REPLY_MAGIC, flags, kind, cookie, length)


class ExtendedReplies(StructuredReplies):
    """Every answer is made of chunks, whose headers repeat the request's offset."""

    def done(self, cookie: int, offset: int) -> bytes:
        """Return the answer to a request that ended well and asked for nothing back."""
        return _EXTENDED.pack(EXTENDED_REPLY_MAGIC, REPLY_DONE, ReplyType.NONE, cookie, offset, 0)

    def data(self, cookie: int, offset: int, length: int) -> bytes:
        """Return what stands before the payload of a read that is answered in one piece."""
        return _pack_extended_at(
            EXTENDED_REPLY_MAGIC, REPLY_DONE, ReplyType.OFFSET_DATA, cookie, offset, length + 8, offset
        )

    def status(self, cookie: int, offset: int, context: int, extents: Sequence[tuple[int, int]]) -> bytes:
        """Return what a context says; `end` ends the contexts."""
        payload = struct.pack(">II", context, len(extents)) + b"".join(
            struct.pack(">QQ", *each) for each in extents
        )
        return self._chunk(0, ReplyType.BLOCK_STATUS_EXT, cookie, offset, len(payload)) + payload

    def _chunk(self, flags: int, kind: int, cookie: int, offset: int, length: int) -> bytes:
        return _EXTENDED.pack(EXTENDED_REPLY_MAGIC, flags, kind, cookie, offset, length)


def _error(code: int, text: str) -> bytes:
    message = text.encode("utf-8", errors="replace")[:STRING_MAX]
    return struct.pack(">IH", code, len(message)) + message
