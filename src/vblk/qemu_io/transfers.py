"""Commands that read, write and discard, and those that do so in the background.

Owns: their options and the order of their reports. The bytes are moved by the
handle.
"""

import time
from collections.abc import Awaitable

from vblk.errors import BlockError, Unsupported
from vblk.qemu_io.language import (
    REQUEST_MAX,
    Call,
    Complaint,
    Misuse,
    read_lengths,
    read_number,
    read_pattern,
    require_sectors,
)
from vblk.qemu_io.report import Transfer, dump
from vblk.qemu_io.session import Session
from vblk.units import MIB, OFFSET_MAX

FILL = 0xCD
"""What is written when no pattern is named."""


def _stable(session: Session, call: Call) -> bool:
    return call.has("f") or session.opened.access.write_through


def _only_one(call: Call, *letters: str) -> bool:
    return sum(call.has(letter) for letter in letters) <= 1


def _two_operands(call: Call) -> tuple[str, str] | None:
    return (call.operands[0], call.operands[1]) if len(call.operands) == 2 else None


def _read_length(text: str, *, most: int = REQUEST_MAX, without: str = "") -> int:
    length = read_number(text)
    if length > most:
        raise Complaint(f"length cannot exceed {most}{without}, given {text}")
    return length


class _Report:
    """How the end of one request is told: not at all, for a person, for a program."""

    def __init__(self, session: Session, call: Call) -> None:
        self._session = session
        self._quiet = call.has("q")
        self._machine = call.has("C")
        self.dumps = call.has("v")
        self._started = time.perf_counter()

    def restart(self) -> None:
        """Count the time from now."""
        self._started = time.perf_counter()

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self._started

    def told(
        self, verb: str, offset: int, length: int, seconds: float, data: memoryview | None = None
    ) -> None:
        """Tell the end of a request that did all its bytes."""
        if self._quiet:
            return
        if self.dumps and data is not None:
            self._session.say(*dump(data, offset))
        self._session.say(*Transfer(verb, offset, length, length, seconds).lines(machine=self._machine))


def _differs(data: memoryview, pattern: int) -> bool:
    """Tell whether any byte is not the pattern."""
    expected = bytes([pattern]) * min(len(data), MIB)
    return any(
        bytes(data[start : start + MIB]) != expected[: min(MIB, len(data) - start)]
        for start in range(0, len(data), MIB)
    )


async def _timed(session: Session, operation: str, report: _Report, request: Awaitable[None]) -> float:
    """Await a request and return its seconds.

    Raises:
        Complaint: It failed.
    """
    report.restart()
    try:
        await request
    except BlockError as error:
        raise Complaint(session.failed(operation, error)) from error
    return report.elapsed()


def _verify(data: memoryview, pattern: int, offset: int) -> str | None:
    if not _differs(data, pattern):
        return None
    return f"Pattern verification failed at offset {offset}, {len(data)} bytes"


async def read(session: Session, call: Call) -> None:
    """Read one range, and check or show it."""
    pattern_text, from_text, length_text = call.value("P"), call.value("s"), call.value("l")
    pattern = None if pattern_text is None else read_pattern(pattern_text)
    start = 0 if from_text is None else read_number(from_text)
    checked = None if length_text is None else read_number(length_text)
    operands = _two_operands(call)
    if operands is None or (pattern is None and (from_text is not None or length_text is not None)):
        session.misused(call)
        return
    offset = read_number(operands[0])
    length = _read_length(operands[1])
    if checked is None:
        checked = length - start
    if checked < 0 or start + checked > length:
        raise Complaint("pattern verification range exceeds end of read data")
    if call.has("b"):
        require_sectors(offset, "offset")
        require_sectors(length, "count")
        raise Complaint(session.failed("read", Unsupported("no format of this version has a VM state")))
    report = _Report(session, call)
    data = session.buffer(length)
    seconds = await _timed(session, "read", report, session.handle.read_into(offset, data))
    if pattern is not None:
        complaint = _verify(data[start : start + checked], pattern, offset + start)
        if complaint is not None:
            session.fail(complaint)
    report.told("read", offset, length, seconds, data)


async def readv(session: Session, call: Call) -> None:
    """Read one range into several buffers, and check or show it."""
    pattern_text = call.value("P")
    pattern = None if pattern_text is None else read_pattern(pattern_text)
    if len(call.operands) < 2:
        session.misused(call)
        return
    offset = read_number(call.operands[0])
    length = read_lengths(call.operands[1:])
    report = _Report(session, call)
    data = session.buffer(length)
    seconds = await _timed(session, "readv", report, session.handle.read_into(offset, data))
    if pattern is not None and (complaint := _verify(data, pattern, offset)) is not None:
        session.fail(complaint)
    report.told("read", offset, length, seconds, data)


