"""Files on SSH servers as leaves.

Owns: how the requests of a node become those of SFTP: cut to what the server
takes, and many at a time over one connection, which is not made again when it
breaks. The connection is `ssh_connection`'s, its options `ssh`'s.

Ordering rule: a server handles the requests of one session in the order in which
they came, so a request that was cancelled is over before any later one. A flush
(fsync@openssh.com) covers every write that had returned when it was asked for.
Nothing changes the file's length but `resize` and writes past its end: setting a
length while a write is in flight could cut that write off.

Source: draft-ietf-secsh-filexfer-02; PROTOCOL of OpenSSH for its extensions.
"""

import errno
import stat
from collections.abc import Awaitable
from contextlib import suppress
from typing import ClassVar, Final, TypeVar

import asyncssh

from vblk.errors import BlockError, NoSpace, OutOfRange, PeerError, StorageError, Unsupported
from vblk.graph.node import Buffer, Preallocation, Span
from vblk.protocols.cache_mode import WRITEBACK, CacheMode
from vblk.protocols.data_runs import spans_of
from vblk.protocols.remote_leaf import RemoteLeaf
from vblk.protocols.ssh import Options
from vblk.protocols.ssh_connection import Session, connect
from vblk.protocols.ssh_holes import RemoteHoles
from vblk.runtime.fan_out import in_pieces
from vblk.units import KIB, MIB, OFFSET_MAX

PAYLOAD_MAX: Final = MIB
"""The most bytes of one request, whatever the server would take."""

PAYLOAD_SAFE: Final = 32 * KIB
"""What every server takes."""

PIECES_AT_ONCE: Final = 16

_READ: Final = 1
_WRITE: Final = 2
_CREATE: Final = 8
"""How a file is opened, as SFTP numbers it."""

FAILURES: Final = (asyncssh.Error, OSError, ValueError)
"""What the library raises for a request: a refusal, a lost connection, an answer that cannot be read."""

T = TypeVar("T")


