"""The transmission phase, byte by byte: requests as they are sent, replies as they are believed."""

import struct
from collections.abc import Callable

import pytest

from vblk.errors import PeerError
from vblk.wire.nbd import ClientSession, Command, CommandFlag, Exchange, Export, Request
from vblk.wire.nbd.client_session import BUFFER, EXTENTS_TAKEN

SIMPLE = Export(size=1 << 20)
STRUCTURED = Export(size=1 << 20, structured=True, allocation=5)
EXTENDED = Export(size=1 << 40, structured=True, extended=True, allocation=5)
NONE, DATA, HOLE, STATUS, STATUS_EXT, ERROR, ERROR_OFFSET = 0, 1, 2, 5, 6, 0x8001, 0x8002
DONE = 1


def simple(cookie: int, error: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">IIQ", 0x67446698, error, cookie) + payload


def chunk(cookie: int, kind: int, payload: bytes = b"", flags: int = DONE) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, flags, kind, cookie, len(payload)) + payload


def long_chunk(cookie: int, offset: int, kind: int, payload: bytes = b"", flags: int = DONE) -> bytes:
    return struct.pack(">IHHQQQ", 0x6E8A278C, flags, kind, cookie, offset, len(payload)) + payload


def error(code: int, text: bytes = b"", tail: bytes = b"") -> bytes:
    return struct.pack(">IH", code, len(text)) + text + tail


def data(offset: int, payload: bytes) -> bytes:
    return struct.pack(">Q", offset) + payload


def feed(session: ClientSession, received: bytes, step: int = BUFFER) -> list[Exchange]:
    """Give a session bytes as a socket would, `step` at a time."""
    finished: list[Exchange] = []
    while received:
        room = session.room()
        count = min(len(room), step, len(received))
        room[:count] = received[:count]
        received = received[count:]
        finished += session.received(count)
    return finished


def reading(export: Export, offset: int = 4096, length: int = 16) -> tuple[ClientSession, bytearray]:
    """Return a session with one read in flight, whose cookie is 1, and its memory."""
    session, memory = ClientSession(export), bytearray(b"\xee" * length)
    session.begin(Request(Command.READ, offset, length, target=memoryview(memory)))
    return session, memory


def asking(export: Export = STRUCTURED, length: int = 1 << 20) -> ClientSession:
    session = ClientSession(export)
    session.begin(Request(Command.BLOCK_STATUS, 0, length))
    return session


def test_requests_have_compact_headers_with_new_cookies() -> None:
    session = ClientSession(STRUCTURED)
    _, header = session.begin(Request(Command.WRITE, 0x0102, 0x0304, CommandFlag.FUA))
    assert header == bytes.fromhex("25609513 0001 0001 0000000000000001 0000000000000102 00000304")
    _, header = session.begin(Request(Command.FLUSH, 0, 0))
    assert header == bytes.fromhex("25609513 0000 0003 0000000000000002 0000000000000000 00000000")
    assert session.farewell() == bytes.fromhex("25609513 0000 0002") + bytes(20)


def test_extended_headers_have_long_lengths_and_mark_payload() -> None:
    session = ClientSession(EXTENDED)
    _, header = session.begin(Request(Command.TRIM, 1, 1 << 33))
    assert header == bytes.fromhex("21e41c71 0000 0004 0000000000000001 0000000000000001 0000000200000000")
    _, header = session.begin(Request(Command.WRITE, 2, 3))
    assert header == bytes.fromhex("21e41c71 0020 0001 0000000000000002 0000000000000002 0000000000000003")


@pytest.mark.parametrize("step", [1, 3, 19, BUFFER])
def test_replies_are_matched_by_their_cookies_in_any_order(step: int) -> None:
    session = ClientSession(SIMPLE)
    memory = [bytearray(5), bytearray(300)]
    first, _ = session.begin(Request(Command.READ, 0, 5, target=memoryview(memory[0])))
    second, _ = session.begin(Request(Command.READ, 5, 300, target=memoryview(memory[1])))
    third, _ = session.begin(Request(Command.FLUSH, 0, 0))
    replies = simple(3) + simple(2, 0, b"y" * 300) + simple(1, 0, b"x" * 5)
    assert feed(session, replies, step) == [third, second, first]
    assert memory == [b"x" * 5, b"y" * 300]


def test_large_payload_goes_straight_into_the_readers_memory() -> None:
    session, memory = reading(SIMPLE, length=1 << 20)
    feed(session, simple(1))
    room = session.room()
    assert len(room) == 1 << 20
    room[:] = b"z" * (1 << 20)
    (finished,) = session.received(1 << 20)
    assert (finished.error, bytes(memory)) == (0, b"z" * (1 << 20))


