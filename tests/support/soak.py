"""A long life of the storage daemon, with clients, snapshots, kills, and a checker beside it.

Owns: what is done to the daemon and what must be true afterwards. Every disk has
a witness who remembers each write; every reader is compared with it. The daemon
is a process of its own, and so are the clients that are killed.

Ordering rule: a round ends at rest: every client's requests were answered, or the
daemon was killed and what it left was judged by the rule of durability. Only
then memory and descriptors are counted.
"""

import argparse
import asyncio
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from qemu.qmp import ConnectError, ExecInterruptedError, StateError

from tests.support.command_line import good
from tests.support.daemon_process import VBLK, DaemonProcess
from vblk.disk import Disk
from vblk.disk import open as open_disk
from vblk.errors import BlockError
from vblk.testing import Content, Expectation, Recorder, Witness

MIB = 1 << 20
PAGE = 4096
SIZE = 12 * MIB
STRIPES = 4
"""How many clients share a disk, each with a part of its own."""
REQUESTS = 120
DEPTH_MAX = 5
LIFE = 8
"""A daemon lives for so many rounds, unless it is killed."""
LEAKS = 3
"""The status of a check that found leaked clusters and nothing worse."""

# QEMU reads the first, and chains of qcow2; VHDX of larger sectors or with parents it does not.
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("vhdx", ("-o", "block_size=1M")),
    ("vhdx", ("-o", "block_size=2M,logical_sector_size=4096")),
    ("qcow2", ()),
    ("raw", ()),
)

FILTERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("copy-on-read", {}),
    ("delay", {"write-latency-ns": 100_000}),
)
"""Filters, and their own options."""

LET_DOWN = (BlockError, ConnectError, ExecInterruptedError, StateError, EOFError, OSError)
"""What a client meets whose server was killed."""


