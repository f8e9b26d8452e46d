"""VHDX images whose file fails while they are written, and requests that are cancelled on their way.

Errors are typed; what was flushed before stays, what was not is old or new; the
check is clean; and a failed flush is never followed by one that claims success.
"""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.cancellation import cancel_after
from tests.support.crash import NIGHTLY, Session, explore
from tests.support.crash_workloads import BLOCK, KIB, MAKE, allocate, reopened, resize, reuse
from vblk.errors import BlockError, NodeFailed, NoSpace, StorageError
from vblk.testing import Action, Effort, Fault, Operation

LAST = Effort(bound=16, samples=4, corners=4) if NIGHTLY else Effort(4, 1, 1, instants=3)
CHANGES = (Action.WRITE, Action.ZERO, Action.DISCARD, Action.RESIZE)


async def compact(session: Session) -> None:
    """Empty blocks low in the file, and compact."""
    disk = session.disk
    for block in range(6):
        await disk.write(block * BLOCK + 64 * KIB, 4 * KIB)
    await disk.flush()
    await disk.write_zeroes(BLOCK, 2 * BLOCK, unmap=True)
    await session.compact()
    await disk.write(3 * BLOCK, 4 * KIB)
    await disk.flush()


SCENARIOS: dict[str, Callable[[Session], Awaitable[None]]] = {
    scenario.__name__: scenario for scenario in (allocate, reuse, reopened, resize, compact)
}


class Failing:
    """Lets the Nth operation of some kinds fail, or all from it on, half of its bytes written."""

    def __init__(self, actions: tuple[Action, ...], at: int, *, for_ever: bool, full: bool) -> None:
        self.actions = actions
        self.at = at
        self.for_ever = for_ever
        self.full = full
        self.count = 0
        self.met = False

    def __call__(self, operation: Operation) -> Fault | None:
        if operation.action not in self.actions:
            return None
        self.count += 1
        if self.count != self.at and not (self.for_ever and self.count > self.at):
            return None
        self.met = True
        if self.full:
            return Fault(NoSpace("No space left on device", filename=operation.file))
        torn = operation.length // 2 if operation.action is Action.WRITE else 0
        return Fault(StorageError(errno.EIO, filename=operation.file), kept=torn)


async def run_failing(folder: Path, make: str, scenario: str, failing: Failing) -> bool:
    """Run a scenario over a failing file, judge what is left of it; tell whether it failed at all."""
    image = await MAKE[make](folder)
    session = Session(image.files, image.chain, image.disk, seed=failing.at, tolerant=True)
    await session.open()
    session.recorder.fault = failing
    with suppress(BlockError):
        await SCENARIOS[scenario](session)
    await session.close()
    session.recorder.fault = None
    await explore(session, folder, effort=LAST, since=session.recorder.now - 8)
    return failing.met


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for-ever"])
@pytest.mark.parametrize("fault", ["write", "flush", "full"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_any_failing_operation_loses_nothing_that_was_flushed(
    tmp_path: Path, scenario: str, fault: str, for_ever: bool
) -> None:
    actions = (Action.FLUSH,) if fault == "flush" else CHANGES

    async def sweep(make: str) -> None:
        at = 0
        met = True
        while met:
            at += 1
            failing = Failing(actions, at, for_ever=for_ever, full=fault == "full")
            met = await run_failing(tmp_path, make, scenario, failing)
        assert at > 4

    for make in ("littered", "child") if NIGHTLY else ("littered",):
        asyncio.run(sweep(make))


def test_a_failed_flush_poisons_the_image_until_it_is_opened_anew(tmp_path: Path) -> None:
    async def main() -> None:
        image = await MAKE["dynamic"](tmp_path)
        session = Session(image.files, image.chain, image.disk, tolerant=True)
        await session.open()
        disk = session.disk
        await disk.write(0, 4 * KIB)
        await disk.flush()
        await disk.write(BLOCK, 4 * KIB)
        session.recorder.fault = Failing((Action.FLUSH,), 1, for_ever=False, full=False)
        await disk.flush()
        await disk.flush()
        await disk.write(2 * BLOCK, 4 * KIB)
        await disk.write(0, 4 * KIB)
        assert [type(error) for error in disk.failures[1:]] == [NodeFailed] * 3
        assert isinstance(disk.failures[0], BlockError)
        await session.close()
        session.recorder.fault = None
        await explore(session, tmp_path)

    asyncio.run(main())


def test_a_full_file_system_fails_what_needs_space_and_nothing_else(tmp_path: Path) -> None:
    async def main() -> None:
        image = await MAKE["dynamic"](tmp_path)
        session = Session(image.files, image.chain, image.disk, tolerant=True)
        await session.open()
        disk = session.disk
        await disk.write(0, 4 * KIB)
        await disk.flush()
        end = session.recorder.leaves["disk"].size

        def full(operation: Operation) -> Fault | None:
            grows = operation.action in CHANGES and operation.offset + operation.length > end
            return Fault(NoSpace("No space left on device")) if grows else None

        session.recorder.fault = full
        for block in range(1, 40):
            await disk.write(block % 8 * BLOCK + 64 * KIB, 4 * KIB)
        await disk.write(0, 4 * KIB)
        await disk.flush()
        assert all(isinstance(error, NoSpace) for error in disk.failures)
        await session.close()
        session.recorder.fault = None
        await explore(session, tmp_path, effort=LAST)

    asyncio.run(main())


REQUESTS: dict[str, Callable[[Session], Awaitable[None]]] = {
    "write": lambda session: session.disk.write(3 * BLOCK + 4 * KIB, 8 * KIB),
    "first write": lambda session: session.disk.write(0, 4 * KIB),
    "write in parts": lambda session: session.disk.write(5 * BLOCK - 100, 300),
    "zeroes": lambda session: session.disk.write_zeroes(0, 2 * BLOCK, unmap=True),
    "discard": lambda session: session.disk.discard(BLOCK, BLOCK),
    "flush": lambda session: session.disk.flush(),
    "grow": lambda session: session.disk.resize(300 << 30),
    "shrink": lambda session: session.disk.resize(2 * BLOCK),
    "fua": lambda session: session.disk.write(2 * BLOCK, 4 * KIB, fua=True),
}


@pytest.mark.parametrize("make", ["littered", "child"])
@pytest.mark.parametrize("request_name", REQUESTS)
def test_a_request_cancelled_at_any_turn_leaves_nothing_behind(
    tmp_path: Path, make: str, request_name: str
) -> None:
    async def cancel(turns: int) -> bool:
        image = await MAKE[make](tmp_path)
        session = Session(image.files, image.chain, image.disk, seed=None)
        await session.open()
        disk = session.disk
        if request_name != "first write":
            await disk.write(0, 4 * KIB)
            await disk.write(BLOCK, 4 * KIB)
            await disk.flush()
            await disk.write(2 * KIB, 4 * KIB)

        async def request() -> None:
            await REQUESTS[request_name](session)

        cancelled = await cancel_after(request(), turns)
        await disk.write(BLOCK + 64 * KIB, 4 * KIB)
        await request()
        await disk.flush()
        await session.close()
        await explore(session, tmp_path, effort=LAST, since=session.recorder.now - 8)
        return cancelled

    async def sweep() -> None:
        turns = 0
        while await cancel(turns):
            turns += 1
        assert turns > 0

    asyncio.run(sweep())
