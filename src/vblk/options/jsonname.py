"""The name of a node, from its options: a plain one, or `json:{...}`.

Owns: how names are written, so that they can be compared letter for letter with
QEMU's, and which options do not belong into a name because they do not change
the data of a node. Must not look at any file.
"""

from typing import Final

from vblk.options.model import PROTOCOLS, NodeOptions, NodeReference, Scalar
from vblk.options.quoting import quote

_ORDER: Final = """
refcount-cache-size set-state.1.event inject-error.3.state inject-error.2.state inject-error.1.state
inject-error.0.state opt-write-zero test locking inject-error.3.immediately inject-error.2.immediately
inject-error.1.immediately inject-error.0.immediately password-secret port server.to set-state.3.new_state
cache-size url uri log-super-update-interval read-zeroes cookie-secret host-key-check.hash
set-state.0.event lazy-refcounts log server.path encrypt.format server.port server.host
host-key-check.type fat-type inject-error.3.once inject-error.2.once inject-error.1.once
inject-error.0.once log-sector-size set-state.2.new_state max-write-zero offset image data-file readahead
backing throttle-group max-transfer children set-state.2.state dir server.ipv6 server.numeric snapshot
host encrypt.key-secret timeout server.3.host server.2.host server.1.host server.0.host
set-state.1.new_state driver path server.3.path server.2.path server.1.path server.0.path blkverify
logfile log-append host-key-check.mode server.3.type server.2.type server.1.type server.0.type
set-state.1.state config take-child-perms.3 take-child-perms.2 take-child-perms.1 take-child-perms.0
inject-error.3.iotype inject-error.2.iotype inject-error.1.iotype inject-error.0.iotype filename
rewrite-corrupted username size set-state.0.new_state inject-error.3.errno inject-error.2.errno
inject-error.1.errno inject-error.0.errno inject-error.3.event inject-error.2.event inject-error.1.event
inject-error.0.event export floppy server.type server.3.port server.2.port server.1.port server.0.port
set-state.3.event opt-discard x-dirty-bitmap label set-state.0.state volume server.ipv4 cookie
vote-threshold tls-creds inject-error.3.sector inject-error.2.sector inject-error.1.sector
inject-error.0.sector debug transport raw latency-ns tls-hostname set-state.2.event sslverify rw top-id
bottom file user target key-secret max-discard align
"""
"""The order in which QEMU's tools print options, observed; unknown ones come last, as given."""

_RANK: Final = {name: rank for rank, name in enumerate(_ORDER.split())}
_FILES: Final = ("file", "host_device", "host_cdrom")
_NULLS: Final = ("null-co", "null-aio")

_Printed = Scalar | dict[str, "_Printed"] | list["_Printed"]


_WEAK: Final = frozenset(
    (
        "locking aio aio-max-batch pr-manager drop-cache x-check-cache-dropped latency-ns reconnect-delay "
        "open-timeout no-flush-guarantee"
    ).split()
)
"""Own options that change how a node works, not what it holds."""


def to_filename(options: NodeOptions) -> str:
    """Write the name of a node: the plain one where it says everything, else `json:`.

    The drivers must be filled in; a child without one counts as a file.
    """
    return _plain(options) or to_json_filename(options)


def to_json_filename(options: NodeOptions) -> str:
    """Write the driver, own options and children of a node as a `json:` name.

    Left out are options that do not change which data a node holds: the common
    ones (`read-only`, `cache.direct`, ...), `locking`, `aio` and the like.
    """
    return "json:" + _encode(_printed(options, root=True))


def _strong(options: NodeOptions) -> dict[str, Scalar]:
    return {name: value for name, value in options.own.items() if name not in _WEAK}


def _plain(options: NodeOptions) -> str | None:
    """Return the plain name that says everything about a node, if there is one."""
    own = _strong(options)
    if options.driver in (*_FILES, None) and own.keys() == {"filename"} and not options.children:
        return str(own["filename"])
    if options.driver in _NULLS:
        return None if own else f"{options.driver}://"
    if options.driver == "nbd":
        from vblk.options.nbd import nbd_name

        return nbd_name(own)
    if options.driver == "ssh":
        from vblk.options.ssh import ssh_name

        return ssh_name(own)
    if options.driver == "gluster":
        from vblk.options.gluster import gluster_name

        return gluster_name(own)
    if own.keys() in ({"uri"}, {"url"}) and not options.children:
        return str(next(iter(own.values())))
    below = {name: _plain_child(child) for name, child in options.children.items() if child is not None}
    if None in below.values():
        return None
    if options.driver == "blkdebug" and below.keys() == {"image"} and own.keys() <= {"config"}:
        return f"blkdebug:{own.get('config', '')}:{below['image']}"
    if options.driver == "blkverify" and below.keys() == {"raw", "test"} and not own:
        return f"blkverify:{below['raw']}:{below['test']}"
    file = options.children.get("file")
    if own or below.keys() != {"file"} or not isinstance(file, NodeOptions):
        return None
    return below["file"] if file.driver is None or file.driver in PROTOCOLS else None


def _plain_child(child: NodeOptions | NodeReference) -> str | None:
    return _plain(child) if isinstance(child, NodeOptions) else None


def _printed(options: NodeOptions, *, root: bool = False) -> dict[str, _Printed]:
    members: dict[str, _Printed] = dict(_strong(options))
    driver = options.driver or (None if root or "filename" not in options.own else "file")
    if driver is not None:
        members["driver"] = driver
    items: dict[int, _Printed] = {}
    for name, child in options.children.items():
        value: _Printed
        if isinstance(child, NodeOptions):
            value = _printed(child)
        else:
            value = child.name if isinstance(child, NodeReference) else None
        list_name, dot, index = name.partition(".")
        if dot:
            items[int(index)] = value
            members[list_name] = [items[key] for key in sorted(items)]
        else:
            members[name] = value
    return dict(sorted(members.items(), key=lambda member: _RANK.get(member[0], len(_RANK))))


def _encode(value: _Printed) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quote(name)}: {_encode(member)}" for name, member in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_encode, value)) + "]"
    if isinstance(value, str):
        return quote(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else f"{value:.17g}"
