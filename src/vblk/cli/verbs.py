"""The table of verbs: where each one is, and what it is for.

Owns: names and summaries, so that help needs no verb's module and a start
imports only the verb that was asked for.
"""

from importlib import import_module
from typing import Any, Final, NamedTuple, cast

from vblk.cli.command import Verb


class Entry(NamedTuple):
    """A verb's module below `vblk.cli`, its line in the help, and its usage in QEMU's style."""

    module: str
    summary: str
    usage: str


COMMON: Final = "[--image-opts] [-f fmt] [-T src_cache] [-U]"

VERBS: Final[dict[str, Entry]] = {
    "bench": Entry(
        "bench",
        "Measure many equal requests on an image.",
        "[-c count] [-d depth] [-f fmt] [--flush-interval=flush_interval] [-i aio] [-n] [--no-drain] "
        "[-o offset] [--pattern=pattern] [-q] [-s buffer_size] [-S step_size] [-t cache] [-w] [-U] filename",
    ),
    "bitmap": Entry(
        "bitmap",
        "Change the dirty bitmaps that an image keeps.",
        "(--merge SOURCE | --add | --remove | --clear | --enable | --disable)... "
        "[-b source_file [-F source_fmt]] [-g granularity] [--image-opts] [-f fmt] filename bitmap",
    ),
    "chain": Entry(
        "chain", "Show an image and all its parents as a tree.", f"[--output=ofmt] {COMMON} filename"
    ),
    "check": Entry(
        "check",
        "Look for damage in an image's tables.",
        "[--image-opts] [-q] [-f fmt] [--output=ofmt] [-T src_cache] [-U] filename",
    ),
    "commit": Entry(
        "commit",
        "Write what an image holds into its parent.",
        "[--image-opts] [-q] [-f fmt] [-t cache] [-b base] [-r rate_limit] [-d] [-p] [--force] filename",
    ),
    "compact": Entry(
        "compact",
        "Make the file of an image smaller.",
        "[--image-opts] [-n] [-q] [-f fmt] [--output=ofmt] [-t cache] [-T src_cache] [-p] filename",
    ),
    "compare": Entry(
        "compare",
        "Tell whether two images have the same content.",
        "[--image-opts] [-f fmt] [-F fmt] [-T src_cache] [-p] [-q] [-s] [-U] filename1 filename2",
    ),
    "convert": Entry(
        "convert",
        "Copy one or more images into another format.",
        "[--image-opts] [--target-image-opts] [--target-is-zero] [-U] [-C] [-p] [-q] [-n] [-f fmt] "
        "[-t cache] [-T src_cache] [-O output_fmt] [-o options] [-S sparse_size] [-r rate_limit] "
        "[-m num_coroutines] [-W] [--salvage] [--verify] filename [filename2 [...]] output_filename",
    ),
    "create": Entry("create", "Make a new image.", "[-q] [-f fmt] [-o options] filename [size]"),
    "daemon": Entry(
        "daemon",
        "Serve nodes of a block graph, changed by QMP, as qemu-storage-daemon does.",
        "[--blockdev options] [--chardev options] [--export options] [--monitor options] "
        "[--nbd-server options] [--object options] [--pidfile file] [--daemonize] [--log file]",
    ),
    "dd": Entry(
        "dd",
        "Copy blocks of an image.",
        "[--image-opts] [-U] [-f fmt] [-O output_fmt] [bs=block_size] [count=blocks] [skip=blocks] "
        "if=input of=output",
    ),
    "drop-in": Entry("drop_in", "Write programs with QEMU's names into a folder.", "DIR"),
    "info": Entry(
        "info",
        "Tell what an image is.",
        f"[--output=ofmt] [--backing-chain] {COMMON} filename",
    ),
    "io": Entry(
        "io", "Read, write and examine an image by commands, as qemu-io does.", "[options] [filename]"
    ),
    "jobs": Entry("jobs", "Show the jobs of a running daemon.", "[--json] socket"),
    "map": Entry(
        "map",
        "Show where an image's data is.",
        f"[--start-offset=offset] [--max-length=len] [--output=ofmt] {COMMON} filename",
    ),
    "measure": Entry(
        "measure",
        "Calculate the file size that a new image needs.",
        "[--output=ofmt] [-O output_fmt] [-o options] [--size N | [--image-opts] [-f fmt] filename]",
    ),
    "merge": Entry(
        "merge",
        "Merge differencing images into an ancestor.",
        "[--into ancestor] [--keep] [--force] [--dry-run] [--output=ofmt] [-t cache] [-r rate_limit] "
        "[--verify] [-p] [-q] [--image-opts] [-f fmt] filename",
    ),
    "mirror": Entry(
        "mirror",
        "Copy a disk by the mirror job, here or in a daemon whose disk is in use.",
        "[-O output_fmt] [-o options] [-n] [-t cache] [--sync mode] [-r rate_limit] [--granularity size] "
        "[--verify] [-p] [-q] [--daemon socket [--job-id id] [--copy-mode mode] [--converge seconds] "
        f"[--pivot] [--resume]] {COMMON} source target",
    ),
    "mount": Entry(
        "mount",
        "Show the disk in an image as a file in a folder.",
        "[--rw] [--name name] [--allow-other] [--fork] [--metrics addr] [-t cache] "
        f"{COMMON} filename directory",
    ),
    "nbd": Entry("nbd", "Serve an image to NBD clients, as qemu-nbd does.", "[options] filename"),
    "monitor": Entry("monitor", "Talk to a running daemon by its QMP socket.", "[-c command] socket"),
    "rebase": Entry(
        "rebase",
        "Give an image another parent, or none.",
        "[--image-opts] [-U] [-q] [-f fmt] [-t cache] [-T src_cache] [-p] [-u] [--dry-run] "
        "-b backing_file [-F backing_fmt] filename",
    ),
    "resize": Entry(
        "resize",
        "Change the size of an image.",
        "[--image-opts] [-f fmt] [--preallocation=prealloc] [-q] [--shrink] filename [+ | -]size",
    ),
}

ABSENT: Final = ("snapshot",)
"""Verbs of qemu-img that this version answers with a sentence."""

UNLISTED: Final = {"amend": "amend"}
"""A verb that does nothing but say, as QEMU does, that the format cannot do it; with its module."""


def load_verb(name: str) -> Verb[Any] | None:
    """Import the verb of that name; None if there is none."""
    if name in ABSENT:
        from vblk.cli.absent import verb

        return verb(name)
    module = VERBS[name].module if name in VERBS else UNLISTED.get(name)
    if module is None:
        return None
    return cast("Verb[Any]", import_module(f"vblk.cli.{module}").VERB)
