"""The handshake, byte by byte: what is asked, what is believed, what is refused."""

import errno
import struct
from collections.abc import Callable

import pytest

from vblk.errors import BlockError, OptionError, PeerError, StorageError, Unsupported
from vblk.wire.nbd import ClientHandshake, Export, ExportFlag
from vblk.wire.nbd.client_handshake import REPLIES_MAX, REPLY_MAX

NEWSTYLE = b"NBDMAGICIHAVEOPT"
OLDSTYLE = b"NBDMAGIC" + bytes.fromhex("0000420281861253")
ACK, SERVER, INFO, CONTEXT = 1, 2, 3, 4
UNSUPPORTED, POLICY, TLS, UNKNOWN, SHUTDOWN = (0x80000000 + number for number in (1, 2, 5, 6, 7))
GO, LIST, STRUCTURED, SET_CONTEXT, EXTENDED, STARTTLS = 7, 3, 8, 10, 11, 5


def reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return bytes.fromhex("0003e889045565a9") + struct.pack(">III", option, kind, len(data)) + data


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def info_export(size: int, flags: int) -> bytes:
    return struct.pack(">HQH", 0, size, flags)


def info_blocks(minimum: int, preferred: int, maximum: int) -> bytes:
    return struct.pack(">HIII", 3, minimum, preferred, maximum)


def begun(name: str = "x", flags: int = 3) -> ClientHandshake:
    """Return a handshake in which the server has greeted in the fixed new style."""
    handshake = ClientHandshake(name)
    assert handshake.receive(NEWSTYLE) == b""
    assert handshake.receive(struct.pack(">H", flags)) == struct.pack(">I", flags & 3) + option(EXTENDED)
    return handshake


def until_go(name: str = "x", *, structured: bool = False) -> ClientHandshake:
    """Return a handshake that has just asked for the export."""
    handshake = begun(name)
    assert handshake.receive(reply(EXTENDED, UNSUPPORTED)) == option(STRUCTURED)
    if structured:
        handshake.receive(reply(STRUCTURED, ACK))
        handshake.receive(reply(SET_CONTEXT, CONTEXT, b"\0\0\0\x05base:allocation"))
        sent = handshake.receive(reply(SET_CONTEXT, ACK))
    else:
        sent = handshake.receive(reply(STRUCTURED, UNSUPPORTED))
    encoded = name.encode()
    assert sent == option(GO, struct.pack(">I", len(encoded)) + encoded + b"\0\x01\0\x03")
    return handshake


def ended(handshake: ClientHandshake) -> Export:
    assert handshake.export is not None
    return handshake.export


def test_an_oldstyle_server_says_everything_at_once() -> None:
    handshake = ClientHandshake("")
    assert handshake.receive(OLDSTYLE + struct.pack(">QI", 1 << 20, 5) + bytes(124)) == b""
    export = ended(handshake)
    assert (export.size, export.flags) == (1 << 20, ExportFlag.HAS_FLAGS | ExportFlag.SEND_FLUSH)
    assert not export.structured


def test_flags_mean_nothing_where_the_server_does_not_say_that_it_has_any() -> None:
    handshake = ClientHandshake("")
    handshake.receive(OLDSTYLE + struct.pack(">QI", 512, 2 | 4) + bytes(124))
    assert ended(handshake).flags is ExportFlag.NONE


def test_an_oldstyle_server_has_no_named_exports() -> None:
    with pytest.raises(StorageError, match="does not support non-empty export names"):
        ClientHandshake("x").receive(OLDSTYLE + struct.pack(">QI", 512, 1) + bytes(124))


@pytest.mark.parametrize(("flags", "zeroes"), [(0, 124), (2, 0)])
def test_a_server_of_the_unfixed_new_style_is_only_told_the_name(flags: int, zeroes: int) -> None:
    handshake = ClientHandshake("x")
    sent = handshake.receive(NEWSTYLE + struct.pack(">H", flags))
    assert sent == struct.pack(">I", flags) + option(1, b"x")
    handshake.receive(struct.pack(">QH", 4096, 1) + bytes(zeroes))
    assert ended(handshake).size == 4096


