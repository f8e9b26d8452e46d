"""The types of the monitor: what commands take and return, under QEMU's names.

Owns: the Structs, for QMP and the command line alike. Their members stand in the order
of QEMU's schema, which decides the order of checks and, in part, of texts.

Source: QEMU's documentation, "QEMU QMP Reference Manual" and "QEMU Storage Daemon QMP
Reference Manual", version 7.2.
"""

import enum
from typing import Any, ClassVar, Final, Literal

from msgspec import Struct, field

from vblk.jobs.block_job import OnError
from vblk.jobs.mirror_plan import CopyMode
from vblk.jobs.states import Status


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


class InetSocket(Object):
    """A host and a port."""

    host: str
    port: str
    numeric: bool | None = None
    to: int | None = None
    ipv4: bool | None = None
    ipv6: bool | None = None


class UnixSocket(Object):
    """A socket in the file system."""

    path: str


class FdSocket(Object):
    """A descriptor: a number, or a name that `getfd` gave."""

    str: str


class InetAddressOf(InetSocket, tag_field="type", tag="inet"):
    """A socket's address: a host and a port."""


class UnixAddressOf(UnixSocket, tag_field="type", tag="unix"):
    """A socket's address: in the file system."""


class FdAddressOf(FdSocket, tag_field="type", tag="fd"):
    """A socket's address: a descriptor."""


class InetLegacy(Object, tag_field="type", tag="inet"):
    """A socket's address in the older form: a host and a port."""

    data: InetSocket


class UnixLegacy(Object, tag_field="type", tag="unix"):
    """A socket's address in the older form: in the file system."""

    data: UnixSocket


class FdLegacy(Object, tag_field="type", tag="fd"):
    """A socket's address in the older form: a descriptor."""

    data: FdSocket


AnyAddress = InetAddressOf | UnixAddressOf | FdAddressOf
LegacyAddress = InetLegacy | UnixLegacy | FdLegacy


class NbdServerOptions(Object):
    """What `--nbd-server` takes."""

    addr: AnyAddress
    tls_creds: str | None = None
    tls_authz: str | None = None
    max_connections: int = 100


class NbdServerStart(Object):
    """The arguments of `nbd-server-start`."""

    addr: LegacyAddress
    tls_creds: str | None = None
    tls_authz: str | None = None
    max_connections: int = 100


class BitmapName(Object):
    """A bitmap of a node."""

    node: str
    name: str


class BitmapOfNode(BitmapName):
    """A bitmap, and whose it is."""

    alternate: ClassVar[str] = "BlockDirtyBitmapOrStr"


class ExportBase(Object, kw_only=True):
    """What all exports have."""

    id: str
    node_name: str
    writable: bool = False


class NbdExportOptions(ExportBase, kw_only=True, tag_field="type", tag="nbd"):
    """An export of the NBD server."""

    name: str | None = None
    description: str | None = None
    bitmaps: list[str | BitmapOfNode] = field(default_factory=list["str | BitmapOfNode"])
    allocation_depth: bool = False


class FuseExportOptions(ExportBase, tag_field="type", tag="fuse"):
    """A node as a file."""

    mountpoint: str
    growable: bool = False
    allow_other: Literal["auto", "off", "on"] = "auto"


ExportOptions = NbdExportOptions | FuseExportOptions


class NbdServerAdd(Object, kw_only=True):
    """The arguments of `nbd-server-add`."""

    name: str | None = None
    description: str | None = None
    device: str
    writable: bool = False
    bitmap: str | None = None


class RemoveMode(enum.Enum):
    """What becomes of clients: `safe` refuses while there are some."""

    SAFE = "safe"
    HARD = "hard"


class ExportDel(Object):
    """The arguments of `block-export-del`."""

    id: str
    mode: RemoveMode = RemoveMode.SAFE


class NbdServerRemove(Object):
    """The arguments of `nbd-server-remove`."""

    name: str
    mode: RemoveMode = RemoveMode.SAFE


class ExportInfo(Object):
    """An export, as `query-block-exports` shows it."""

    id: str
    type: str
    node_name: str
    shutting_down: bool


class BitmapDigest(Object):
    """What `x-debug-block-dirty-bitmap-sha256` returns."""

    sha256: str


class BitmapAdd(BitmapName):
    """The arguments of `block-dirty-bitmap-add`."""

    granularity: int | None = None
    persistent: bool | None = None
    disabled: bool | None = None


