"""`vblk mount`: an image's disk as a file in a folder.

Owns: the verb's options, and when it ends: by a signal, or when somebody else
unmounts. Mounting and answering are `vblk.exports.fuse`'s.

Ordering rule: the file is there before the process goes into the background.
"""

import asyncio
import os
import signal
from contextlib import ExitStack
from dataclasses import dataclass

from vblk.cli.background import Readiness, fork
from vblk.cli.command import Verb, flag, option
from vblk.cli.console import Console
from vblk.cli.failure import SUCCESS, Failure, sentence
from vblk.cli.images import ImageArguments, image_graph, image_options, open_named
from vblk.cli.values import TARGET_CACHE_TYPE
from vblk.errors import BlockError


@dataclass(slots=True)
class Arguments(ImageArguments):
    """The words of one call."""

    writable: bool
    cache: str | None
    name: str | None
    allow_other: bool
    fork: bool
    metrics: str | None


def _run(arguments: Arguments, console: Console) -> int:
    from vblk.aio import loops

    if len(arguments.operands) != 2:
        raise Failure("Expecting an image and a folder", hint=True)
    arguments.check()
    with ExitStack() as stack:
        ready = Readiness(fork(console) if arguments.fork else None)
        stack.callback(ready.close)
        return loops.run(_serve(arguments, console, ready), sockets=True)


async def _serve(arguments: Arguments, console: Console, ready: Readiness) -> int:
    """Mount, answer until a signal comes or somebody unmounts, unmount."""
    from vblk.exports.fuse import FuseExport
    from vblk.exports.metrics import serving_metrics

    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, over.set)
    image, folder = arguments.operands
    async with image_graph(arguments, console) as graph:
        handle = await open_named(
            graph,
            image,
            arguments,
            console,
            read_only=not arguments.writable,
            cache=arguments.cache if arguments.writable else None,
        )
        name = arguments.name or _file_name(handle.node.filename)
        export = FuseExport(
            "mount",
            graph,
            handle,
            mountpoint=folder,
            name=name,
            writable=arguments.writable,
            allow_other="on" if arguments.allow_other else "off",
            alone=not arguments.force_share,
        )
        export.on_end = lambda _: over.set()
        try:
            async with serving_metrics(arguments.metrics, [export].copy):
                await export.start()
                if not arguments.fork:
                    console.print(f"{os.path.join(folder, name)} is the disk in {image}; Ctrl-C unmounts it")
                    console.out.flush()
                ready.tell()
                await over.wait()
        except BlockError as error:
            raise Failure(sentence(error)) from error
        finally:
            await export.stop()
        if export.was_busy:
            console.warn(f"'{folder}' was in use: whoever has the disk open gets errors from now on")
    return SUCCESS


def _file_name(image: str) -> str:
    """Return the name under which an image's disk is shown: that of its file or export, if it has one."""
    if "://" in image:
        image = image.partition("://")[2].partition("?")[0].partition("/")[2]
    name = "" if image.startswith("json:") else os.path.basename(image)
    return name if name and len(os.fsencode(name)) < 256 else "disk"


VERB = Verb(
    "mount",
    _run,
    Arguments,
    [
        flag("--rw", "writable", help="The disk may be written; without, it is for reading only."),
        option(
            "-t",
            "cache",
            metavar="CACHE",
            type=TARGET_CACHE_TYPE,
            help="Cache mode for writing: none, writeback, writethrough, directsync or unsafe.",
        ),
        option("--name", metavar="NAME", help="The name of the file; that of the image when not given."),
        flag("--allow-other", help="Other users may come, as far as the file's permissions go."),
        flag("--fork", help="Go into the background when the disk is there."),
        option("--metrics", metavar="ADDR", help="Tell Prometheus: unix:PATH, PORT or HOST:PORT."),
        *image_options(),
    ],
    operands="IMAGE DIR",
    help="Show the disk in an image as one file in a folder, until Ctrl-C, SIGTERM or an unmount.",
)