def test_everything_that_a_server_has_is_agreed_on() -> None:
    handshake = begun("é")
    sent = handshake.receive(reply(EXTENDED, ACK))
    name = struct.pack(">I", 2) + "é".encode()
    assert sent == option(SET_CONTEXT, name + struct.pack(">II", 1, 15) + b"base:allocation")
    handshake.receive(reply(SET_CONTEXT, CONTEXT, b"\0\0\0\x07base:allocation"))
    handshake.receive(reply(SET_CONTEXT, ACK))
    handshake.receive(reply(GO, INFO, info_blocks(512, 4096, (1 << 25) + 7)))
    handshake.receive(reply(GO, INFO, b"\0\x01a name"))
    handshake.receive(reply(GO, INFO, info_export(1 << 40, 0x8FF)))
    assert handshake.export is None
    assert handshake.receive(reply(GO, ACK)) == b""
    export = ended(handshake)
    assert (export.structured, export.extended, export.allocation) == (True, True, 7)
    assert (export.size, export.minimum, export.preferred, export.maximum) == (1 << 40, 512, 4096, 1 << 25)
    assert export.read_only


def test_a_handshake_does_not_depend_on_how_its_bytes_are_cut() -> None:
    whole = (
        NEWSTYLE, b"\0\x03", reply(EXTENDED, UNSUPPORTED, b"what?"), reply(STRUCTURED, ACK),
        reply(SET_CONTEXT, ACK), reply(GO, INFO, info_export(99, 1)), reply(GO, ACK),
    )  # fmt: skip
    one, many = ClientHandshake("x"), ClientHandshake("x")
    sent = b"".join(one.receive(piece) for piece in whole)
    assert b"".join(many.receive(bytes([byte])) for byte in b"".join(whole)) == sent
    assert ended(one) == ended(many)
    assert ended(one).allocation is None


def test_a_server_without_go_is_told_the_name() -> None:
    handshake = until_go()
    assert handshake.receive(reply(GO, UNSUPPORTED)) == option(1, b"x")
    handshake.receive(struct.pack(">QH", 512, 1))
    assert ended(handshake).size == 512


def test_a_missing_export_is_refused_with_the_servers_words_and_the_names_that_it_has() -> None:
    handshake = until_go("x")
    assert handshake.receive(reply(GO, UNKNOWN, b"no \x1b[31m'x'")) == option(LIST)
    handshake.receive(reply(LIST, SERVER, struct.pack(">I", 3) + b"aberabout it"))
    with pytest.raises(StorageError) as caught:
        handshake.receive(reply(LIST, ACK))
    assert caught.value.errno == errno.ENOENT
    assert caught.value.message == "Requested export not available\nserver reported: no \\x1b[31m'x'"
    assert caught.value.__notes__ == ["the server's exports are 'abe'"]
    assert handshake.farewell() == option(2)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (TLS, StorageError, r"TLS negotiation required before option 7 \(go\)\nDid you forget a valid tls-"),
        (SHUTDOWN, StorageError, r"Server shutting down before option 7 \(go\)"),
        (POLICY, StorageError, r"Denied by server for option 7 \(go\)"),
        (0xFFFFFFFF, StorageError, "0xffffffff"),
    ],
)
def test_the_refusal_of_an_export_is_worded(error: int, kind: type[BlockError], text: str) -> None:
    with pytest.raises(kind, match=text):
        until_go().receive(reply(GO, error))


def test_a_server_that_wants_tls_is_asked_for_the_export_all_the_same_to_be_refused_there() -> None:
    handshake = begun()
    assert handshake.receive(reply(EXTENDED, TLS)) == option(STRUCTURED)
    assert handshake.receive(reply(STRUCTURED, TLS))[8:12] == struct.pack(">I", GO)


def wishing_for_tls() -> ClientHandshake:
    handshake = ClientHandshake("x", tls=True)
    handshake.receive(NEWSTYLE)
    assert handshake.receive(b"\0\x03") == struct.pack(">I", 3) + option(STARTTLS)
    return handshake


def test_tls_is_asked_for_before_anything_else_and_all_else_comes_after_it() -> None:
    handshake = wishing_for_tls()
    assert handshake.receive(reply(STARTTLS, ACK)) == b""
    assert handshake.awaits_tls
    assert handshake.secured() == option(EXTENDED)
    assert handshake.receive(reply(EXTENDED, UNSUPPORTED)) == option(STRUCTURED)


def test_what_was_said_before_tls_is_not_believed_after_it() -> None:
    with pytest.raises(PeerError, match="answers before it was asked"):
        wishing_for_tls().receive(reply(STARTTLS, ACK) + reply(EXTENDED, ACK))


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (UNSUPPORTED, Unsupported, "Server does not support STARTTLS"),
        (POLICY, StorageError, r"Denied by server for option 5 \(starttls\)\nserver reported: no TLS"),
    ],
)
def test_a_server_without_tls_is_refused_where_it_is_wanted(
    error: int, kind: type[BlockError], text: str
) -> None:
    with pytest.raises(kind, match=text):
        wishing_for_tls().receive(reply(STARTTLS, error, b"no TLS"))