@pytest.mark.parametrize("step", [1, 7, BUFFER])
def test_a_read_is_put_together_from_chunks_in_any_order(step: int) -> None:
    session, memory = reading(STRUCTURED)
    replies = (
        chunk(1, DATA, data(4096 + 8, b"cccc"), 0)
        + chunk(1, HOLE, struct.pack(">QI", 4096 + 12, 4), 0)
        + chunk(1, DATA, data(4096, b"aaaabbbb"), 0)
        + chunk(1, NONE)
    )
    (finished,) = feed(session, replies, step)
    assert (finished.error, bytes(memory)) == (0, b"aaaabbbbcccc\0\0\0\0")


def test_extended_replies_are_read() -> None:
    session, memory = reading(EXTENDED)
    (finished,) = feed(session, long_chunk(1, 4096, DATA, data(4096, b"x" * 16)))
    assert (finished.error, bytes(memory)) == (0, b"x" * 16)


def test_the_first_error_of_a_reply_counts_and_its_text_is_made_harmless() -> None:
    session, _ = reading(STRUCTURED)
    replies = (
        chunk(1, ERROR_OFFSET, error(5, b"bad\n\x1b", struct.pack(">Q", 4100)), 0)
        + chunk(1, 0x8123, error(28, b"", b"of another time"), 0)
        + chunk(1, NONE)
    )
    (finished,) = feed(session, replies)
    assert (finished.error, finished.error_text) == (5, "bad\\n\\x1b")


def test_a_simple_reply_may_answer_what_has_no_payload_among_structured_ones() -> None:
    session = ClientSession(STRUCTURED)
    exchange, _ = session.begin(Request(Command.WRITE, 0, 512))
    assert feed(session, simple(1, 28)) == [exchange]
    assert exchange.error == 28


def test_extents_are_cut_to_what_was_asked() -> None:
    session = asking()
    (finished,) = feed(session, chunk(1, STATUS, struct.pack(">IIIII", 5, 4096, 0, 1 << 30, 3)))
    assert finished.extents == [(4096, 0), ((1 << 20) - 4096, 3)]


@pytest.mark.parametrize("count", [0, 2])
def test_extended_extents_are_read_with_and_without_their_count(count: int) -> None:
    session = asking(EXTENDED, 1 << 35)
    payload = struct.pack(">IIQQQQ", 5, count, 1 << 34, 0, 1 << 36, 3)
    (finished,) = feed(session, long_chunk(1, 0, STATUS_EXT, payload))
    assert finished.extents == [(1 << 34, 0), (1 << 34, 3)]


def test_only_so_many_extents_are_taken_at_a_time() -> None:
    session = asking()
    payload = struct.pack(">I", 5) + struct.pack(">II", 1, 0) * (EXTENTS_TAKEN + 5)
    (finished,) = feed(session, chunk(1, STATUS, payload))
    assert finished.extents is not None
    assert len(finished.extents) == EXTENTS_TAKEN


Case = tuple[Callable[[], ClientSession], bytes]


def _writing(export: Export) -> ClientSession:
    session = ClientSession(export)
    session.begin(Request(Command.WRITE, 4096, 16))
    return session


