"""What a web server has under one URL, as it was when it was first asked for.

Owns: the requests for ranges of it: how redirects are followed, what is tried again,
and what shows that it is another thing by now. Which ranges are wanted, and when, is
`http_node`'s.

Ordering rule: an answer is believed when its status, its range, its length in all and
its validator are what was asked for; only then its bytes count, as far as they came.

Source: RFC 9110, "Range Requests", "Conditional Requests" and "Redirection 3xx".
"""

import errno
import re
from base64 import b64encode
from contextlib import AbstractAsyncContextManager
from typing import Final
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from vblk.aio.clock import Clock, LoopClock
from vblk.errors import OptionError, PeerError, StorageError
from vblk.graph.objects import Objects
from vblk.protocols.http import Options
from vblk.protocols.not_connected import not_connected
from vblk.units import OFFSET_MAX

CONNECTIONS: Final = 16
TRIES: Final = 5
DELAY: Final = 0.2
"""Seconds before the second try; each further one waits twice as long."""
DELAY_MAX: Final = 10.0
REDIRECTS_MAX: Final = 10
FIRST: Final = 64 * 1024
"""How many bytes the first request asks for: most of what opening an image reads."""

_REDIRECTS: Final = (301, 302, 303, 307, 308)
_BUSY: Final = (408, 425, 429, 500, 502, 503, 504)
_STALE: Final = (401, 403, 404, 410)
_NUMBERS: Final = {
    401: errno.EACCES,
    403: errno.EACCES,
    404: errno.ENOENT,
    407: errno.EACCES,
    410: errno.ENOENT,
}
_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.ASCII)


class _Again(Exception):
    """A failure that another try may not meet, after so many seconds."""

    def __init__(self, failure: StorageError, delay: float = 0) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.delay = delay