@pytest.mark.parametrize("greeting", [OLDSTYLE + struct.pack(">QI", 512, 1) + bytes(124), NEWSTYLE + b"\0\0"])
def test_a_server_too_old_for_tls_is_refused_where_it_is_wanted(greeting: bytes) -> None:
    with pytest.raises(Unsupported, match="Server does not support STARTTLS"):
        ClientHandshake("", tls=True).receive(greeting)


DONE = reply(GO, ACK)
HOSTILE: dict[str, tuple[Callable[[str], ClientHandshake], str, bytes]] = {
    "no-magic": (ClientHandshake, "", b"HTTP/1.1 400 Bad"),
    "second-magic": (ClientHandshake, "", b"NBDMAGICNBDMAGIC"),
    "oldstyle-upper-flags": (ClientHandshake, "", OLDSTYLE + struct.pack(">QI", 1, 1 << 16) + bytes(124)),
    "oldstyle-huge": (ClientHandshake, "", OLDSTYLE + struct.pack(">QI", 1 << 63, 1) + bytes(124)),
    "oldstyle-talks-on": (ClientHandshake, "", OLDSTYLE + struct.pack(">QI", 1, 1) + bytes(125)),
    "reply-magic": (begun, "x", b"IHAVEOPT" + bytes(12)),
    "other-option": (begun, "x", reply(STRUCTURED, ACK)),
    "ack-with-data": (begun, "x", reply(EXTENDED, ACK, b"x")),
    "data-before-ack": (begun, "x", reply(EXTENDED, INFO, b"xx") + reply(EXTENDED, ACK)),
    "long-reply": (begun, "x", reply(EXTENDED, INFO, b"x" * (REPLY_MAX + 1))),
    "endless-replies": (begun, "x", reply(EXTENDED, INFO) * REPLIES_MAX),
    "go-without-size": (until_go, "x", reply(GO, ACK)),
    "go-with-odd-info": (until_go, "x", reply(GO, INFO, b"\0\0x") + reply(GO, ACK)),
    "go-with-no-info": (until_go, "x", reply(GO, INFO, b"x") + reply(GO, ACK)),
    "go-with-servers": (until_go, "x", reply(GO, SERVER, b"xxxx") + reply(GO, ACK)),
    "go-huge": (until_go, "x", reply(GO, INFO, info_export(1 << 63, 1)) + reply(GO, ACK)),
    "block-size-0": (until_go, "x", reply(GO, INFO, info_blocks(0, 4096, 4096)) + reply(GO, ACK)),
    "block-size-3": (until_go, "x", reply(GO, INFO, info_blocks(3, 4096, 4096)) + reply(GO, ACK)),
    "block-size-128k": (until_go, "x", reply(GO, INFO, info_blocks(1 << 17, 1 << 17, 1 << 20)) + DONE),
    "preferred-256": (until_go, "x", reply(GO, INFO, info_blocks(1, 256, 4096)) + reply(GO, ACK)),
    "maximum-small": (until_go, "x", reply(GO, INFO, info_blocks(4096, 4096, 512)) + reply(GO, ACK)),
    "block-size-short": (until_go, "x", reply(GO, INFO, b"\0\x03xxxx") + reply(GO, ACK)),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_server_that_breaks_the_protocol_is_given_up(case: str) -> None:
    make, name, data = HOSTILE[case]
    with pytest.raises(PeerError):
        make(name).receive(data)


def test_contexts_that_nobody_asked_for_are_refused() -> None:
    handshake = begun()
    handshake.receive(reply(EXTENDED, ACK))
    with pytest.raises(PeerError, match="base:allocation"):
        handshake.receive(reply(SET_CONTEXT, CONTEXT, b"\0\0\0\x01qemu:depth") + reply(SET_CONTEXT, ACK))


def test_a_name_that_no_export_can_have_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(OptionError, match="too long"):
        ClientHandshake("x" * 4097)


def test_another_context_may_tell_the_holes() -> None:
    handshake = ClientHandshake("x", context="qemu:dirty-bitmap:b")
    handshake.receive(NEWSTYLE + b"\0\x03")
    sent = handshake.receive(reply(EXTENDED, ACK))
    assert sent == option(SET_CONTEXT, b"\0\0\0\x01x" + struct.pack(">II", 1, 19) + b"qemu:dirty-bitmap:b")
    with pytest.raises(PeerError, match="qemu:dirty-bitmap:b and names others"):
        handshake.receive(reply(SET_CONTEXT, CONTEXT, b"\0\0\0\x07base:allocation") + reply(SET_CONTEXT, ACK))
