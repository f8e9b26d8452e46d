"""Every way of naming an image, and the one typed model behind them.

Owns: file names, `json:`, `--image-opts`, `-o` lists, sizes and switches. Must
not open files or know which drivers exist. Imports nothing heavy.
"""

from vblk.options.binding import bind, bind_create, check_children, says_not_which
from vblk.options.jsonname import to_filename, to_json_filename
from vblk.options.keyval import CreateOptions, parse_create_options
from vblk.options.model import (
    LEAF_DRIVERS,
    PROTOCOLS,
    NodeOptions,
    NodeReference,
    Scalar,
    check_consistent,
    check_node_name,
    from_mapping,
    merge,
)
from vblk.options.naming import parse_filename, parse_image_opts, parse_json, with_filename
from vblk.options.sizes import Size, SizeTooLarge, format_size, parse_bool, parse_number, parse_size

__all__ = [
    "LEAF_DRIVERS",
    "PROTOCOLS",
    "CreateOptions",
    "NodeOptions",
    "NodeReference",
    "Scalar",
    "Size",
    "SizeTooLarge",
    "bind",
    "bind_create",
    "check_children",
    "check_consistent",
    "check_node_name",
    "format_size",
    "from_mapping",
    "merge",
    "parse_bool",
    "parse_create_options",
    "parse_filename",
    "parse_image_opts",
    "parse_json",
    "parse_number",
    "parse_size",
    "says_not_which",
    "to_filename",
    "to_json_filename",
    "with_filename",
]
