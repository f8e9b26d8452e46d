"""Nodes of every kind with known content, for the suites that hold for all of them.

Owns: one builder for each kind, the loop that runs a suite, and what may stand
over a node or under its format. Files are made in the folder of the test.
"""

import asyncio
import os
import random
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from tests.support.manual_clock import EagerClock
from tests.support.nbd import Server, nbdkit, qemu_nbd
from tests.support.vhdx.chain import Chain
from tests.support.vhdx.image import Block, State, Vhdx
from tests.support.vhdx.model import pattern
from vblk.aio.threads import ThreadEngine
from vblk.drivers.qcow2_create import create_image
from vblk.errors import BlockError
from vblk.filters import copy_on_read, snapshot
from vblk.filters.fleeced import end_fleecing, fleece
from vblk.formats.luks import CipherSpec, SectorCipher, plan_header, unlock
from vblk.formats.qcow2.create import NewQcow2, plan_creation
from vblk.graph.dirty_bitmap import DirtyBitmap
from vblk.graph.filling import filled
from vblk.graph.following import follow
from vblk.graph.node import Node
from vblk.graph.recording import put_bitmap
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.graph.zero_detection import set_detection
from vblk.jobs.mirror_plan import Plan
from vblk.jobs.mirror_target import MirrorTarget
from vblk.jobs.write_blocking import WriteBlocking
from vblk.opening import open_node
from vblk.options import from_mapping
from vblk.protocols.memory import MemoryNode
from vblk.runtime.range_lock import RangeLock
from vblk.runtime.throttling import ThrottleGroup, ThrottleLimits
from vblk.testing import Factory, FaultPlan, FaultyNode, PassingNode, ReluctantNode, Subject

KIB = 1 << 10
MIB = 1 << 20
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def run(scenario: Coroutine[Any, Any, Any], loop: str = "asyncio") -> None:
    """Run a scenario on a loop of that kind."""
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(scenario)


def content_of(length: int, seed: int = 1) -> bytes:
    """Return bytes with random stretches, repeated ones and zeros."""
    dice = random.Random(seed)
    parts = [dice.randbytes(70 * KIB), bytes(90 * KIB), b"\x5a" * (9 * KIB), bytes(3 * KIB)]
    while sum(map(len, parts)) < length:
        parts.append(dice.randbytes(dice.randrange(1, 40 * KIB)))
        parts.append(bytes(dice.randrange(1, 20 * KIB)))
    return b"".join(parts)[:length]


