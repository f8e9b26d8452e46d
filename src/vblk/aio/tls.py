"""TLS without its sockets: credentials, and sessions that turn bytes into other bytes.

Owns: what a session promises. Certificates are in `x509`, keys that both sides know
beforehand (PSK) in `gnutls`.

Ordering rule: no byte of a peer reaches anybody before the handshake is done,
which includes that the peer's certificate was verified. What is there `to_send`
has to be sent after every call, also after one that failed: it tells the peer.

Source: RFC 8446; QEMU's "TLS setup for network services" for the names of files.
"""

from abc import ABC, abstractmethod
from typing import Final, Literal, Protocol, runtime_checkable

from vblk.errors import OptionError, PeerError

Endpoint = Literal["client", "server"]

CHUNK: Final = 16 * 1024
"""The most bytes of one record."""


class TlsSession(ABC):
    """One end of one connection.

    `handshake_done`: plain bytes may be sent, and come. `ended`: the peer said
    that nothing follows; a connection that ends without was cut.

    Concurrency: every method runs to completion.
    """

    def __init__(self) -> None:
        self.handshake_done = False
        self.ended = False
        self._refusal: PeerError | None = None

    def receive(self, data: bytes) -> bytes:
        """Take what came over the wire; return the plain bytes in it.

        Raises:
            PeerError: The peer breaks the protocol, or is not who it has to be;
                the session is over then.
        """
        if self._refusal is not None:
            raise self._refusal
        try:
            return self._take(data)
        except PeerError as error:
            self._refusal = error
            raise

    @abstractmethod
    def _take(self, data: bytes) -> bytes:
        """Do what `receive` does, for a session that is not over."""

    @abstractmethod
    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt plain bytes, after the handshake.

        Raises:
            PeerError: The peer has ended the session, or this end has.
        """

    @abstractmethod
    def to_send(self) -> bytes:
        """Return, once, what is to be sent over the wire."""

    @abstractmethod
    def farewell(self) -> None:
        """Tell the peer that nothing follows, once there was a handshake."""

    @property
    @abstractmethod
    def peer_name(self) -> str | None:
        """Who the peer is, once the handshake is done: a distinguished name or a user's name."""


class TlsCredentials(ABC):
    """What one end proves itself by, and believes the other for."""

    endpoint: Endpoint

    @abstractmethod
    def client_session(self, hostname: str | None) -> TlsSession:
        """Begin a session with the server of that name.

        Raises:
            OptionError: The name is missing, and is needed.
        """

    @abstractmethod
    def server_session(self) -> TlsSession:
        """Begin a session with a client."""


@runtime_checkable
class Authorization(Protocol):
    """Says who may come, of those who have proven who they are."""

    def allows(self, identity: str) -> bool:
        """Tell whether a peer of that name may come."""
        ...


def require_file(path: str) -> str:
    """Return the path of a file of credentials, which has to be readable.

    Raises:
        OptionError: It is not.
    """
    try:
        with open(path, "rb"):
            return path
    except OSError as error:
        raise OptionError(f"Unable to access credentials {path}: {error.strerror}") from error
