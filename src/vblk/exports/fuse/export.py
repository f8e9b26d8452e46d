"""An export as a file: the kernel asks over its device, and is answered.

Owns: the device, from mounting to unmounting; which requests are answered at once,
which wait for a worker, and what becomes of those that nobody waits for any more.
Requests are carried out by `waiting`.

Ordering rule: a request that has begun is answered before the device is closed,
unless the export is cut off. The device is read only while there is room for what
it may ask.
"""

import asyncio
import errno
import os
import stat
from collections.abc import Callable
from time import perf_counter_ns, time_ns
from typing import ClassVar, Final, Literal

from vblk.aio.wakefulness import Wakefulness
from vblk.errors import BlockError, GraphError, OptionError, PeerError, ReadOnly, StorageError
from vblk.exports.export import Export
from vblk.exports.fuse.files import Files
from vblk.exports.fuse.mount import mount, unmount_in_any_case
from vblk.exports.fuse.waiting import OPERATIONS, carry_out
from vblk.graph.handle import Handle
from vblk.graph.registry import Graph
from vblk.graph.statistics import Operation
from vblk.units import KIB, MIB
from vblk.wire.fuse import replies
from vblk.wire.fuse.numbers import MAJOR, MAKING, MINOR, ROOT, Opcode, OpenFlag
from vblk.wire.fuse.requests import Init, Interrupt, Name, Open, Read, Request, Write, parse_request

PAYLOAD_MAX: Final = MIB
"""The most bytes of one read or write."""

WORKERS: Final = 16
"""How many requests are carried out at a time that cannot be answered at once."""

WAITING_MAX: Final = 64
"""How many more wait for that, before the device is read again."""

READ_AT_ONCE: Final = 256 * KIB
"""The longest read, in bytes, that nodes answer without waiting; longer ones are made of several."""

TURN_REQUESTS: Final = 32
TURN_BYTES: Final = MIB
"""After so much others have a turn."""

_RECORDS_MAX: Final = 4096
_INTERRUPTIBLE: Final = frozenset((Opcode.READ, Opcode.LSEEK, Opcode.GETATTR, Opcode.LOOKUP))
"""What may be left undone when whoever asked is killed: it changes nothing."""

_taken: Final[set[str]] = set()
"""Where this process has mounted something."""

AllowOther = Literal["off", "on", "auto"]


