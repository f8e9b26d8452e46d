"""Opening files on gluster volumes.

Owns: the options of the driver. The node stands in `gluster_node`, the connection to
a volume in `gluster_volume`; both are loaded when the first such file is opened, with
the library behind them.

Ordering rule: what the options cannot mean is refused before anything is connected.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vblk.errors import OptionError
from vblk.graph.registry import Graph
from vblk.graph.site import Site
from vblk.options import Scalar, check_children
from vblk.options.binding import bind_object
from vblk.options.gluster import port_number
from vblk.protocols.cache_mode import cache_mode_of, parse_cache_mode
from vblk.protocols.remote_leaf import added

if TYPE_CHECKING:
    from vblk.protocols.gluster_node import GlusterNode

DEBUG_MAX = 9


@dataclass(slots=True)
class ServerOptions:
    """One server that knows the volume: `host` and `port`, or `path` of a unix socket."""

    type: Literal["inet", "tcp", "unix", "rdma"]
    host: str | None = None
    port: str | None = None
    path: str | None = None

    def check(self) -> None:
        """Refuse what is no server.

        Raises:
            OptionError: Something is missing, or too much.
        """
        needed = ("path",) if self.type == "unix" else ("host", "port")
        for name in ("host", "port", "path"):
            value: str | None = getattr(self, name)
            if value is None and name in needed:
                raise OptionError(f"Parameter '{name}' is missing")
            if value is not None and name not in needed:
                raise OptionError(f"Parameter 'server.{name}' is unexpected")
        if self.port is not None:
            port_number(self.port)


@dataclass(slots=True)
class Options:
    """The options of `gluster`.

    `debug`: how much the library writes into `logfile`, from 0 to 9; without a file it is silent.
    """

    volume: str
    path: str
    server: list[ServerOptions]
    debug: int = 4
    logfile: str | None = None

    def __post_init__(self) -> None:
        """Bound what QEMU bounds."""
        self.debug = max(0, min(self.debug, DEBUG_MAX))


def read_options(own: Mapping[str, Scalar]) -> Options:
    """Return the options that a node was given.

    Raises:
        OptionError: They are wrong.
    """
    texts = {
        name: str(value) if name.endswith(".port") and isinstance(value, int) else value
        for name, value in own.items()
    }
    options = bind_object(texts, Options, strict=False)
    if not options.server:
        raise OptionError("Parameter 'server' is missing")
    for server in options.server:
        server.check()
    return options


async def open_node(site: Site) -> "GlusterNode":
    """Open the file that the site's options name.

    Raises:
        OptionError: They name none.
        StorageError: There is no such server, volume or file, or it refuses.
        Unsupported: The library is not installed.
    """
    check_children(site.options, "gluster")
    options = read_options(site.options.own)
    from vblk.protocols.gluster_node import open_gluster

    node = await open_gluster(
        options,
        site.graph.engine,
        name=site.name,
        filename=site.filename,
        read_only=site.read_only,
        auto_read_only=bool(site.options.auto_read_only),
        cache=cache_mode_of(site.request.cache, site.options),
    )
    return await added(site.graph, node)


async def make_node(graph: Graph, own: Mapping[str, Scalar], *, filename: str, cache: str) -> "GlusterNode":
    """Open a file for writing that is made if there is none.

    Raises: as `open_node`.
    """
    options = read_options(own)
    mode = parse_cache_mode(cache)
    from vblk.protocols.gluster_node import open_gluster

    node = await open_gluster(
        options,
        graph.engine,
        name=graph.unique_name(),
        filename=filename,
        read_only=False,
        cache=mode,
        create=True,
    )
    return await added(graph, node)