async def carried_out(*command: str | Path, allowed: tuple[int, ...] = (0,)) -> None:
    """Run a command that has to end with one of the statuses that are allowed."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert await process.wait() in allowed, command


class Stripes:
    """Several connections to one export as one disk: each part has its own; a flush goes by any of them."""

    def __init__(self, disks: list[Disk], lot: Random) -> None:
        self._disks = disks
        self._lot = lot

    def of(self, offset: int) -> Disk:
        """Return the connection that serves an offset."""
        return self._disks[min(offset // (SIZE // STRIPES), STRIPES - 1)]

    async def write(self, offset: int, data: bytes, *, fua: bool = False) -> None:
        await self.of(offset).write(offset, data, fua=fua)

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool = False) -> None:
        await self.of(offset).write_zeroes(offset, length, unmap=unmap)

    async def discard(self, offset: int, length: int) -> None:
        await self.of(offset).discard(offset, length)

    async def flush(self) -> None:
        await self._lot.choice(self._disks).flush()

    async def resize(self, size: int) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        for disk in self._disks:
            with suppress(BlockError):
                await disk.close()


@dataclass
class Subject:
    """One disk: its images, the top one last, and what it must hold."""

    name: str
    format: str
    images: list[Path]
    expectation: Expectation
    witness: Witness | None = None
    stripes: Stripes | None = None
    unsure: set[int] = field(default_factory=set[int])
    """The pages that a discard may have made zeros or not."""
    formats: list[str] = field(default_factory=list[str])

    @property
    def node(self) -> str:
        """The name of the top node."""
        return f"{self.name}-{len(self.images)}"


@dataclass
class Account:
    """What was done, for the closing line."""

    rounds: int = 0
    kills: int = 0
    requests: int = 0
    bytes_checked: int = 0
    snapshots: int = 0
    graph_changes: int = 0
    clients_killed: int = 0
    resident: list[list[int]] = field(default_factory=list[list[int]])
    descriptors: list[list[int]] = field(default_factory=list[list[int]])

    def __str__(self) -> str:
        lives = [[figure >> 20 for figure in life] for life in self.resident]
        return (
            f"{self.rounds} rounds, {self.requests} requests, {self.bytes_checked >> 20} MiB right, "
            f"{self.kills} daemons and {self.clients_killed} clients killed, {self.snapshots} snapshots, "
            f"{self.graph_changes} other changes of the graph; MiB of memory at rest, by life: {lives}"
        )


class Soak:
    """The whole life; `run` raises at the first thing that is not as it must be."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.lot = Random(seed)
        self.daemon = DaemonProcess(folder)
        self.recorder = Recorder()
        self.account = Account()
        self.subjects = [self._made(number, *kind) for number, kind in enumerate(KINDS)]
        self.victim = self._image("victim.vhdx", "vhdx", ())
        self._half_open: list[socket.socket] = []
        self._left_of_life = 0
        self._is_killing = False

    def _image(self, name: str, format: str, options: tuple[str, ...]) -> Path:
        path = self.folder / name
        good("create", "-q", "-f", format, *options, path, str(SIZE))
        return path

    def _made(self, number: int, format: str, options: tuple[str, ...]) -> Subject:
        name = f"disk{number}"
        image = self._image(f"{name}.{format}", format, options)
        return Subject(name, format, [image], Expectation(Content(SIZE)), formats=[format])

    async def run(self, goes_on: Callable[[int], bool]) -> Account:
        """Do rounds for as long as `goes_on`, then end well and compare once more with nobody between."""
        try:
            while goes_on(self.account.rounds):
                await self._round()
                self.account.rounds += 1
            if self.daemon.alive:
                await self._leave()
            await self._compare_files()
            self._judge_figures()
            return self.account
        finally:
            for each in self._half_open:
                each.close()
            self.daemon.close()

    async def _round(self) -> None:
        if not self.daemon.alive:
            await self._enter()
        crash = self.lot.random() < 0.25
        crowd = [self._client(subject, stripe) for subject in self.subjects for stripe in range(STRIPES)]
        work = asyncio.gather(*crowd, self._changes(), self._victims(), return_exceptions=crash)
        if crash:
            await self._kill_during(work)
            await self._judge_crash()
            return
        await work
        for subject in self.subjects:
            await self._compare(subject)
        self._left_of_life -= 1
        self.account.resident[-1].append(self.daemon.resident())
        self.account.descriptors[-1].append(self.daemon.descriptors())
        if self._left_of_life <= 0:
            await self._leave()
            await self._compare_files()
            await self._flatten()

    async def _enter(self) -> None:
        """Start a daemon with all disks, and connect to them."""
        await self.daemon.start()
        self._left_of_life = LIFE
        self.account.resident.append([])
        self.account.descriptors.append([])
        for subject in self.subjects:
            await self._add(subject.node, subject.formats[-1], subject.images[-1])
            await self._export(subject.name, subject.node)
            disks = [await self._connected(subject.name) for _ in range(STRIPES)]
            subject.stripes = Stripes(disks, self.lot)
            subject.witness = Witness(self.recorder, subject.stripes, Content(SIZE))
            subject.witness.expectation = subject.expectation
        await self._add("victim", "vhdx", self.victim)
        await self._export("victim", "victim")

    async def _add(self, node: str, format: str, image: Path) -> None:
        file = {"driver": "file", "filename": str(image)}
        await self.daemon.ask("blockdev-add", driver=format, node_name=node, file=file, discard="unmap")

    async def _export(self, name: str, node: str) -> None:
        await self.daemon.ask(
            "block-export-add", type="nbd", id=name, node_name=node, name=name, writable=True
        )

    async def _connected(self, export: str) -> Disk:
        uri = f"nbd+unix:///{export}?socket={self.daemon.nbd}"
        return await open_disk(uri, format="raw", read_only=False)

    async def _client(self, subject: Subject, stripe: int) -> None:
        """Read, write, zero and discard in a part of a disk that nobody else touches."""
        lot = Random(self.lot.random())
        witness, stripes = subject.witness, subject.stripes
        assert witness is not None
        assert stripes is not None
        first, length = stripe * (SIZE // STRIPES), SIZE // STRIPES
        for _ in range(REQUESTS):
            self.account.requests += 1
            span = PAGE * lot.choice((1, 1, 1, 2, 16, 64))
            offset = first + lot.randrange(0, length - span + 1, PAGE)
            pages = range(offset // PAGE, (offset + span) // PAGE)
            chance = lot.random()
            if chance < 0.4:
                await self._read(subject, stripes, offset, span)
            elif chance < 0.75:
                await witness.write(offset, span, fua=chance > 0.73)
                subject.unsure.difference_update(pages)
            elif chance < 0.85:
                await witness.write_zeroes(offset, span, unmap=chance < 0.8)
                subject.unsure.difference_update(pages)
            elif chance < 0.93:
                subject.unsure.update(pages)
                await witness.discard(offset, span)
            else:
                await witness.flush()

    async def _read(self, subject: Subject, stripes: Stripes, offset: int, length: int) -> None:
        data = await stripes.of(offset).read(offset, length)
        self._check(subject, offset, data)

    def _check(self, subject: Subject, offset: int, data: bytes) -> None:
        current = subject.expectation.current
        for start in range(0, len(data), PAGE):
            index = (offset + start) // PAGE
            page = data[start : start + PAGE]
            right = current.pages.get(index, bytes(PAGE))
            unsure = index in subject.unsure and not any(page)
            assert page == right or unsure, f"{subject.name}: page {index} is wrong"
        self.account.bytes_checked += len(data)

    async def _changes(self) -> None:
        """Change the graph under the clients."""
        for _ in range(self.lot.randrange(1, 5)):
            subject = self.lot.choice(self.subjects)
            change = self.lot.choice((self._snapshot, self._bitmaps, self._second_export, self._filter))
            await change(subject)
            await self.daemon.ask("query-named-block-nodes")

    async def _snapshot(self, subject: Subject) -> None:
        if len(subject.images) >= DEPTH_MAX:
            return
        format = "vhdx" if subject.format == "vhdx" else "qcow2"
        path = self.folder / f"{subject.name}.{self.recorder.note()}.{format}"
        below = subject.node
        subject.images.append(path)
        subject.formats.append(format)
        await self.daemon.ask(
            "blockdev-snapshot-sync",
            node_name=below,
            snapshot_file=str(path),
            snapshot_node_name=subject.node,
            format=format,
        )
        self.account.snapshots += 1

    async def _bitmaps(self, subject: Subject) -> None:
        node = subject.node
        name = f"b{self.recorder.note()}"
        await self.daemon.ask("block-dirty-bitmap-add", node=node, name=name)
        await self.daemon.ask("block-dirty-bitmap-disable", node=node, name=name)
        await self.daemon.ask("block-dirty-bitmap-clear", node=node, name=name)
        await self.daemon.ask("block-dirty-bitmap-remove", node=node, name=name)
        self.account.graph_changes += 1

    async def _second_export(self, subject: Subject) -> None:
        name = f"{subject.name}-again"
        await self.daemon.ask(
            "block-export-add", type="nbd", id=name, node_name=subject.node, name=name, writable=False
        )
        uri = f"nbd+unix:///{name}?socket={self.daemon.nbd}"
        listed = await asyncio.create_subprocess_exec("nbdinfo", "--map", uri, stdout=subprocess.DEVNULL)
        assert await listed.wait() == 0 or self._is_killing
        await self.daemon.ask("block-export-del", id=name, mode="hard")
        self.account.graph_changes += 1

    async def _filter(self, subject: Subject) -> None:
        """Put a filter between a disk and its clients, and take it out again."""
        name = f"f{self.recorder.note()}"
        driver, own = self.lot.choice(FILTERS)
        await self.daemon.ask("blockdev-add", driver=driver, node_name=name, file=subject.node, **own)
        await self.daemon.ask("blockdev-insert", node=subject.node, filter=name)
        await self.daemon.ask("query-named-block-nodes")
        await self.daemon.ask("blockdev-remove", filter=name)
        await self.daemon.ask("blockdev-del", node_name=name)
        self.account.graph_changes += 1

    async def _victims(self) -> None:
        """Be a bad client: killed in the middle of writes, half open, and talking nonsense."""
        uri = f"nbd+unix:///victim?socket={self.daemon.nbd}"
        writes = [word for _ in range(40) for word in ("-c", "write -P 7 0 4M")]
        client = await asyncio.create_subprocess_exec(
            "qemu-io", "-f", "raw", *writes, uri, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert client.stdout is not None
        await client.stdout.readline()
        client.kill()
        await client.wait()
        self.account.clients_killed += 1
        for path, words in ((self.daemon.nbd, b"\0" * 100), (self.daemon.monitor, b"{]nonsense" * 50)):
            with socket.socket(socket.AF_UNIX) as bad:
                bad.connect(str(path))
                bad.send(words)
        if len(self._half_open) < 5:
            half = socket.socket(socket.AF_UNIX)
            self._half_open.append(half)
            half.connect(str(self.daemon.nbd))

    async def _compare(self, subject: Subject) -> None:
        """Flush, then compare the whole disk; forget what it held before."""
        witness, stripes = subject.witness, subject.stripes
        assert witness is not None
        assert stripes is not None
        await witness.flush()
        content = Content(SIZE)
        for offset in range(0, SIZE, MIB):
            data = await stripes.of(offset).read(offset, MIB)
            self._check(subject, offset, data)
            for start in range(0, MIB, PAGE):
                content.put_page((offset + start) // PAGE, data[start : start + PAGE])
        self._begin_anew(subject, content)

    def _begin_anew(self, subject: Subject, content: Content) -> None:
        subject.expectation = Expectation(content)
        subject.unsure.clear()
        if subject.witness is not None:
            subject.witness.expectation = subject.expectation

    async def _kill_during(self, work: "asyncio.Future[list[Any]]") -> None:
        """Kill the daemon while its clients work; every request ends with an error then."""
        for _ in range(self.lot.randrange(20, 400)):
            await asyncio.sleep(0)
            if work.done():
                break
        self._is_killing = True
        self.daemon.kill()
        self.account.kills += 1
        for outcome in await work:
            if isinstance(outcome, BaseException) and not isinstance(outcome, LET_DOWN):
                raise outcome
        self._is_killing = False
        for subject in self.subjects:
            assert subject.stripes is not None
            await subject.stripes.close()
        await self.daemon.forget()

    async def _judge_crash(self) -> None:
        """Open what the daemon left, and compare it with what it had promised."""
        at = self.recorder.note()
        for subject in self.subjects:
            while not subject.images[-1].exists():
                del subject.images[-1], subject.formats[-1]
            content = await self._read_image(subject)
            subject.expectation.judge(subject.expectation.allowed(at), SIZE, dict(content.pages))
            self.account.bytes_checked += SIZE
            self._begin_anew(subject, content)

    async def _read_image(self, subject: Subject) -> Content:
        content = Content(SIZE)
        async with open_disk(subject.images[-1], format=subject.formats[-1]) as disk:
            for offset in range(0, SIZE, MIB):
                data = await disk.read(offset, MIB)
                for start in range(0, MIB, PAGE):
                    content.put_page((offset + start) // PAGE, data[start : start + PAGE])
        return content

    async def _leave(self) -> None:
        for subject in self.subjects:
            if subject.stripes is not None:
                await subject.stripes.close()
        await self.daemon.quit()

    async def _compare_files(self) -> None:
        """Compare the images with what they must hold, by vblk and by QEMU where it can read them."""
        raw = self.folder / "shown.raw"
        for subject in self.subjects:
            top, format = subject.images[-1], subject.formats[-1]
            if format != "raw":
                # A kill may leave clusters of a qcow2 image that nothing names; they harm nobody.
                allowed = (0, LEAKS) if format == "qcow2" else (0,)
                await carried_out(*VBLK, "check", "-q", "-f", format, top, allowed=allowed)
            await carried_out(*VBLK, "convert", "-f", format, "-O", "raw", top, raw)
            self._check_file(subject, raw)
            if format != "vhdx" or (len(subject.images) == 1 and subject is self.subjects[0]):
                await carried_out("qemu-img", "compare", "-f", format, "-F", "raw", top, raw)

    def _check_file(self, subject: Subject, raw: Path) -> None:
        data = raw.read_bytes()
        assert len(data) == SIZE
        self._check(subject, 0, data)

    async def _flatten(self) -> None:
        """Make one image of each chain again, so that an hour of snapshots has room."""
        for subject in self.subjects:
            if len(subject.images) < DEPTH_MAX:
                continue
            flat = self.folder / f"{subject.name}.flat"
            top, format = subject.images[-1], subject.formats[-1]
            await carried_out(*VBLK, "convert", "-f", format, "-O", subject.format, top, flat)
            for image in subject.images[1:]:
                image.unlink()
            flat.replace(subject.images[0])
            del subject.images[1:], subject.formats[1:]

    def _judge_figures(self) -> None:
        """Memory at rest is flat: a long life ends with what it had when it had warmed up."""
        for life in self.account.resident:
            if len(life) >= 4:
                assert life[-1] <= life[1] * 1.25 + 8 * MIB, f"memory grew: {life}"
        for life in self.account.descriptors:
            assert not life or life[-1] <= life[0] + STRIPES * len(KINDS) + 2 * DEPTH_MAX * len(KINDS), life


def main() -> None:
    """Soak for so many seconds, and say what was done."""
    parser = argparse.ArgumentParser(description="Let a storage daemon live a hard life, and check it.")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.seconds
    folder = Path(tempfile.mkdtemp(prefix="vblk-soak-"))
    account = asyncio.run(Soak(folder, arguments.seed).run(lambda _: time.monotonic() < end))
    print(f"seed {arguments.seed}: {account}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
