"""TLS with certificates, by the standard library's `ssl`.

Owns: the files of a folder that certificates and keys are in, and QEMU's words
for peers that are not believed.

Source: RFC 5280; QEMU's "TLS setup for network services" for the names of files.
"""

import os
import ssl
from contextlib import suppress
from typing import Final

from vblk.aio.tls import CHUNK, Endpoint, TlsCredentials, TlsSession, require_file
from vblk.errors import OptionError, PeerError


class X509Credentials(TlsCredentials):
    """Certificates, keys and the authority that both ends believe, in the files of a folder."""

    def __init__(
        self,
        directory: str | None,
        endpoint: Endpoint,
        *,
        verify_peer: bool = True,
        password: bytes | None = None,
    ) -> None:
        """Load `ca-cert.pem`, and the end's own certificate with its key; `ca-crl.pem` where it is.

        A server has a certificate, a client may have one. `password` decrypts the key.
        Without a folder a client believes the authorities that the system believes.

        Raises:
            OptionError: A file is missing, or makes no sense.
        """
        self.endpoint = endpoint
        self._verify_peer = verify_peer
        serving = endpoint == "server"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if serving else ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = verify_peer and not serving
        context.verify_mode = ssl.CERT_REQUIRED if verify_peer else ssl.CERT_NONE
        if directory is None:
            context.load_default_certs()
        else:
            _load(context, directory, endpoint, password)
        self._context = context

    def client_session(self, hostname: str | None) -> TlsSession:
        """Begin a session; the server's certificate has to be of this host."""
        assert self.endpoint == "client"
        if self._verify_peer and not hostname:
            raise OptionError("No hostname for certificate validation")
        return _X509Session(self._context, hostname, server_side=False)

    def server_session(self) -> TlsSession:
        """Begin a session; the client needs a certificate if it is verified."""
        assert self.endpoint == "server"
        return _X509Session(self._context, None, server_side=True)


def _load(context: ssl.SSLContext, directory: str, endpoint: Endpoint, password: bytes | None) -> None:
    authority = require_file(os.path.join(directory, "ca-cert.pem"))
    try:
        context.load_verify_locations(authority)
    except ssl.SSLError as error:
        raise OptionError(f"Cannot load CA certificate '{authority}': {_words(error)}") from error
    revoked = os.path.join(directory, "ca-crl.pem")
    if os.path.exists(revoked):
        try:
            context.load_verify_locations(require_file(revoked))
        except ssl.SSLError as error:
            raise OptionError(f"Cannot load CRL '{revoked}': {_words(error)}") from error
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    if endpoint == "server" or os.path.exists(os.path.join(directory, "client-cert.pem")):
        certificate = require_file(os.path.join(directory, f"{endpoint}-cert.pem"))
        key = require_file(os.path.join(directory, f"{endpoint}-key.pem"))
        try:
            context.load_cert_chain(certificate, key, password or b"")  # never asks at the terminal
        except ssl.SSLError as error:
            raise OptionError(
                f"Cannot load certificate '{certificate}' & key '{key}': {_words(error)}"
            ) from error


class _X509Session(TlsSession):
    def __init__(self, context: ssl.SSLContext, hostname: str | None, *, server_side: bool) -> None:
        super().__init__()
        self._hostname = hostname
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=hostname
        )
        self._go_on()

    def _go_on(self) -> None:
        try:
            self._object.do_handshake()
            self.handshake_done = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise PeerError(self._refusal_of(error)) from error

    def _refusal_of(self, error: ssl.SSLError) -> str:
        if isinstance(error, ssl.SSLCertVerificationError):
            if error.verify_code in _OTHER_HOST:
                return f"Certificate does not match the hostname {self._hostname}"
            return _DISTRUST.get(error.verify_code, f"The certificate is not trusted: {error.verify_message}")
        if error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
            return "Verify failed: No certificate was found."
        return f"TLS handshake failed: {_words(error)}"

    def _take(self, data: bytes) -> bytes:
        self._incoming.write(data)
        if not self.handshake_done:
            self._go_on()
        plain: list[bytes] = []
        while self.handshake_done and not self.ended:
            try:
                piece = self._object.read(CHUNK)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                piece = b""
            except ssl.SSLError as error:
                raise PeerError(f"Cannot read from TLS channel: {_words(error)}") from error
            if not piece:
                self.ended = True
                break
            plain.append(piece)
        return b"".join(plain)

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt plain bytes."""
        if len(data):
            try:
                self._object.write(data)
            except ssl.SSLError as error:
                raise PeerError(f"Cannot write to TLS channel: {_words(error)}") from error

    def to_send(self) -> bytes:
        """Return what is to be sent over the wire."""
        return self._outgoing.read()

    def farewell(self) -> None:
        """Tell the peer that nothing follows, once there was a handshake."""
        if self.handshake_done:
            with suppress(ssl.SSLError):  # the peer's own is not waited for
                self._object.unwrap()

    @property
    def peer_name(self) -> str | None:
        """The distinguished name of the peer's certificate."""
        certificate = self._object.getpeercert(binary_form=True) if self.handshake_done else None
        if certificate is None:
            return None
        import warnings

        from cryptography import x509  # takes long to import, and few ask

        with warnings.catch_warnings(action="ignore"):  # names that no standard allows are names all the same
            return x509.load_der_x509_certificate(certificate).subject.rfc4514_string()


_OTHER_HOST: Final = (62, 64)
"""OpenSSL's numbers of a host's name, and of its address, that the certificate has not."""

_DISTRUST: Final = {
    2: "The certificate hasn't got a known issuer",
    9: "The certificate is not yet activated",
    10: "The certificate has expired",
    18: "The certificate hasn't got a known issuer",
    19: "The certificate hasn't got a known issuer",
    20: "The certificate hasn't got a known issuer",
    21: "The certificate hasn't got a known issuer",
    23: "The certificate has been revoked",
}
"""What OpenSSL's numbers mean, in QEMU's words."""


def _words(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
