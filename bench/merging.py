"""Merging a chain of ten levels into its base: the data is copied once.

Owns: the chain, in which every piece of data stands in three levels, and the
count of bytes that go down. Beside it stands the same merge level by level, each
checkpoint into its parent. Chains are put in place and disks synchronised before
each turn, outside of the time.
"""

import asyncio
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import vblk
from bench.images import digest
from bench.measure import Result, WrongResult, compare, run, take_turns
from bench.settings import VBLK, Settings
from vblk.drivers.vhdx import VhdxNode
from vblk.drivers.vhdx_create import create_image, parent_facts
from vblk.formats.vhdx.create import NewVhdx
from vblk.graph.registry import Graph
from vblk.graph.site import ChainRules
from vblk.jobs.local_images import LocalImages
from vblk.jobs.merge import Merge
from vblk.opening import open_image
from vblk.options import parse_filename
from vblk.units import GIB, MIB

LEVELS = 10
COPIES = 3
"""In so many levels every piece of data is written, each time with other bytes."""

AT_ONCE, SINGLY = "vblk", "level by level"


async def make_chain(folder: Path, data_bytes: int) -> list[str]:
    """Make a base and its checkpoints, filled; return their names, the base first."""
    names = ["base.vhdx", *(f"disk_{level}.avhdx" for level in range(1, LEVELS))]
    for level, name in enumerate(names):
        path = folder / name
        path.touch()
        async with Graph() as graph:
            new = NewVhdx(size=max(GIB, 2 * data_bytes))
            if level:
                parent = await open_image(graph, str(folder / names[level - 1]), format="vhdx")
                assert isinstance(parent.node, VhdxNode)
                new = NewVhdx(parent=await parent_facts(parent.node, str(path)))
            file = await open_image(graph, parse_filename(str(path), format="raw"), read_only=False)
            await create_image(file.node, new)
        async with vblk.open(path, format="vhdx", read_only=False) as disk:
            for piece in range(data_bytes // MIB):
                if level and (level - piece) % (LEVELS - 1) < COPIES:
                    await disk.write(2 * piece * MIB, os.urandom(MIB))
    return names


async def merge(top: Path, into: Path) -> int:
    """Merge, as the command does; return the bytes that were copied."""
    async with Graph() as graph:
        options = parse_filename(str(top), format="vhdx")
        images = LocalImages(graph, str(top), options, ChainRules())
        job = Merge(images, str(top), str(into))
        await job.run(await job.plan())
        return sum(images.mover.moved.by_means.values())


async def merge_singly(folder: Path, names: Sequence[str]) -> None:
    """Merge each level into the one below it."""
    for child, parent in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
        await merge(folder / child, folder / parent)


async def data_shown(top: Path) -> int:
    """Return the bytes of data in a disk."""
    async with vblk.open(top) as disk:
        return sum(span.length for span in await disk.extents() if span.kind.name == "DATA")


def merging(settings: Settings) -> Iterator[Result]:
    """Merge ten levels."""
    source, place = settings.folder / "source", settings.folder / "chain"
    source.mkdir()
    names = asyncio.run(make_chain(source, max(settings.data_bytes // 8, 8 * MIB)))
    base, top = place / names[0], place / names[-1]
    raw = settings.folder / "disk.raw"

    def put() -> None:
        shutil.rmtree(place, ignore_errors=True)
        run(["cp", "-r", "--sparse=always", source, place])
        os.sync()

    def digest_of(image: Path) -> str:
        run([VBLK, "convert", "-f", "vhdx", "-O", "raw", image, raw])
        return digest(raw)

    put()
    expected, shown = digest_of(top), asyncio.run(data_shown(top))
    copied = asyncio.run(merge(top, base))
    if os.listdir(place) != [base.name] or digest_of(base) != expected:
        raise WrongResult("the merged base is not the disk of the top")
    yield Result("merge 10 levels: bytes copied / data shown", copied / shown, 1.01, at_least=False)
    sides = {
        AT_ONCE: lambda: asyncio.run(merge(top, base)),
        SINGLY: lambda: asyncio.run(merge_singly(place, names)),
    }
    seconds = take_turns(sides, settings.rounds, put)
    if digest_of(base) != expected:
        raise WrongResult("merging level by level made another disk")
    yield compare("merge 10 levels: level by level / at once", seconds, SINGLY, AT_ONCE, 2)
