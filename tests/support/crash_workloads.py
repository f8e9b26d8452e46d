"""What is done to an image before it crashes: each workload provokes one kind of disorder.

Owns: the workloads and the images they start from. How a session is recorded
and judged is `tests.support.crash`'s.
"""

import asyncio
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.support.crash import MIB, Session, fresh
from tests.support.vhdx.chain import Chain
from tests.support.vhdx.image import Block, State
from tests.support.vhdx.model import Model
from vblk.formats.vhdx.create import NewVhdx
from vblk.testing import Content

KIB = 1024
BLOCK = MIB


@dataclass(frozen=True, slots=True)
class Image:
    """Files, the names of an image and its parents among them, and the disk they hold."""

    files: dict[str, Content]
    chain: tuple[str, ...]
    disk: Content


async def dynamic(_: Path, **own: Any) -> Image:
    """Return an empty disk of 8 MiB in blocks of 1 MiB."""
    new = replace(NewVhdx(size=8 * MIB, block_size=BLOCK), **own)
    assert new.size is not None
    return Image({"disk": await fresh(new)}, ("disk",), Content(new.size))


async def littered(folder: Path) -> Image:
    """Return an empty disk whose file has 6 MiB behind its structures that hold other people's bytes."""
    image = await dynamic(folder)
    content = image.files["disk"]
    for number in range(6):
        litter = b"LITTER %d " % number
        for at in (0, 60 * KIB, 64 * KIB, 512 * KIB, MIB - 4 * KIB):
            content.write(content.length // MIB * MIB + at, (litter * 400)[: 4 * KIB])
        content.truncate(-(-content.length // MIB) * MIB)
    return image


async def fixed(folder: Path) -> Image:
    """Return a fixed disk."""
    return await dynamic(folder, fixed=True)


async def absent(folder: Path) -> Image:
    """Return a disk whose blocks are "not present", in 4 KiB sectors."""
    return await dynamic(folder, block_state_zero=False, logical_sector_size=4096)


async def wide(folder: Path) -> Image:
    """Return a disk of 32 GiB, whose block table has 64 pages."""
    return await dynamic(folder, size=32 << 30)


async def child(folder: Path, *, sector_size: int = 512) -> Image:
    """Return a child that holds parts of some blocks of its parent, and garbage in their other sectors."""
    chain = Chain(folder)
    around = [(number * MIB - 64 * KIB, 128 * KIB) for number in (1, 2)]  # the borders of blocks
    chain.base([(0, 128 * KIB), *around, (5 * MIB, 64 * KIB)], size=8 * MIB, sector_size=sector_size)
    chain.child([(64 * KIB, 8 * KIB), (3 * MIB, 12 * KIB)], states={6: 2, 7: 3})
    top = chain.top.vhdx
    for number in (4, 5):  # bits may say anything while the block is the parent's
        top.blocks[number] = Block(State.NOT_PRESENT, bits=b"\xff" * top.bits_length)
    top.build(chain.top.path)
    files = {level.path.stem: Content.load(level.path) for level in chain.levels}
    return Image(files, (chain.top.path.stem, "base"), content_of(chain.top.model))


async def child_4096(folder: Path) -> Image:
    """Return a child in sectors of 4096 bytes."""
    return await child(folder, sector_size=4096)


def content_of(model: Model) -> Content:
    """Return what a model holds."""
    content = Content(model.size)
    for at in model.pages():
        content.write(at, model.read(at, min(64 * KIB, model.size - at)))
    return content


async def allocate(session: Session) -> None:
    """Write parts of blocks that are not there, then more of them."""
    disk = session.disk
    await disk.write(0, 4 * KIB)
    await disk.write(BLOCK + 12 * KIB, 8 * KIB)
    await disk.flush()
    await asyncio.gather(disk.write(2 * BLOCK + 512, 1024), disk.write(BLOCK - 4 * KIB, 8 * KIB))
    await disk.flush()
    await disk.write(3 * BLOCK, 4 * KIB, fua=True)


async def overwrite(session: Session) -> None:
    """Write the same sectors again and again."""
    disk = session.disk
    for _ in range(3):
        await disk.write(BLOCK - 2 * KIB, 4 * KIB)
        await disk.flush()
        await disk.write(BLOCK - 2 * KIB, 2 * KIB)


async def whole_blocks(session: Session) -> None:
    """Write all of a block, then all of it again beside a flush."""
    disk = session.disk
    await disk.write(BLOCK, BLOCK)
    await asyncio.gather(disk.flush(), disk.write(BLOCK, 64 * KIB))
    await disk.flush()


async def in_parts(session: Session) -> None:
    """Write bytes that are no whole sectors."""
    disk = session.disk
    await disk.write(700, 100)
    await disk.flush()
    await disk.write(BLOCK - 100, 300)
    await disk.write(710, 3000)
    await disk.flush()


async def reuse(session: Session) -> None:
    """Give blocks back and let others take their space, with and without a flush between."""
    disk = session.disk
    for block in (0, 1, 2):
        await disk.write(block * BLOCK, 16 * KIB)
    await disk.flush()
    await disk.write_zeroes(0, BLOCK, unmap=True)
    await disk.write(3 * BLOCK + 4 * KIB, 4 * KIB)
    await disk.flush()
    await disk.discard(BLOCK, BLOCK)
    await disk.write(4 * BLOCK + 8 * KIB, 4 * KIB)
    await disk.flush()
    await disk.write(5 * BLOCK, 4 * KIB)
    await disk.write(6 * BLOCK, 4 * KIB)
    await disk.flush()


async def trim_and_rewrite(session: Session) -> None:
    """Give a block back and write it again before anything is flushed."""
    disk = session.disk
    await disk.write(0, 32 * KIB)
    await disk.flush()
    await disk.discard(0, BLOCK)
    await disk.write(4 * KIB, 4 * KIB)
    await disk.flush()
    await disk.write_zeroes(0, BLOCK, unmap=True)
    await disk.write(8 * KIB, 4 * KIB)
    await disk.flush()
    await disk.write_zeroes(6 * KIB, 4 * KIB)
    await disk.flush()


async def cancelled(session: Session) -> None:
    """Cancel writes on their way, then let others take the space."""
    disk = session.disk
    for turns in (1, 2, 4, 7, 11):
        task = asyncio.ensure_future(disk.write(turns % 5 * BLOCK + 16 * KIB, 24 * KIB))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await disk.write((turns + 1) % 5 * BLOCK, 4 * KIB)
        if turns % 2:
            await disk.flush()


async def killed(session: Session) -> None:
    """Kill the process that writes, again and again; the next finds what the kernel kept, durable or not."""
    for _ in range(8):
        task = asyncio.ensure_future(_some_writes(session))
        for _ in range(session.lot.randrange(1, 200)):
            await asyncio.sleep(0)
        await session.kill(task)
        await session.open()


async def killed_while_closing(session: Session) -> None:
    """Kill a process that ends a session in which it had nothing to log; the next begins one."""
    for turns in range(16):
        await session.disk.write(0, 512)
        task = asyncio.ensure_future(session.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        await session.kill(task)
        await session.open()


async def _some_writes(session: Session) -> None:
    disk, lot = session.disk, session.lot
    if lot.random() < 0.5:  # a session that may well have nothing to log
        await disk.write(0, 4 * KIB)
        await session.close()
        return
    for _ in range(3):
        await disk.write(lot.randrange(8) * BLOCK + 8 * KIB, 4 * KIB)
        await disk.write_zeroes(lot.randrange(8) * BLOCK, BLOCK, unmap=True)
        await disk.flush()
    await session.close()


async def reopened(session: Session) -> None:
    """Change the image in several sessions, one of which changes nothing."""
    disk = session.disk
    await disk.write(0, 8 * KIB)
    await session.reopen()
    await disk.write(BLOCK, 8 * KIB)
    await disk.write_zeroes(0, BLOCK, unmap=True)
    await session.reopen()
    await session.reopen()
    await disk.write(2 * BLOCK, 4 * KIB)
    await disk.flush()
    await disk.write(4 * KIB, 4 * KIB)


async def resize(session: Session) -> None:
    """Grow and shrink, inside the last block and by whole blocks, with bytes at the old ends."""
    disk = session.disk
    await disk.resize(8 * MIB + 128 * KIB)
    await disk.write(8 * MIB + 64 * KIB, 64 * KIB)
    await disk.flush()
    await disk.resize(8 * MIB + 96 * KIB)
    await disk.resize(9 * MIB)
    await disk.flush()
    await disk.write(8 * MIB + 92 * KIB, 8 * KIB)
    await disk.resize(7 * MIB)
    await disk.resize(12 * MIB)
    await disk.write(11 * MIB, 4 * KIB)
    await disk.flush()


async def grow_much(session: Session) -> None:
    """Grow so far that the block table needs another place."""
    disk = session.disk
    await disk.write(0, 4 * KIB)
    await disk.resize(200 << 30)
    await disk.write((200 << 30) - 4 * KIB, 4 * KIB)
    await disk.write(BLOCK, 4 * KIB)
    await disk.flush()


async def reuse_table(session: Session) -> None:
    """Move the block table while the log still has pages of it, and let blocks take its place."""
    disk = session.disk
    await disk.write(0, 4 * KIB)
    await disk.flush()
    await disk.resize(200 << 30)
    await _write_after(session, range(2, 5))


async def reuse_bitmaps(session: Session) -> None:
    """Cut a sector bitmap off while the log still has pages of it, and let blocks take its place."""
    disk = session.disk
    await disk.resize(5 << 30)
    for at in (9 << 29, (9 << 29) + 16 * KIB):
        await disk.write(at, 4 * KIB)
        await disk.flush()
    await disk.resize(8 * MIB)
    await _write_after(session, range(3, 8))


async def _write_after(session: Session, blocks: range) -> None:
    """Let what was released become free, then fill blocks."""
    await session.disk.flush()
    for _ in range(50):
        await asyncio.sleep(0)
    for block in blocks:
        await session.disk.write(block * BLOCK, BLOCK)
    await session.disk.flush()


async def fill_log(session: Session) -> None:
    """Change so many pages of the block table so often that the log goes round."""
    disk = session.disk
    for turn in range(6):
        await asyncio.gather(*(disk.write((page * 512 + turn // 2) * BLOCK, 512) for page in range(60)))
        await asyncio.gather(
            *(disk.discard((page * 512 + turn // 2) * BLOCK, BLOCK) for page in range(turn % 2, 60, 2))
        )
        await disk.flush()


async def busy(session: Session) -> None:
    """Do everything at random, some of it at once."""
    disk, lot = session.disk, session.lot
    for _ in range(10):
        at_once: list[Awaitable[None]] = []
        for block in lot.sample(range(8), lot.choice((1, 1, 2, 3))):
            start = block * BLOCK + lot.choice((0, 512, 4 * KIB, 64 * KIB - 512, BLOCK - 8 * KIB))
            length = lot.choice((512, 4 * KIB, 8 * KIB))
            kind = lot.random()
            if kind < 0.55:
                at_once.append(disk.write(start, length, fua=lot.random() < 0.1))
            elif kind < 0.65:
                at_once.append(disk.write_zeroes(start, length, unmap=lot.random() < 0.5))
            elif kind < 0.8:
                at_once.append(disk.write_zeroes(block * BLOCK, BLOCK, unmap=lot.random() < 0.7))
            else:
                at_once.append(disk.discard(block * BLOCK, BLOCK))
        if lot.random() < 0.5:
            at_once.append(disk.flush())
        await asyncio.gather(*at_once)


async def read_beside(session: Session) -> None:
    """Read all the time while blocks lose their space to others: nobody reads another block's bytes."""
    disk, lot = session.disk, session.lot
    busy = True

    async def reader() -> None:
        while busy:
            offset = lot.randrange(8) * BLOCK + lot.choice((0, 32 * KIB))
            assert_own(await session.read(offset, 64 * KIB), offset)
            await asyncio.sleep(0)

    async def writer() -> None:
        nonlocal busy
        try:
            for _ in range(12):
                block = lot.randrange(8)
                await disk.write(block * BLOCK + 24 * KIB, 16 * KIB)
                await disk.write_zeroes((block + 3) % 8 * BLOCK, BLOCK, unmap=True)
                if lot.random() < 0.6:
                    await disk.flush()
        finally:
            busy = False

    await asyncio.gather(reader(), reader(), writer())


def assert_own(data: bytes, offset: int) -> None:
    """Assert that every 16 bytes are zeros or were written to this place."""
    for at, (tag, index) in enumerate(struct.iter_unpack("<QQ", data)):
        own = index == offset // 16 + at and tag < 1 << 60
        assert own or (tag, index) == (0, 0), f"foreign bytes at {offset + at * 16:#x}: {tag:#x} {index:#x}"


MAKE: dict[str, Callable[[Path], Awaitable[Image]]] = {
    make.__name__: make for make in (dynamic, littered, fixed, absent, child, child_4096)
}
"""Images that every one of WORKLOADS fits."""

WORKLOADS: dict[str, Callable[[Session], Awaitable[None]]] = {
    workload.__name__: workload
    for workload in (
        allocate,
        overwrite,
        whole_blocks,
        in_parts,
        reuse,
        trim_and_rewrite,
        cancelled,
        killed,
        reopened,
        read_beside,
        busy,
    )
}
