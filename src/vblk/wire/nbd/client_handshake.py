"""The client's side of the handshake: oldstyle, newstyle and fixed newstyle.

Owns: the order in which options are asked for, and how each answer is read. It
is fed bytes and says which bytes to send; it waits for nothing itself.

Ordering rule: extended headers are asked for first, structured replies where
there are none, then the metadata context that needs one of the two, and the
export last. Nothing is believed of an answer before its length was checked, and
the number of answers to one option is bounded.

Source: proto.md, "Handshake phase", "Option types", "Option reply types".
"""

import errno
import struct
from collections.abc import Generator
from typing import Final, NoReturn

from vblk.errors import BlockError, OptionError, PeerError, StorageError, Unsupported
from vblk.wire.nbd.export import Export
from vblk.wire.nbd.numbers import (
    ALLOCATION_CONTEXT,
    INIT_MAGIC,
    OLDSTYLE_MAGIC,
    OPTION_ERROR,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    STRING_MAX,
    HandshakeFlag,
    Info,
    Option,
    OptionReply,
    shown,
)

REPLY_MAX: Final = 16 * 1024
"""The longest answer to an option, in bytes: two strings and what stands around them."""

REPLIES_MAX: Final = 1024
"""The most answers to one option."""

NAMES_SHOWN: Final = 16
"""How many of a server's exports an error lists."""

_ZEROES: Final = 124
_GREETING: Final = struct.Struct(">QQ")
_OLDSTYLE: Final = struct.Struct(">QHH")
_OPTION: Final = struct.Struct(">QII")
_REPLY: Final = struct.Struct(">QIII")
_EXPORT: Final = struct.Struct(">QH")
_BLOCK_SIZES: Final = struct.Struct(">III")

_Steps = Generator[int, bytes, Export]
_Answers = Generator[int, bytes, tuple[int, list[tuple[int, bytes]]]]


