"""A filter that is slow to answer, and answers in an order of its own.

Owns: the dice. By its seed it refuses to answer at once, and lets requests wait
for a few turns of the loop on their way down and back, so that they overtake
each other. The same seed over the same requests gives the same order.
"""

import asyncio
import random
from typing import ClassVar

from vblk.filters.passing import PassingNode
from vblk.graph.node import Buffer, Node

TURNS_MAX = 5
"""The most turns of the event loop that one request waits on one way."""


class ReluctantNode(PassingNode):
    """A node whose `try_` methods say "would block" at random, and whose requests overtake each other.

    What it answers is always right: a caller that breaks over it relies on an
    order, or on the inline path.
    """

    driver: ClassVar[str] = "reluctant"

    def __init__(self, name: str, file: Node, seed: int) -> None:
        """Stand over `file`; `seed` decides everything."""
        super().__init__(name, file)
        self._dice = random.Random(seed)

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Answer one time in two, if the child can."""
        return self.file.try_read(offset, length) if self._dice.random() < 0.5 else None

    def try_write(self, offset: int, data: Buffer) -> bool:
        """Write one time in two, if the child does."""
        return self._dice.random() < 0.5 and self.file.try_write(offset, data)

    async def _dawdle(self) -> None:
        for _ in range(self._dice.randrange(TURNS_MAX)):
            await asyncio.sleep(0)

    async def before(self, operation: str, offset: int, length: int) -> None:
        """Wait for some turns."""
        await self._dawdle()

    async def after(self, operation: str, offset: int, length: int) -> None:
        """Wait for some turns."""
        await self._dawdle()
