"""The server's handshake, byte by byte: what is offered, what is answered, what ends it."""

import struct

import pytest

from vblk.errors import PeerError
from vblk.wire.nbd import ExportFlag
from vblk.wire.nbd.server_handshake import OPTION_MAX, OPTIONS_MAX, SKIPPED_MAX, Offer, ServerHandshake

ACK, SERVER, INFO, CONTEXT = 1, 2, 3, 4
UNSUPPORTED, POLICY, INVALID, TLS_REQUIRED, UNKNOWN, BLOCK_SIZE_REQUIRED, TOO_BIG = (
    0x80000000 + number for number in (1, 2, 3, 5, 6, 8, 9)
)
EXPORT_NAME, ABORT, LIST, STARTTLS, ASK, GO, STRUCTURED, LIST_CONTEXTS, SET_CONTEXTS, EXTENDED = (
    1, 2, 3, 5, 6, 7, 8, 9, 10, 11,
)  # fmt: skip
DISK = Offer(
    "disk",
    1 << 20,
    ExportFlag.READ_ONLY | ExportFlag.SEND_FLUSH,
    "a disk",
    contexts=(
        "base:allocation",
        "qemu:allocation-depth",
        "qemu:dirty-bitmap:a",
        "qemu:dirty-bitmap:b",
    ),
)
PLAIN = Offer("", 512, ExportFlag.HAS_FLAGS)
COARSE = Offer("coarse", 4096, ExportFlag.HAS_FLAGS, minimum=4096)
DISK_FLAGS = 1 | 2 | 4
DF, PAYLOAD = 1 << 7, 1 << 12


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def reply(number: int, kind: int, data: bytes = b"") -> bytes:
    return bytes.fromhex("0003e889045565a9") + struct.pack(">III", number, kind, len(data)) + data


