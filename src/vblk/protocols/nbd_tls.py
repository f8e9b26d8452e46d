"""What an NBD client proves itself by, and whom it believes.

Owns: the options of TLS, those of credentials that are an object and those of a
URI, and which of them contradict each other.

Source: doc/uri.md of the NetworkBlockDevice project; QEMU's `tls-creds`.
"""

import getpass
from collections.abc import Callable
from dataclasses import dataclass

from vblk.aio.tls import TlsCredentials, TlsSession
from vblk.errors import OptionError
from vblk.graph.objects import Objects


@dataclass(slots=True)
class TlsOptions:
    """The options of TLS; `tls` is what `nbds://` says."""

    tls: bool = False
    tls_creds: str | None = None
    tls_hostname: str | None = None
    tls_certificates: str | None = None
    tls_psk_file: str | None = None
    tls_username: str | None = None
    tls_verify_peer: bool | None = None

    def begin(self, objects: Objects, host: str | None) -> Callable[[], TlsSession] | None:
        """Return what begins a session, or None without TLS; `host` is the server's, if it has a name.

        Raises:
            OptionError: The options contradict each other, or lead nowhere.
        """
        credentials = self._credentials(objects)
        hostname = self.tls_hostname or host
        return None if credentials is None else lambda: credentials.client_session(hostname)

    def _credentials(self, objects: Objects) -> TlsCredentials | None:
        own = {
            "tls-certificates": self.tls_certificates,
            "tls-psk-file": self.tls_psk_file,
            "tls-username": self.tls_username,
            "tls-verify-peer": self.tls_verify_peer,
        }
        given = [name for name, value in own.items() if value is not None]
        if self.tls_creds is not None:
            if given:
                raise OptionError(f"{given[0]} may not be used beside tls-creds")
            return objects.credentials(self.tls_creds, "client")
        if not self.tls:
            if self.tls_hostname is not None:
                given.insert(0, "tls-hostname")
            if given:
                raise OptionError(f"{given[0]} may not be used without TLS")
            return None
        if self.tls_psk_file is not None:
            if self.tls_certificates is not None:
                raise OptionError("tls-certificates and tls-psk-file may not be used at the same time")
            from vblk.aio.gnutls import PskCredentials

            return PskCredentials(
                self.tls_psk_file, "client", username=self.tls_username or getpass.getuser()
            )
        from vblk.aio.x509 import X509Credentials

        return X509Credentials(self.tls_certificates, "client", verify_peer=self.tls_verify_peer is not False)