HOSTILE: dict[str, Case] = {
    "magic": (lambda: reading(SIMPLE)[0], b"HTTP" + bytes(28)),
    "structured-not-agreed": (lambda: reading(SIMPLE)[0], chunk(1, NONE)),
    "extended-not-agreed": (lambda: reading(STRUCTURED)[0], long_chunk(1, 4096, NONE)),
    "simple-though-extended": (lambda: _writing(EXTENDED), simple(1) + bytes(16)),
    "unknown-cookie": (lambda: reading(SIMPLE)[0], simple(2)),
    "answered-twice": (lambda: _writing(SIMPLE), simple(1) + simple(1)),
    "simple-read-though-structured": (lambda: reading(STRUCTURED)[0], simple(1)),
    "simple-status": (asking, simple(1)),
    "other-offset": (lambda: reading(EXTENDED)[0], long_chunk(1, 0, NONE)),
    "none-with-payload": (lambda: _writing(STRUCTURED), chunk(1, NONE, b"x")),
    "none-not-last": (lambda: _writing(STRUCTURED), chunk(1, NONE, flags=0)),
    "data-for-a-write": (lambda: _writing(STRUCTURED), chunk(1, DATA, data(4096, b"x"))),
    "hole-for-a-write": (lambda: _writing(STRUCTURED), chunk(1, HOLE, struct.pack(">QI", 4096, 1))),
    "status-for-a-read": (lambda: reading(STRUCTURED)[0], chunk(1, STATUS, struct.pack(">III", 5, 1, 0))),
    "unknown-chunk": (lambda: reading(STRUCTURED)[0], chunk(1, 77, b"x" * 20)),
    "data-without-a-byte": (lambda: reading(STRUCTURED)[0], chunk(1, DATA, data(4096, b""))),
    "data-before": (lambda: reading(STRUCTURED)[0], chunk(1, DATA, data(4095, b"x"))),
    "data-behind": (lambda: reading(STRUCTURED)[0], chunk(1, DATA, data(4096 + 15, b"xx"))),
    "data-too-long": (lambda: reading(STRUCTURED)[0], chunk(1, DATA, data(4096, b"x" * 17))),
    "data-of-4-gib": (
        lambda: reading(STRUCTURED)[0], struct.pack(">IHHQI", 0x668E33EF, 1, 1, 1, 2**32 - 1),
    ),
    "data-of-2-to-the-63": (
        lambda: reading(EXTENDED)[0], struct.pack(">IHHQQQ", 0x6E8A278C, 1, 1, 1, 4096, 2**63),
    ),
    "overlap": (
        lambda: reading(STRUCTURED)[0],
        chunk(1, DATA, data(4096, b"x" * 8), 0) + chunk(1, HOLE, struct.pack(">QI", 4096 + 7, 2)),
    ),
    "hole-of-nothing": (lambda: reading(STRUCTURED)[0], chunk(1, HOLE, struct.pack(">QI", 4096, 0))),
    "hole-of-4-gib": (lambda: reading(STRUCTURED)[0], chunk(1, HOLE, struct.pack(">QI", 4096, 2**32 - 1))),
    "hole-short": (lambda: reading(STRUCTURED)[0], chunk(1, HOLE, b"xxxx")),
    "too-little-data": (lambda: reading(STRUCTURED)[0], chunk(1, DATA, data(4096, b"x" * 15))),
    "no-data": (lambda: reading(STRUCTURED)[0], chunk(1, NONE)),
    "error-0": (lambda: _writing(STRUCTURED), chunk(1, ERROR, error(0))),
    "error-short": (lambda: _writing(STRUCTURED), chunk(1, ERROR, b"xxxxx")),
    "error-long": (lambda: _writing(STRUCTURED), chunk(1, ERROR, b"x" * 9000)),
    "error-text-beyond": (lambda: _writing(STRUCTURED), chunk(1, ERROR, struct.pack(">IH", 5, 9) + b"x")),
    "error-offset-elsewhere": (
        lambda: _writing(STRUCTURED), chunk(1, ERROR_OFFSET, error(5, b"", struct.pack(">Q", 4096 + 16))),
    ),
    "status-of-another-context": (asking, chunk(1, STATUS, struct.pack(">III", 6, 1, 0))),
    "status-twice": (
        asking,
        chunk(1, STATUS, struct.pack(">III", 5, 1, 0), 0) + chunk(1, STATUS, struct.pack(">III", 5, 1, 0)),
    ),
    "status-empty-extent": (asking, chunk(1, STATUS, struct.pack(">III", 5, 0, 0))),
    "status-too-much": (asking, chunk(1, STATUS, struct.pack(">IIIII", 5, 1 << 20, 0, 1, 0))),
    "status-odd": (asking, chunk(1, STATUS, struct.pack(">IIIB", 5, 1, 0, 0))),
    "status-none": (asking, chunk(1, NONE)),
    "status-extended-not-agreed": (asking, chunk(1, STATUS_EXT, struct.pack(">IIQQ", 5, 1, 1, 0))),
    "status-count": (
        lambda: asking(EXTENDED), long_chunk(1, 0, STATUS_EXT, struct.pack(">IIQQ", 5, 2, 1, 0)),
    ),
    "status-huge": (asking, struct.pack(">IHHQI", 0x668E33EF, 1, STATUS, 1, 2**32 - 4)),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("step", [1, BUFFER])
def test_a_reply_that_breaks_the_protocol_is_refused(case: str, step: int) -> None:
    make, received = HOSTILE[case]
    with pytest.raises(PeerError):
        feed(make(), received, step)


def test_nothing_outside_of_the_readers_memory_is_touched() -> None:
    whole = bytearray(b"\xee" * 48)
    session = ClientSession(STRUCTURED)
    session.begin(Request(Command.READ, 4096, 16, target=memoryview(whole)[16:32]))
    feed(session, chunk(1, DATA, data(4096, b"x" * 16)))
    assert whole == b"\xee" * 16 + b"x" * 16 + b"\xee" * 16