async def write(session: Session, call: Call) -> None:
    """Write a pattern, a file's bytes or zeros to one range."""
    pattern_text = call.value("P")
    pattern = FILL if pattern_text is None else read_pattern(pattern_text)
    operands = _two_operands(call)
    if operands is None:
        session.misused(call)
        return
    _check_write_options(call)
    offset = read_number(operands[0])
    most, without = (OFFSET_MAX, "") if call.has("n") else (REQUEST_MAX, " without -n")
    length = _read_length(operands[1], most=most, without=without)
    if call.has("b") or (call.has("c") and not call.has("z")):
        require_sectors(offset, "offset")
        require_sectors(length, "count")
        why = "no format of this version can do that"
        raise Complaint(session.failed("write", Unsupported(why)))
    report = _Report(session, call)
    if call.has("z"):
        request = _zeros(session, call, offset, length)
    else:
        source = call.value("s")
        data = bytes([pattern]) * length if source is None else await _repeated_file(session, source, length)
        request = session.handle.write(offset, session.filled(data), fua=_stable(session, call))
    seconds = await _timed(session, "write", report, request)
    report.told("wrote", offset, length, seconds)


def _check_write_options(call: Call) -> None:
    if call.has("b") and call.has("z"):
        raise Complaint("-b and -z cannot be specified at the same time")
    if call.has("f") and (call.has("b") or call.has("c")):
        raise Complaint("-f and -b or -c cannot be specified at the same time")
    if call.has("n") and not call.has("z"):
        raise Complaint("-n requires -z to be specified")
    if call.has("u") and not call.has("z"):
        raise Complaint("-u requires -z to be specified")
    if not _only_one(call, "z", "P", "s"):
        raise Complaint("Only one of -z, -P, and -s can be specified at the same time")


def _zeros(session: Session, call: Call, offset: int, length: int) -> Awaitable[None]:
    return session.handle.write_zeroes(
        offset,
        length,
        unmap=call.has("u"),
        no_fallback=call.has("n"),
        fua=_stable(session, call),
    )


async def _repeated_file(session: Session, filename: str, length: int) -> bytes:
    """Return `length` bytes: those of a file, over and over."""

    def load() -> bytes:
        with open(filename, "rb") as file:
            return file.read(length)

    try:
        data = await session.opened.graph.engine.run(load)
    except OSError as error:
        raise Misuse(f"{filename}: {error.strerror}") from error
    if not data and length:
        raise Misuse(f"{filename}: file is empty")
    return (data * -(-length // len(data)))[:length] if data else b""


async def writev(session: Session, call: Call) -> None:
    """Write a pattern from several buffers to one range."""
    pattern_text = call.value("P")
    pattern = FILL if pattern_text is None else read_pattern(pattern_text)
    if len(call.operands) < 2:
        session.misused(call)
        return
    offset = read_number(call.operands[0])
    length = read_lengths(call.operands[1:])
    report = _Report(session, call)
    data = session.filled(bytes([pattern]) * length)
    seconds = await _timed(
        session, "writev", report, session.handle.write(offset, data, fua=_stable(session, call))
    )
    report.told("wrote", offset, length, seconds)


async def aio_read(session: Session, call: Call) -> None:
    """Start reading one range into several buffers."""
    pattern_text = call.value("P")
    pattern = None if pattern_text is None else read_pattern(pattern_text)
    if call.has("i"):
        session.say("injecting invalid read request")
        return
    if len(call.operands) < 2:
        session.misused(call)
        return
    offset = read_number(call.operands[0])
    length = read_lengths(call.operands[1:])
    report = _Report(session, call)

    async def request() -> None:
        data = session.buffer(length)
        # The status of the run does not depend on requests in the background.
        try:
            seconds = await _timed(session, "readv", report, session.handle.read_into(offset, data))
        except Complaint as complaint:
            session.say(str(complaint))
            return
        if pattern is not None and (sentence := _verify(data, pattern, offset)) is not None:
            session.say(sentence)
        report.told("read", offset, length, seconds, data)

    await session.start(request())


async def aio_write(session: Session, call: Call) -> None:
    """Start writing a pattern or zeros to one range."""
    pattern_text = call.value("P")
    pattern = FILL if pattern_text is None else read_pattern(pattern_text)
    if call.has("i"):
        session.say("injecting invalid write request")
        return
    if len(call.operands) < 2:
        session.misused(call)
        return
    if call.has("z") and len(call.operands) != 2:
        raise Complaint("-z supports only a single length parameter")
    if call.has("u") and not call.has("z"):
        raise Complaint("-u requires -z to be specified")
    offset = read_number(call.operands[0])
    length = read_number(call.operands[1]) if call.has("z") else read_lengths(call.operands[1:])
    report = _Report(session, call)

    def submit() -> Awaitable[None]:
        if call.has("z"):
            return _zeros(session, call, offset, length)
        data = session.filled(bytes([pattern]) * length)
        return session.handle.write(offset, data, fua=_stable(session, call))

    async def request() -> None:
        try:
            seconds = await _timed(session, "aio_write", report, submit())
        except Complaint as complaint:
            session.say(str(complaint))
            return
        report.told("wrote", offset, length, seconds)

    await session.start(request())


async def aio_flush(session: Session, call: Call) -> None:
    """Wait for every request in the background."""
    await session.finish_requests()


async def flush(session: Session, call: Call) -> None:
    """Bring what was written to stable storage; a failure is told by the status alone."""
    try:
        await session.handle.flush()
    except BlockError:
        session.fail()


async def discard(session: Session, call: Call) -> None:
    """Discard one range."""
    operands = _two_operands(call)
    if operands is None:
        session.misused(call)
        return
    offset = read_number(operands[0])
    length = _read_length(operands[1])
    report = _Report(session, call)
    seconds = await _timed(session, "discard", report, session.handle.discard(offset, length))
    report.told("discard", offset, length, seconds)