class BitmapMerge(Object):
    """The arguments of `block-dirty-bitmap-merge`."""

    node: str
    target: str
    bitmaps: list[str | BitmapOfNode]


class Snapshot(Object):
    """The arguments of `blockdev-snapshot`."""

    node: str
    overlay: str


class NewImageMode(enum.Enum):
    """Whether a snapshot's image is there already."""

    EXISTING = "existing"
    ABSOLUTE_PATHS = "absolute-paths"


class SnapshotSync(Object, kw_only=True):
    """The arguments of `blockdev-snapshot-sync`."""

    device: str | None = None
    node_name: str | None = None
    snapshot_file: str
    snapshot_node_name: str | None = None
    format: str = "qcow2"
    mode: NewImageMode = NewImageMode.ABSOLUTE_PATHS


class InsertFilter(Object):
    """The arguments of `blockdev-insert`: `filter` stands on `node` already, and has no user."""

    node: str
    filter: str


class RemoveFilter(Object):
    """The arguments of `blockdev-remove`."""

    filter: str


class ChangeChild(Object):
    """The arguments of `x-blockdev-change`: the child of a quorum that goes, or the node that comes."""

    parent: str
    child: str | None = None
    node: str | None = None


class BlockStats(Object):
    """What was asked of a node."""

    node_name: str
    stats: dict[str, Any]
    parent: dict[str, Any] | None = None


class QueryNodes(Object):
    """The arguments of `query-blockstats`."""

    query_nodes: bool | None = None


class BlockJobDevice(Object):
    """A block job, by the older name of its id."""

    device: str


class BlockJobCancel(BlockJobDevice):
    """The arguments of `block-job-cancel`."""

    force: bool = False


class BlockJobSpeed(BlockJobDevice):
    """The arguments of `block-job-set-speed`; `speed` is in bytes a second, 0 for no limit."""

    speed: int


class BlockJobChange(Object, kw_only=True, tag_field="type", tag="mirror"):
    """The arguments of `block-job-change`, which QEMU has since 8.2; `converge` is not in QEMU."""

    id: str
    copy_mode: CopyMode | None = None
    converge: float | None = None


class HumanLine(Object):
    """The arguments of `human-monitor-command`."""

    command_line: str


class JobStatusChange(Object):
    """The data of `JOB_STATUS_CHANGE`."""

    id: str
    status: Status


class ExportDeleted(Object):
    """The data of `BLOCK_EXPORT_DELETED`."""

    id: str


class BlockJobFigures(Object):
    """The data of events about a block job: how far it is."""

    type: str
    device: str
    len: int
    offset: int
    speed: int


class BlockJobCompleted(BlockJobFigures):
    """The data of `BLOCK_JOB_COMPLETED`; `error` says how it failed."""

    error: str | None = None


class BlockJobFailure(Object):
    """The data of `BLOCK_JOB_ERROR`."""

    device: str
    operation: Literal["read", "write"]
    action: OnError


class BlockJobPending(Object):
    """The data of `BLOCK_JOB_PENDING`."""

    type: str
    id: str


class BlockJobConverging(Object):
    """The data of `BLOCK_JOB_CONVERGING`: from its deadline on a mirror holds users back; vblk's own."""

    type: str
    device: str
    dirty_bytes: int


class QuorumReportBad(Object):
    """The data of `QUORUM_REPORT_BAD`: a child that failed, or that most others contradict."""

    type: Literal["read", "write", "flush"]
    node_name: str
    sector_num: int
    sectors_count: int
    error: str | None = None


class QuorumFailure(Object):
    """The data of `QUORUM_FAILURE`: too few children agree."""

    reference: str
    sector_num: int
    sectors_count: int


EVENTS: Final[dict[str, type[Object]]] = {
    "BLOCK_EXPORT_DELETED": ExportDeleted,
    "BLOCK_JOB_CANCELLED": BlockJobFigures,
    "BLOCK_JOB_COMPLETED": BlockJobCompleted,
    "BLOCK_JOB_CONVERGING": BlockJobConverging,
    "BLOCK_JOB_ERROR": BlockJobFailure,
    "BLOCK_JOB_PENDING": BlockJobPending,
    "BLOCK_JOB_READY": BlockJobFigures,
    "JOB_STATUS_CHANGE": JobStatusChange,
    "QUORUM_FAILURE": QuorumFailure,
    "QUORUM_REPORT_BAD": QuorumReportBad,
}
"""The events of a storage daemon."""