class SshNode(RemoteLeaf):
    """A file on an SSH server.

    Concurrency: belongs to one event loop's thread, with any number of requests
    in flight; overlapping writes in flight leave either's bytes.
    """

    driver: ClassVar[str] = "ssh"

    def __init__(
        self,
        name: str,
        filename: str,
        *,
        read_only: bool,
        options: Options,
        session: Session,
        file: asyncssh.SFTPClientFile,
        size: int,
        cache: CacheMode = WRITEBACK,
    ) -> None:
        """Take over an open `file` of `session`; use `open_ssh` rather than this.

        Before it is written to, `check_flush` has to have passed.
        """
        super().__init__(name, filename, read_only=read_only, cache=cache)
        self._options = options
        self._session = session
        self._file = file
        self._size = self._reach = size
        self._durable = False
        self._holes = RemoteHoles(session, options.path)
        limits = session.files.limits
        self._read_max = min(PAYLOAD_MAX, limits.max_read_len or PAYLOAD_SAFE)
        self._write_max = min(PAYLOAD_MAX, limits.max_write_len or PAYLOAD_SAFE)

    @property
    def size(self) -> int:
        """The length in bytes."""
        return self._size

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer; see `Node.read_into`. What lies past the end is zeros."""
        self._flusher.check_healthy()
        inside = max(0, min(len(buffer), self._size - offset))
        buffer[inside:] = bytes(len(buffer) - inside)

        async def piece(at: int, count: int) -> None:
            end = at + count
            while at < end:
                answer: Awaitable[bytes] = self._file.read(end - at, offset + at)
                data = await self._call("read", offset + at, answer)
                if not data or len(data) > end - at:
                    text = (
                        "the file is shorter than it was"
                        if not data
                        else "the server sent more than it was asked for"
                    )
                    raise StorageError(
                        errno.EIO, text, filename=self.filename, operation="read", offset=offset + at
                    )
                buffer[at : at + len(data)] = data
                at += len(data)

        if inside:
            await in_pieces(inside, self._read_max, piece, PIECES_AT_ONCE)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write bytes, growing the file where they pass its end; see `Node.write`."""
        self.require_writable()
        self._flusher.check_healthy()
        view = memoryview(data).cast("B")
        if view:
            await self._write(offset, view)
        if fua or self.cache.write_through:
            await self.flush()

    async def _write(self, offset: int, view: memoryview) -> None:
        end = offset + len(view)
        if end > OFFSET_MAX:
            raise OutOfRange("a file cannot be that long", filename=self.filename, offset=offset)
        self._dirty = True
        self._reach = max(self._reach, end)
        await in_pieces(
            len(view),
            self._write_max,
            lambda at, count: self._call(
                "write", offset + at, self._file.write(bytes(view[at : at + count]), offset + at)
            ),
            PIECES_AT_ONCE,
        )
        self._size = max(self._size, end)

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Write zeros out up to where anything was ever written, and only the last one past that."""
        self.require_writable()
        self._flusher.check_healthy()
        end = offset + length
        inside = max(0, min(end, self._reach) - offset)
        if no_fallback and inside:
            raise Unsupported("the protocol has no request that zeroes", filename=self.filename)
        zeros = memoryview(bytes(min(inside, self._write_max)))
        if inside:
            await in_pieces(
                inside,
                self._write_max,
                lambda at, count: self._write(offset + at, zeros[:count]),
                PIECES_AT_ONCE,
            )
        if inside < length:
            await self._write(end - 1, memoryview(b"\0"))
        if fua or self.cache.write_through:
            await self.flush()

    async def discard(self, offset: int, length: int) -> None:
        """Keep what is there: the protocol has no way to give space back."""
        self.require_writable()
        self._flusher.check_healthy()

    async def _flush_server(self) -> None:
        if self._durable:
            await self._call("flush", None, self._file.fsync())

    async def allocation(self, offset: int, length: int) -> list[Span]:
        """Ask the server's shell for holes, where there is one; the protocol does not tell them."""
        self._flusher.check_healthy()
        return await spans_of(self, offset, length, self._holes.runs)

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        """Set the length; see `Node.resize`."""
        self.require_writable()
        self._flusher.check_healthy()
        if preallocation is not Preallocation.OFF:
            raise Unsupported(
                f"Unsupported preallocation mode: {preallocation.value}", filename=self.filename
            )
        if not 0 <= size <= OFFSET_MAX:
            raise OutOfRange(f"a file cannot be {size} bytes long", filename=self.filename)
        self._dirty = True
        await self._call("resize", size, self._file.truncate(size))
        self._size = self._reach = size

    async def reopen(self, *, read_only: bool) -> None:
        """Open the file anew with the new access."""
        if read_only == self.read_only:
            return
        if read_only:
            await self.flush()
        before = self._file
        self._file = await open_file(self._session, self._options.path, read_only=read_only)
        try:
            if not read_only:
                await self.check_flush()
        except BaseException:
            before, self._file = self._file, before
            raise
        finally:
            with suppress(*FAILURES):
                await before.close()
        self.read_only = read_only

    async def check_flush(self) -> None:
        """Flush once, to know whether the server can.

        Raises:
            Unsupported: It cannot, and nobody said that this is good enough.
        """
        try:
            await self._call("flush", None, self._file.fsync())
            self._durable = True
        except Unsupported:
            if not self._options.no_flush_guarantee and not self.cache.no_flush:
                raise Unsupported(
                    "the server cannot bring what is written to stable storage (fsync@openssh.com); "
                    "no-flush-guarantee=on writes without",
                    filename=self.filename,
                ) from None

    async def _leave(self) -> None:
        self._holes.close()
        try:
            with suppress(*FAILURES):
                await self._file.close()
        finally:
            await self._session.close()

    async def _call(self, operation: str, offset: int | None, answer: Awaitable[T]) -> T:
        """Return the answer to a request, which is no error.

        Raises:
            StorageError: The server refused, or the connection broke.
            PeerError: The answer is none.
            NoSpace: Its storage is full.
            Unsupported: It cannot do this.
        """
        try:
            return await answer
        except FAILURES as error:
            failure = refusal(error, self._session, self.filename)
            if operation == "write" and isinstance(error, asyncssh.SFTPFailure) and await self._is_full():
                failure = NoSpace("No space left on device", filename=self.filename)
            failure.operation, failure.offset = operation, offset
            raise failure from error

    async def _is_full(self) -> bool:
        """Ask for the file system's space after a failure, for which SFTP has but one word."""
        try:
            return not (await self._session.files.statvfs(self._options.path)).bavail
        except FAILURES:
            return False