def counted(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def choice(name: bytes, *infos: int) -> bytes:
    return counted(name) + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def queries(name: bytes, *texts: bytes) -> bytes:
    return counted(name) + struct.pack(">I", len(texts)) + b"".join(map(counted, texts))


def begun(*, flags: int = 3, tls: bool = False) -> ServerHandshake:
    """Return a handshake in which the client has said which style it speaks."""
    offers = {offer.name: offer for offer in (DISK, PLAIN, COARSE)}
    handshake = ServerHandshake(lambda: offers, tls=tls)
    assert handshake.greeting() == b"NBDMAGICIHAVEOPT\0\x03"
    assert handshake.receive(struct.pack(">I", flags)) == b""
    return handshake


def asked(handshake: ServerHandshake, number: int, data: bytes = b"") -> tuple[int, bytes]:
    """Return the kind and the text of the only answer to an option."""
    answer = handshake.receive(option(number, data))
    magic, about, kind, length = struct.unpack_from(">8sIII", answer)
    assert magic == bytes.fromhex("0003e889045565a9")
    assert (about, length) == (number, len(answer) - 20)
    return kind, answer[20:]


def test_go_tells_name_description_block_sizes_and_size_and_chooses() -> None:
    handshake = begun()
    answer = handshake.receive(option(GO, choice(b"disk", 1, 2, 3)) + b"request")
    assert answer == (
        reply(GO, INFO, b"\0\x01disk")
        + reply(GO, INFO, b"\0\x02a disk")
        + reply(GO, INFO, struct.pack(">HIII", 3, 1, 4096, 32 << 20))
        + reply(GO, INFO, struct.pack(">HQH", 0, 1 << 20, DISK_FLAGS))
        + reply(GO, ACK)
    )
    assert handshake.agreement is not None
    assert handshake.agreement.offer is DISK
    assert not handshake.agreement.structured
    assert handshake.agreement.contexts == ()
    assert handshake.rest == b"request"


def test_bytes_may_come_one_at_a_time() -> None:
    handshake = begun()
    answer = b"".join(handshake.receive(bytes((each,))) for each in option(GO, choice(b"disk")))
    assert answer == begun().receive(option(GO, choice(b"disk")))
    assert handshake.agreement is not None


def test_info_tells_the_same_and_chooses_nothing() -> None:
    handshake = begun()
    told = handshake.receive(option(ASK, choice(b"")))
    assert told == (
        reply(ASK, INFO, struct.pack(">HIII", 3, 1, 4096, 32 << 20))
        + reply(ASK, INFO, struct.pack(">HQH", 0, 512, 1))
        + reply(ASK, ACK)
    )
    assert handshake.agreement is None


def test_a_minimum_block_size_has_to_be_asked_for() -> None:
    assert asked(begun(), ASK, choice(b"coarse"))[0] == BLOCK_SIZE_REQUIRED
    assert reply(ASK, INFO, struct.pack(">HIII", 3, 4096, 4096, 32 << 20)) in begun().receive(
        option(ASK, choice(b"coarse", 3))
    )


@pytest.mark.parametrize(("flags", "zeroes"), [(3, 0), (1, 124), (0, 124)])
def test_export_name_is_answered_in_the_oldest_way(flags: int, zeroes: int) -> None:
    handshake = begun(flags=flags)
    assert handshake.receive(option(EXPORT_NAME, b"disk")) == struct.pack(">QH", 1 << 20, DISK_FLAGS) + bytes(
        zeroes
    )
    assert handshake.agreement is not None


def test_structured_replies_and_extended_headers_add_what_they_can_to_the_flags() -> None:
    handshake = begun()
    assert asked(handshake, STRUCTURED) == (ACK, b"")
    assert handshake.receive(option(EXPORT_NAME, b"")) == struct.pack(">QH", 512, 1 | DF)
    assert handshake.agreement is not None
    assert (handshake.agreement.structured, handshake.agreement.extended) == (True, False)
    handshake = begun()
    assert asked(handshake, EXTENDED) == (ACK, b"")
    assert handshake.receive(option(EXPORT_NAME, b"")) == struct.pack(">QH", 512, 1 | DF | PAYLOAD)
    assert handshake.agreement is not None
    assert (handshake.agreement.structured, handshake.agreement.extended) == (True, True)


def test_all_exports_are_listed_with_their_descriptions() -> None:
    assert begun().receive(option(LIST)) == (
        reply(LIST, SERVER, counted(b"disk") + b"a disk")
        + reply(LIST, SERVER, counted(b""))
        + reply(LIST, SERVER, counted(b"coarse"))
        + reply(LIST, ACK)
    )


def test_a_client_that_aborts_is_let_go() -> None:
    handshake = begun()
    assert handshake.receive(option(ABORT)) == reply(ABORT, ACK)
    assert handshake.ended
    assert handshake.receive(option(LIST)) == b""


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ((b"base:allocation",), [0]),
        ((b"qemu:allocation-depth", b"base:allocation", b"base:allocation"), [0, 1]),
        ((b"qemu:dirty-bitmap:b",), [3]),
        ((b"base:", b"qemu:", b"qemu:dirty-bitmap:", b"x-other:y", b""), []),
        ((), []),
    ],
)
def test_contexts_are_selected_by_their_whole_names(texts: tuple[bytes, ...], found: list[int]) -> None:
    handshake = begun()
    asked(handshake, STRUCTURED)
    answer = handshake.receive(option(SET_CONTEXTS, queries(b"disk", *texts)))
    assert answer == b"".join(
        reply(SET_CONTEXTS, CONTEXT, struct.pack(">I", number) + DISK.contexts[number].encode())
        for number in found
    ) + reply(SET_CONTEXTS, ACK)
    handshake.receive(option(GO, choice(b"disk")))
    assert handshake.agreement is not None
    assert handshake.agreement.contexts == tuple(found)


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ((), [0, 1, 2, 3]),
        ((b"base:",), [0]),
        ((b"qemu:",), [1, 2, 3]),
        ((b"qemu:dirty-bitmap:",), [2, 3]),
        ((b"qemu:dirty-bitmap:a",), [2]),
        ((b"x-other:",), []),
    ],
)
def test_contexts_are_listed_by_names_and_by_families(texts: tuple[bytes, ...], found: list[int]) -> None:
    handshake = begun()
    asked(handshake, STRUCTURED)
    answer = handshake.receive(option(LIST_CONTEXTS, queries(b"disk", *texts)))
    assert answer == b"".join(
        reply(LIST_CONTEXTS, CONTEXT, bytes(4) + DISK.contexts[number].encode()) for number in found
    ) + reply(LIST_CONTEXTS, ACK)


def test_contexts_of_one_export_are_none_of_another_and_a_failed_selection_ends_the_last() -> None:
    for spoil in (option(LIST), option(SET_CONTEXTS, queries(b"none", b"base:allocation"))):
        handshake = begun()
        asked(handshake, STRUCTURED)
        handshake.receive(option(SET_CONTEXTS, queries(b"disk", b"base:allocation")))
        handshake.receive(spoil)
        handshake.receive(option(GO, choice(b"disk" if spoil[11] == SET_CONTEXTS else b"")))
        assert handshake.agreement is not None
        assert handshake.agreement.contexts == ()


