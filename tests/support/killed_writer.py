"""A process that writes to an image until it is killed, and says on a pipe what it is about to do.

Owns: the writer, which is run as a module, and the reading of what it said into
an `Expectation`. What it does follows from the seed alone.

Ordering rule: a line "begin N" leaves the process before request N is made, "end
N" after it was answered; so whatever the moment of the kill, every request that
was answered before the last flush began is known to have been.
"""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from vblk.disk import open as open_disk
from vblk.testing import Content, Expectation
from vblk.testing.expectation import Step
from vblk.testing.witness import stamp

BLOCK = 1 << 20
SECTOR = 512


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the writer; bytes."""

    verb: str
    offset: int = 0
    length: int = 0


def requests(seed: int, size: int) -> Iterator[Request]:
    """Yield what the writer does, without end."""
    lot = Random(seed)
    while True:
        chance = lot.random()
        block = lot.randrange(size // BLOCK) * BLOCK
        if chance < 0.6:
            length = SECTOR * lot.choice((1, 8, 16, 128))
            yield Request("write", block + lot.randrange(0, BLOCK - length + 1, SECTOR), length)
        elif chance < 0.7:
            yield Request("zero", block, BLOCK)
        elif chance < 0.75:
            yield Request("discard", block, BLOCK)
        else:
            yield Request("flush")


async def write(path: str, seed: int) -> None:
    """Do what the seed says, for ever."""
    async with open_disk(path, format="vhdx", read_only=False) as disk:
        for number, request in enumerate(requests(seed, disk.size)):
            print("begin", number, flush=True)
            if request.verb == "write":
                await disk.write(request.offset, stamp(number + (seed << 32), request.offset, request.length))
            elif request.verb == "zero":
                await disk.write_zeroes(request.offset, request.length, unmap=True)
            elif request.verb == "discard":
                await disk.discard(request.offset, request.length)
            else:
                await disk.flush()
            print("end", number, flush=True)


def expectation(before: Content, seed: int, said: Sequence[str]) -> Expectation:
    """Return what a disk that held `before` may hold, after a writer said these lines and was killed."""
    expected = Expectation(before)
    ended = {int(line.split()[1]): at for at, line in enumerate(said) if line.startswith("end")}
    wanted = requests(seed, before.length)
    for at, line in enumerate(said):
        word, number = line.split()
        if word != "begin":
            continue
        request = next(wanted)
        step = Step(at, ended.get(int(number)), weak=request.verb == "discard")
        if request.verb == "write":
            data = stamp(int(number) + (seed << 32), request.offset, request.length)
            expected.write(step, request.offset, data)
        elif request.verb == "flush":
            expected.flush(step)
        else:
            expected.zero(step, request.offset, request.length)
    return expected


if __name__ == "__main__":
    asyncio.run(write(sys.argv[1], int(sys.argv[2])))
