"""`vblk bench`: many equal requests, and how long they took.

Owns: QEMU's benchmark: a ring of requests at growing offsets, with flushes
between them if asked for.

Ordering rule: with drain, nothing is in flight while a flush runs.
"""

import asyncio
import os
import time
from dataclasses import dataclass
from errno import EIO

from vblk.cli.command import Verb, flag, option
from vblk.cli.console import Console
from vblk.cli.failure import SUCCESS, Failure
from vblk.cli.images import ImageArguments, image_graph, image_options, open_named
from vblk.cli.values import CACHE_MODES, NumberType, SizeType, WordType
from vblk.errors import BlockError, OutOfRange
from vblk.graph.handle import Handle
from vblk.units import GIB, KIB

BUFFER_MOST = GIB
ENGINES = ("threads", "native", "io_uring")


@dataclass(slots=True)
class Arguments(ImageArguments):
    """The words of one call; sizes and offsets in bytes."""

    count: int
    depth: int
    flush_interval: int
    engine: str | None
    native: bool
    no_drain: bool
    offset: int
    pattern: int
    quiet: bool
    buffer_size: int
    step: int
    cache: str
    write: bool


async def run(arguments: Arguments, console: Console) -> int:
    """Check the numbers, open the image, send the requests."""
    if len(arguments.operands) != 1:
        raise Failure("Expecting one image file name", hint=True)
    if not arguments.write and arguments.flush_interval:
        raise Failure("--flush-interval is only available in write tests")
    if arguments.flush_interval and arguments.flush_interval < arguments.depth:
        raise Failure("Flush interval can't be smaller than depth")
    engine = "native" if arguments.native else arguments.engine or "threads"
    if engine != "threads":
        raise Failure(f"-i {engine}: this version of vblk has the engine 'threads' only")
    name = arguments.operands[0]
    async with image_graph(arguments, console) as graph:
        handle = await open_named(
            graph, name, arguments, console, read_only=not arguments.write, cache=arguments.cache
        )
        if not arguments.quiet:
            console.print(*_announcement(arguments))
        seconds = await Bench(handle, arguments).run()
        if not arguments.quiet:
            console.print(f"Run completed in {seconds:3.3f} seconds.")
    return SUCCESS


def _announcement(arguments: Arguments) -> list[str]:
    kind = "write" if arguments.write else "read"
    lines = [
        f"Sending {arguments.count} {kind} requests, {arguments.buffer_size} bytes each, "
        f"{arguments.depth} in parallel (starting at offset {arguments.offset}, "
        f"step size {arguments.step or arguments.buffer_size})"
    ]
    if arguments.flush_interval:
        way = "asynchronous " if arguments.no_drain else ""
        lines.append(f"Sending {way}flush every {arguments.flush_interval} requests")
    return lines


class Bench:
    """One run of requests on an image."""

    def __init__(self, handle: Handle, arguments: Arguments) -> None:
        self._handle = handle
        self._arguments = arguments
        self._data = bytes((arguments.pattern,)) * arguments.buffer_size
        self._sent = 0
        self._offset = arguments.offset
        self._since_flush = 0
        self._in_flight = 0
        self._quiet = asyncio.Event()
        self._flushing = asyncio.Lock()

    async def run(self) -> float:
        """Send all requests and return the seconds that it took.

        Raises:
            Failure: A request failed.
        """
        started = time.perf_counter()
        tasks = [asyncio.ensure_future(self._worker()) for _ in range(self._arguments.depth)]
        try:
            await asyncio.gather(*tasks)
        except BlockError as error:
            number = EIO if isinstance(error, OutOfRange) else error.errno
            raise Failure(f"Failed request: {os.strerror(number)}") from error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return time.perf_counter() - started

    async def _worker(self) -> None:
        arguments = self._arguments
        buffer = memoryview(bytearray(arguments.buffer_size))
        while True:
            async with self._flushing:
                if self._sent == arguments.count:
                    return
                offset = self._next_offset()
                self._in_flight += 1
                self._quiet.clear()
            try:
                if arguments.write:
                    await self._handle.write(offset, self._data)
                else:
                    await self._handle.read_into(offset, buffer)
            finally:
                self._in_flight -= 1
                if not self._in_flight:
                    self._quiet.set()
            await self._flush_when_due()

    def _next_offset(self) -> int:
        offset = self._offset
        self._sent += 1
        step = self._arguments.step or self._arguments.buffer_size
        self._offset = (offset + step) % max(1, self._handle.size)
        return offset

    async def _flush_when_due(self) -> None:
        interval = self._arguments.flush_interval
        if not interval:
            return
        self._since_flush += 1
        if self._since_flush < interval:
            return
        self._since_flush = 0
        if self._arguments.no_drain:
            await self._handle.flush()
            return
        async with self._flushing:
            if self._in_flight:
                await self._quiet.wait()
            await self._handle.flush()


VERB = Verb(
    "bench",
    run,
    Arguments,
    [
        option(
            "-c",
            "--count",
            "count",
            metavar="N",
            default=75000,
            type=NumberType("Invalid request count specified"),
            help="How many requests: 75000.",
        ),
        option(
            "-d",
            "--depth",
            "depth",
            metavar="N",
            default=64,
            type=NumberType("Invalid queue depth specified", 1),
            help="How many at a time: 64.",
        ),
        option(
            "--flush-interval",
            "flush_interval",
            metavar="N",
            default=0,
            type=NumberType("Invalid flush interval specified"),
            help="Flush after every N writes.",
        ),
        option(
            "-i",
            "--aio",
            "engine",
            metavar="ENGINE",
            type=WordType(ENGINES, "Invalid aio option: {}"),
            help="How requests reach the system: threads, the only one here.",
        ),
        flag("-n", "--native", "native", help="Refused, as -i native."),
        flag("--no-drain", "no_drain", help="Flush while other requests are under way."),
        option(
            "-o",
            "--offset",
            "offset",
            metavar="SIZE",
            type=SizeType("offset"),
            default=0,
            help="Where the first request goes.",
        ),
        option(
            "--pattern",
            metavar="BYTE",
            default=0,
            type=NumberType("Invalid pattern byte specified", 0, 255),
            help="What is written: 0 to 255.",
        ),
        flag("-q", "--quiet", "quiet", help="Say nothing but errors."),
        option(
            "-s",
            "--buffer-size",
            "buffer_size",
            metavar="SIZE",
            default=4 * KIB,
            type=SizeType("buffer size", 1, BUFFER_MOST),
            help="Bytes of one request: 4k.",
        ),
        option(
            "-S",
            "--step-size",
            "step",
            metavar="SIZE",
            default=0,
            type=SizeType("step_size"),
            help="Bytes from one request to the next; as large as a request when 0.",
        ),
        option(
            "-t",
            "--cache",
            "cache",
            metavar="CACHE",
            default="writeback",
            type=WordType(CACHE_MODES, "Invalid cache mode"),
            help="Cache mode.",
        ),
        flag("-w", "--write", "write", help="Write; without it, read."),
        *image_options(),
    ],
    operands="FILENAME",
    help="Send many equal requests to an image and tell how long they took. With -w its content is lost.",
)