@contextmanager
def loop_device(path: Path) -> Generator[str, None, None]:
    """Attach a file to a loop device, and detach it in the end."""
    command = ["losetup", "--find", "--show", str(path)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@dataclass
class Bench:
    """Where a builder works: a graph, a folder, and what to put under formats."""

    graph: Graph
    folder: Path
    below_seed: int | None = None
    cleanup: ExitStack = field(default_factory=ExitStack)

    async def open(
        self, mapping: dict[str, Any], *, read_only: bool = False, cache: str = "writeback"
    ) -> Node:
        """Open a node as options say it."""
        return await open_node(self.graph, from_mapping(mapping), Request(read_only, cache))

    async def leaf(self, mapping: dict[str, Any], **how: Any) -> str:
        """Open a node for a format to stand on, perhaps behind a reluctant one; return its name."""
        return self.between(await self.open(mapping, **how))

    def between(self, node: Node) -> str:
        """Put the reluctant node over a node, if there is to be one; return the upper one's name."""
        if self.below_seed is None:
            return node.name
        reluctant = ReluctantNode("below", node, self.below_seed)
        reluctant.put_over(self.graph)
        return reluctant.name

    def once(self, make: Callable[[Path], tuple[Path, bytes]]) -> tuple[Path, bytes]:
        """Make an image that nobody writes to once for all subjects of a test."""
        shared = self.folder.parent / "shared"
        if (shared, make) not in _MADE:
            shared.mkdir(exist_ok=True)
            _MADE[shared, make] = make(shared)
        return _MADE[shared, make]

    def file(self, content: bytes, name: str = "disk.img") -> str:
        """Write a file with holes where there are whole pages of zeros; return its path."""
        path = self.folder / name
        with path.open("wb") as file:
            file.truncate(len(content))
            for offset in range(0, len(content), 4096):
                page = content[offset : offset + 4096]
                if any(page):
                    file.seek(offset)
                    file.write(page)
        return str(path)


_MADE: dict[tuple[Path, Callable[[Path], tuple[Path, bytes]]], tuple[Path, bytes]] = {}


@dataclass
class Made:
    """What a builder has made."""

    node: Node
    content: bytes
    keeps: bool = True
    resizable: bool = True
    size_unit: int = 512


Builder = Callable[[Bench], Awaitable[Made]]

_SIZE = 256 * KIB + 3 * 512


async def _memory(bench: Bench) -> Made:
    content = content_of(_SIZE)
    node = MemoryNode("memory", size=_SIZE, data=content)
    bench.graph.add(node)
    return Made(node, content)


async def _null(bench: Bench) -> Made:
    node = await bench.open({"driver": "null-co", "size": _SIZE, "read-zeroes": True})
    return Made(node, bytes(_SIZE), keeps=False)


async def _null_slow(bench: Bench) -> Made:
    node = await bench.open({"driver": "null-aio", "size": _SIZE, "latency-ns": 1})
    return Made(node, bytes(_SIZE), keeps=False)


def _file(cache: str, *, read_only: bool = False) -> Builder:
    async def build(bench: Bench) -> Made:
        content = content_of(_SIZE)
        mapping = {"driver": "file", "filename": bench.file(content)}
        return Made(await bench.open(mapping, read_only=read_only, cache=cache), content)

    return build


def _device(cache: str) -> Builder:
    async def build(bench: Bench) -> Made:
        content = content_of(_SIZE)
        device = bench.cleanup.enter_context(loop_device(Path(bench.file(content))))
        node = await bench.open({"driver": "host_device", "filename": device}, cache=cache)
        return Made(node, content, resizable=False)

    return build


def _raw(
    file_length: int, cache: str = "writeback", *, odd: int = 0, read_only: bool = False, **window: int
) -> Builder:
    """Build a raw image over a file; its last `odd` bytes are not in the file."""

    async def build(bench: Bench) -> Made:
        stored = content_of(file_length)
        name = await bench.leaf(
            {"driver": "file", "filename": bench.file(stored)}, cache=cache, read_only=read_only
        )
        start = window.get("offset", 0)
        content = stored[start:][: window.get("size", file_length)] + bytes(odd)
        node = await bench.open({"driver": "raw", "file": name, **window}, read_only=read_only)
        return Made(node, content, resizable="size" not in window)

    return build


async def _raw_probed(bench: Bench) -> Made:
    content = content_of(_SIZE)
    name = await bench.leaf({"driver": "file", "filename": bench.file(content)})
    return Made(await bench.open({"file": name}), content)


async def _raw_over_memory(bench: Bench) -> Made:
    made = await _memory(bench)
    return Made(await bench.open({"driver": "raw", "file": bench.between(made.node)}), made.content)


async def _raw_over_raw(bench: Bench) -> Made:
    content = content_of(_SIZE)
    name = await bench.leaf({"driver": "file", "filename": bench.file(content)})
    inner = await bench.open({"driver": "raw", "offset": 77, "file": name})
    node = await bench.open({"driver": "raw", "offset": 200, "size": 64 * KIB, "file": inner.name})
    return Made(node, content[277 : 277 + 64 * KIB], resizable=False)


def _vhdx(make: Callable[[Path], tuple[Path, bytes]]) -> Builder:
    async def build(bench: Bench) -> Made:
        path, content = bench.once(make)
        name = await bench.leaf({"driver": "file", "filename": str(path)}, read_only=True)
        return Made(await bench.open({"driver": "vhdx", "file": name}, read_only=True), content)

    return build


def _dynamic(block_size: int, sector_size: int) -> Callable[[Path], tuple[Path, bytes]]:
    def make(folder: Path) -> tuple[Path, bytes]:
        vhdx = Vhdx(
            size=5 * MIB, block_size=block_size, sector_size=sector_size, physical_sector_size=sector_size
        )
        for number, state in enumerate((State.FULLY_PRESENT, State.ZERO, State.NOT_PRESENT)):
            vhdx.blocks[number] = Block(state, pattern(number, 0, MIB - 3))
        vhdx.blocks[vhdx.block_count - 1] = Block(State.FULLY_PRESENT, pattern(5, 0, MIB))
        return vhdx.build(folder / "disk.vhdx"), vhdx.model().read(0, vhdx.size)

    return make


def _chain(folder: Path) -> tuple[Path, bytes]:
    chain = Chain(folder)
    chain.base([(0, MIB + 5120), (2 * MIB, MIB)], size=3 * MIB)
    chain.child([(512, 4096), (MIB + 1024, 300 * 512)])
    chain.child([(0, 512), (MIB - 512, 1024)], states={2: State.ZERO}, size=4 * MIB)
    return chain.top.path, chain.top.model.read(0, chain.top.model.size)


def _made_by_qemu(folder: Path) -> tuple[Path, bytes]:
    content, target = content_of(2 * MIB), folder / "qemu.vhdx"
    (folder / "plain").write_bytes(content)
    command = ["qemu-img", "convert", "-f", "raw", "-O", "vhdx", str(folder / "plain"), str(target)]
    subprocess.run(command, check=True, capture_output=True)
    return target, content


async def _vhdx_chain(bench: Bench) -> Made:
    path, content = bench.once(_chain)
    options = {"driver": "vhdx", "file": {"driver": "file", "filename": str(path)}}
    return Made(await bench.open(options, read_only=True), content)


async def _raw_over_vhdx(bench: Bench) -> Made:
    below = await _vhdx_chain(bench)
    node = await bench.open({"driver": "raw", "file": bench.between(below.node)}, read_only=True)
    return Made(node, below.content)


async def _luks(bench: Bench) -> Made:
    content = content_of(_SIZE)
    spec = CipherSpec("aes", "xts", "plain64", "", 64)
    header, material = plan_header(spec, "sha256", b"open", 1, random.Random(3).randbytes)
    key = unlock(header, header.slots[0], material, b"open")
    assert key is not None
    stored = header.encode().ljust(header.slots[0].key_offset, b"\0") + material
    stored = stored.ljust(header.payload_offset, b"\0") + SectorCipher(spec, key).encrypt(0, content)
    bench.graph.objects.add("sec0", b"open")
    name = await bench.leaf({"driver": "file", "filename": bench.file(stored)})
    return Made(await bench.open({"driver": "luks", "key-secret": "sec0", "file": name}), content)


def _nbd(serve: Callable[[Path, Path], Server], unit: int = 1) -> Builder:
    async def build(bench: Bench) -> Made:
        content = content_of(_SIZE - _SIZE % unit)
        server = bench.cleanup.enter_context(serve(bench.folder, Path(bench.file(content))))
        address = {"type": "unix", "path": str(server.path)}
        return Made(await bench.open({"driver": "nbd", "server": address}), content, resizable=False)

    return build


def _nbd_blocks(folder: Path, image: Path) -> Server:
    """Serve whole blocks only."""
    block_sizes = ("blocksize-minimum=4096", "blocksize-maximum=64K", "blocksize-error-policy=error")
    return nbdkit(folder, "file", str(image), *block_sizes, filters=("blocksize-policy",))


def _qcow2(**new: Any) -> Builder:
    async def build(bench: Bench) -> Made:
        content = content_of(_SIZE)
        return Made(await _new_qcow2(bench, content, **new), content)

    return build


async def _new_qcow2(bench: Bench, content: bytes, *, base: str | None = None, **new: Any) -> Node:
    path = bench.folder / "disk.qcow2"
    path.touch()
    file = await bench.open({"driver": "file", "filename": str(path)})
    await create_image(file, plan_creation(NewQcow2(len(content), **new)))
    node = await bench.open({"driver": "qcow2", "file": bench.between(file), "backing": base})
    for offset in range(0, len(content), 20000):
        piece = content[offset : offset + 20000]
        if base is None and any(piece):
            await node.write(offset, piece)
    return node


async def _qcow2_overlay(bench: Bench) -> Made:
    """Build an image that holds every third piece of what its backing file does not."""
    content = content_of(_SIZE)
    below = bytearray(content[: 200 * KIB])
    below[50_000:90_000] = b"!" * 40_000
    base = await bench.open(
        {"driver": "raw", "file": {"driver": "file", "filename": bench.file(bytes(below))}}
    )
    node = await _new_qcow2(bench, content, base=base.name, cluster_size=4 * KIB)
    await node.write(50_000, content[50_000:90_000])
    await node.write(200 * KIB, content[200 * KIB :])
    return Made(node, content)


def _blkdebug(**options: Any) -> Builder:
    async def build(bench: Bench) -> Made:
        unit = options.get("align", 512)
        content = content_of(_SIZE - _SIZE % unit)
        name = await bench.leaf({"driver": "file", "filename": bench.file(content)})
        node = await bench.open({"driver": "blkdebug", "image": name, **options})
        return Made(node, content, size_unit=unit)

    return build


def _filter(**options: Any) -> Builder:
    async def build(bench: Bench) -> Made:
        below = await _raw(_SIZE)(bench)
        bench.graph.clock = EagerClock()
        limits = ThrottleLimits(bps_total=MIB, iops_write=50)
        bench.graph.objects.add("group", ThrottleGroup(bench.graph.clock, limits))
        return Made(await bench.open({**options, "file": below.node.name}), below.content)

    return build


def _more(change: Callable[[Node], None]) -> Builder:
    """Build a raw node that does more than others."""

    async def build(bench: Bench) -> Made:
        made = await _raw(_SIZE)(bench)
        change(made.node)
        return made

    return build


def _copies(*names: str, **options: Any) -> Builder:
    async def build(bench: Bench) -> Made:
        content = content_of(_SIZE)
        children: dict[str, str] = {}
        for number, name in enumerate(names):
            node = MemoryNode(f"copy{number}", size=_SIZE, data=content)
            bench.graph.add(node)
            below: Node = node
            if bench.below_seed is not None:
                below = ReluctantNode(f"slow{number}", node, bench.below_seed + number)
                below.put_over(bench.graph)
            children[name] = below.name
        return Made(await bench.open({**options, **children}), content, resizable=False)

    return build


_QUORUM = ("children.0", "children.1", "children.2")


async def _copy_on_read(bench: Bench) -> Made:
    overlay = await _snapshot(bench)
    node = await copy_on_read.put_over(bench.graph, overlay.node)
    return Made(node, overlay.content)


async def _copy_before_write(bench: Bench) -> Made:
    below = await _raw(_SIZE)(bench)
    bench.graph.add(MemoryNode("kept", size=_SIZE))
    options = {"driver": "copy-before-write", "file": below.node.name, "target": "kept"}
    return Made(await bench.open(options), below.content, resizable=False)


async def _snapshot_access(bench: Bench) -> Made:
    made = await _copy_before_write(bench)
    node = await bench.open({"driver": "snapshot-access", "file": made.node.name}, read_only=True)
    await made.node.write(70 * KIB, bytes(100 * KIB))
    await made.node.write(_SIZE - 1000, b"later")
    return Made(node, made.content, resizable=False)


async def _snapshot(bench: Bench) -> Made:
    base = await _raw(_SIZE, read_only=True)(bench)
    return Made(await snapshot.put_over(bench.graph, base.node), base.content)


async def _snapshot_of_chain(bench: Bench) -> Made:
    base = await _vhdx_chain(bench)
    return Made(await snapshot.put_over(bench.graph, base.node), base.content)


async def _passing(bench: Bench) -> Made:
    below = await _raw(_SIZE)(bench)
    node = PassingNode("passing", below.node)
    node.put_over(bench.graph)
    return Made(node, below.content)


async def _faulty(bench: Bench) -> Made:
    below = await _raw(_SIZE)(bench)
    node = FaultyNode("faulty", below.node, FaultPlan())
    node.put_over(bench.graph)
    return Made(node, below.content)


class _Nobody:
    """Who has changes passed on, and cares for nothing else."""

    passes_on = True

    def passed_on(self, length: int) -> None:
        """Count nothing."""

    def stumbled(self, error: BlockError) -> None:
        """Let no failure pass."""
        raise AssertionError(error)


def _follow(node: Node) -> None:
    """Let a disk in memory follow a node, as the target of a mirror does."""
    bitmap = DirtyBitmap("marks", node.size, 512)
    put_bitmap(node, bitmap)
    memory = MemoryNode("target", size=node.size)
    target = MirrorTarget(ThreadEngine(), memory, node.size, 512, Plan(buffer=64 * KIB))
    follow(node, WriteBlocking(_Nobody(), node, target, bitmap, RangeLock()))


async def _filled(bench: Bench) -> Made:
    made = await _qcow2()(bench)
    bench.cleanup.enter_context(filled(made.node))
    return made


async def _fleeced(bench: Bench) -> Made:
    made = await _qcow2()(bench)
    locks = RangeLock()
    fleece(made.node, locks.shared, locks.may_share)
    bench.cleanup.callback(end_fleecing, made.node)
    return made


BUILDERS: dict[str, Builder] = {
    "memory": _memory,
    "null": _null,
    "null-with-latency": _null_slow,
    "file": _file("writeback"),
    "file-read-only": _file("writeback", read_only=True),
    "file-none": _file("none"),
    "file-writethrough": _file("writethrough"),
    "file-directsync": _file("directsync"),
    "file-unsafe": _file("unsafe"),
    "raw": _raw(_SIZE),
    "raw-none": _raw(_SIZE, "none"),
    "raw-read-only": _raw(_SIZE, read_only=True),
    "raw-odd": _raw(_SIZE + 77, odd=512 - 77),
    "raw-odd-none": _raw(_SIZE + 77, "none", odd=512 - 77),
    "raw-window": _raw(_SIZE, offset=4096, size=128 * KIB),
    "raw-window-odd": _raw(_SIZE, offset=1000, size=97 * 512),
    "raw-rest-odd": _raw(_SIZE, odd=100, offset=100),
    "raw-probed": _raw_probed,
    "raw-over-memory": _raw_over_memory,
    "raw-over-raw": _raw_over_raw,
    "vhdx": _vhdx(_dynamic(MIB, 512)),
    "vhdx-4096": _vhdx(_dynamic(2 * MIB, 4096)),
    "vhdx-chain": _vhdx_chain,
    "vhdx-of-qemu": _vhdx(_made_by_qemu),
    "raw-over-vhdx": _raw_over_vhdx,
    "luks": _luks,
    "nbd-of-qemu": _nbd(qemu_nbd),
    "nbd-of-nbdkit": _nbd(lambda folder, image: nbdkit(folder, "file", str(image))),
    "nbd-in-blocks": _nbd(_nbd_blocks, 4096),
    "qcow2": _qcow2(),
    "qcow2-small-clusters": _qcow2(cluster_size=512, refcount_bits=1),
    "qcow2-version-2": _qcow2(cluster_size=4096, version=2),
    "qcow2-overlay": _qcow2_overlay,
    "blkdebug": _blkdebug(),
    "blkdebug-aligned": _blkdebug(align=4096),
    "copy-on-read": _copy_on_read,
    "copy-before-write": _copy_before_write,
    "snapshot-access": _snapshot_access,
    "throttle": _filter(**{"driver": "throttle", "throttle-group": "group"}),
    "delay": _filter(
        **{"driver": "delay", "read-latency-ns": 1, "write-latency-ns": 2, "flush-latency-ns": 3}
    ),
    "blkverify": _copies("raw", "test", driver="blkverify"),
    "quorum": _copies(*_QUORUM, **{"driver": "quorum", "vote-threshold": 2, "rewrite-corrupted": True}),
    "quorum-fifo": _copies(*_QUORUM, **{"driver": "quorum", "vote-threshold": 3, "read-pattern": "fifo"}),
    "snapshot": _snapshot,
    "snapshot-of-chain": _snapshot_of_chain,
    "raw-with-bitmap": _more(lambda node: put_bitmap(node, DirtyBitmap("bitmap", node.size, 512))),
    "raw-detecting-zeroes": _more(lambda node: set_detection(node, "on")),
    "raw-followed": _more(_follow),
    "qcow2-filled": _filled,
    "qcow2-fleeced": _fleeced,
    "passing": _passing,
    "faulty-without-faults": _faulty,
}
DEVICES: dict[str, Builder] = {"loop-device": _device("writeback"), "loop-device-none": _device("none")}
"""Need the right to make loop devices."""


def factory_of(
    build: Builder, folder: Path, *, over_seed: int | None = None, below_seed: int | None = None
) -> Factory:
    """Return the factory of a builder's subject, in a new folder each time.

    With `over_seed` a reluctant node stands over the subject, with `below_seed`
    one stands between its format and its file.
    """

    @asynccontextmanager
    async def make() -> AsyncGenerator[Subject, None]:
        number = len(os.listdir(folder))
        own = folder / str(number)
        own.mkdir()
        with ExitStack() as cleanup:
            async with Graph() as graph:
                made = await build(Bench(graph, own, below_seed, cleanup))
                node = made.node
                if over_seed is not None:
                    node = ReluctantNode("over", node, over_seed)
                    node.put_over(graph)
                yield Subject(graph, node, made.content, made.keeps, made.resizable, made.size_unit)

    return make


__all__ = ["BUILDERS", "DEVICES", "LOOPS", "Bench", "Made", "factory_of", "loop_device", "run"]
