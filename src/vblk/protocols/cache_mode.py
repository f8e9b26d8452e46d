"""Cache modes: how writes reach the medium, in QEMU's words.

Owns: the three switches behind the five names. It knows no file.
"""

from typing import NamedTuple

from vblk.errors import OptionError
from vblk.options import NodeOptions


class CacheMode(NamedTuple):
    """How a leaf uses the system's cache.

    `direct`: go around it (O_DIRECT). `write_through`: a write is stable when
    it returns. `no_flush`: flushes do nothing; a crash of the host may lose
    everything.
    """

    direct: bool = False
    write_through: bool = False
    no_flush: bool = False


WRITEBACK = CacheMode()

CACHE_MODES = {
    "writeback": WRITEBACK,
    "none": CacheMode(direct=True),
    "off": CacheMode(direct=True),
    "writethrough": CacheMode(write_through=True),
    "directsync": CacheMode(direct=True, write_through=True),
    "unsafe": CacheMode(no_flush=True),
}


def parse_cache_mode(text: str) -> CacheMode:
    """Return the mode of that name.

    Raises:
        OptionError: There is none.
    """
    try:
        return CACHE_MODES[text]
    except KeyError:
        raise OptionError(f"Invalid cache option: {text}") from None


def cache_mode_of(text: str, options: NodeOptions) -> CacheMode:
    """Return the mode named `text`, with the switches that a node sets for itself.

    Raises:
        OptionError: There is no such mode.
    """
    mode = parse_cache_mode(text)
    if options.cache_direct is not None:
        mode = mode._replace(direct=options.cache_direct)
    if options.cache_no_flush is not None:
        mode = mode._replace(no_flush=options.cache_no_flush)
    return mode
