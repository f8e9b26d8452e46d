"""The client's side of the handshake: oldstyle, newstyle and fixed newstyle.

Owns: the order in which options are asked for, and how each answer is read. It
is fed bytes and says which bytes to send; it waits for nothing itself.

Ordering rule: TLS comes first, where it is wanted, and nothing that came before it
is believed after it. Then extended headers are asked for, structured replies where
there are none, the metadata context that needs one of the two, and the export
last. Nothing is believed of an answer before its length was checked, and
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
_OLDSTYLE: Final = struct.Struct(">QHH")
_OPTION: Final = struct.Struct(">QII")
_REPLY: Final = struct.Struct(">QIII")
_EXPORT: Final = struct.Struct(">QH")
_BLOCK_SIZES: Final = struct.Struct(">III")

_Steps = Generator[int, bytes, Export]
_Answers = Generator[int, bytes, tuple[int, list[tuple[int, bytes]]]]


class ClientHandshake:
    """One handshake, up to the moment in which requests may be sent.

    `export` is None until then. While `awaits_tls` the caller has to secure the
    connection, and calls `secured` when that is done.
    """

    def __init__(self, export_name: str, *, tls: bool = False, context: str = ALLOCATION_CONTEXT) -> None:
        """Ask for the export of that name; the empty one is the server's default.

        With `tls` a server that does not offer it is refused. `context` is what
        tells the holes, in the bits of `base:allocation`.

        Raises:
            OptionError: No export can have this name.
        """
        self._name = export_name.encode("utf-8", errors="surrogateescape")
        if len(self._name) > STRING_MAX:
            raise OptionError(f"export name too long: it has more than {STRING_MAX} bytes")
        self._export_name = export_name
        self._context = context
        self.export: Export | None = None
        self.awaits_tls = False
        self.awaited = "initial magic"
        """What the server has to say next, for who has to tell that it did not."""
        self._tls = tls
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
        while self.export is None and not self.awaits_tls and len(self._received) >= self._wanted:
            piece = bytes(self._received[: self._wanted])
            del self._received[: self._wanted]
            try:
                self._wanted = self._steps.send(piece)
            except StopIteration as end:
                self.export = end.value
        if (self.export is not None or self.awaits_tls) and self._received:
            raise PeerError("the server answers before it was asked")
        sent = bytes(self._to_send)
        self._to_send.clear()
        return sent

    def secured(self) -> bytes:
        """Go on over a connection that is encrypted now; return what to send."""
        assert self.awaits_tls
        self.awaits_tls = False
        self._wanted = self._steps.send(b"")
        return self.receive(b"")

    def farewell(self) -> bytes:
        """Return what to send before giving a healthy server up."""
        return _OPTION.pack(OPTION_MAGIC, Option.ABORT, 0) if self._haggling else b""

    def _negotiate(self) -> _Steps:
        export = Export()
        offered = yield from self._greeted()
        if offered is None:
            yield from self._oldstyle(export)
            return export
        if HandshakeFlag.FIXED_NEWSTYLE not in offered:
            yield from self._export_name_only(export, offered)
            return export
        export.extended = yield from self._agreed(Option.EXTENDED_HEADERS)
        export.structured = export.extended or (yield from self._agreed(Option.STRUCTURED_REPLY))
        if export.structured:
            export.allocation = yield from self._allocation_context()
        if not (yield from self._go(export)):
            yield from self._export_name_only(export, offered)
        return export

    def _greeted(self) -> Generator[int, bytes, HandshakeFlag | None]:
        """Go up to the first option; return what the server can, or None if it is of the old style."""
        first = int.from_bytes((yield 8), "big")
        self.awaited = "server magic"
        second = int.from_bytes((yield 8), "big") if first == INIT_MAGIC else 0
        if second not in (OPTION_MAGIC, OLDSTYLE_MAGIC):
            raise PeerError("this is no NBD server: its first bytes are others")
        offered: HandshakeFlag | None = None
        self.awaited = "export length"
        if second == OPTION_MAGIC:
            self.awaited = "server flags"
            offered = HandshakeFlag(int.from_bytes((yield 2), "big") & 3)
            self._to_send += offered.to_bytes(4, "big")
            self._haggling = HandshakeFlag.FIXED_NEWSTYLE in offered
            self.awaited = "option reply" if self._haggling else "export length"
        if self._tls:
            if not self._haggling:
                raise Unsupported(_NO_TLS)
            yield from self._start_tls()
        return offered

    def _start_tls(self) -> Generator[int, bytes, None]:
        self._ask(Option.STARTTLS)
        end, answers = yield from self._answers(Option.STARTTLS)
        if end == OptionReply.ERR_UNSUP:
            raise Unsupported(_told(_NO_TLS, answers[0][1]))
        if end != OptionReply.ACK:
            raise _denied(end, Option.STARTTLS, answers[0][1])
        if answers:
            raise PeerError("the server answers the wish for TLS with data")
        self.awaits_tls = True
        yield 0

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

    def _answered(self, option: Option, data: bytes = b"") -> Generator[int, bytes, list[tuple[int, bytes]]]:
        """Ask for an option that the server has to have; return its answers."""
        self._ask(option, data)
        end, answers = yield from self._answers(option)
        if end != OptionReply.ACK:
            raise _denied(end, option, answers[0][1])
        return answers

    def _agreed(self, option: Option) -> Generator[int, bytes, bool]:
        """Ask for an option that is there or not."""
        self._ask(option)
        end, answers = yield from self._answers(option)
        if end != OptionReply.ACK:
            _require_patience(end, option, answers[0][1])
            return False
        if answers:
            raise PeerError(f"the server answers option {option.value} with data")
        return True

    def _allocation_context(self) -> Generator[int, bytes, int | None]:
        """Ask for the context that tells holes; return its number."""
        query = self._context.encode("utf-8", errors="surrogateescape")
        self._ask(
            Option.SET_META_CONTEXT,
            b"".join((_counted(self._name), (1).to_bytes(4, "big"), _counted(query))),
        )
        end, answers = yield from self._answers(Option.SET_META_CONTEXT)
        if end != OptionReply.ACK:
            _require_patience(end, Option.SET_META_CONTEXT, answers[0][1])
            return None
        if not answers:
            return None
        (kind, data), *more = answers
        if more or kind != OptionReply.META_CONTEXT or data[4:] != query:
            raise PeerError(f"the server was asked for the context {self._context} and names others")
        return int.from_bytes(data[:4], "big")

    def _go(self, export: Export, option: Option = Option.GO) -> Generator[int, bytes, bool]:
        """Choose the export, or only ask, and learn about it; False if the server does not know how."""
        wanted = struct.pack(">HH", 1, Info.BLOCK_SIZE)
        self._ask(option, _counted(self._name) + wanted)
        end, answers = yield from self._answers(option)
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
        if error != OptionReply.ERR_UNKNOWN:
            raise _denied(error, Option.GO, text)
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


_NO_TLS: Final = "Server does not support STARTTLS"

_REASONS: Final[dict[int, str]] = {
    OptionReply.ERR_UNSUP: "Unsupported",
    OptionReply.ERR_POLICY: "Denied by server for",
    OptionReply.ERR_INVALID: "Invalid parameters for",
    OptionReply.ERR_PLATFORM: "Server lacks support for",
    OptionReply.ERR_TLS_REQD: "TLS negotiation required before",
    OptionReply.ERR_SHUTDOWN: "Server shutting down before",
    OptionReply.ERR_BLOCK_SIZE_REQD: "Server requires INFO_BLOCK_SIZE for",
    OptionReply.ERR_TOO_BIG: "The name of the export is too long for the server in",
}


def _denied(error: int, option: Option, text: bytes) -> StorageError:
    """Return the error for a server's refusal of an option, in QEMU's words."""
    reason = _REASONS.get(error, f"Unknown error code {error:#x} when asking for")
    sentence = f"{reason} option {option.value} ({option.name.lower().replace('_', ' ')})"
    if error == OptionReply.ERR_TLS_REQD:
        sentence += "\nDid you forget a valid tls-creds?"
    return StorageError(
        errno.ESHUTDOWN if error == OptionReply.ERR_SHUTDOWN else errno.EINVAL, _told(sentence, text)
    )


def _require_patience(error: int, option: Option, text: bytes) -> None:
    """Refuse to go on after an error that every further option would meet.

    That TLS is wanted is left to the option that chooses the export, as by QEMU.
    """
    if error == OptionReply.ERR_SHUTDOWN:
        raise _denied(error, option, text)


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
