"""From options to objects: what `--object` and QMP's `object-add` make.

Owns: the kinds of object that there are, their options, and the reading of a
secret's file. They are kept in a graph's `Objects`.

Source: QEMU's QAPI reference, "User creatable objects".
"""

import base64
import binascii
import fnmatch
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from vblk.aio.clock import LoopClock
from vblk.errors import OptionError, Unsupported
from vblk.graph.objects import Objects
from vblk.options.binding import bind_object
from vblk.options.keyval import split_pairs
from vblk.options.model import Scalar
from vblk.runtime.throttling import ThrottleGroup, ThrottleLimits

SECRET_MAX: Final = 8 << 20
"""The longest secret, in bytes, as cryptsetup has it for key files."""


@dataclass(slots=True)
class Secret:
    """The options of `secret`: a passphrase."""

    data: str | None = None
    file: str | None = None
    format: Literal["raw", "base64"] = "raw"
    keyid: str | None = None
    iv: str | None = None


@dataclass(slots=True)
class TlsX509:
    """The options of `tls-creds-x509`: certificates in a folder."""

    dir: str | None = None
    endpoint: Literal["client", "server"] = "client"
    verify_peer: bool = True
    priority: str | None = None
    passwordid: str | None = None


@dataclass(slots=True)
class TlsPsk:
    """The options of `tls-creds-psk`: keys that both sides know, in a folder."""

    dir: str | None = None
    endpoint: Literal["client", "server"] = "client"
    verify_peer: bool = True
    username: str | None = None
    priority: str | None = None


@dataclass(slots=True)
class AuthzSimple:
    """The options of `authz-simple`, which lets one name in."""

    identity: str

    def allows(self, identity: str) -> bool:
        """Tell whether it is that name."""
        return identity == self.identity


@dataclass(slots=True)
class AuthzRule:
    """A rule of a list: what becomes of the names that match."""

    match: str
    policy: Literal["allow", "deny"]
    format: Literal["exact", "glob"] = "exact"


@dataclass(slots=True)
class AuthzList:
    """The options of `authz-list`, whose first rule that matches decides."""

    policy: Literal["allow", "deny"] = "deny"
    rules: list[AuthzRule] = field(default_factory=list[AuthzRule])

    def allows(self, identity: str) -> bool:
        """Ask the rules, one after the other, then the list's own policy."""
        for rule in self.rules:
            matches = (
                fnmatch.fnmatchcase(identity, rule.match) if rule.format == "glob" else identity == rule.match
            )
            if matches:
                return rule.policy == "allow"
        return self.policy == "allow"


@dataclass(slots=True)
class Throttling:
    """The options of `throttle-group`: limits that nodes share."""

    limits: ThrottleLimits = field(default_factory=ThrottleLimits)


def read_object_text(text: str) -> dict[str, Any]:
    """Return the options that `--object` was given: JSON, or names and values.

    Raises:
        OptionError: It is neither.
    """
    if text.startswith("{"):
        from vblk.options.jsontext import parse_json_text

        value = parse_json_text(text)
        assert isinstance(value, dict)
        return dict(value)
    return {pair.name: pair.value for pair in split_pairs(text, implied="qom-type")}


def add_object(objects: Objects, values: Mapping[str, Scalar], *, strict: bool = False) -> None:
    """Make the object that options describe, and keep it.

    Args:
        objects: Where it is kept.
        values: Its options under dotted names, `qom-type` and `id` among them.
        strict: Take no text for another type, as QMP does.

    Raises:
        OptionError: They make no sense, or a file that they name does not.
        Unsupported: This version has no such object, or cannot do one of its options.
    """
    own = dict(values)
    kind, id = own.pop("qom-type", None), own.pop("id", None)
    if not isinstance(kind, str):
        raise OptionError("Parameter 'qom-type' is missing")
    if kind in _ELSEWHERE:
        raise Unsupported(f"objects of the kind '{kind}' are not in this version of vblk")
    if kind not in _KINDS:
        raise OptionError(f"Parameter 'qom-type' does not accept value '{kind}'")
    if not isinstance(id, str):
        raise OptionError("Parameter 'id' is missing")
    if kind == "throttle-group":  # which has two names for each limit
        own = {f"limits.{name[2:]}" if name.startswith("x-") else name: value for name, value in own.items()}
    struct, make = _KINDS[kind]
    objects.add(id, make(bind_object(own, struct, strict=strict), objects))


