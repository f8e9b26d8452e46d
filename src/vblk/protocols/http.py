"""Opening images on web servers, for reading.

Owns: the options of the drivers `http` and `https`. The node stands in `http_node`,
requests in `http_source`; both are loaded when the first such image is opened, with
the library behind them.

Ordering rule: what the options cannot mean is refused before anything is connected.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vblk.errors import OptionError, ReadOnly
from vblk.graph.site import Site
from vblk.options import Size, bind, check_children
from vblk.units import KIB, MIB

if TYPE_CHECKING:
    from vblk.protocols.http_node import HttpNode

READAHEAD: Final = Size(256 * KIB)
READAHEAD_MAX: Final = 16 * MIB
TIMEOUT_MAX: Final = 10_000
_SECTOR: Final = 512


@dataclass(slots=True)
class Options:
    """The options of `http` and `https`; those of credentials name secret objects.

    `readahead`: how many bytes are read at least, a multiple of 512.
    `timeout`: for how many seconds a server may be silent.
    """

    url: str
    readahead: Size = READAHEAD
    timeout: int = 5
    sslverify: bool = True
    username: str | None = None
    password_secret: str | None = None
    proxy_username: str | None = None
    proxy_password_secret: str | None = None
    cookie: str | None = None
    cookie_secret: str | None = None

    def __post_init__(self) -> None:
        """Check what can be wrong with each."""
        if self.readahead % _SECTOR:
            raise OptionError(f"HTTP_READAHEAD_SIZE {self.readahead} is not a multiple of {_SECTOR}")
        if not 0 < self.readahead <= READAHEAD_MAX:
            raise OptionError(f"Parameter 'readahead' expects {_SECTOR} to {READAHEAD_MAX} bytes")
        if not 0 < self.timeout <= TIMEOUT_MAX:
            raise OptionError(f"timeout parameter is too large or negative: 1 to {TIMEOUT_MAX} seconds")
        if self.cookie is not None and self.cookie_secret is not None:
            raise OptionError("curl driver cannot handle both cookie and cookie secret")


async def open_node(site: Site) -> "HttpNode":
    """Open the image that the site's options name.

    Raises:
        OptionError: They name none.
        ReadOnly: It is to be written to.
        StorageError: There is no such server or image, or it refuses.
        PeerError: The server breaks the protocol.
    """
    driver = site.options.driver or "http"
    check_children(site.options, driver)
    options = bind(site.options.own, Options, driver)
    if not options.url.startswith(f"{driver}://"):
        raise OptionError(
            f"{driver} curl driver cannot handle the URL '{options.url}' (does not start with '{driver}://')"
        )
    if not site.read_only and not site.options.auto_read_only:
        raise ReadOnly("images on web servers are read, not written")
    from vblk.protocols.http_node import HttpNode
    from vblk.protocols.http_source import Source

    source = Source(options, site.graph.objects)
    try:
        await source.open()
        node = HttpNode(site.name, site.filename, driver, source, options.readahead)
        site.graph.add(node)
    except BaseException:
        await source.close()
        raise
    return node
