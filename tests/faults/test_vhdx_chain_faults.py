"""A disk that fails while a chain changes: a typed error, nothing lost, and the next run comes to the end."""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.crash_chain import RecordedImages, files_of, images_on, see_chain, seen_of
from tests.support.vhdx.chain import Chain
from vblk.errors import BlockError, NoSpace, StorageError
from vblk.jobs.commit import Commit
from vblk.jobs.merge import Merge
from vblk.jobs.rebase import Rebase
from vblk.testing import Action, Content, Fault, Operation

KIB, MIB = 1 << 10, 1 << 20


async def merge(images: RecordedImages) -> None:
    job = Merge(images, "child2", "base")
    await job.run(await job.plan())


async def commit(images: RecordedImages) -> None:
    job = Commit(images, "child2")
    await job.run(await job.members())


async def flatten(images: RecordedImages) -> None:
    await Rebase(images, "child2", None).run()


class Counting:
    """Counts the writes, or else the flushes, and lets one of them fail."""

    def __init__(self, *, flushes: bool, failing: int = 0) -> None:
        self.count = 0
        self._flushes = flushes
        self._failing = failing

    def __call__(self, operation: Operation) -> Fault | None:
        if (operation.action is Action.FLUSH) is not self._flushes:
            return None
        self.count += 1
        if self.count != self._failing:
            return None
        if self._flushes:
            return Fault(StorageError(errno.EIO, "Input/output error", filename=operation.file))
        return Fault(NoSpace("No space left on device", filename=operation.file), operation.length // 2)


@pytest.mark.parametrize("flushes", [False, True], ids=["no-space", "failed-flush"])
@pytest.mark.parametrize("job", [merge, commit, flatten])
def test_no_failure_loses_anything(
    tmp_path: Path, job: Callable[[RecordedImages], Awaitable[None]], flushes: bool
) -> None:
    chain = Chain(tmp_path)
    chain.base([(0, 64 * KIB), (2 * MIB, 4 * KIB)], size=5 * MIB)
    chain.child([(8 * KIB, 8 * KIB)], states={3: 2}, block_size=MIB)
    chain.child([(12 * KIB, 8 * KIB), (4 * MIB, 4 * KIB)], size=6 * MIB)
    files = {level.path.stem: Content.load(level.path) for level in chain.levels}
    disk = seen_of(chain.top.model)

    async def main() -> None:
        counting = Counting(flushes=flushes)
        await job(images_on(files, fault=counting))
        assert counting.count > 10
        failures = 0
        for failing in range(1, counting.count + 1, 3):
            images = images_on(files, fault=Counting(flushes=flushes, failing=failing))
            try:
                await job(images)  # a hole that cannot be punched is nobody's failure
            except BlockError:
                failures += 1
            left = files_of(images)
            top = "child2" if "child2" in left else "base"
            assert await see_chain(images_on(left), top) == disk
            again = images_on(left)
            if (await again.load(top)).has_parent:
                await job(again)
            after = files_of(again)
            assert await see_chain(images_on(after), "child2" if "child2" in after else "base") == disk
        assert failures > counting.count // 6

    asyncio.run(main())