def object_kinds() -> Mapping[str, type[Any]]:
    """Return the kinds of object, each with the dataclass of its options."""
    return {kind: struct for kind, (struct, _) in _KINDS.items()}


def _secret(options: Secret, _: Objects) -> bytes:
    if options.keyid is not None or options.iv is not None:
        name = "keyid" if options.keyid is not None else "iv"
        raise Unsupported(f"--object secret: '{name}' is not supported: secrets are not encrypted here")
    if options.data is not None and options.file is not None:
        raise OptionError("'file' and 'data' are mutually exclusive")
    if options.data is None and options.file is None:
        raise OptionError("Either 'file' or 'data' must be provided")
    data = os.fsencode(options.data) if options.data is not None else _file_of(options.file or "")
    if options.format == "base64":
        try:
            data = base64.b64decode(b"".join(data.split()), validate=True)
        except binascii.Error:
            raise OptionError("Base64 data contains invalid characters") from None
    return data


def _file_of(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(SECRET_MAX + 1)
    except OSError as error:
        raise OptionError(f"Unable to read {path}: {error.strerror}") from error
    if len(data) > SECRET_MAX:
        raise OptionError(f"Unable to read {path}: a secret has at most {SECRET_MAX} bytes")
    return data


def _tls_x509(options: TlsX509, objects: Objects) -> object:
    if options.dir is None:
        raise OptionError("Missing 'dir' property value")
    if options.priority not in (None, "NORMAL"):
        raise Unsupported(
            f"tls-creds-x509: the priority '{options.priority}' is not supported: "
            "certificates are OpenSSL's here, which is told 'NORMAL' alone"
        )
    from vblk.aio.x509 import X509Credentials

    password = objects.secret(options.passwordid) if options.passwordid is not None else None
    return X509Credentials(options.dir, options.endpoint, verify_peer=options.verify_peer, password=password)


def _tls_psk(options: TlsPsk, _: Objects) -> object:
    if options.dir is None:
        raise OptionError("Missing 'dir' property value")
    if not options.verify_peer:
        raise Unsupported("tls-creds-psk: verify-peer=off is not supported: keys prove both sides")
    if options.username is not None and options.endpoint == "server":
        raise OptionError("username should not be set when endpoint=server")
    from vblk.aio.gnutls import PRIORITY, USER, PskCredentials

    return PskCredentials(
        os.path.join(options.dir, "keys.psk"),
        options.endpoint,
        username=options.username or USER,
        priority=options.priority or PRIORITY,
    )


def _throttle_group(options: Throttling, _: Objects) -> object:
    return ThrottleGroup(LoopClock(), options.limits)


def _itself(options: object, _: Objects) -> object:
    return options


_KINDS: Final[dict[str, tuple[type[Any], Callable[[Any, Objects], object]]]] = {
    "secret": (Secret, _secret),
    "tls-creds-x509": (TlsX509, _tls_x509),
    "tls-creds-psk": (TlsPsk, _tls_psk),
    "throttle-group": (Throttling, _throttle_group),
    "authz-simple": (AuthzSimple, _itself),
    "authz-list": (AuthzList, _itself),
}

_ELSEWHERE: Final = frozenset(
    (
        "authz-listfile authz-pam can-bus colo-compare cryptodev-backend-builtin iothread main-loop "
        "memory-backend-file memory-backend-memfd memory-backend-ram pr-manager-helper qtest rng-builtin "
        "rng-random secret_keyring tls-cipher-suites tls-creds-anon x-remote-object"
    ).split()
)
"""Kinds of object that QEMU has."""
