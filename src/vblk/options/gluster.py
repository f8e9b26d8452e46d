"""Names of files on gluster volumes, and back.

Owns: the text `gluster[+TRANSPORT]://[HOST[:PORT]]/VOLUME/PATH[?socket=...]` with tcp,
unix and rdma for the transport, and the options of the driver behind it. It opens
nothing.

Source: the gluster URIs of QEMU's "Disk Images" documentation.
"""

from collections.abc import Mapping
from typing import Final

from vblk.errors import OptionError
from vblk.options.model import Scalar

DEFAULT_HOST: Final = "localhost"
DEFAULT_PORT: Final = 24007

_TRANSPORTS: Final = {"": "inet", "tcp": "inet", "unix": "unix", "rdma": "rdma"}
_PORT_MAX: Final = 65535
_SAFE: Final = "/:,+=@ ~!$&'()*;"
_USAGE: Final = (
    "Usage: file=gluster[+transport]://[host[:port]]volume/path[?socket=...]"
    "[,file.debug=N][,file.logfile=/path/filename.log]"
)


def parse_gluster_name(text: str) -> dict[str, str]:
    """Return the options behind a name: those of one server, the volume, and the path on it.

    Raises:
        OptionError: The name is malformed.
    """
    options = _parse(text)
    if options is None:
        raise OptionError(f"invalid URI {text}\n{_USAGE}")
    return options


def _parse(text: str) -> dict[str, str] | None:
    from urllib.parse import parse_qsl, unquote, urlsplit  # most names are paths

    try:
        uri = urlsplit(text)
        port = uri.port
        query = parse_qsl(uri.query, keep_blank_values=True, strict_parsing=bool(uri.query))
    except ValueError:
        return None
    kind = _TRANSPORTS.get(uri.scheme.removeprefix("gluster").removeprefix("+"))
    volume, _, path = uri.path.lstrip("/").partition("/")
    path = path.lstrip("/")
    if kind is None or not volume or not path or uri.fragment or uri.username is not None:
        return None
    if kind == "unix":
        if uri.netloc or len(query) != 1 or query[0][0] != "socket" or not query[0][1]:
            return None
        server = {"server.0.type": kind, "server.0.path": query[0][1]}
    elif uri.query:
        return None
    else:
        host = uri.netloc
        host = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        server = {
            "server.0.type": kind,
            "server.0.host": unquote(host) or DEFAULT_HOST,
            "server.0.port": str(port or DEFAULT_PORT),
        }
    return {**server, "volume": unquote(volume), "path": unquote(path)}


def port_number(text: str) -> int:
    """Return the port that a server's option means; 0 is the usual one.

    Raises:
        OptionError: It is none.
    """
    if not (text.isascii() and text.isdecimal() and int(text) <= _PORT_MAX):
        raise OptionError(f"'{text}' is not a valid port number")
    return int(text) or DEFAULT_PORT


def gluster_name(own: Mapping[str, Scalar]) -> str | None:
    """Return the URI that says all of a node's options, if there is one."""
    from urllib.parse import quote

    options = {name: str(value) for name, value in own.items() if value is not None}
    volume, path = options.pop("volume", ""), options.pop("path", "")
    kind = options.pop("server.0.type", "")
    where = f"/{quote(volume, safe='')}/{quote(path, safe=_SAFE)}"
    if kind == "unix":
        name = f"gluster+unix://{where}?socket={quote(options.pop('server.0.path', ''), safe='/')}"
    elif kind in ("inet", "tcp", "rdma"):
        host, port = options.pop("server.0.host", ""), options.pop("server.0.port", "")
        address = f"[{host}]" if ":" in host else quote(host, safe="")
        address += "" if port in ("0", str(DEFAULT_PORT)) else f":{port}"
        name = f"gluster{'+rdma' if kind == 'rdma' else ''}://{address}{where}"
    else:
        return None
    parsed = _parse(name)
    if options or parsed is None or (parsed["volume"], parsed["path"]) != (volume, path):
        return None
    return name
