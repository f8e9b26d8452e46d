"""The types of the monitor: what commands take and return, under QEMU's names.

Owns: the Structs, for QMP and the command line alike. Their members stand in the order
of QEMU's schema, which decides the order of checks and, in part, of texts.

Source: QEMU's documentation, "QEMU QMP Reference Manual" and "QEMU Storage Daemon QMP
Reference Manual", version 7.2.
"""

from typing import Any

from msgspec import Struct, field


class Object(Struct, rename="kebab", forbid_unknown_fields=True):
    """The base of everything here: dashes in names, nothing unknown."""


class Capabilities(Object):
    """The arguments of `qmp_capabilities`."""

    enable: list[str] = field(default_factory=list[str])


class Named(Object):
    """A thing with a name."""

    name: str


class VersionTriple(Object):
    """A version."""

    major: int
    minor: int
    micro: int


class Version(Object):
    """What `query-version` returns."""

    qemu: VersionTriple
    package: str


class NodeName(Object):
    """A node."""

    node_name: str


class Resize(Object, kw_only=True):
    """The arguments of `block_resize`."""

    device: str | None = None
    node_name: str | None = None
    size: int


class Flat(Object):
    """The arguments of `query-named-block-nodes`."""

    flat: bool | None = None


class GraphNode(Object):
    """A node of the graph, for its debugging."""

    id: int
    type: str
    name: str


class GraphEdge(Object):
    """An edge of the graph, for its debugging."""

    parent: int
    child: int
    name: str
    perm: list[str]
    shared_perm: list[str]


class GraphInfo(Object):
    """What `x-debug-query-block-graph` returns."""

    nodes: list[GraphNode]
    edges: list[GraphEdge]


class CacheInfo(Object):
    """How a node's requests go through the system's cache."""

    writeback: bool
    direct: bool
    no_flush: bool


class NodeInfo(Object, kw_only=True):
    """A node, as `query-named-block-nodes` shows it. Limits are zero: a `throttle` node has them."""

    file: str
    node_name: str
    ro: bool
    drv: str
    backing_file: str | None = field(default=None, name="backing_file")
    backing_file_depth: int = field(default=0, name="backing_file_depth")
    encrypted: bool = False
    detect_zeroes: str = field(default="off", name="detect_zeroes")
    bps: int = 0
    bps_rd: int = field(default=0, name="bps_rd")
    bps_wr: int = field(default=0, name="bps_wr")
    iops: int = 0
    iops_rd: int = field(default=0, name="iops_rd")
    iops_wr: int = field(default=0, name="iops_wr")
    image: dict[str, Any]
    cache: CacheInfo
    write_threshold: int = field(default=0, name="write_threshold")
    dirty_bitmaps: list[dict[str, Any]] | None = None


class JobId(Object):
    """A job."""

    id: str
