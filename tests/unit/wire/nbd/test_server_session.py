"""The server's transmission phase, byte by byte: which requests come out, and which are refused."""

import struct

import pytest

from vblk.errors import PeerError
from vblk.wire.nbd import ExportFlag
from vblk.wire.nbd.server_handshake import Agreement, Offer
from vblk.wire.nbd.server_session import BUFFER, SHORT_MAX, ServerSession

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, ONE, FAST, PAYLOAD = (1 << bit for bit in range(6))
EPERM, EINVAL, ENOSPC = 1, 22, 28
SIZE = 1 << 20


def session(
    *,
    structured: bool = True,
    extended: bool = False,
    read_only: bool = False,
    contexts: tuple[int, ...] = (0,),
) -> ServerSession:
    offer = Offer("", SIZE, ExportFlag.READ_ONLY if read_only else ExportFlag.NONE)
    return ServerSession(Agreement(offer, structured, extended, contexts))


def request(
    command: int, offset: int = 0, length: int = 0, payload: bytes = b"", *, flags: int = 0, cookie: int = 7
) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length) + payload


def extended(command: int, offset: int, length: int, payload: bytes = b"", *, flags: int = 0) -> bytes:
    return struct.pack(">IHHQQQ", 0x21E41C71, flags, command, 7, offset, length) + payload


Copied = tuple[int, int, int, int, int, bytes | None]


def fed(to: ServerSession, data: bytes) -> list[Copied]:
    """Return the requests that are there after some bytes, their payloads copied."""
    room = to.room()
    assert len(data) <= len(room)
    room[: len(data)] = data
    to.received(len(data))
    return [(*found[:5], None if found[5] is None else bytes(found[5])) for found in to.requests()]


def test_all_requests_of_a_buffer_come_out_and_the_rest_waits_for_its_end() -> None:
    server = session()
    sent = request(READ, 4096, 512) + request(WRITE, 512, 3, b"abc", cookie=8) + request(FLUSH, cookie=9)
    assert fed(server, sent[:-1]) == [(0, READ, 7, 4096, 512, None), (0, WRITE, 8, 512, 3, b"abc")]
    assert fed(server, sent[-1:]) == [(0, FLUSH, 9, 0, 0, None)]


def test_a_write_comes_out_when_its_last_byte_is_there() -> None:
    server = session()
    sent = request(WRITE, 0, 3, b"abc")
    for byte in sent[:-1]:
        assert fed(server, bytes((byte,))) == []
    assert fed(server, sent[-1:]) == [(0, WRITE, 7, 0, 3, b"abc")]


