"""One connection to an SSH server, with its SFTP session.

Owns: how a server proves who it is, what this side offers as a proof in its turn
(keys of the agent and those that the configuration names; never a password), and
what is said when either fails. It knows no requests.

Ordering rule: nothing but the key exchange is sent before the server's key was
accepted.

Source: RFC 4251 to 4254; draft-ietf-secsh-filexfer-02 for the session.
"""

import asyncio
import errno
import os
from collections.abc import Mapping
from hashlib import new as new_hash
from typing import Any, Final, NamedTuple

import asyncssh

from vblk.errors import PeerError, StorageError
from vblk.protocols.not_connected import not_connected
from vblk.protocols.ssh import HostKeyCheck, Options

SSH_PORT: Final = 22

_FAST: Final = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
"""What processors do best; OpenSSH and the library would rather have ChaCha20."""

CONNECT_LIMIT: Final = 30
"""Seconds until a server has to be reached, and as many until it has let us in."""

KEEPALIVE: Final = 15
"""Seconds of silence after which a server is asked whether it is there; the third time in vain, it is not."""

GOODBYE_LIMIT: Final = 5.0
"""Seconds that a connection has to close in an orderly manner."""


class Session(NamedTuple):
    """An SFTP session, and the connection that carries it; `address` is for people."""

    address: str
    connection: asyncssh.SSHClientConnection
    files: asyncssh.SFTPClient

    async def close(self) -> None:
        """Say goodbye, and wait until the socket is closed. Idempotent."""
        self.files.exit()
        self.connection.close()
        try:
            async with asyncio.timeout(GOODBYE_LIMIT):
                await self.connection.wait_closed()
        except TimeoutError:
            self.connection.abort()


class _Watch(asyncssh.SSHClient):
    """Checks a key that is in no known_hosts file, and keeps why it was refused."""

    def __init__(self, check: HostKeyCheck) -> None:
        self._check = check
        self.refusal: str | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Compare the key's hash with the one that was given, if one was."""
        kind = key.get_algorithm()
        if self._check.mode != "hash" or self._check.type is None or self._check.hash is None:
            self.refusal = (
                f"the server's {kind} key '{key.get_fingerprint()}' is not the one in known_hosts, or none is"
            )
            return False
        found = _hex_fingerprint(key, self._check.type)
        if found == self._check.hash.replace(":", "").lower():
            return True
        self.refusal = (
            f"remote host {kind} key fingerprint '{self._check.type}:{found}' "
            f"does not match host_key_check '{self._check.type}:{self._check.hash}'"
        )
        return False


def _hex_fingerprint(key: asyncssh.SSHKey, kind: str) -> str:
    return new_hash(kind, key.public_data, usedforsecurity=False).hexdigest()


def _configuration() -> list[str] | None:
    """Return the user's file, if there is one."""
    path = os.path.expanduser("~/.ssh/config")
    return [path] if os.access(path, os.R_OK) else None


async def _fast_ciphers(host: str, chosen: Mapping[str, Any]) -> list[str] | None:
    """Return the ciphers in the order of their speed, unless the user's configuration says which."""
    kind: Any = asyncssh.SSHClientConnectionOptions
    configured = await kind.construct(host=host, config=_configuration(), **chosen)
    usual: list[bytes] = (await kind.construct(config=None)).encryption_algs
    if configured.encryption_algs != usual:
        return None
    names = [name.decode() for name in usual]
    return [*_FAST, *(name for name in names if name not in _FAST)]


async def connect(options: Options) -> Session:
    """Connect, and begin an SFTP session.

    Raises:
        StorageError: There is no server, it is not who it should be, or it does not let us in.
        PeerError: It does not speak SSH.

    Cancellation: the socket is closed.
    """
    server = options.server
    address = f"{server.host}:{server.port or SSH_PORT}"
    check = options.host_key_check or HostKeyCheck()
    watch = _Watch(check)
    chosen: dict[str, Any] = {}
    if server.port:
        chosen["port"] = int(server.port)
    if options.user is not None:
        chosen["username"] = options.user
    if check.mode == "none":
        chosen["known_hosts"] = None
    elif check.mode == "hash":
        chosen["known_hosts"] = ([], [], [])
    try:
        ciphers = await _fast_ciphers(server.host, chosen)
        if ciphers is not None:
            chosen["encryption_algs"] = ciphers
        connection = await asyncssh.connect(
            server.host,
            client_factory=lambda: watch,
            password_auth=False,
            kbdint_auth=False,
            connect_timeout=CONNECT_LIMIT,
            login_timeout=CONNECT_LIMIT,
            keepalive_interval=KEEPALIVE,
            **chosen,
        )
    except asyncssh.HostKeyNotVerifiable as error:
        raise StorageError(
            errno.EPERM, watch.refusal or f"the server's key was refused: {error.reason}"
        ) from error
    except asyncssh.PermissionDenied as error:
        raise StorageError(
            errno.EPERM,
            f"failed to authenticate at '{address}' using publickey authentication and the identities "
            "held by your ssh-agent or named in ~/.ssh/config",
        ) from error
    except (asyncssh.DisconnectError, asyncssh.ChannelOpenError) as error:
        raise PeerError(f"no SSH session with '{address}': {error.reason}") from error
    except RecursionError as error:
        raise StorageError(errno.ELOOP, "~/.ssh/config leads in a circle (ProxyJump)") from error
    except (OSError, ValueError) as error:
        if (isinstance(error, OSError) and error.filename is None) or isinstance(error, UnicodeError):
            raise not_connected(address, error) from error
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise StorageError(errno.EINVAL, f"the configuration of ssh cannot be used: {text}") from error
    try:
        files = await connection.start_sftp_client()
    except (asyncssh.Error, OSError, ValueError) as error:
        connection.abort()
        raise PeerError(f"the server at '{address}' offers no SFTP: {error}") from error
    except BaseException:
        connection.abort()
        raise
    return Session(address, connection, files)