class FuseExport(Export):
    """A node as a file: `mountpoint` itself, or a file in that folder."""

    type: ClassVar[str] = "fuse"

    def __init__(
        self,
        id: str,
        graph: Graph,
        handle: Handle,
        *,
        mountpoint: str,
        name: str | None = None,
        writable: bool = False,
        growable: bool = False,
        allow_other: AllowOther = "auto",
        alone: bool = False,
        helper: bool | None = None,
    ) -> None:
        """Show what `handle` holds; see `Export`.

        Args:
            id: The export's name.
            graph: The graph of the handle.
            handle: The export's edge.
            mountpoint: An existing file, or with `name` an existing folder.
            name: The name of the file in the folder.
            writable: Whether the file may be written.
            growable: Whether writes beyond its end make it larger.
            allow_other: Whether other users may come; `auto` if the system allows that.
            alone: Nobody else changes the disk, so the kernel keeps what it has read.
            helper: Mount through `fusermount3`; None: unless this is root.

        Raises:
            ReadOnly: It is to be writable, and the handle is not.
        """
        if writable and handle.read_only:
            raise ReadOnly("Block node is read-only", filename=handle.node.filename)
        super().__init__(id, graph, handle, writable=writable)
        self.mountpoint = mountpoint
        self._place = os.path.abspath(mountpoint)
        self.growable = growable
        self.resizing = asyncio.Lock()
        self.was_busy = False
        """Whether the file was in use when it was unmounted."""
        self._name = None if name is None else os.fsencode(name)
        self._allow_other: AllowOther = allow_other
        self._open_flags = OpenFlag.KEEP_CACHE if alone else OpenFlag.NONE
        self._helper = os.geteuid() != 0 if helper is None else helper
        self.files = Files(self._name, writable=writable, allow_other=allow_other != "off")
        self._fd = -1
        self._mounted = False
        self._opened = 0
        self._buffer = bytearray(PAYLOAD_MAX + _RECORDS_MAX)
        self._view = memoryview(self._buffer)
        self._wakefulness = Wakefulness()
        self._listening = False
        self._deaf = False
        self._waiting: dict[int, Request] = {}
        self._running: dict[int, tuple[int, asyncio.Task[None]]] = {}
        """Kind of request and worker, by the request's number."""
        self._interrupted: set[int] = set()
        self._work = asyncio.Semaphore(0)
        self._idle = asyncio.Event()
        self._idle.set()
        self._workers: list[asyncio.Task[None]] = []
        self._leaving: asyncio.Task[None] | None = None

    @property
    def users(self) -> int:
        """How often the file is open."""
        return self._opened

    async def start(self) -> None:
        """Mount, and answer from now on.

        Raises:
            OptionError: The mount point is no file, or no folder.
            GraphError: Something is mounted there by this process.
            StorageError: The system refuses.
        """
        if self._place in _taken:
            raise GraphError(f"There already is a FUSE export on '{self.mountpoint}'")
        _taken.add(self._place)
        try:
            await asyncio.to_thread(self._check_mountpoint)
            self._fd = await asyncio.to_thread(self._mount)
        except BaseException:
            _taken.discard(self._place)
            raise
        self._mounted = True
        self._workers = [asyncio.create_task(self._serve()) for _ in range(WORKERS)]
        self._listen()

    def _check_mountpoint(self) -> None:
        try:
            mode = os.stat(self.mountpoint).st_mode
        except OSError as error:
            text = f"Failed to stat '{self.mountpoint}': {error.strerror}"
            if error.errno == errno.ENOTCONN:
                text += "; what served it was killed: fusermount3 -u makes it free"
            raise StorageError(error.errno or errno.EIO, text) from error
        if self._name is None and not stat.S_ISREG(mode):
            raise OptionError(f"'{self.mountpoint}' is not a regular file")
        if self._name is not None and not stat.S_ISDIR(mode):
            raise OptionError(f"'{self.mountpoint}' is not a directory")
        if self._name is not None and os.path.ismount(self.mountpoint):
            raise OptionError(f"'{self.mountpoint}' has something mounted on it already")

    def _mount(self) -> int:
        allow_other = self._allow_other != "off"
        while True:
            try:
                return mount(
                    self.mountpoint,
                    self.handle.node.filename,
                    self.files.root_mode,
                    read_only=self._name is not None and not self.writable,
                    allow_other=allow_other,
                    payload_max=PAYLOAD_MAX,
                    helper=self._helper,
                )
            except StorageError:
                if not allow_other or self._allow_other == "on":
                    raise
                allow_other = False
                self.files = Files(self._name, writable=self.writable, allow_other=False)

    # The device

    def _listen(self) -> None:
        if not self._listening and not self._deaf:
            asyncio.get_running_loop().add_reader(self._fd, self._on_readable)
            self._listening = True

    def _listen_no_more(self) -> None:
        if self._listening:
            asyncio.get_running_loop().remove_reader(self._fd)
            self._listening = False

    def _go_deaf(self) -> None:
        """Hear the kernel no more, whatever there is room for."""
        self._listen_no_more()
        self._deaf = True
        self._wakefulness.sleep()

    def _on_readable(self) -> None:
        self._wakefulness.asked()
        self._take_all()
        self._wakefulness.answered()

    def _take_all(self) -> None:
        """Take requests until there are none, or others have their turn."""
        left = TURN_BYTES
        for _ in range(TURN_REQUESTS):
            try:
                count = os.readv(self._fd, [self._buffer])
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue  # whoever asked has gone meanwhile
                self._unmounted()
                return
            try:
                request = parse_request(self._view[:count])
            except PeerError:
                self._unmounted()
                return
            try:
                left -= self._take(request)
            except Exception as error:
                self._fail(request, error)
            if left < 0 or not self._listening:
                return

    def _unmounted(self) -> None:
        """End: somebody else has unmounted the file, or the kernel gave it up."""
        self._go_deaf()
        self._mounted = False
        if self._leaving is None:
            self._leaving = asyncio.create_task(self.stop())

    def _send(self, *pieces: bytes | bytearray | memoryview) -> None:
        if self._fd < 0:
            return
        try:
            os.writev(self._fd, pieces)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINTR):  # whoever asked has gone meanwhile
                self._unmounted()

    def _refuse(self, unique: int, number: int) -> None:
        self._send(replies.header(unique, 0, number))

    def _fail(self, request: Request, error: Exception) -> None:
        """Tell the kernel of an error, whose request would wait for ever otherwise."""
        operation = OPERATIONS.get(request.opcode)
        if operation is not None:
            self.statistics.fail(operation)
        if isinstance(error, BlockError):
            self._refuse(request.unique, error.errno)
            return
        self._refuse(request.unique, errno.EIO)
        context = {"message": f"FUSE export '{self.id}': internal error", "exception": error}
        asyncio.get_running_loop().call_exception_handler(context)

    # Requests

    def _take(self, request: Request) -> int:
        """Answer a request or let it wait; return about how many bytes that moved."""
        opcode, unique, node, body = request
        if isinstance(body, Read) and opcode == Opcode.READ:
            return self._read(request, body)
        if isinstance(body, Write):
            return self._write(request, body)
        at_once = _AT_ONCE.get(opcode)
        if at_once is not None:
            at_once(self, request)
        elif opcode in OPERATIONS:
            if node != self.files.disk and opcode not in (Opcode.GETATTR, Opcode.LOOKUP, Opcode.STATFS):
                self._refuse(unique, errno.EISDIR)
            else:
                self._let_wait(request)
        else:
            self._refuse(unique, errno.EROFS if opcode in MAKING else errno.ENOSYS)
        return 0

    def _read(self, request: Request, body: Read) -> int:
        unique = request.unique
        started = perf_counter_ns()
        end = min(body.offset + min(body.size, PAYLOAD_MAX), self.handle.size)
        size = max(0, end - body.offset)
        pieces: list[bytes] = []
        for at in range(body.offset, end, READ_AT_ONCE):
            data = self.handle.try_read(at, min(READ_AT_ONCE, end - at))
            if data is None:
                self._let_wait(request)
                return 0
            pieces.append(data)
        self._send(replies.header(unique, size), *pieces)
        self.statistics.account(Operation.READ, size, perf_counter_ns() - started)
        return size

    def _write(self, request: Request, body: Write) -> int:
        unique = request.unique
        count = len(body.payload)
        if not self.writable:
            self._refuse(unique, errno.EACCES)
            return 0
        started = perf_counter_ns()
        handle = self.handle
        if body.offset + count <= handle.size and handle.try_write(body.offset, body.payload):
            self.files.mtime = time_ns()
            self._send(replies.reply(unique, replies.write_record(count)))
            self.statistics.account(Operation.WRITE, count, perf_counter_ns() - started)
        else:
            kept = Write(body.offset, memoryview(bytes(body.payload)))  # the buffer is used again
            self._let_wait(request._replace(body=kept))
        return count

    def _let_wait(self, request: Request) -> None:
        self._waiting[request.unique] = request
        self.statistics.in_flight += 1
        self._idle.clear()
        self._work.release()
        if len(self._waiting) >= WAITING_MAX:
            self._listen_no_more()

    async def _serve(self) -> None:
        """Be a worker: carry out one request after the other."""
        task = asyncio.current_task()
        assert task is not None
        room = bytearray(0)
        while True:
            await self._work.acquire()
            if not self._waiting:
                continue  # it was interrupted before it began
            request = self._waiting.pop(next(iter(self._waiting)))
            unique = request.unique
            self._listen()
            self._running[unique] = request.opcode, task
            if isinstance(request.body, Read) and request.body.size > len(room):
                room = bytearray(min(request.body.size, PAYLOAD_MAX))  # new memory costs more than the read
            try:
                self._send(*await carry_out(self, request, room))
            except asyncio.CancelledError:
                if unique not in self._interrupted:
                    raise
                task.uncancel()
                self._refuse(unique, errno.EINTR)
            except Exception as error:
                self._fail(request, error)
            finally:
                self._interrupted.discard(unique)
                del self._running[unique]
                self._ended()

    def _ended(self) -> None:
        self.statistics.in_flight -= 1
        if not self._waiting and not self._running:
            self._idle.set()

    def _interrupt(self, request: Request) -> None:
        """Answer a request that nobody waits for any more, if it may be left undone."""
        assert isinstance(request.body, Interrupt)
        unique = request.body.unique
        if unique in self._waiting:
            if self._waiting[unique].opcode in _INTERRUPTIBLE:
                del self._waiting[unique]
                self._refuse(unique, errno.EINTR)
                self._ended()
        elif unique in self._running:
            opcode, worker = self._running[unique]
            if opcode in _INTERRUPTIBLE:
                self._interrupted.add(unique)
                worker.cancel()

    def _init(self, request: Request) -> None:
        assert isinstance(request.body, Init)
        asked = request.body
        if asked.major < MAJOR or (asked.major == MAJOR and asked.minor < MINOR):
            self._refuse(request.unique, errno.EPROTO)
            self._unmounted()
            return
        record = replies.init_record(asked, payload_max=PAYLOAD_MAX, background=WAITING_MAX)
        self._send(replies.reply(request.unique, record))

    def _open(self, request: Request) -> None:
        assert isinstance(request.body, Open)
        if request.node != self.files.disk:
            self._refuse(request.unique, errno.EISDIR)
        elif request.body.flags & os.O_ACCMODE != os.O_RDONLY and not self.writable:
            self._refuse(request.unique, errno.EACCES)
        else:
            self._opened += 1
            self._send(replies.reply(request.unique, replies.open_record(self._open_flags)))

    def _release(self, request: Request) -> None:
        self._opened -= 1
        self._send(replies.reply(request.unique))

    def _open_folder(self, request: Request) -> None:
        if request.node == ROOT != self.files.disk:
            self._send(replies.reply(request.unique, replies.open_record(OpenFlag.NONE)))
        else:
            self._refuse(request.unique, errno.ENOTDIR)

    def _read_folder(self, request: Request) -> None:
        assert isinstance(request.body, Read)
        if request.node != ROOT or self.files.disk == ROOT:
            self._refuse(request.unique, errno.ENOTDIR)
            return
        room = min(request.body.size, PAYLOAD_MAX)
        record = replies.entries_record(self.files.entries(), request.body.offset, room)
        self._send(replies.reply(request.unique, record))

    def _look_up(self, request: Request) -> None:
        assert isinstance(request.body, Name)
        if self.files.find(request.node, request.body.name):
            self._let_wait(request)
        else:
            self._refuse(request.unique, errno.ENOENT)

    def _flush(self, request: Request) -> None:
        if self.writable:
            self._let_wait(request)
        else:
            self._agree(request)

    def _agree(self, request: Request) -> None:
        self._send(replies.reply(request.unique))

    def _forget(self, request: Request) -> None:
        """Say nothing: the files here are few, and always known."""

    # The end

    def cut_off(self) -> None:
        """Hear the kernel no more: everybody who uses the file gets errors from now on."""
        self._close_device()
        while self._waiting:
            self._waiting.popitem()
            self._ended()

    def _close_device(self) -> None:
        self._go_deaf()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    async def let_go(self) -> None:
        """Unmount, wait until what was asked has been answered, close the device."""
        try:
            if self._mounted:
                self._mounted = False
                place, helper = self._place, self._helper
                self.was_busy = await asyncio.to_thread(unmount_in_any_case, place, helper=helper)
            self._go_deaf()
            await self._idle.wait()
        finally:
            self._close_device()
            for worker in self._workers:
                worker.cancel()
            if self._workers:
                await asyncio.wait(self._workers)
            _taken.discard(self._place)


_AT_ONCE: Final[dict[int, Callable[[FuseExport, Request], None]]] = {
    Opcode.INIT: FuseExport._init,
    Opcode.LOOKUP: FuseExport._look_up,
    Opcode.FORGET: FuseExport._forget,
    Opcode.BATCH_FORGET: FuseExport._forget,
    Opcode.INTERRUPT: FuseExport._interrupt,
    Opcode.OPEN: FuseExport._open,
    Opcode.RELEASE: FuseExport._release,
    Opcode.FLUSH: FuseExport._flush,
    Opcode.OPENDIR: FuseExport._open_folder,
    Opcode.READDIR: FuseExport._read_folder,
    Opcode.RELEASEDIR: FuseExport._agree,
    Opcode.FSYNCDIR: FuseExport._agree,
    Opcode.DESTROY: FuseExport._agree,
}