def test_long_payloads_arrive_in_memory_of_their_own() -> None:
    server = session()
    payload = bytes(range(256)) * (SHORT_MAX // 256 + 4)
    sent = request(WRITE, 0, len(payload), payload) + request(READ, 0, 1)
    got: list[Copied] = []
    while sent:
        count = min(len(sent), len(server.room()), 100_000)
        got += fed(server, sent[:count])
        sent = sent[count:]
    assert got == [(0, WRITE, 7, 0, len(payload), payload), (0, READ, 7, 0, 1, None)]


def test_short_payloads_wander_through_the_buffer_for_ever() -> None:
    server = session()
    payload = bytes(SHORT_MAX - 1) + b"x"
    piece = request(WRITE, 0, SHORT_MAX, payload)
    sent, count = piece * 5, 0
    while sent:
        step = min(len(server.room()), len(sent), BUFFER // 3)
        for found in fed(server, sent[:step]):
            assert found[5] == payload
            count += 1
        sent = sent[step:]
    assert count == 5


def test_who_stops_in_the_middle_goes_on_there() -> None:
    server = session()
    data = request(READ, 0, 1) + request(READ, 1, 1) + request(DISC) + request(READ, 2, 1)
    server.room()[: len(data)] = data
    server.received(len(data))
    assert next(server.requests())[3] == 0
    assert [found[3] for found in server.requests()] == [1]
    assert server.over
    assert list(server.requests()) == []


def test_what_came_behind_the_handshake_belongs_to_the_session() -> None:
    offer = Offer("", SIZE, ExportFlag.NONE)
    data = request(READ, 0, 1)
    server = ServerSession(Agreement(offer, structured=False, extended=False, contexts=()), data[:5])
    assert fed(server, data[5:]) == [(0, READ, 7, 0, 1, None)]


@pytest.mark.parametrize(
    "sent", [b"\x25\x60\x95\x12" + bytes(24), request(WRITE, 0, (32 << 20) + 1), request(STATUS)[::-1]]
)
def test_who_breaks_the_protocol_is_heard_no_further(sent: bytes) -> None:
    with pytest.raises(PeerError):
        fed(session(), sent)


def test_extended_requests_have_long_lengths_and_payloads_when_they_say_so() -> None:
    server = session(extended=True)
    assert fed(server, extended(TRIM, 0, 1 << 40)) == [(0, TRIM, 7, 0, 1 << 40, None)]
    assert fed(server, extended(WRITE, 0, 2, b"ab", flags=PAYLOAD)) == [(PAYLOAD, WRITE, 7, 0, 2, b"ab")]
    with pytest.raises(PeerError, match="payload"):
        fed(server, extended(WRITE, 0, 2, b"ab"))
    with pytest.raises(PeerError, match="begins with 0x25609513"):
        fed(session(extended=True), request(READ, 0, 1) + bytes(4))


@pytest.mark.parametrize(
    ("command", "flags", "offset", "length", "code"),
    [
        (READ, DF, SIZE - 1, 1, None),
        (READ, FUA, 0, 0, None),
        (READ, NO_HOLE, 0, 1, EINVAL),
        (READ, 1 << 15, 0, 1, EINVAL),
        (READ, PAYLOAD, 0, 1, EINVAL),
        (READ, 0, SIZE, 1, EINVAL),
        (READ, 0, (1 << 64) - 1, (1 << 32) - 1, EINVAL),
        (WRITE, FUA, SIZE - 1, 1, None),
        (WRITE, 0, SIZE - 1, 2, ENOSPC),
        (WRITE, DF, 0, 1, EINVAL),
        (ZEROES, NO_HOLE | FAST | FUA, 0, SIZE, None),
        (ZEROES, 0, 1, SIZE, ENOSPC),
        (TRIM, 0, 1, SIZE, EINVAL),
        (TRIM, FAST, 0, 1, EINVAL),
        (CACHE, 0, 0, SIZE, None),
        (FLUSH, 0, 1 << 63, 5, None),
        (FLUSH, ONE, 0, 0, EINVAL),
        (STATUS, ONE, 0, SIZE, None),
        (STATUS, 0, 0, 0, EINVAL),
        (STATUS, 0, 0, SIZE + 1, EINVAL),
        (STATUS, FAST, 0, 1, EINVAL),
        (8, 0, 0, 0, EINVAL),
        (65535, 0, 0, 0, EINVAL),
    ],
)
def test_requests_are_refused_with_the_protocols_codes(
    command: int, flags: int, offset: int, length: int, code: int | None
) -> None:
    refusal = session().refusal((flags, command, 7, offset, length, None), SIZE)
    assert (None if refusal is None else refusal[0]) == code


def test_long_reads_changes_to_what_is_read_only_and_unagreed_contexts_are_refused() -> None:
    too_long = session().refusal((0, READ, 7, 0, (32 << 20) + 1, None), 1 << 40)
    assert too_long is not None
    assert too_long[0] == EINVAL
    for command in (WRITE, TRIM, ZEROES):
        refusal = session(read_only=True).refusal((0, command, 7, 0, 1, None), SIZE)
        assert refusal == (EPERM, "the export is read-only")
    refusal = session(contexts=()).refusal((0, STATUS, 7, 0, 1, None), SIZE)
    assert refusal is not None
    assert refusal[0] == EINVAL


@pytest.mark.parametrize(
    ("payload", "asked"),
    [
        (struct.pack(">QI", 512, 2), (512, (2,))),
        (struct.pack(">QII", 512, 2, 0), (512, (2, 0))),
        (struct.pack(">Q", 512), (0, ())),
        (struct.pack(">QI", 512, 1), (0, ())),
        (struct.pack(">QII", 512, 2, 2), (0, ())),
        (struct.pack(">QIH", 512, 2, 0), (0, ())),
    ],
)
def test_a_block_status_may_choose_among_the_contexts(
    payload: bytes, asked: tuple[int, tuple[int, ...]]
) -> None:
    server = session(extended=True, contexts=(0, 2))
    (found,) = fed(server, extended(STATUS, 0, len(payload), payload, flags=PAYLOAD))
    status = (*found[:5], memoryview(payload))
    assert server.status_asked(status) == asked
    assert (server.refusal(status, SIZE) is None) == bool(asked[0])


def test_answers_in_all_three_dialects() -> None:
    simple = session(structured=False).replies
    assert simple.done(7, 512) == bytes.fromhex("67446698 00000000 0000000000000007")
    assert simple.data(7, 512, 3) == simple.done(7, 512)
    assert simple.error(7, 512, 5, "broken") == bytes.fromhex("67446698 00000005 0000000000000007")
    chunked = session().replies
    assert chunked.done(7, 512) == simple.done(7, 512)
    assert chunked.data(7, 512, 3) == bytes.fromhex(
        "668e33ef 0001 0001 0000000000000007 0000000b 0000000000000200"
    )
    assert chunked.error(7, 512, 5, "bad") == bytes.fromhex(
        "668e33ef 0001 8001 0000000000000007 00000009 00000005 0003 626164"
    )
    large = session(extended=True).replies
    assert large.done(7, 512) == bytes.fromhex(
        "6e8a278c 0001 0000 0000000000000007 0000000000000200 0000000000000000"
    )
    assert large.data(7, 512, 3) == bytes.fromhex(
        "6e8a278c 0001 0001 0000000000000007 0000000000000200 000000000000000b 0000000000000200"
    )
