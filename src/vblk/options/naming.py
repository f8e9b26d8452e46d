"""File names, `json:` and `--image-opts`: text that names an image.

Owns: the spellings. Must not open or look at any file.

A name is placed at the node that takes it: below formats and filters, at the
first protocol. A colon before the first slash ends a protocol's name, so
`./a:b` and `file:a:b` are the ways to write a file name with a colon in front.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from vblk.errors import OptionError
from vblk.options.keyval import split_pairs
from vblk.options.model import (
    DEPTH_MAX,
    LEAF_DRIVERS,
    PROTOCOLS,
    Empty,
    NodeOptions,
    NodeReference,
    Scalar,
    from_flat,
    from_mapping,
    merge,
    put_option,
    reference_conflict,
)

_JSON: Final = "json:"
_PREFIXES: Final = {name: name for name in PROTOCOLS - {"memory", "vvfat"}} | {
    "fat": "vvfat",
    "gluster+rdma": "gluster",
    "gluster+tcp": "gluster",
    "gluster+unix": "gluster",
    "iser": "iscsi",
    "nbd+tcp": "nbd",
    "nbd+unix": "nbd",
    "nbds": "nbd",
    "nbds+unix": "nbd",
    "sftp": "ssh",
}
"""What may stand before the first colon, and the driver that it chooses."""

_FILES: Final = ("file", "host_device", "host_cdrom")
_WEB: Final = ("http", "https", "ftp", "ftps")
_NULLS: Final = ("null-co", "null-aio")


def parse_filename(text: str, *, format: str | None = None) -> NodeOptions:
    """Read one name of an image: a path, a protocol's name, a URI or `json:`.

    `format` is what `-f` says: the driver of the root node.

    Returns: The root node. For all but `json:` it is a format node, with
    `driver` `None` if it has to be probed, above the protocol node named
    `file`; unless `format` is itself a protocol.

    Raises:
        OptionError: No protocol has this name, or the name is malformed or
            contradicts `format`.
    """
    return with_filename(NodeOptions(driver=format), text)


def parse_json(text: str) -> NodeOptions:
    """Read options as a JSON object, without the `json:` in front.

    Raises:
        OptionError: Not a JSON object, or not the options of a node.
    """
    from vblk.options.jsontext import parse_json_text  # most names are plain and need no grammar

    value = parse_json_text(text)
    if not isinstance(value, dict):
        raise OptionError("Invalid JSON object given")
    return from_mapping(value)


def parse_image_opts(
    text: str, *, implied: str | None = "file", warn: Callable[[str], None] | None = None
) -> NodeOptions:
    """Read `driver=vhdx,file.driver=file,file.filename=a,,b.vhdx`.

    A first value without a name belongs to `implied`, if that is given. `warn`
    gets a sentence for each later bare name, which means `NAME=on`.

    Raises:
        OptionError: An option is given twice with different values, or has a
            value of the wrong type.
    """
    flat: dict[str, Scalar | Empty] = {}
    for pair in split_pairs(text, implied=implied):
        if pair.short and warn is not None:
            spelled = f"no{pair.name}" if pair.value == "off" else pair.name
            use = f"{pair.name}={pair.value}"
            warn(f"short-form boolean option '{spelled}' deprecated\nPlease use {use} instead")
        put_option(flat, pair.name, pair.value)
    return from_flat(flat)


def with_filename(options: NodeOptions, text: str) -> NodeOptions:
    """Return `options` with the image named by `text` in its place.

    Raises:
        OptionError: `options` name a file already, or as `parse_filename`.
    """
    if "\0" in text:
        raise OptionError("A file name must not contain a NUL character")
    return _place(merge(options, NodeOptions()), text, 0)


def _place(options: NodeOptions, text: str, depth: int) -> NodeOptions:
    """Place a name at or below a node; `depth` 0 is the root."""
    if depth == DEPTH_MAX:
        raise OptionError(f"Nodes are nested deeper than {DEPTH_MAX}")
    if text.startswith(_JSON):
        return merge(options, parse_json(text.removeprefix(_JSON)))
    driver = options.driver
    if driver is None and depth > 0:
        driver = _protocol_of(text)
    if driver is None and depth > 0:
        return _place_leaf(options, None, {"filename": text})
    if driver in LEAF_DRIVERS:
        return _place_leaf(options, driver, _leaf_options(driver, text))
    if driver in ("blkdebug", "blkverify"):
        return _place_debug(options, driver, text, depth)
    return _place_child(options, "file", text, depth)


def _protocol_of(text: str) -> str | None:
    """Return the driver that a name's prefix chooses, or `None` for a plain path."""
    prefix, colon, _ = text.partition(":")
    if not colon or "/" in prefix:
        return None
    if prefix not in _PREFIXES:
        raise OptionError(f"Unknown protocol '{prefix}'")
    return _PREFIXES[prefix]


def _leaf_options(driver: str, text: str) -> dict[str, Scalar]:
    """Return a protocol's own options from its spelling of a name."""
    if driver in _FILES:
        return {"filename": _strip_prefix(text, f"{driver}:")}
    if driver in _NULLS:
        if text != f"{driver}://":
            raise OptionError(f"The only allowed filename for this driver is '{driver}://'")
        return {}
    if driver == "nbd":
        from vblk.options.nbd import parse_nbd_name

        return dict(parse_nbd_name(text))
    if driver == "ssh":
        from vblk.options.ssh import parse_ssh_name

        return dict(parse_ssh_name(text))
    if driver == "gluster":
        from vblk.options.gluster import parse_gluster_name

        return dict(parse_gluster_name(text))
    return {"url" if driver in _WEB else "uri": text}


def _strip_prefix(text: str, prefix: str) -> str:
    """Return a path without its prefix, such that it does not look prefixed again."""
    path = text.removeprefix(prefix)
    return f"./{path}" if path != text and ":" in path.partition("/")[0] else path


def _place_leaf(options: NodeOptions, driver: str | None, own: dict[str, Scalar]) -> NodeOptions:
    if "filename" in options.own:
        raise OptionError("Can't specify 'file' and 'filename' options at the same time")
    if own.get("filename") == "":
        raise OptionError(f"The '{driver or 'file'}' block driver requires a file name")
    return merge(options, NodeOptions(driver=driver, own=own))


def _place_child(options: NodeOptions, name: str, text: str, depth: int) -> NodeOptions:
    child = options.children.get(name, NodeOptions())
    if isinstance(child, NodeReference):
        raise reference_conflict(name, f"{name}.filename")
    placed = _place(child or NodeOptions(), text, depth + 1)
    return replace(options, children={**options.children, name: placed})


def _place_debug(options: NodeOptions, driver: str, text: str, depth: int) -> NodeOptions:
    """Read `blkdebug:[CONFIG]:PATH` or `blkverify:RAW:PATH`; without the prefix, PATH."""
    child = "image" if driver == "blkdebug" else "test"
    options = merge(options, NodeOptions(driver=driver))
    if not text.startswith(f"{driver}:"):
        return _place_child(options, child, text, depth)
    first, colon, path = text.removeprefix(f"{driver}:").partition(":")
    if not colon:
        needs = (
            "both config file and image path" if driver == "blkdebug" else "raw copy and original image path"
        )
        raise OptionError(f"{driver} requires {needs}")
    if driver == "blkverify":
        options = _place_child(options, "raw", first, depth)
    elif first:
        options = merge(options, NodeOptions(own={"config": first}))
    return _place_child(options, child, path, depth)
