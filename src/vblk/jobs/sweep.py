"""A job that goes over a disk once, and what it does about failures on the way.

Owns: the workers, the pieces, progress, speed, and the error policy. What a piece is
and what is done with it stands in the classes that inherit from it.

Ordering rule: a piece that failed is done again before the sweep ends. Spans are not
kept: who carries a piece looks it up again, with nothing able to change in between.
"""

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator
from typing import ClassVar, Final, Unpack

from vblk.errors import BlockError
from vblk.graph.node import Span
from vblk.jobs.block_job import BlockJob, OnError
from vblk.jobs.job import Life
from vblk.jobs.walk import walk_by
from vblk.runtime.fan_out import fan_out
from vblk.units import KIB, MIB

WORKERS: Final = 8
PIECE: Final = 16 * MIB
"""The most bytes that one worker carries in one go."""
PIECE_LEAST: Final = 64 * KIB
PAUSE: Final = 0.1
"""So many seconds a job waits before it tries again what failed, where that is ignored."""


class SweepJob(BlockJob):
    """One sweep over a disk. Up to `current` all is behind it; `total` is the disk's size."""

    skips_ignored: ClassVar[bool] = False
    """Whether what fails, and is to be ignored, is left out; else it is tried again after a rest."""

    def __init__(self, id: str, on_error: OnError, **life: Unpack[Life]) -> None:
        super().__init__(id, **life)
        self._on_error = on_error
        self._size = 0
        self._at = 0
        """Up to here every range was handed out."""
        self._left = 0
        """Bytes of the present range that are not handed out yet."""
        self._over = False
        self._ranges: AsyncIterator[Span] | None = None
        self._again: list[tuple[int, int]] = []
        self._open: set[int] = set()
        """Where pieces begin that were handed out and are not done."""
        self._looking = asyncio.Lock()
        self._stumbled = False
        self.ignored: BlockError | None = None
        """The first failure of those that were."""

    @abstractmethod
    async def look(self, offset: int, length: int) -> list[Span]:
        """Return what of a range has to be carried; the rest may be left out."""

    @abstractmethod
    async def carry(self, offset: int, length: int) -> None:
        """Do what the job is for with a range."""

    @abstractmethod
    def _is_reading(self, error: BlockError) -> bool:
        """Tell whether a failure is one of reading."""

    async def sweep(self, size: int, start: int = 0) -> None:
        """Go over the first `size` bytes of the disk, from `start` on.

        Raises:
            BlockError: A failure that ends the job.
        """
        self._size = size
        self._at = self.current = start
        while not self._over or self._again:
            await self.pause_point()
            if self._stumbled:
                self._stumbled = False
                await self.clock.sleep(PAUSE)
            crowd = 1 if self.speed else WORKERS
            await fan_out((self._work() for _ in range(crowd)), crowd)

    async def _work(self) -> None:
        while not self.paused and not self._stumbled:
            try:
                piece = await self._next()
            except BlockError as error:
                if self._is_skipped(error):
                    self._at += min(PIECE_LEAST, self._size - self._at)
                continue
            if piece is None:
                return
            try:
                await self.pace(piece[1])
                await self.carry(*piece)
            except BlockError as error:
                if not self._is_skipped(error):
                    self._again.append(piece)
                    continue
            self._open.remove(piece[0])
            self.current = min(self._open, default=self._at)

    def _is_skipped(self, error: BlockError) -> bool:
        """Deal with a failure, and tell whether what failed is left out.

        Raises:
            BlockError: This failure ends the job.
        """
        self.failed(error, self._on_error, reading=self._is_reading(error))
        if self.paused:
            return False
        if self.skips_ignored:
            self.ignored = self.ignored or error
            return True
        self._stumbled = True
        return False

    async def _next(self) -> tuple[int, int] | None:
        """Return the next piece; None behind the last."""
        async with self._looking:
            if self._again:
                return self._again.pop()
            while not self._left and not self._over:
                await self._find()
            if self._over:
                return None
            piece = PIECE if not self.speed else max(PIECE_LEAST, min(PIECE, self.speed // 4))
            piece = min(self._left, piece)
            offset, self._at, self._left = self._at, self._at + piece, self._left - piece
            self._open.add(offset)
            return offset, piece

    async def _find(self) -> None:
        if self._ranges is None:
            self._ranges = walk_by(self.look, self._at, self._size - self._at)
        try:
            found = await anext(self._ranges, None)
        except BlockError:
            self._ranges = None
            raise
        if found is None:
            self._at = self._size
            self._over = True
        else:
            self._at, self._left = found.guest_offset, found.length
        self.current = min(self._open, default=self._at)
