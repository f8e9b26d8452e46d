"""The server's side of the handshake: fixed newstyle.

Owns: what is offered under which name, the answer to every option, and the limits
on what a client may ask before it chooses. It is fed bytes and says which bytes
to send; it waits for nothing itself.

Ordering rule: an option is answered before the next one is looked at. Where TLS
is demanded nothing is told before it, not even whether an export exists. What a
client sent behind STARTTLS in plain text is never taken for a part of the session.

Source: proto.md, "Handshake phase", "Option types", "Option reply types".
"""

import struct
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Final

from vblk.errors import PeerError
from vblk.units import KIB, MIB
from vblk.wire.nbd.meta_contexts import matching
from vblk.wire.nbd.numbers import (
    ALLOCATION_CONTEXT,
    INIT_MAGIC,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    STRING_MAX,
    ExportFlag,
    HandshakeFlag,
    Info,
    Option,
    OptionReply,
    shown,
)

OPTIONS_MAX: Final = 4096
"""The most options of one client."""

OPTION_MAX: Final = 64 * KIB
"""The most bytes of an option that is looked at; longer ones are refused."""

SKIPPED_MAX: Final = 32 * MIB
"""The most bytes of a refused option that are read and forgotten."""

PREFERRED: Final = 4 * KIB
PAYLOAD_MAX: Final = 32 * MIB

"""The most bytes of one read or write."""

NAME_SHOWN: Final = 80
"""So many bytes of a name are worth showing."""

_GREETING: Final = struct.pack(
    ">QQH", INIT_MAGIC, OPTION_MAGIC, HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
)
_OPTION: Final = struct.Struct(">QII")
_REPLY: Final = struct.Struct(">QIII")
_EXPORT: Final = struct.Struct(">QH")
_KNOWN_FLAGS: Final = int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)


@dataclass(frozen=True, slots=True)
class Offer:
    """What is served under a name. Sizes are in bytes; `contexts` are all that can be asked for."""

    name: str
    size: int
    flags: ExportFlag
    description: str = ""
    minimum: int = 1
    preferred: int = PREFERRED
    maximum: int = PAYLOAD_MAX
    contexts: tuple[str, ...] = (ALLOCATION_CONTEXT,)


@dataclass(frozen=True, slots=True)
class Agreement:
    """What both sides agreed on. `contexts` are the selected ones, as places in the offer's."""

    offer: Offer
    structured: bool
    extended: bool
    contexts: tuple[int, ...]


