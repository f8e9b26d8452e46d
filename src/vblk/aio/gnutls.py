"""TLS with a key that both sides know beforehand, by the system's GnuTLS.

Owns: the few functions of GnuTLS that are called, how its callbacks reach memory
instead of sockets, and the files of keys. The library is loaded when the first
credentials are made: the standard library has no such keys before Python 3.13.

Source: the GnuTLS manual, "PSK authentication" and "Core TLS API"; RFC 4279 and
RFC 9257.
"""

import ctypes
import ctypes.util
import errno
import functools
import re
import weakref
from typing import Any, Final

from vblk.aio.tls import CHUNK, Endpoint, TlsCredentials, TlsSession, require_file
from vblk.errors import OptionError, PeerError, Unsupported

PRIORITY: Final = "NORMAL"
USER: Final = "qemu"
"""Who a client is that was not told."""

KEYS_MAX: Final = 1 << 20
"""The longest file of keys, in bytes."""

_WITH_PSK: Final = "{}:+ECDHE-PSK:+DHE-PSK:+PSK"
_SERVER: Final = 1
_CLIENT: Final = 2
_NONBLOCK: Final = 8
_KIND_PSK: Final = 4
_KEY_IN_HEX: Final = 1
_WILL_SEND: Final = 1
_AGAIN: Final = (-28, -52)
"""GNUTLS_E_AGAIN and GNUTLS_E_INTERRUPTED."""
_PARAMETERS: Final = 3
"""GNUTLS_SEC_PARAM_MEDIUM, for groups of older versions of the protocol."""

_Push = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class _Datum(ctypes.Structure):
    _fields_ = (("data", ctypes.c_char_p), ("size", ctypes.c_uint))


@functools.cache
def _library() -> Any:
    """Load GnuTLS.

    Raises:
        Unsupported: It is not installed.
    """
    for name in ("libgnutls.so.30", ctypes.util.find_library("gnutls")):
        if name is None:
            continue
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        _declare(library)
        return library
    raise Unsupported("TLS with pre-shared keys needs GnuTLS: its library (libgnutls.so.30) is not installed")