@pytest.mark.parametrize(
    ("number", "data", "kind", "text"),
    [
        (GO, choice(b"none"), UNKNOWN, b"export 'none' not present"),
        (ASK, choice(b"a\n"), UNKNOWN, rb"export 'a\n' not present"),
        (GO, b"", INVALID, b"the option ends within a string"),
        (GO, counted(b"disk"), INVALID, b"the number of requests and the length differ"),
        (GO, choice(b"disk", 1) + b"x", INVALID, b"the number of requests and the length differ"),
        (GO, struct.pack(">I", 1 << 31), INVALID, b"the option ends within a string"),
        (GO, choice(b"x" * 4097), TOO_BIG, b"a string has more than 4096 bytes"),
        (LIST, b"x", INVALID, b"option 3 has 1 bytes of data"),
        (STRUCTURED, b"x", INVALID, b"option 8 has 1 bytes of data"),
        (STARTTLS, b"", POLICY, b"TLS not configured"),
        (4, b"", UNSUPPORTED, b"Unsupported option 4"),
        (12, b"xyz", UNSUPPORTED, b"Unsupported option 12"),
        (LIST, bytes(OPTION_MAX + 1), TOO_BIG, b"the option is too long"),
        (
            SET_CONTEXTS,
            queries(b"disk", b"base:allocation"),
            INVALID,
            b"request option 'SET_META_CONTEXT' when structured reply is not negotiated",
        ),
    ],
)
def test_what_is_refused_is_refused_in_a_sentence_and_the_next_option_is_heard(
    number: int, data: bytes, kind: int, text: bytes
) -> None:
    handshake = begun()
    assert asked(handshake, number, data) == (kind, text)
    assert asked(handshake, ABORT) == (ACK, b"")


@pytest.mark.parametrize(
    "data",
    [
        counted(b"disk"),
        counted(b"disk") + b"\0\0\0\x01",
        counted(b"disk") + b"\xff\xff\xff\xff",
        queries(b"disk", b"base:") + b"x",
        counted(b"disk") + b"\0\0\0\x01\0\0\0\x09short",
    ],
)
def test_queries_that_do_not_add_up_are_refused(data: bytes) -> None:
    handshake = begun()
    asked(handshake, EXTENDED)
    assert asked(handshake, LIST_CONTEXTS, data)[0] == INVALID


def test_what_was_agreed_on_is_not_agreed_on_again() -> None:
    for number in (STRUCTURED, EXTENDED):
        handshake = begun()
        assert asked(handshake, number) == (ACK, b"")
        assert asked(handshake, number)[0] == INVALID


@pytest.mark.parametrize(
    "sent",
    [
        b"IHAVEOPS" + struct.pack(">II", 3, 0),
        option(EXPORT_NAME, b"none"),
        option(EXPORT_NAME, bytes(OPTION_MAX + 1)),
        b"IHAVEOPT" + struct.pack(">II", 3, SKIPPED_MAX + 1),
        option(LIST) * (OPTIONS_MAX + 1),
    ],
)
def test_what_cannot_be_answered_ends_the_connection(sent: bytes) -> None:
    with pytest.raises(PeerError):
        begun().receive(sent)


def test_a_client_with_unknown_flags_or_of_the_old_style_is_heard_no_further() -> None:
    with pytest.raises(PeerError, match="unknown flags: 0x7"):
        begun(flags=7)
    with pytest.raises(PeerError, match="without fixed newstyle"):
        begun(flags=0).receive(option(LIST))


def test_before_tls_that_is_demanded_nothing_is_told() -> None:
    handshake = begun(tls=True)
    for number in (LIST, ASK, GO, STRUCTURED, EXTENDED, LIST_CONTEXTS, SET_CONTEXTS, 99):
        kind, text = asked(handshake, number, choice(b"none"))
        assert (kind, text.decode()) == (TLS_REQUIRED, f"Option {number:#x} not permitted before TLS")
    assert handshake.receive(option(STARTTLS)) == reply(STARTTLS, ACK)
    assert handshake.starting_tls
    handshake.secured()
    assert asked(handshake, STARTTLS) == (INVALID, b"TLS already enabled")
    handshake.receive(option(GO, choice(b"disk")))
    assert handshake.agreement is not None


def test_before_tls_no_export_is_chosen_and_behind_the_wish_for_it_no_plain_text_is_taken() -> None:
    with pytest.raises(PeerError, match="before TLS"):
        begun(tls=True).receive(option(EXPORT_NAME, b"disk"))
    with pytest.raises(PeerError, match="plain text"):
        begun(tls=True).receive(option(STARTTLS) + option(LIST))
    assert begun(tls=True).receive(option(ABORT)) == reply(ABORT, ACK)
