"""Names of NBD exports: URIs, QEMU's older spelling, and back.

Owns: the texts `nbd://HOST:PORT/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`, both
with `nbds` for TLS, `nbd:HOST:PORT:exportname=EXPORT` and `nbd:unix:PATH`, and the
options of the driver behind them. It opens nothing.

Source: doc/uri.md of the NetworkBlockDevice project.
"""

from collections.abc import Mapping
from typing import Final

from vblk.errors import OptionError, Unsupported
from vblk.options.model import Scalar

DEFAULT_PORT: Final = "10809"

_EXPORT: Final = ":exportname="

_TLS_PARAMETERS: Final[tuple[str, ...]] = (
    "tls-hostname",
    "tls-verify-peer",
    "tls-certificates",
    "tls-psk-file",
)
"""What a URI can say about TLS, under the names of the driver's options."""


def parse_nbd_name(text: str) -> dict[str, str]:
    """Return the options behind a name.

    Raises:
        OptionError: The name is malformed.
        Unsupported: It asks for TLS without any proof.
    """
    if "://" in text:
        return _parse_uri(text)
    address, found, export = text.removeprefix("nbd:").partition(_EXPORT)
    if address.startswith("unix:"):
        options = {"server.type": "unix", "server.path": address.removeprefix("unix:")}
    else:
        host, colon, port = address.rpartition(":")
        if not colon or not host or not port:
            raise OptionError(f"error parsing address '{address}'")
        options = {"server.type": "inet", "server.host": _without_brackets(host), "server.port": port}
    return {**options, "export": export} if found else options


def _parse_uri(text: str) -> dict[str, str]:
    from urllib.parse import parse_qsl, unquote, urlsplit  # most names are paths

    try:
        uri = urlsplit(text)
        host, port = _host_of(uri.netloc), uri.port
        query = parse_qsl(uri.query, keep_blank_values=True, strict_parsing=bool(uri.query))
    except ValueError as error:
        raise OptionError("No valid URL specified") from error
    export = {"export": unquote(uri.path[1:])} if len(uri.path) > 1 else {}
    given = dict(query)
    if len(given) != len(query) or uri.fragment:
        raise OptionError("No valid URL specified")
    own = {**export, **_tls_options(uri.scheme, unquote(uri.username or ""), given)}
    if uri.scheme in ("nbd+unix", "nbds+unix"):
        if host or port or given.keys() != {"socket"}:
            raise OptionError("No valid URL specified")
        return {"server.type": "unix", "server.path": given["socket"], **own}
    if not host or given:
        raise OptionError("No valid URL specified")
    return {"server.type": "inet", "server.host": host, "server.port": str(port or DEFAULT_PORT), **own}


def _tls_options(scheme: str, username: str, query: dict[str, str]) -> dict[str, str]:
    """Take what is about TLS out of a URI's parameters; return it as options."""
    if not scheme.startswith("nbds"):
        return {}
    kind = query.pop("tls-type", None)
    options = {"tls": "on"}
    options |= {name: query.pop(name) for name in _TLS_PARAMETERS if name in query}
    if kind == "anon":
        raise Unsupported("tls-type=anon is not supported: it proves nothing")
    if kind is not None and (kind not in ("x509", "psk") or (kind == "psk") != ("tls-psk-file" in options)):
        raise OptionError(f"tls-type={kind} does not fit what the URI says besides")
    if "tls-verify-peer" in options:
        if options["tls-verify-peer"] not in ("0", "1"):
            raise OptionError("tls-verify-peer is 0 or 1")
        options["tls-verify-peer"] = "on" if options["tls-verify-peer"] == "1" else "off"
    if username and "tls-psk-file" in options:
        options["tls-username"] = username
    return options


def _host_of(netloc: str) -> str:
    """Return the host of an authority as it is written."""
    address = netloc.rpartition("@")[2]
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0]


def _without_brackets(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def nbd_name(own: Mapping[str, Scalar]) -> str | None:
    """Return the URI that says all of a node's options, if there is one.

    Credentials that are an object are left out, as by QEMU: their ids mean something in this process alone.
    """
    options = {
        name: ("on" if value else "off") if isinstance(value, bool) else str(value)
        for name, value in with_server(own).items()
        if value is not None
    }
    if options.pop("tls-creds", None) is not None:
        options.pop("tls-hostname", None)
    wanted = dict(options)
    export = options.pop("export", "")
    if not export:
        wanted.pop("export", None)
    secure = options.pop("tls", "off") == "on"
    user = options.pop("tls-username", "")
    query = {name: options.pop(name) for name in _TLS_PARAMETERS if name in options}
    if "tls-verify-peer" in query:
        query["tls-verify-peer"] = "1" if query["tls-verify-peer"] == "on" else "0"
    kind = options.pop("server.type", "")
    authority = f"{user}@" if user else ""
    if kind == "unix" and options.keys() == {"server.path"}:
        query = {"socket": options["server.path"], **query}
        authority += "/" if user and not export else ""
    elif kind == "inet" and options.keys() == {"server.host", "server.port"}:
        host = options["server.host"]
        authority += f"{f'[{host}]' if ':' in host else host}:{options['server.port']}"
    else:
        return None
    name = f"nbd{'s' if secure else ''}{'+unix' if kind == 'unix' else ''}://{authority}"
    name += f"/{export}" if export else ""
    name += "".join(
        f"{'&' if number else '?'}{key}={value}" for number, (key, value) in enumerate(query.items())
    )
    try:
        return name if parse_nbd_name(name) == wanted else None
    except (OptionError, Unsupported):
        return None


def with_server(own: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the options with `path`, or `host` and `port`, as those of the server.

    A number is a text that looks like one, as in QEMU: a port may be either.

    Raises:
        OptionError: They contradict each other.
    """
    options: dict[str, Scalar] = {
        name: str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
        for name, value in own.items()
    }
    path, host, port = (options.pop(name, None) for name in ("path", "host", "port"))
    if path is None and host is None and port is None:
        return options
    if any(name.startswith("server.") for name in options):
        raise OptionError("'server' and path/host/port options may not be used at the same time")
    if path is not None and host is not None:
        raise OptionError("path and host may not be used at the same time")
    if path is not None:
        if port is not None:
            raise OptionError("port may not be used without host")
        return {"server.type": "unix", "server.path": path, **options}
    if host is None:
        raise OptionError("port may not be used without host")
    return {"server.type": "inet", "server.host": host, "server.port": port or DEFAULT_PORT, **options}
