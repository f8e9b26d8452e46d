"""A flush answers those who asked before it started, and nobody else."""

import asyncio

import pytest

from vblk.errors import NodeFailed
from vblk.runtime.flush_sequencer import FlushSequencer


class Disk:
    """A disk whose flushes start and end when the test says so."""

    def __init__(self) -> None:
        self.started = 0
        self.running = 0
        self.failing: Exception | None = None
        self.gates: list[asyncio.Future[None]] = []

    async def flush(self) -> None:
        self.started += 1
        self.running += 1
        assert self.running == 1, "two flushes at once"
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gates.append(gate)
        try:
            await gate
            if self.failing is not None:
                raise self.failing
        finally:
            self.running -= 1

    def end_one(self) -> None:
        self.gates.pop(0).set_result(None)


async def turns(count: int = 6) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_callers_before_the_start_share_one_flush() -> None:
    async def scenario() -> None:
        disk = Disk()
        sequencer = FlushSequencer(disk.flush)
        callers = [asyncio.create_task(sequencer.flush()) for _ in range(10)]
        await turns()
        assert disk.started == 1
        disk.end_one()
        await asyncio.gather(*callers)
        assert disk.started == 1

    asyncio.run(scenario())


def test_callers_during_a_flush_share_the_next_one() -> None:
    async def scenario() -> None:
        disk = Disk()
        sequencer = FlushSequencer(disk.flush)
        first = asyncio.create_task(sequencer.flush())
        await turns()
        late = [asyncio.create_task(sequencer.flush()) for _ in range(10)]
        await turns()
        disk.end_one()
        await turns()
        assert first.done()
        assert not any(task.done() for task in late)
        assert disk.started == 2
        disk.end_one()
        await asyncio.gather(*late)
        assert disk.started == 2

    asyncio.run(scenario())


def test_a_flush_that_nobody_asked_for_does_not_run() -> None:
    async def scenario() -> None:
        disk = Disk()
        sequencer = FlushSequencer(disk.flush)
        task = asyncio.create_task(sequencer.flush())
        await turns()
        disk.end_one()
        await task
        await sequencer.drain()
        assert disk.started == 1

    asyncio.run(scenario())


def test_a_failed_flush_fails_its_callers_and_all_later_ones() -> None:
    async def scenario() -> None:
        disk = Disk()
        disk.failing = OSError(5, "the medium is gone")
        sequencer = FlushSequencer(disk.flush, filename="disk.img")
        first = asyncio.create_task(sequencer.flush())
        await turns()
        queued = asyncio.create_task(sequencer.flush())
        await turns()
        disk.end_one()
        for task in (first, queued):
            with pytest.raises(NodeFailed) as caught:
                await task
            assert caught.value.__cause__ is disk.failing
            assert caught.value.filename == "disk.img"
        assert disk.started == 1  # the queued one was not tried
        with pytest.raises(NodeFailed, match="the medium is gone"):
            await sequencer.flush()
        with pytest.raises(NodeFailed):
            sequencer.check_healthy()
        await sequencer.drain()

    asyncio.run(scenario())


def test_the_first_failure_is_kept() -> None:
    sequencer = FlushSequencer(Disk().flush)
    first = OSError("first")
    sequencer.poison(first)
    sequencer.poison(OSError("second"))
    with pytest.raises(NodeFailed) as caught:
        sequencer.check_healthy()
    assert caught.value.__cause__ is first


def test_a_cancelled_caller_leaves_the_flush_to_the_others() -> None:
    async def scenario() -> None:
        disk = Disk()
        sequencer = FlushSequencer(disk.flush)
        first, second = (asyncio.create_task(sequencer.flush()) for _ in range(2))
        await turns()
        first.cancel()
        await turns()
        assert first.cancelled()
        disk.end_one()
        await second
        assert disk.started == 1

    asyncio.run(scenario())


def test_every_cancelled_caller_leaves_the_sequencer_usable() -> None:
    async def scenario() -> None:
        for count in range(12):
            disk = Disk()
            sequencer = FlushSequencer(disk.flush)
            caller = asyncio.create_task(sequencer.flush())
            await turns(count)
            caller.cancel()
            await turns()
            again = asyncio.create_task(sequencer.flush())
            await turns()
            while disk.gates:
                disk.end_one()
                await turns()
            await again
            await sequencer.drain()
            assert not sequencer.failed

    asyncio.run(scenario())


def test_a_cancelled_runner_answers_everybody_with_failure() -> None:
    async def scenario() -> None:
        disk = Disk()
        sequencer = FlushSequencer(disk.flush)
        first = asyncio.create_task(sequencer.flush())
        await turns()
        second = asyncio.create_task(sequencer.flush())
        await turns()
        assert sequencer._runner is not None
        sequencer._runner.cancel()  # as the end of the loop does
        for task in (first, second):
            with pytest.raises(NodeFailed):
                await task

    asyncio.run(scenario())