class ClientHandshake:
    """One handshake, up to the moment in which requests may be sent.

    `export` is None until then.
    """

    def __init__(self, export_name: str) -> None:
        """Ask for the export of that name; the empty one is the server's default.

        Raises:
            OptionError: No export can have this name.
        """
        self._name = export_name.encode("utf-8", errors="surrogateescape")
        if len(self._name) > STRING_MAX:
            raise OptionError(f"export name too long: it has more than {STRING_MAX} bytes")
        self._export_name = export_name
        self.export: Export | None = None
        self._received = bytearray()
        self._to_send = bytearray()
        self._haggling = False
        self._steps = self._negotiate()
        self._wanted = next(self._steps)

    def receive(self, data: bytes) -> bytes:
        """Take what the server sent; return what to send.

        Raises:
            PeerError: The server breaks the protocol.
            StorageError: The server refuses the export.
            Unsupported: It wants something that this version has not.
        """
        self._received += data
        while self.export is None and len(self._received) >= self._wanted:
            piece = bytes(self._received[: self._wanted])
            del self._received[: self._wanted]
            try:
                self._wanted = self._steps.send(piece)
            except StopIteration as end:
                self.export = end.value
        if self.export is not None and self._received:
            raise PeerError("the server answers before it was asked")
        sent = bytes(self._to_send)
        self._to_send.clear()
        return sent

    def farewell(self) -> bytes:
        """Return what to send before giving a healthy server up."""
        return _OPTION.pack(OPTION_MAGIC, Option.ABORT, 0) if self._haggling else b""

    def _negotiate(self) -> _Steps:
        first, second = _GREETING.unpack((yield _GREETING.size))
        if first != INIT_MAGIC or second not in (OPTION_MAGIC, OLDSTYLE_MAGIC):
            raise PeerError("this is no NBD server: its first bytes are others")
        export = Export()
        if second == OLDSTYLE_MAGIC:
            yield from self._oldstyle(export)
            return export
        offered = HandshakeFlag(int.from_bytes((yield 2), "big") & 3)
        self._to_send += offered.to_bytes(4, "big")
        if HandshakeFlag.FIXED_NEWSTYLE not in offered:
            yield from self._export_name_only(export, offered)
            return export
        self._haggling = True
        export.extended = yield from self._agreed(Option.EXTENDED_HEADERS)
        export.structured = export.extended or (yield from self._agreed(Option.STRUCTURED_REPLY))
        if export.structured:
            export.allocation = yield from self._allocation_context()
        if not (yield from self._go(export)):
            yield from self._export_name_only(export, offered)
        return export

    def _oldstyle(self, export: Export) -> Generator[int, bytes, None]:
        size, reserved, flags = _OLDSTYLE.unpack((yield _OLDSTYLE.size))
        yield _ZEROES
        if reserved:
            raise PeerError(f"unexpected export flags 0x{reserved << 16 | flags:x}")
        if self._name:
            raise StorageError(errno.EINVAL, "Server does not support non-empty export names")
        export.set_size(size, flags)

    def _export_name_only(self, export: Export, offered: HandshakeFlag) -> Generator[int, bytes, None]:
        """Choose the export in the way that has no answer but a closed connection."""
        self._ask(Option.EXPORT_NAME, self._name)
        export.set_size(*_EXPORT.unpack((yield _EXPORT.size)))
        if HandshakeFlag.NO_ZEROES not in offered:
            yield _ZEROES

    def _ask(self, option: Option, data: bytes = b"") -> None:
        self._to_send += _OPTION.pack(OPTION_MAGIC, option, len(data)) + data

    def _answers(self, option: Option) -> _Answers:
        """Read the answers to an option up to the one that ends them; return how it ended."""
        answers: list[tuple[int, bytes]] = []
        for _ in range(REPLIES_MAX):
            magic, about, kind, length = _REPLY.unpack((yield _REPLY.size))
            if magic != OPTION_REPLY_MAGIC:
                raise PeerError(f"an answer to an option begins with {magic:#x}")
            if about != option:
                raise PeerError(f"the server answers option {about} when it was asked for {option.value}")
            if length > REPLY_MAX:
                raise PeerError(f"an answer to option {about} has {length} bytes")
            data = (yield length) if length else b""
            if kind == OptionReply.ACK:
                if data:
                    raise PeerError(f"the acknowledgement of option {about} has {length} bytes")
                return kind, answers
            if kind & OPTION_ERROR:
                return kind, [(kind, data)]
            answers.append((kind, data))
        raise PeerError(f"the server has more than {REPLIES_MAX} answers to option {option.value}")

    def _agreed(self, option: Option) -> Generator[int, bytes, bool]:
        """Ask for an option that is there or not."""
        self._ask(option)
        end, answers = yield from self._answers(option)
        if end != OptionReply.ACK:
            self._require_patience(end, answers[0][1])
            return False
        if answers:
            raise PeerError(f"the server answers option {option.value} with data")
        return True

    def _require_patience(self, error: int, text: bytes) -> None:
        """Refuse to go on after the errors that every further option would meet."""
        if error == OptionReply.ERR_TLS_REQD:
            raise Unsupported("the server wants TLS, which is not in this version of vblk")
        if error == OptionReply.ERR_SHUTDOWN:
            raise StorageError(errno.ESHUTDOWN, _told("Server shutting down", text))

    def _allocation_context(self) -> Generator[int, bytes, int | None]:
        """Ask for the context that tells holes; return its number."""
        query = ALLOCATION_CONTEXT.encode()
        self._ask(
            Option.SET_META_CONTEXT,
            b"".join((_counted(self._name), (1).to_bytes(4, "big"), _counted(query))),
        )
        end, answers = yield from self._answers(Option.SET_META_CONTEXT)
        if end != OptionReply.ACK:
            self._require_patience(end, answers[0][1])
            return None
        if not answers:
            return None
        (kind, data), *more = answers
        if more or kind != OptionReply.META_CONTEXT or data[4:] != query:
            raise PeerError(f"the server was asked for the context {ALLOCATION_CONTEXT} and names others")
        return int.from_bytes(data[:4], "big")

    def _go(self, export: Export) -> Generator[int, bytes, bool]:
        """Choose the export and learn about it; False if the server does not know how."""
        wanted = struct.pack(">HH", 1, Info.BLOCK_SIZE)
        self._ask(Option.GO, _counted(self._name) + wanted)
        end, answers = yield from self._answers(Option.GO)
        if end == OptionReply.ERR_UNSUP:
            return False
        if end != OptionReply.ACK:
            yield from self._refused(end, answers[0][1])
        described = False
        for kind, data in answers:
            if kind != OptionReply.INFO or len(data) < 2:
                raise PeerError(f"the server answers the choice of an export with {kind}")
            described |= _take_info(export, int.from_bytes(data[:2], "big"), data[2:])
        if not described:
            raise PeerError("the server opens the export without saying how large it is")
        return True

    def _refused(self, error: int, text: bytes) -> Generator[int, bytes, NoReturn]:
        """Say why there is no such export; ask which there are."""
        self._require_patience(error, text)
        if error != OptionReply.ERR_UNKNOWN:
            reason = _REASONS.get(error, f"Unknown error code when asking for the export: {error:#x}")
            raise StorageError(errno.EINVAL, _told(reason, text))
        refusal = StorageError(errno.ENOENT, _told("Requested export not available", text))
        self._ask(Option.LIST)
        try:
            end, answers = yield from self._answers(Option.LIST)
        except BlockError:
            raise refusal from None
        if end == OptionReply.ACK and answers:
            names = [_listed(data) for kind, data in answers if kind == OptionReply.SERVER]
            more = ", and others" if len(names) > NAMES_SHOWN else ""
            refusal.add_note("the server's exports are " + ", ".join(names[:NAMES_SHOWN]) + more)
        raise refusal


_REASONS: Final[dict[int, str]] = {
    OptionReply.ERR_POLICY: "Denied by server",
    OptionReply.ERR_INVALID: "Invalid parameters",
    OptionReply.ERR_PLATFORM: "Server lacks support",
    OptionReply.ERR_BLOCK_SIZE_REQD: "Server requires INFO_BLOCK_SIZE",
    OptionReply.ERR_TOO_BIG: "The name of the export is too long for the server",
}


def _told(reason: str, text: bytes) -> str:
    return f"{reason}\nserver reported: {shown(text[:STRING_MAX])}" if text else reason


def _counted(text: bytes) -> bytes:
    return len(text).to_bytes(4, "big") + text


def _listed(data: bytes) -> str:
    length = int.from_bytes(data[:4], "big")
    return f"'{shown(data[4 : 4 + min(length, 256)])}'"


def _take_info(export: Export, kind: int, data: bytes) -> bool:
    """Take over one piece of information; return whether it tells the size."""
    if kind == Info.EXPORT:
        if len(data) != _EXPORT.size:
            raise PeerError(f"the description of the export has {len(data)} bytes")
        export.set_size(*_EXPORT.unpack(data))
        return True
    if kind == Info.BLOCK_SIZE:
        if len(data) != _BLOCK_SIZES.size:
            raise PeerError(f"the block sizes of the export have {len(data)} bytes")
        export.set_block_sizes(*_BLOCK_SIZES.unpack(data))
    return False
