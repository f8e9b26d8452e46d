"""Web servers that lie, fail, move, or change their minds."""

import asyncio

import pytest

from tests.support.manual_clock import ManualClock
from tests.support.nodes import content_of
from tests.support.web import Answerer, Asked, OddServer, answer, part
from vblk.errors import BlockError, OptionError, PeerError, StorageError
from vblk.graph.objects import Objects
from vblk.protocols.http import Options
from vblk.protocols.http_source import Source

CONTENT = content_of(300_000)


class Impatient(ManualClock):
    """A clock on which nobody waits."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


async def read(url: str, *ranges: tuple[int, int], **options: object) -> list[bytes]:
    """Open what is there, and read ranges of it."""
    objects = Objects({"word": b"open sesame", "crumb": b"a=b"})
    source = Source(Options(url, **options), objects, Impatient())  # type: ignore[arg-type]
    try:
        await source.open()
        found: list[bytes] = []
        for offset, length in ranges:
            buffer = bytearray(length)
            await source.fetch(offset, memoryview(buffer))
            found.append(bytes(buffer))
        return found
    finally:
        await source.close()


def after(count: int, then: Answerer) -> Answerer:
    """Answer the first `count` requests right, and the others as `then` does."""
    seen: list[Asked] = []

    def reply(asked: Asked) -> bytes:
        seen.append(asked)
        return part(asked, CONTENT, ETag='"1"') if len(seen) <= count else then(asked)

    return reply


def test_ranges_are_read_as_they_are() -> None:
    with OddServer(lambda asked: part(asked, CONTENT)) as server:
        assert asyncio.run(read(server.name(), (0, 10), (70_000, 200_000), (299_999, 1))) == [
            CONTENT[:10],
            CONTENT[70_000:270_000],
            CONTENT[-1:],
        ]


WRONG: list[tuple[Answerer, type[BlockError], str]] = [
    (lambda _: answer("200 OK", CONTENT), StorageError, "Server does not support 'range' (byte ranges)."),
    (lambda _: answer("206 Partial Content", CONTENT), PeerError, "does not say which range"),
    (
        lambda _: answer("206 Partial Content", b"x" * 10, Content_Range="bytes 5-14/300000"),
        PeerError,
        "sends another range: bytes 5-14/300000",
    ),
    (
        lambda _: answer("206 Partial Content", b"x" * 10, Content_Range="bytes 0-9/9"),
        PeerError,
        "sends another range",
    ),
    (
        lambda _: answer("206 Partial Content", b"x", Content_Range="bytes 0-0/9999999999999999999"),
        PeerError,
        "sends another range",
    ),
    (
        lambda _: answer("206 Partial Content", b"x" * 11, Content_Range="bytes 0-9/300000"),
        PeerError,
        "sent more than it was asked for",
    ),
    (lambda asked: part(asked, CONTENT, Content_Encoding="gzip"), PeerError, "sends what is encoded"),
    (lambda _: answer("302 Found"), PeerError, "redirects to nowhere"),
    (lambda _: answer("302 Found", Location="/disk"), PeerError, "redirects without end"),
    (
        lambda _: answer("302 Found", Location="ftp://127.0.0.1/x"),
        OptionError,
        "not the URL of a web server",
    ),
    (lambda _: answer("404 Not Found"), StorageError, "The requested URL returned error: 404"),
    (lambda _: answer("503 Busy"), StorageError, "The requested URL returned error: 503"),
    (lambda _: b"", StorageError, "the connection to '127.0.0.1:"),
    (lambda _: b"garbage\r\n\r\n", StorageError, "the connection to '127.0.0.1:"),
]


@pytest.mark.parametrize(("reply", "kind", "text"), WRONG)
def test_an_answer_that_is_none_is_refused(reply: Answerer, kind: type[BlockError], text: str) -> None:
    with OddServer(reply) as server, pytest.raises(kind) as caught:
        asyncio.run(read(server.name()))
    assert text in caught.value.message


CHANGED: list[Answerer] = [
    lambda asked: part(asked, CONTENT, ETag='"2"'),
    lambda asked: part(asked, CONTENT),
    lambda asked: part(asked, CONTENT + b"x", ETag='"1"'),
    lambda asked: answer("412 Precondition Failed"),
    lambda asked: answer("416 Range Not Satisfiable"),
]


@pytest.mark.parametrize("then", CHANGED)
def test_an_image_that_changes_meanwhile_is_read_no_further(then: Answerer) -> None:
    with OddServer(after(1, then)) as server, pytest.raises(StorageError, match="has changed on the server"):
        asyncio.run(read(server.name(), (100_000, 1000)))


def test_every_range_is_asked_for_of_the_image_that_was_opened() -> None:
    with OddServer(after(9, lambda asked: b"")) as server:
        asyncio.run(read(server.name(), (0, 10), (10, 10)))
    assert [asked.headers.get("if-match") for asked in server.asked] == [None, '"1"', '"1"']


def test_what_breaks_off_is_gone_on_with() -> None:
    def reply(asked: Asked) -> bytes:
        whole = part(asked, CONTENT)
        return whole[: len(whole) // 2 + 200]

    with OddServer(reply) as server:
        assert asyncio.run(read(server.name(), (5, 200_000))) == [CONTENT[5:200_005]]
    starts = [asked.range[0] for asked in server.asked]
    assert starts == sorted(starts)
    assert len(starts) > 5


def test_a_busy_server_is_asked_again() -> None:
    waits = iter([answer("503 Busy", Retry_After="7"), answer("429 Slow down"), b""])
    with OddServer(after(1, lambda asked: next(waits, None) or part(asked, CONTENT, ETag='"1"'))) as server:
        assert asyncio.run(read(server.name(), (9, 9))) == [CONTENT[9:18]]


def test_a_redirect_is_followed_once_and_again_when_it_has_expired() -> None:
    tickets = iter(range(1, 9))
    valid: list[str] = []

    def reply(asked: Asked) -> bytes:
        if asked.path == "/disk":
            valid[:] = [f"/signed{next(tickets)}"]
            return answer("307 Temporary Redirect", Location=valid[0])
        if asked.path not in valid:
            return answer("403 Forbidden")
        return part(asked, CONTENT, ETag='"1"')

    async def scenario(url: str) -> None:
        source = Source(Options(url), Objects(), Impatient())
        await source.open()
        buffer = memoryview(bytearray(10))
        await source.fetch(0, buffer)
        valid.clear()
        await source.fetch(20, buffer)
        assert bytes(buffer) == CONTENT[20:30]
        await source.close()

    with OddServer(reply) as server:
        asyncio.run(scenario(server.name()))
    assert [asked.path for asked in server.asked] == [
        "/disk", "/signed1", "/signed1", "/signed1", "/disk", "/signed2",
    ]  # fmt: skip


def test_credentials_are_secrets_and_for_one_server_only() -> None:
    with OddServer(lambda asked: part(asked, CONTENT)) as other:

        def reply(asked: Asked) -> bytes:
            return answer("302 Found", Location=other.name())

        with OddServer(reply) as server:
            options = {"username": "ali", "password_secret": "word", "cookie_secret": "crumb"}
            asyncio.run(read(server.name(), (0, 5), **options))
    assert server.asked[0].headers["authorization"] == "Basic YWxpOm9wZW4gc2VzYW1l"
    assert server.asked[0].headers["cookie"] == "a=b"
    for asked in other.asked:
        assert not asked.headers.keys() & {"authorization", "cookie"}


@pytest.mark.parametrize(
    ("url", "options", "text"),
    [
        ("http://ali:sesame@127.0.0.1/", {}, "credentials have no place in a URL"),
        ("http:///disk", {}, "not the URL of a web server"),
        ("http://[::1/disk", {}, "is not a URL"),
        ("http://127.0.0.1/", {"password_secret": "word"}, "without a user name"),
        ("http://127.0.0.1/", {"username": "ali", "password_secret": "none"}, "none"),
        ("http://127.0.0.1/", {"readahead": 1}, "HTTP_READAHEAD_SIZE 1 is not a multiple of 512"),
        ("http://127.0.0.1/", {"timeout": 0}, "timeout parameter"),
        ("http://127.0.0.1/", {"cookie": "a", "cookie_secret": "crumb"}, "both cookie and cookie secret"),
    ],
)
def test_options_that_mean_nothing_are_refused_before_anything_is_asked(
    url: str, options: dict[str, object], text: str
) -> None:
    with pytest.raises(OptionError) as caught:
        asyncio.run(read(url, **options))
    assert text in caught.value.message
    assert "sesame" not in caught.value.message
