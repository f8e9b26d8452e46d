"""What every I/O engine promises.

Owns: the interface through which nodes reach the operating system, and the map
from its errors to ours. It must not know files' names or nodes; it sees
descriptors. An engine gives no order between requests in flight: who needs one
awaits the first before submitting the second.
"""

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from vblk.errors import BlockError, NoSpace, StorageError

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


def storage_error(
    error: OSError,
    *,
    filename: str | None = None,
    operation: str | None = None,
    offset: int | None = None,
    length: int | None = None,
) -> BlockError:
    """Turn an error of the operating system into ours: NoSpace or StorageError."""
    number = error.errno if error.errno is not None else errno.EIO
    if number in _NO_SPACE:
        return NoSpace(
            error.strerror or "No space left on device",
            filename=filename,
            operation=operation,
            offset=offset,
            length=length,
        )
    return StorageError(
        number, error.strerror, filename=filename, operation=operation, offset=offset, length=length
    )


class Engine(ABC):
    """Carries out blocking calls without blocking the event loop.

    Concurrency: all methods belong to one event loop's thread; any number of
    requests may be in flight.

    Cancellation: a request that has not started is dropped. One that has
    started is waited for before the cancellation goes on, so that when an await
    ends, in whatever way, nobody reads or writes the buffer any more.

    Errors of the operating system arrive as StorageError or NoSpace from every
    method but `run`.
    """

    def for_bulk(self) -> "Engine":
        """Return an engine whose work gives way to this one's where processors are short; maybe this one."""
        return self

    @abstractmethod
    async def run(self, call: Callable[[], T]) -> T:
        """Call `call` on a worker and return its result or raise what it raises."""

    @abstractmethod
    async def read(self, fd: int, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; fewer only at the end of the file."""

    @abstractmethod
    async def read_into(self, fd: int, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` from `offset`; return the bytes read, fewer only at the end of the file."""

    @abstractmethod
    async def write(self, fd: int, offset: int, data: Buffer) -> None:
        """Write all of `data` at `offset`.

        Raises:
            NoSpace: The storage is full; any part of `data` may be written.
        """

    @abstractmethod
    async def flush(self, fd: int) -> None:
        """Bring the file's data, and what is needed to find it, to stable storage."""

    @abstractmethod
    async def close(self) -> None:
        """Wait for what is in flight, then release the engine. Idempotent."""