class Source:
    """One image on a server.

    Concurrency: belongs to one event loop's thread, with any number of requests under way.
    """

    def __init__(self, options: Options, objects: Objects, clock: Clock | None = None) -> None:
        """Prepare requests; nothing is connected.

        Raises:
            OptionError: The URL is none, or there is no such secret.
        """
        self._clock = clock if clock is not None else LoopClock()
        self._first_url = _checked(options.url)
        self._url = self._first_url
        """Where the redirects of the first request led."""
        self.address = urlsplit(self._first_url).netloc
        self.size = 0
        """The length in bytes."""
        self.head = b""
        """The first bytes, as the opening found them."""
        self._etag: str | None = None
        self._modified: str | None = None
        self._headers = {"Accept-Encoding": "identity"}
        cookie = options.cookie
        if options.cookie_secret is not None:
            cookie = objects.secret(options.cookie_secret).decode("latin-1")
        if cookie is not None:
            self._headers["Cookie"] = cookie
        login = _login(objects, options.username, options.password_secret)
        if login is not None:
            self._headers["Authorization"] = login
        proxy_login = _login(objects, options.proxy_username, options.proxy_password_secret)
        self._proxy_headers = {} if proxy_login is None else {"Proxy-Authorization": proxy_login}
        self._limit = aiohttp.ClientTimeout(
            total=None, sock_connect=options.timeout, sock_read=options.timeout
        )
        self._verifies = options.sslverify
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Find out how long it is, and what will tell that it has changed.

        Raises:
            StorageError: There is no such server or image, or it refuses, or it has no ranges.
            PeerError: The server breaks the protocol.
        """
        connector = aiohttp.TCPConnector(limit=CONNECTIONS, ssl=self._verifies)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=self._limit,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        room = memoryview(bytearray(FIRST))
        count = await self._tried(0, room, is_first=True)
        self.head = bytes(room[:count])

    async def close(self) -> None:
        """Hang up. Idempotent."""
        if self._session is not None:
            await self._session.close()

    async def fetch(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer from `offset` on; all of it lies within the image.

        Raises:
            StorageError: It cannot be had, or is another thing by now.
            PeerError: The server breaks the protocol.
        """
        done = 0
        while done < len(buffer):
            done += await self._tried(offset + done, buffer[done:])

    async def _tried(self, offset: int, room: memoryview, *, is_first: bool = False) -> int:
        """Ask until there is something, and return how many bytes that is."""
        delay = DELAY
        tries = 0
        while True:
            tries += 1
            try:
                return await self._ask(offset, room, is_first=is_first)
            except _Again as again:
                if tries == TRIES:
                    raise again.failure from again.__cause__
                await self._clock.sleep(min(DELAY_MAX, max(delay, again.delay)))
                delay *= 2

    async def _ask(self, offset: int, room: memoryview, *, is_first: bool) -> int:
        """Ask once, by way of what redirects there are."""
        url = self._first_url if is_first else self._url
        for _ in range(REDIRECTS_MAX + 1):
            try:
                async with self._request(url, offset, len(room)) as response:
                    if response.status in _REDIRECTS:
                        url = self._redirected(url, response.headers.get("Location"))
                        continue
                    if response.status in _STALE and url is self._url is not self._first_url and not is_first:
                        url = self._first_url  # a signed URL has expired
                        continue
                    length = self._judge(response, offset, len(room), is_first=is_first)
                    self._url = url
                    return await _taken(response, room, length, self.address)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise _Again(self._lost(error)) from error
        raise PeerError(f"the server at '{self.address}' redirects without end")

    def _request(
        self, url: str, offset: int, length: int
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        assert self._session is not None
        headers = dict(self._headers)
        headers["Range"] = f"bytes={offset}-{offset + length - 1}"
        if self._etag is not None:
            headers["If-Match"] = self._etag
        parts = urlsplit(url)
        if parts.netloc != self.address:  # what was meant for one server is not for another
            headers.pop("Cookie", None)
            headers.pop("Authorization", None)
        proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
        return self._session.get(
            URL(url, encoded=True),
            headers=headers,
            allow_redirects=False,
            proxy=proxy,
            proxy_headers=self._proxy_headers if proxy is not None else None,
        )

    def _redirected(self, url: str, location: str | None) -> str:
        if location is None:
            raise PeerError(f"the server at '{self.address}' redirects to nowhere")
        target = _checked(urljoin(url, location))
        if url.startswith("https:") and not target.startswith("https:"):
            raise PeerError(f"the server at '{self.address}' redirects to where nothing is encrypted")
        return target

    def _judge(self, response: aiohttp.ClientResponse, offset: int, length: int, *, is_first: bool) -> int:
        """Return how many bytes an answer promises, if it is what was asked for."""
        status, headers = response.status, response.headers
        if status in _BUSY:
            raise _Again(self._refused(response), _seconds(headers.get("Retry-After")))
        if status == 412 or (status == 416 and not is_first):
            raise self._changed()
        if is_first and status == 200 and headers.get("Content-Length") == "0":
            return 0
        if status == 200:
            raise StorageError(errno.EOPNOTSUPP, "Server does not support 'range' (byte ranges).")
        if is_first and status == 416 and headers.get("Content-Range") == "bytes */0":
            return 0
        if status != 206:
            raise self._refused(response)
        found = _RANGE.fullmatch(headers.get("Content-Range", ""))
        if found is None:
            raise PeerError(f"the server at '{self.address}' does not say which range it sends")
        first, last, size = (int(each) for each in found.groups())
        if first != offset or not first <= last < min(size, offset + length) or size > OFFSET_MAX:
            raise PeerError(f"the server at '{self.address}' sends another range: {found[0]}")
        if headers.get("Content-Encoding", "identity") != "identity":
            raise PeerError(f"the server at '{self.address}' sends what is encoded")
        etag, modified = headers.get("ETag"), headers.get("Last-Modified")
        if etag is not None and etag.startswith("W/"):
            etag = None
        if is_first:
            self.size, self._etag, self._modified = size, etag, modified
        elif size != self.size or etag != self._etag or modified != self._modified:
            raise self._changed()
        return last + 1 - first

    def _changed(self) -> StorageError:
        return StorageError(errno.ESTALE, f"the image has changed on the server at '{self.address}'")

    def _refused(self, response: aiohttp.ClientResponse) -> StorageError:
        number = _NUMBERS.get(response.status, errno.EIO)
        return StorageError(number, f"The requested URL returned error: {response.status}")

    def _lost(self, error: Exception) -> StorageError:
        if isinstance(error, aiohttp.ClientConnectorError):
            return not_connected(self.address, error.os_error)
        if isinstance(error, TimeoutError):
            return StorageError(errno.ETIMEDOUT, f"the server at '{self.address}' does not answer in time")
        number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
        return StorageError(number, f"the connection to '{self.address}' failed: {error}")


async def _taken(response: aiohttp.ClientResponse, room: memoryview, length: int, address: str) -> int:
    """Take an answer's bytes; return how many came, if any did, of those that it promised."""
    done = 0
    try:
        async for data in response.content.iter_any():
            if done + len(data) > length:
                raise PeerError(f"the server at '{address}' sent more than it was asked for")
            room[done : done + len(data)] = data
            done += len(data)
    except (aiohttp.ClientError, TimeoutError, OSError):
        if not done:
            raise
    if not done and length:
        raise aiohttp.ClientPayloadError("the answer is empty")
    return done


def _checked(url: str) -> str:
    """Return a URL that may be asked.

    Raises:
        OptionError: It is none, or says a password.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise OptionError(f"'{url}' is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise OptionError(f"'{url}' is not the URL of a web server")
    if parts.username is not None or parts.password is not None:
        raise OptionError(
            "credentials have no place in a URL: they are named by username and password-secret"
        )
    return parts._replace(fragment="").geturl()


def _login(objects: Objects, user: str | None, secret: str | None) -> str | None:
    """Return what a header says that proves who asks."""
    if user is None:
        if secret is not None:
            raise OptionError("a password without a user name means nothing")
        return None
    password = b"" if secret is None else objects.secret(secret)
    return "Basic " + b64encode(user.encode() + b":" + password).decode()


def _seconds(text: str | None) -> float:
    return float(text) if text is not None and text.isascii() and text.isdecimal() else 0.0