class _Refused(Exception):
    """An option is answered with an error, and the next one is waited for."""

    def __init__(self, kind: OptionReply, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


Offers = Callable[[], Mapping[str, Offer]]
_Steps = Generator[int, bytes, None]


class ServerHandshake:
    """One handshake, up to the moment in which requests may come.

    `agreement` is None until then; `ended` says that the client took its leave.
    After the answer to STARTTLS `starting_tls` is set, and what comes next are the
    first bytes of TLS; `secured` goes on with what they hide. `rest` has the bytes
    that came behind the choice.
    """

    def __init__(self, offers: Offers, *, tls: bool = False) -> None:
        """Offer what `offers` returns whenever it is asked; with `tls` demand it of everybody."""
        self.agreement: Agreement | None = None
        self.ended = False
        self.starting_tls = False
        self.rest = b""
        self._offers = offers
        self._has_tls = tls
        self._is_secure = False
        self._structured = False
        self._extended = False
        self._selected: tuple[str, tuple[int, ...]] | None = None
        self._no_zeroes = False
        self._received = bytearray()
        self._to_send = bytearray()
        self._steps = self._negotiate()
        self._wanted = next(self._steps)

    def greeting(self) -> bytes:
        """Return what the server says first."""
        return _GREETING

    def receive(self, data: bytes) -> bytes:
        """Take what the client sent; return what to send.

        Raises:
            PeerError: The client breaks the protocol, or wants what it cannot have
                in a way that knows no refusal: close the connection.
        """
        self._received += data
        while self._goes_on() and len(self._received) >= self._wanted:
            piece = bytes(self._received[: self._wanted])
            del self._received[: self._wanted]
            try:
                self._wanted = self._steps.send(piece)
            except StopIteration:
                break
        if self.agreement is not None:
            self.rest += bytes(self._received)
            self._received.clear()
        if self.starting_tls and self._received:
            raise PeerError("the client sends plain text behind its wish for TLS")
        sent = bytes(self._to_send)
        self._to_send.clear()
        return sent

    def _goes_on(self) -> bool:
        return self.agreement is None and not self.ended and not self.starting_tls

    def secured(self) -> None:
        """Go on inside of TLS."""
        assert self.starting_tls
        self.starting_tls = False
        self._is_secure = True

    def _negotiate(self) -> _Steps:
        flags = int.from_bytes((yield 4), "big")
        if flags & ~_KNOWN_FLAGS:
            raise PeerError(f"the client has unknown flags: {flags:#x}")
        self._no_zeroes = bool(flags & HandshakeFlag.NO_ZEROES)
        for _ in range(OPTIONS_MAX):
            magic, option, length = _OPTION.unpack((yield _OPTION.size))
            if magic != OPTION_MAGIC:
                raise PeerError(f"an option of the client begins with {magic:#x}")
            if option != Option.EXPORT_NAME and not flags & HandshakeFlag.FIXED_NEWSTYLE:
                raise PeerError(f"a client without fixed newstyle sends option {option}")
            data = b""
            if length <= OPTION_MAX:
                data = (yield length) if length else b""
            else:
                yield from _skip(length)
            self._answer(option, data, too_long=length > OPTION_MAX)
            if not self._goes_on():
                if not self.starting_tls:
                    return
                yield 0
        raise PeerError(f"the client sends more than {OPTIONS_MAX} options")

    def _answer(self, option: int, data: bytes, *, too_long: bool) -> None:
        if self._has_tls and not self._is_secure and option not in (Option.STARTTLS, Option.ABORT):
            if option == Option.EXPORT_NAME:
                raise PeerError("the client chooses an export before TLS")
            self._refuse(option, OptionReply.ERR_TLS_REQD, f"Option {option:#x} not permitted before TLS")
            return
        if option == Option.EXPORT_NAME:
            if too_long:
                raise PeerError("the name of the export is too long")
            self._export_name(data)
            return
        handler = _HANDLERS.get(option)
        if handler is None:
            self._refuse(option, OptionReply.ERR_UNSUP, f"Unsupported option {option}")
            return
        try:
            if too_long:
                raise _Refused(OptionReply.ERR_TOO_BIG, "the option is too long")
            handler(self, option, data)
        except _Refused as refused:
            self._refuse(option, refused.kind, refused.text)

    # Answers

    def _reply(self, option: int, kind: OptionReply, data: bytes = b"") -> None:
        self._to_send += _REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data

    def _refuse(self, option: int, kind: OptionReply, text: str) -> None:
        self._reply(option, kind, _bytes(text)[:STRING_MAX])

    def _offer(self, name: bytes) -> Offer:
        offer = self._offers().get(_text(name))
        if offer is None:
            raise _Refused(OptionReply.ERR_UNKNOWN, f"export '{_brief(name)}' not present")
        return offer

    def _flags(self, offer: Offer) -> int:
        flags = offer.flags | ExportFlag.HAS_FLAGS
        if self._structured:
            flags |= ExportFlag.SEND_DF
        if self._extended:
            flags |= ExportFlag.BLOCK_STAT_PAYLOAD
        return int(flags)

    # Options

    def _export_name(self, name: bytes) -> None:
        offer = self._offers().get(_text(name))
        if offer is None:
            raise PeerError(f"export '{_brief(name)}' not present")
        self._to_send += _EXPORT.pack(offer.size, self._flags(offer))
        if not self._no_zeroes:
            self._to_send += bytes(124)
        self._agree(offer)

    def _agree(self, offer: Offer) -> None:
        name, contexts = self._selected or (offer.name, ())
        chosen = contexts if name == offer.name else ()
        self.agreement = Agreement(offer, self._structured, self._extended, chosen)

    def _abort(self, option: int, data: bytes) -> None:
        self._reply(option, OptionReply.ACK)
        self.ended = True

    def _list(self, option: int, data: bytes) -> None:
        _require_empty(option, data)
        for offer in self._offers().values():
            self._reply(option, OptionReply.SERVER, _counted(_bytes(offer.name)) + _bytes(offer.description))
        self._reply(option, OptionReply.ACK)

    def _start_tls(self, option: int, data: bytes) -> None:
        _require_empty(option, data)
        if not self._has_tls:
            raise _Refused(OptionReply.ERR_POLICY, "TLS not configured")
        if self._is_secure:
            raise _Refused(OptionReply.ERR_INVALID, "TLS already enabled")
        self._reply(option, OptionReply.ACK)
        self.starting_tls = True

    def _info(self, option: int, data: bytes) -> None:
        """Answer INFO, and GO, which chooses as well."""
        name, data = _take_string(data)
        if len(data) < 2 or len(data) != 2 + 2 * int.from_bytes(data[:2], "big"):
            raise _Refused(OptionReply.ERR_INVALID, "the number of requests and the length differ")
        wanted = struct.unpack(f">{len(data) // 2 - 1}H", data[2:])
        offer = self._offer(name)
        if Info.BLOCK_SIZE not in wanted and offer.minimum > 1 and option == Option.INFO:
            raise _Refused(OptionReply.ERR_BLOCK_SIZE_REQD, "the export has a minimum block size")
        if Info.NAME in wanted:
            self._reply(option, OptionReply.INFO, struct.pack(">H", Info.NAME) + name)
        if offer.description:
            described = struct.pack(">H", Info.DESCRIPTION) + _bytes(offer.description)
            self._reply(option, OptionReply.INFO, described)
        sizes = struct.pack(">HIII", Info.BLOCK_SIZE, offer.minimum, offer.preferred, offer.maximum)
        self._reply(option, OptionReply.INFO, sizes)
        size = struct.pack(">HQH", Info.EXPORT, offer.size, self._flags(offer))
        self._reply(option, OptionReply.INFO, size)
        self._reply(option, OptionReply.ACK)
        if option == Option.GO:
            self._agree(offer)

    def _structured_reply(self, option: int, data: bytes) -> None:
        _require_empty(option, data)
        if self._structured:
            raise _Refused(OptionReply.ERR_INVALID, "structured reply already negotiated")
        self._structured = True
        self._reply(option, OptionReply.ACK)

    def _extended_headers(self, option: int, data: bytes) -> None:
        _require_empty(option, data)
        if self._extended:
            raise _Refused(OptionReply.ERR_INVALID, "extended headers already negotiated")
        self._extended = self._structured = True
        self._reply(option, OptionReply.ACK)

    def _meta_context(self, option: int, data: bytes) -> None:
        """Answer LIST_META_CONTEXT, and SET_META_CONTEXT, which selects."""
        listing = option == Option.LIST_META_CONTEXT
        if not listing:
            self._selected = None
        if not self._structured:
            verb = "LIST_META_CONTEXT" if listing else "SET_META_CONTEXT"
            raise _Refused(
                OptionReply.ERR_INVALID,
                f"request option '{verb}' when structured reply is not negotiated",
            )
        name, data = _take_string(data)
        offer = self._offer(name)
        if len(data) < 4:
            raise _Refused(OptionReply.ERR_INVALID, "the option has no number of queries")
        count, data = int.from_bytes(data[:4], "big"), data[4:]
        found: set[int] = set(range(len(offer.contexts))) if listing and not count else set()
        while count and data:
            query, data = _take_string(data)
            found.update(matching(_text(query), offer.contexts, listing=listing))
            count -= 1
        if count or data:
            raise _Refused(OptionReply.ERR_INVALID, "the number of queries and the length differ")
        for number in sorted(found):
            context = (0 if listing else number).to_bytes(4, "big") + _bytes(offer.contexts[number])
            self._reply(option, OptionReply.META_CONTEXT, context)
        self._reply(option, OptionReply.ACK)
        if not listing:
            self._selected = (offer.name, tuple(sorted(found)))


_HANDLERS: Final[dict[int, Callable[[ServerHandshake, int, bytes], None]]] = {
    Option.ABORT: ServerHandshake._abort,
    Option.LIST: ServerHandshake._list,
    Option.STARTTLS: ServerHandshake._start_tls,
    Option.INFO: ServerHandshake._info,
    Option.GO: ServerHandshake._info,
    Option.STRUCTURED_REPLY: ServerHandshake._structured_reply,
    Option.EXTENDED_HEADERS: ServerHandshake._extended_headers,
    Option.LIST_META_CONTEXT: ServerHandshake._meta_context,
    Option.SET_META_CONTEXT: ServerHandshake._meta_context,
}


def _skip(length: int) -> _Steps:
    """Let an option pass that is too long."""
    if length > SKIPPED_MAX:
        raise PeerError(f"an option of the client has {length} bytes")
    while length:
        piece = min(length, OPTION_MAX)
        yield piece
        length -= piece


def _require_empty(option: int, data: bytes) -> None:
    if data:
        raise _Refused(OptionReply.ERR_INVALID, f"option {option} has {len(data)} bytes of data")


def _take_string(data: bytes) -> tuple[bytes, bytes]:
    """Return a counted string and what follows it."""
    length = int.from_bytes(data[:4], "big")
    if len(data) < 4 or length > len(data) - 4:
        raise _Refused(OptionReply.ERR_INVALID, "the option ends within a string")
    if length > STRING_MAX:
        raise _Refused(OptionReply.ERR_TOO_BIG, f"a string has more than {STRING_MAX} bytes")
    return data[4 : 4 + length], data[4 + length :]


def _counted(text: bytes) -> bytes:
    return len(text).to_bytes(4, "big") + text


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogateescape")


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="surrogateescape")


def _brief(name: bytes) -> str:
    """Return the name of an export for a message, its end left out where that is long."""
    return shown(name) if len(name) <= NAME_SHOWN else shown(name[:NAME_SHOWN]) + "..."