_NUMBERS: Final = (
    (asyncssh.SFTPNoSuchFile, errno.ENOENT),
    (asyncssh.SFTPNoSuchPath, errno.ENOENT),
    (asyncssh.SFTPPermissionDenied, errno.EACCES),
    (asyncssh.SFTPWriteProtect, errno.EROFS),
)


def refusal(error: Exception, session: Session, filename: str | None) -> BlockError:
    """Return what the failure of a request means, and give up a connection that speaks no SFTP."""
    if isinstance(error, ValueError | asyncssh.SFTPBadMessage):
        session.connection.abort()
        return PeerError(f"the server at '{session.address}' breaks the protocol: {error}", filename=filename)
    if isinstance(error, asyncssh.SFTPNoSpaceOnFilesystem | asyncssh.SFTPQuotaExceeded):
        return NoSpace("No space left on device", filename=filename)
    if isinstance(error, asyncssh.SFTPOpUnsupported):
        return Unsupported(f"the server cannot do this: {error.reason}", filename=filename)
    lost = asyncssh.SFTPNoConnection | asyncssh.SFTPConnectionLost
    if isinstance(error, lost) or not isinstance(error, asyncssh.SFTPError):
        return StorageError(
            errno.ECONNRESET, f"the connection to '{session.address}' is lost: {error}", filename=filename
        )
    number = next((number for kind, number in _NUMBERS if isinstance(error, kind)), errno.EIO)
    return StorageError(number, f"SFTP server: {error.reason}", filename=filename)


async def open_file(
    session: Session, path: str, *, read_only: bool, create: bool = False
) -> asyncssh.SFTPClientFile:
    """Open a regular file.

    Raises:
        StorageError: There is none, or it may not be used so.
    """
    flags = _READ | (0 if read_only else _WRITE) | (_CREATE if create else 0)
    try:
        return await session.files.open(path, flags, encoding=None, block_size=0)
    except FAILURES as error:
        failure = refusal(error, session, None)
        failure.message = f"failed to open remote file '{path}': {failure.message}"
        raise failure from error


async def check_regular(session: Session, path: str) -> None:
    """Refuse what is no regular file: opening a pipe could block the server.

    Raises:
        StorageError: It is something else. That there is nothing is not said here.
    """
    try:
        mode = (await session.files.stat(path)).permissions
    except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPPermissionDenied):
        return
    except FAILURES as error:
        raise refusal(error, session, None) from error
    if mode is not None and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        number, kind = (
            (errno.EISDIR, "a directory") if stat.S_ISDIR(mode) else (errno.EINVAL, "no regular file")
        )
        raise StorageError(number, f"failed to open remote file '{path}': it is {kind}")


async def length_of(session: Session, file: asyncssh.SFTPClientFile) -> int:
    """Return a file's length.

    Raises:
        StorageError: The server does not say it.
    """
    try:
        size = (await file.stat()).size
    except FAILURES as error:
        raise refusal(error, session, None) from error
    if size is None or size > OFFSET_MAX:
        raise StorageError(errno.EIO, "the server does not say how long the file is")
    return size


async def open_ssh(
    options: Options,
    *,
    name: str,
    filename: str,
    read_only: bool,
    auto_read_only: bool = False,
    cache: CacheMode = WRITEBACK,
    create: bool = False,
) -> SshNode:
    """Connect to a server and open a file there.

    Args:
        options: Where it is.
        name: The node's name.
        filename: What a user would type.
        read_only: Nothing is written.
        auto_read_only: Open for reading only where the server forbids writing.
        cache: How writes reach the medium.
        create: Make the file, if there is none.

    Raises:
        StorageError: There is no such server or file, or it refuses.
        PeerError: The server breaks the protocol.
        Unsupported: It cannot flush, and that was not said to be good enough.

    An error of the opening names the server or the remote file in its text.
    """
    session = await connect(options)
    try:
        await check_regular(session, options.path)
        try:
            file = await open_file(session, options.path, read_only=read_only, create=create)
        except StorageError as error:
            if read_only or not auto_read_only or error.errno not in (errno.EACCES, errno.EROFS):
                raise
            read_only = True
            file = await open_file(session, options.path, read_only=True)
        node = SshNode(
            name,
            filename,
            read_only=read_only,
            options=options,
            session=session,
            file=file,
            size=await length_of(session, file),
            cache=cache,
        )
        if not read_only:
            await node.check_flush()
    except BaseException:
        await session.close()
        raise
    return node
