"""Where a server listens, or is found.

Owns: the three kinds of address that NBD servers and clients know, as values. It
resolves no names and opens nothing.

Source: QEMU's QAPI reference, SocketAddress.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket in the file system."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class InetAddress:
    """A host, by name or number, and a port, by number or service.

    `ipv4` and `ipv6` say whether that family may be used; None: as the other one leaves it.
    `numeric`: the host is a number, and no name is looked up.
    """

    host: str
    port: str
    ipv4: bool | None = None
    ipv6: bool | None = None
    numeric: bool = False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class FdAddress:
    """A socket that this process has already: a listening one for a server, a connected one for a client."""

    fd: int

    def __str__(self) -> str:
        return f"fd:{self.fd}"


SocketAddress = UnixAddress | InetAddress | FdAddress
