"""Names of NBD exports: URIs, QEMU's older spelling, and back.

Owns: the texts `nbd://HOST:PORT/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`,
`nbd:HOST:PORT:exportname=EXPORT` and `nbd:unix:PATH`, and the options of the
driver behind them. It opens nothing.

Source: doc/uri.md of the NetworkBlockDevice project.
"""

from collections.abc import Mapping
from typing import Final

from vblk.errors import OptionError, Unsupported
from vblk.options.model import Scalar

DEFAULT_PORT: Final = "10809"

_EXPORT: Final = ":exportname="


def parse_nbd_name(text: str) -> dict[str, str]:
    """Return the options behind a name.

    Raises:
        OptionError: The name is malformed.
        Unsupported: It asks for TLS.
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
    if uri.scheme in ("nbds", "nbds+unix", "nbds+tcp"):
        raise Unsupported("TLS is not in this version of vblk: nbds:// cannot be opened")
    export = {"export": unquote(uri.path[1:])} if len(uri.path) > 1 else {}
    if uri.scheme == "nbd+unix":
        if uri.netloc or [name for name, _ in query] != ["socket"] or uri.fragment:
            raise OptionError("No valid URL specified")
        return {"server.type": "unix", "server.path": query[0][1], **export}
    if not host or query or uri.fragment:
        raise OptionError("No valid URL specified")
    return {"server.type": "inet", "server.host": host, "server.port": str(port or DEFAULT_PORT), **export}


def _host_of(netloc: str) -> str:
    """Return the host of an authority as it is written."""
    address = netloc.rpartition("@")[2]
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0]


def _without_brackets(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def nbd_name(own: Mapping[str, Scalar]) -> str | None:
    """Return the URI that says all of a node's options, if there is one."""
    options = {name: str(value) for name, value in with_server(own).items() if value is not None}
    export = options.pop("export", "")
    kind = options.pop("server.type", "")
    if kind == "unix" and options.keys() == {"server.path"}:
        name = f"nbd+unix://{'/' if export else ''}{export}?socket={options['server.path']}"
    elif kind == "inet" and options.keys() <= {"server.host", "server.port"} and len(options) == 2:
        host = options["server.host"]
        name = f"nbd://{f'[{host}]' if ':' in host else host}:{options['server.port']}"
        name += f"/{export}" if export else ""
    else:
        return None
    wanted = {"server.type": kind, **options, **({"export": export} if export else {})}
    try:
        return name if parse_nbd_name(name) == wanted else None
    except OptionError:
        return None


def with_server(own: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the options with `path`, or `host` and `port`, as those of the server.

    Raises:
        OptionError: They contradict each other.
    """
    options = dict(own)
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
