"""One run of the io language: the image that is open, and what is still in flight.

Owns: the dispatch of commands, the requests started by aio commands, the words
for failures, and the exit status. It knows no command.

Ordering rule: an image is closed when the requests on it have ended; requests
that are stopped at breakpoints are let go first.
"""

import asyncio
import errno
import os
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Protocol, TextIO

from vblk.errors import BlockError, ImageError, NodeFailed, OutOfRange
from vblk.filters.events import EventListener, InjectedError, find_listener
from vblk.graph.handle import Handle
from vblk.graph.node import Buffer
from vblk.graph.objects import Objects
from vblk.graph.registry import Graph
from vblk.options import NodeOptions
from vblk.qemu_io.language import Call, Complaint, Misuse, parse_call, split_line
from vblk.qemu_io.table import Command
from vblk.wording import FAILURE, SUCCESS, Failure, sentence

MISALIGNMENT = 16
"""By how many bytes `-m` moves buffers from where memory would be well aligned."""


class Console(Protocol):
    """Where the words of a session go; `name` stands before its messages."""

    name: str
    out: TextIO
    err: TextIO

    def print(self, *lines: str) -> None:
        """Write lines to the output."""
        ...


@dataclass(frozen=True, slots=True)
class Access:
    """How an image is to be opened, apart from its own options; `cache` is a mode's name."""

    read_only: bool = False
    snapshot: bool = False
    copy_on_read: bool = False
    force_share: bool = False
    cache: str = "writethrough"

    @property
    def write_through(self) -> bool:
        """Whether a write is on stable storage when it returns."""
        return self.cache in ("writethrough", "directsync")


@dataclass(frozen=True, slots=True)
class OpenImage:
    """The image that a session works on, with how it was opened."""

    graph: Graph
    handle: Handle
    options: NodeOptions
    access: Access


class Session:
    """Carries out commands one after the other.

    Concurrency: belongs to one event loop. Requests of aio commands run on while
    other commands are carried out.
    """

    def __init__(
        self,
        console: Console,
        *,
        commands: dict[str, Command],
        image_opts: bool = False,
        misalign: bool = False,
        objects: Objects | None = None,
    ) -> None:
        """Know `commands` by names and aliases; `image_opts`: names of images are options."""
        self.console = console
        self.commands = commands
        self.image_opts = image_opts
        self.objects = objects if objects is not None else Objects()
        self.ended = False
        self.status = SUCCESS
        self._misalign = misalign
        self._image: OpenImage | None = None
        self._running: set[asyncio.Task[None]] = set()

    @property
    def image(self) -> OpenImage | None:
        """The image that is open, or None."""
        return self._image

    @property
    def opened(self) -> OpenImage:
        """The image; commands that need one are only run while there is one."""
        assert self._image is not None, "no image is open"
        return self._image

    @property
    def handle(self) -> Handle:
        """The handle of the image that is open."""
        return self.opened.handle

    def say(self, *lines: str) -> None:
        """Write lines to standard output; they leave the process when it is full or a prompt comes."""
        self.console.print(*lines)

    def warn(self, text: str) -> None:
        """Write lines to standard error, as they are and at once."""
        # Standard output is not pushed out first: behind a pipe it comes last, as qemu-io's does.
        self.console.err.write(text + "\n")
        self.console.err.flush()

    def caution(self, text: str) -> None:
        """Write a warning to standard error."""
        self.message(f"warning: {text}")

    def message(self, text: str) -> None:
        """Write a line to standard error behind the program's name."""
        self.warn(f"{self.console.name}: {text}")

    async def execute(self, line: str) -> None:
        """Carry out one line; what goes wrong is said and remembered in `status`."""
        words = split_line(line)
        if not words:
            return
        command = self.commands.get(words[0])
        try:
            if command is None:
                raise Misuse(f'command "{words[0]}" not found')
            await self._run(command, words)
        except Misuse as error:
            self.status = FAILURE
            self.warn(str(error))
        except Complaint as error:
            self.status = FAILURE
            self.say(str(error))
        except Failure as error:
            self.status = FAILURE
            for text in error.lines:
                self.message(text)
        except BlockError as error:
            self.status = FAILURE
            self.message(sentence(error) if isinstance(error, ImageError) else error.message)

    async def _run(self, command: Command, words: list[str]) -> None:
        if self._image is None and not command.closed:
            raise Misuse("no file open, try 'help open'")
        refusal = command.refusal(words[0], len(words) - 1)
        if refusal is not None:
            raise Misuse(refusal)
        if command.writes and self.handle.read_only:
            raise Failure("Block node is read-only")
        call = Call(words[0], [], words[1:])
        if command.options:
            try:
                call = parse_call(words, command.letters)
            except Misuse as error:
                self.warn(str(error))
                self.show_usage(command)
                return
        await command.run(self, call)

    def show_usage(self, command: Command) -> None:
        """Say how a command is to be called, because it was not."""
        self.status = FAILURE
        self.say(command.usage())

    def misused(self, call: Call) -> None:
        """Say how the command of a call is to be called."""
        self.show_usage(self.commands[call.name])

    def fail(self, *lines: str) -> None:
        """Say lines, and remember that a command failed."""
        self.status = FAILURE
        self.say(*lines)

    def failed(self, operation: str, error: BlockError) -> str:
        """Return the line for a failed request; what else is known goes to standard error."""
        # QEMU calls a range outside the disk an input/output error.
        number = errno.EIO if isinstance(error, OutOfRange) else error.errno
        if isinstance(error, ImageError | NodeFailed):
            self.message(sentence(error))
        return f"{operation} failed: {os.strerror(number)}"

    def buffer(self, length: int) -> memoryview:
        """Return a writable view of `length` zeros, at a bad address if the user wants that."""
        if not self._misalign:
            return memoryview(bytearray(length))
        return memoryview(bytearray(length + MISALIGNMENT))[MISALIGNMENT:]

    def filled(self, data: Buffer) -> Buffer:
        """Return data to be written, at a bad address if the user wants that."""
        if not self._misalign:
            return data
        view = self.buffer(memoryview(data).nbytes)
        view[:] = data
        return view

    async def start(self, request: Coroutine[None, None, None]) -> None:
        """Let a request run on while other commands are carried out."""
        task = asyncio.create_task(request)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        await asyncio.sleep(0)

    async def finish_requests(self) -> None:
        """Wait until no request runs any more."""
        while self._running:
            await asyncio.gather(*self._running)

    @property
    def busy(self) -> bool:
        """Whether requests run on."""
        return bool(self._running)

    def listener(self) -> EventListener | None:
        """Return the node that breakpoints are set on, if the image has one."""
        return find_listener(self.handle.node)

    def adopt(self, image: OpenImage) -> None:
        """Work on an image from now on."""
        assert self._image is None, "an image is open already"
        self._image = image
        listener = self.listener()
        if listener is not None:
            listener.report_to(self.say)

    def replace_access(self, access: Access) -> None:
        """Note that the image is open in another way now."""
        self._image = replace(self.opened, access=access)

    async def close_image(self) -> None:
        """Let go of the image, when its requests have ended."""
        image = self._image
        if image is None:
            return
        listener = self.listener()
        if listener is not None:
            listener.resume_all()
        await self.finish_requests()
        self._image = None
        await image.graph.close()

    async def close(self) -> None:
        """Let go of everything."""
        try:
            await self.close_image()
        except BlockError as error:
            if isinstance(error, InjectedError):
                return  # whoever injects errors need not be told of the last one
            self.status = FAILURE
            self.message(sentence(error))
