"""Opening files on SSH servers.

Owns: the options of the driver. The node stands in `ssh_node`, the connection in
`ssh_connection`; both are loaded when the first such file is opened, with the
library behind them.

Ordering rule: what the options cannot mean is refused before anything is
connected.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vblk.errors import OptionError
from vblk.graph.registry import Graph
from vblk.graph.site import Site
from vblk.options import Scalar, check_children
from vblk.options.binding import bind_object
from vblk.options.ssh import with_server
from vblk.protocols.cache_mode import CacheMode, cache_mode_of, parse_cache_mode
from vblk.protocols.remote_leaf import added

if TYPE_CHECKING:
    from vblk.protocols.ssh_node import SshNode

PORT_MAX = 65535


@dataclass(slots=True)
class ServerOptions:
    """Where the server listens; an empty port leaves it to the user's configuration."""

    host: str
    port: str


@dataclass(slots=True)
class HostKeyCheck:
    """How the server proves who it is: not at all, by a hash of its key, or by known_hosts."""

    mode: Literal["none", "hash", "known_hosts"] = "known_hosts"
    type: Literal["md5", "sha1", "sha256"] | None = None
    hash: str | None = None

    def __post_init__(self) -> None:
        """Check that a hash is said if one is wanted, and only then."""
        for name, value in (("type", self.type), ("hash", self.hash)):
            if self.mode == "hash" and value is None:
                raise OptionError(f"Parameter 'host-key-check.{name}' is missing")
            if self.mode != "hash" and value is not None:
                raise OptionError(f"Parameter 'host-key-check.{name}' is unexpected")


@dataclass(slots=True)
class Options:
    """The options of `ssh`.

    `no_flush_guarantee`: write also to a server that cannot bring what was
    written to stable storage.
    """

    path: str
    server: ServerOptions
    user: str | None = None
    host_key_check: HostKeyCheck | None = None
    no_flush_guarantee: bool = False

    def __post_init__(self) -> None:
        """Check the port."""
        port = self.server.port
        if port and not (port.isascii() and port.isdecimal() and int(port) <= PORT_MAX):
            raise OptionError("Use only numeric port value")


def read_options(own: Mapping[str, Scalar]) -> Options:
    """Return the options that a node was given.

    Raises:
        OptionError: They are wrong.
    """
    return bind_object(with_server(own), Options, strict=False)


async def open_node(site: Site) -> "SshNode":
    """Open the file that the site's options name.

    Raises:
        OptionError: They name none.
        StorageError: There is no such server or file, or it refuses.
    """
    check_children(site.options, "ssh")
    options = read_options(site.options.own)
    from vblk.protocols.ssh_node import open_ssh

    node = await open_ssh(
        options,
        name=site.name,
        filename=site.filename,
        read_only=site.read_only,
        auto_read_only=bool(site.options.auto_read_only),
        cache=cache_mode_of(site.request.cache, site.options),
    )
    return await added(site.graph, node)


async def make_node(graph: Graph, own: Mapping[str, Scalar], *, filename: str, cache: str) -> "SshNode":
    """Open a file for writing that is made if there is none.

    Raises: as `open_node`.
    """
    options = read_options(own)
    mode: CacheMode = parse_cache_mode(cache)
    from vblk.protocols.ssh_node import open_ssh

    node = await open_ssh(
        options, name=graph.unique_name(), filename=filename, read_only=False, cache=mode, create=True
    )
    return await added(graph, node)