def _declare(library: Any) -> None:
    pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    reference = ctypes.POINTER(ctypes.c_void_p)
    for name, result, arguments in (
        ("gnutls_init", ctypes.c_int, (reference, ctypes.c_uint)),
        ("gnutls_deinit", None, (pointer,)),
        ("gnutls_priority_set_direct", ctypes.c_int, (pointer, text, ctypes.POINTER(text))),
        ("gnutls_credentials_set", ctypes.c_int, (pointer, ctypes.c_int, pointer)),
        ("gnutls_psk_allocate_client_credentials", ctypes.c_int, (reference,)),
        ("gnutls_psk_free_client_credentials", None, (pointer,)),
        (
            "gnutls_psk_set_client_credentials",
            ctypes.c_int,
            (pointer, text, ctypes.POINTER(_Datum), ctypes.c_int),
        ),
        ("gnutls_psk_allocate_server_credentials", ctypes.c_int, (reference,)),
        ("gnutls_psk_free_server_credentials", None, (pointer,)),
        ("gnutls_psk_set_server_credentials_file", ctypes.c_int, (pointer, text)),
        ("gnutls_psk_set_server_known_dh_params", ctypes.c_int, (pointer, ctypes.c_int)),
        ("gnutls_psk_server_get_username", text, (pointer,)),
        ("gnutls_server_name_set", ctypes.c_int, (pointer, ctypes.c_int, text, size)),
        ("gnutls_transport_set_push_function", None, (pointer, _Push)),
        ("gnutls_transport_set_pull_function", None, (pointer, _Push)),
        ("gnutls_transport_set_errno", None, (pointer, ctypes.c_int)),
        ("gnutls_handshake", ctypes.c_int, (pointer,)),
        ("gnutls_record_recv", ctypes.c_ssize_t, (pointer, pointer, size)),
        ("gnutls_record_send", ctypes.c_ssize_t, (pointer, pointer, size)),
        ("gnutls_bye", ctypes.c_int, (pointer, ctypes.c_int)),
        ("gnutls_error_is_fatal", ctypes.c_int, (ctypes.c_int,)),
        ("gnutls_strerror", text, (ctypes.c_int,)),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments


def _told(code: int) -> str:
    text: bytes = _library().gnutls_strerror(code)
    return text.decode(errors="replace")


class PskCredentials(TlsCredentials):
    """Users and their keys, from a file with one `USER:HEX` a line."""

    def __init__(
        self, path: str, endpoint: Endpoint, *, username: str = USER, priority: str = PRIORITY
    ) -> None:
        """Load the keys: a server's all, a client's that of `username`.

        Raises:
            OptionError: The file is missing, or makes no sense; so does `priority`.
            Unsupported: GnuTLS is not installed.
        """
        self.endpoint = endpoint
        self._library = _library()
        require_file(path)
        self._priority = _WITH_PSK.format(priority).encode()
        self._try_priority(priority)
        holder = ctypes.c_void_p()
        allocate = getattr(self._library, f"gnutls_psk_allocate_{endpoint}_credentials")
        _must(allocate(ctypes.byref(holder)), "Cannot allocate credentials")
        self.pointer = holder
        weakref.finalize(self, getattr(self._library, f"gnutls_psk_free_{endpoint}_credentials"), holder)
        if endpoint == "server":
            result = self._library.gnutls_psk_set_server_credentials_file(holder, path.encode())
            _must(result, f"Cannot set PSK server credentials '{path}'")
            _must(self._library.gnutls_psk_set_server_known_dh_params(holder, _PARAMETERS), "Diffie-Hellman")
        else:
            key = _key_of(path, username)
            datum = _Datum(key, len(key))
            result = self._library.gnutls_psk_set_client_credentials(
                holder, username.encode(), ctypes.byref(datum), _KEY_IN_HEX
            )
            _must(result, "Cannot set PSK client credentials")

    def _try_priority(self, priority: str) -> None:
        session = ctypes.c_void_p()
        _must(self._library.gnutls_init(ctypes.byref(session), _CLIENT), "Cannot initialize TLS session")
        try:
            result = self._library.gnutls_priority_set_direct(session, self._priority, None)
            _must(result, f"Unable to set TLS session priority {priority}")
        finally:
            self._library.gnutls_deinit(session)

    def client_session(self, hostname: str | None) -> TlsSession:
        """Begin a session; the key is what proves the server."""
        assert self.endpoint == "client"
        return _PskSession(self._library, self, self._priority, server_side=False)

    def server_session(self) -> TlsSession:
        """Begin a session with a client that has to know a key."""
        assert self.endpoint == "server"
        return _PskSession(self._library, self, self._priority, server_side=True)


def _must(result: int, what: str) -> None:
    if result < 0:
        raise OptionError(f"{what}: {_told(result)}")


def _key_of(path: str, username: str) -> bytes:
    """Return a user's key, in hexadecimal digits."""
    with open(path, "rb") as file:
        lines = file.read(KEYS_MAX).splitlines()
    for line in lines:
        user, colon, key = line.partition(b":")
        if colon and user == username.encode():
            if not re.fullmatch(rb"(?:[0-9A-Fa-f]{2})+", key):
                raise OptionError(f"The key of '{username}' in '{path}' is not written in hexadecimal digits")
            return key
    raise OptionError(f"Username '{username}' not found in '{path}'")


class _PskSession(TlsSession):
    def __init__(
        self, library: Any, credentials: PskCredentials, priority: bytes, *, server_side: bool
    ) -> None:
        super().__init__()
        self._library = library
        self._credentials = credentials  # GnuTLS only refers to them
        self._server_side = server_side
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._plain = ctypes.create_string_buffer(CHUNK)
        session = ctypes.c_void_p()
        flags = (_SERVER if server_side else _CLIENT) | _NONBLOCK
        _must(library.gnutls_init(ctypes.byref(session), flags), "Cannot initialize TLS session")
        self._session = session
        weakref.finalize(self, library.gnutls_deinit, session)
        _must(library.gnutls_priority_set_direct(session, priority, None), "Unable to set TLS priority")
        _must(
            library.gnutls_credentials_set(session, _KIND_PSK, credentials.pointer), "Cannot set credentials"
        )
        self._callbacks = _callbacks(library, session, self._incoming, self._outgoing)
        library.gnutls_transport_set_push_function(session, self._callbacks[0])
        library.gnutls_transport_set_pull_function(session, self._callbacks[1])
        if not server_side:
            self._go_on()

    def _go_on(self) -> None:
        while True:
            result = self._library.gnutls_handshake(self._session)
            if result == 0:
                self.handshake_done = True
                return
            if result in _AGAIN:
                return
            if self._library.gnutls_error_is_fatal(result):
                raise PeerError(f"TLS handshake failed: {_told(result)}")

    def _take(self, data: bytes) -> bytes:
        self._incoming += data
        if not self.handshake_done:
            self._go_on()
        plain: list[bytes] = []
        while self.handshake_done and not self.ended:
            result = self._library.gnutls_record_recv(self._session, self._plain, CHUNK)
            if result > 0:
                plain.append(ctypes.string_at(self._plain, result))
            elif result == 0:
                self.ended = True
            elif result in _AGAIN:
                break
            elif self._library.gnutls_error_is_fatal(result):
                raise PeerError(f"Cannot read from TLS channel: {_told(result)}")
        return b"".join(plain)

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt plain bytes."""
        plain = bytes(data)
        for at in range(0, len(plain), CHUNK):
            piece = plain[at : at + CHUNK]
            result = self._library.gnutls_record_send(self._session, piece, len(piece))
            if result != len(piece):
                raise PeerError(f"Cannot write to TLS channel: {_told(min(result, 0))}")

    def to_send(self) -> bytes:
        """Return what is to be sent over the wire."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def farewell(self) -> None:
        """Tell the peer that nothing follows, once there was a handshake."""
        if self.handshake_done:
            self._library.gnutls_bye(self._session, _WILL_SEND)

    @property
    def peer_name(self) -> str | None:
        """The user's name, at the server."""
        if not self._server_side or not self.handshake_done:
            return None
        name: bytes | None = self._library.gnutls_psk_server_get_username(self._session)
        return None if name is None else name.decode(errors="surrogateescape")


def _callbacks(
    library: Any, session: ctypes.c_void_p, incoming: bytearray, outgoing: bytearray
) -> tuple[Any, Any]:
    """Return what GnuTLS sends and receives by. They must not refer to the session's object."""

    def push(_: int, data: int, length: int) -> int:
        outgoing.extend(ctypes.string_at(data, length))
        return length

    def pull(_: int, data: int, length: int) -> int:
        if not incoming:
            library.gnutls_transport_set_errno(session, errno.EAGAIN)
            return -1
        count = min(length, len(incoming))
        ctypes.memmove(data, bytes(incoming[:count]), count)
        del incoming[:count]
        return count

    return _Push(push), _Push(pull)
