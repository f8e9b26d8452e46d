"""Crashing VHDX images: record a session, crash it everywhere, open everything that is left.

Owns: opening images and chains on recording leaves, the recorded session, the
judgement of one crash state, and how much is explored. What states there are is
the kit's to say (`vblk.testing`).

A state is right when vblk opens it for reading, its check is clean but for the
log, every sector is one that is allowed; and when opening it for writing
replays the log, leaves the same disk, a clean check and no log behind.
"""

import asyncio
import os
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from random import Random

from vblk.drivers.vhdx import VhdxNode
from vblk.drivers.vhdx_create import create_image
from vblk.errors import BlockError
from vblk.formats.vhdx import load_image
from vblk.formats.vhdx.create import NewVhdx
from vblk.graph.handle import Handle
from vblk.graph.node import Node
from vblk.graph.plane import Mover
from vblk.graph.registry import Graph
from vblk.jobs.compact import CompactJob, CompactReport
from vblk.opening import open_image
from vblk.options import NodeOptions, NodeReference
from vblk.testing import (
    Content,
    CrashState,
    Effort,
    Explorer,
    Operation,
    Recorder,
    Tally,
    Witness,
)
from vblk.testing.content import PAGE, ZERO_PAGE
from vblk.testing.expectation import Allowed
from vblk.testing.witness import stamp

MIB = 1 << 20
NIGHTLY = os.environ.get("VBLK_CRASH") == "nightly"
SEED = int(os.environ.get("VBLK_CRASH_SEED", "0"))


_SMALL = Effort(bound=6, samples=2, corners=2, instants=40)
_LARGE = Effort(bound=256, samples=24, corners=48)
EFFORT = _LARGE if NIGHTLY else _SMALL
"""How much of each run is explored."""

SEEDS = range(SEED, SEED + (2 if NIGHTLY else 1))
"""The runs of each workload."""

AGAIN = Effort(bound=64, samples=4, corners=8) if NIGHTLY else Effort(bound=4, samples=1, corners=1)
"""How much of a recovery is explored that crashes itself."""

CRASH_AGAIN_EVERY = 61
OTHERS_EVERY = 397


@dataclass(slots=True)
class Count:
    """What was explored in this process, for the summary."""

    runs: int = 0
    states: int = 0
    instants: int = 0
    exhausted: int = 0
    crashed_again: int = 0
    by_others: int = 0
    judged: int = 0

    def add(self, tally: Tally) -> None:
        """Count a run that was explored."""
        self.runs += 1
        self.states += tally.states
        self.instants += tally.exhaustive + tally.sampled
        self.exhausted += tally.exhaustive


COUNT = Count()


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What a user finds on a disk: its size, and the 4 KiB pages that are not zeros.

    It compares by itself, and says little of itself: pytest would spend minutes
    on the difference of two disks, which a test of a mutant provokes.
    """

    size: int
    pages: dict[int, bytes]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Seen) and (self.size, self.pages) == (other.size, other.pages)

    def __repr__(self) -> str:
        digest = sha256(b"".join(self.pages[at] for at in sorted(self.pages))).hexdigest()
        return f"<{self.size} bytes, pages {sorted(self.pages)[:20]}... with the SHA-256 {digest}>"


def options_of(chain: Sequence[str]) -> NodeOptions:
    """Return the options of an image, and its parents behind it, on leaves of these names."""
    children: dict[str, NodeOptions | NodeReference | None] = {"file": NodeReference(chain[0])}
    if len(chain) > 1:
        children["backing"] = replace(options_of(chain[1:]), read_only=True)
    return NodeOptions(driver="vhdx", children=children)


async def open_chain(graph: Graph, recorder: Recorder, chain: Sequence[str], *, read_only: bool) -> Handle:
    """Open an image and its parents from the recorder's leaves."""
    for number, name in enumerate(chain):
        leaf = recorder.leaves[name]
        leaf.read_only = read_only or number > 0
        graph.add(leaf)
    return await open_image(graph, options_of(chain), read_only=read_only)


async def look(handle: Handle) -> Seen:
    """Read all of a disk that is not a hole."""
    size = handle.size
    wanted: list[tuple[int, int]] = []
    for span in await handle.allocation(0, size):
        if span.leaf is not None and span.kind.name in ("DATA", "ENCODED"):
            first, last = span.guest_offset // PAGE, (span.guest_offset + span.length - 1) // PAGE
            if wanted and wanted[-1][1] >= first - 1:
                wanted[-1] = (wanted[-1][0], last)
            else:
                wanted.append((first, last))
    pages: dict[int, bytes] = {}
    for first, last in wanted:
        data = await handle.read(first * PAGE, min((last + 1) * PAGE, size) - first * PAGE)
        for index in range(first, last + 1):
            page = data[(index - first) * PAGE : (index - first + 1) * PAGE].ljust(PAGE, b"\0")
            if page != ZERO_PAGE:
                pages[index] = page
    return Seen(size, pages)


async def assert_checked(handle: Handle, *, clean: bool) -> None:
    """Assert that an image's check finds nothing, or unless `clean` nothing but a log."""
    node = handle.node
    assert isinstance(node, VhdxNode)
    report = await node.check()
    found = [str(each) for each in report.findings if clean or each.code != "L29"]
    assert not found, found
    assert report.complete
    assert not clean or node.image.dirty_log is None


def images(files: Mapping[str, Content], *, recording: bool = False) -> Recorder:
    """Put the files of a crash onto leaves."""
    recorder = Recorder(recording=recording)
    for name, content in files.items():
        recorder.leaf(name, content)
    return recorder


async def fresh(new: NewVhdx) -> Content:
    """Return the file of a new image."""
    recorder = Recorder(recording=False)
    leaf = recorder.leaf("new")
    await create_image(leaf, new)
    return leaf.content


class Session:
    """A recorded run on an image that is open for writing; `disk` is how a workload uses it."""

    def __init__(
        self,
        files: Mapping[str, Content],
        chain: Sequence[str],
        disk: Content,
        *,
        seed: int | None = 0,
        tolerant: bool = False,
    ) -> None:
        """Start from `files`, which hold `disk` as seen through `chain`; see `Recorder` and `Witness`."""
        self.recorder = Recorder(seed=seed)
        self._tolerant = tolerant
        for name, content in files.items():
            self.recorder.leaf(name, content)
        self.chain = tuple(chain)
        self.lot = Random(seed)
        self._initial = disk
        self._graph: Graph | None = None
        self._handle: Handle | None = None
        self.disk: Witness
        self.sector_size = 0

    async def open(self) -> None:
        """Open the image for writing."""
        graph = Graph()
        try:
            handle = await open_chain(graph, self.recorder, self.chain, read_only=False)
        except BlockError:
            await graph.close()
            raise
        self._graph, self._handle = graph, handle
        assert isinstance(handle.node, VhdxNode)
        self.sector_size = handle.node.image.logical_sector_size
        if hasattr(self, "disk"):
            self.disk.disk = handle
        else:
            self.disk = Witness(self.recorder, handle, self._initial, tolerant=self._tolerant)

    @property
    def opened(self) -> tuple[Graph, Node]:
        """The graph, and the top image in it."""
        assert self._graph is not None
        assert self._handle is not None
        return self._graph, self._handle.node

    async def read(self, offset: int, length: int) -> bytes:
        """Read from the disk."""
        assert self._handle is not None
        return await self._handle.read(offset, length)

    async def compact(self) -> CompactReport:
        """Make the image's file smaller."""
        assert self._handle is not None
        assert self._graph is not None
        assert isinstance(self._handle.node, VhdxNode)
        return await CompactJob(self._handle.node, Mover(self._graph.engine)).run()

    async def close(self) -> None:
        """Close the image, if it is open: a flush to its user.

        What was not durable when that fails is nobody's promise any more.
        """
        if self._graph is None:
            return
        graph, self._graph = self._graph, None
        failures = len(self.disk.failures)
        await self.disk.close(graph.close)
        if len(self.disk.failures) > failures:
            self.disk.expectation.forsake(self.recorder.now)

    async def kill(self, task: "asyncio.Task[None]") -> None:
        """Let the process die that uses the image by `task`; what it wrote is still with the kernel."""
        self.recorder.dead = True
        with suppress(BlockError):
            await task
        if self._graph is not None:
            with suppress(BlockError):
                await self._graph.close()
        self._graph = None
        self.recorder.dead = False
        self.disk.expectation.forsake(self.recorder.now)

    async def reopen(self) -> None:
        """Close the image and open it again."""
        await self.close()
        await self.open()

    async def run(self, workload: "Workload") -> None:
        """Open the image, run a workload, close it, and see that all is there."""
        await self.open()
        await workload(self)
        await self.close()
        expectation = self.disk.expectation
        allowed = expectation.allowed(self.recorder.now)
        files = {name: leaf.content for name, leaf in self.recorder.leaves.items()}
        seen = await see(images(files), self.chain, clean=True)
        expectation.judge(allowed, seen.size, seen.pages)


Workload = Callable[[Session], Awaitable[None]]


async def see(recorder: Recorder, chain: Sequence[str], *, clean: bool) -> Seen:
    """Open an image for reading, check it, and look at the whole disk."""
    async with Graph() as graph:
        handle = await open_chain(graph, recorder, chain, read_only=True)
        await assert_checked(handle, clean=clean)
        return await look(handle)


async def recover(recorder: Recorder, chain: Sequence[str], *, write: bool = False) -> Seen:
    """Open an image for writing, and look; with `write` use it a little; close it.

    Whatever is done then must leave everything else alone.
    """
    async with Graph() as graph:
        handle = await open_chain(graph, recorder, chain, read_only=False)
        before = await look(handle)
        if not write:
            return before
        pages = dict(before.pages)
        for at in range(0, before.size, max(before.size // 5 // PAGE * PAGE, PAGE)):
            data = stamp(1 << 60, at, min(PAGE, before.size - at))
            await handle.write(at, data)
            pages[at // PAGE] = data.ljust(PAGE, b"\0")
        await handle.flush()
        after = await look(handle)
        assert after == Seen(before.size, pages), "what was written after the crash changed something else"
        return after


class Judge:
    """Opens crash states of a session and compares them with what is allowed."""

    def __init__(self, session: Session, scratch: Path) -> None:
        self._chain = session.chain
        self._suits_qemu = len(session.chain) == 1 and session.sector_size == 512
        self._scratch = scratch
        self._expectation = session.disk.expectation
        self._allowed_at = -1
        self._allowed: Allowed

    async def judge(self, state: CrashState) -> None:
        """Judge one state; of all so many are also written to, crashed again, or shown to QEMU."""
        number = COUNT.judged
        COUNT.judged += 1
        if state.at != self._allowed_at:
            self._allowed, self._allowed_at = self._expectation.allowed(state.at), state.at
        seen = await see(images(state.files), self._chain, clean=False)
        self._compare(seen)
        recorder = images(state.files)
        write = number % 7 == 0
        after = await recover(recorder, self._chain, write=write)
        if not write:
            assert after == seen, "replaying the log changed what the disk holds"
        files = {name: leaf.content for name, leaf in recorder.leaves.items()}
        assert await see(images(files), self._chain, clean=True) == after
        if number % CRASH_AGAIN_EVERY == 0:
            await self._crash_again(state, seen)
        if number % OTHERS_EVERY == 0 and self._suits_qemu and after.size <= 64 * MIB:
            await self._ask_qemu(files[self._chain[0]], after)
            await self._ask_qemu(state.files[self._chain[0]], seen)

    def _compare(self, seen: Seen) -> None:
        self._expectation.judge(self._allowed, seen.size, seen.pages)

    async def _crash_again(self, state: CrashState, seen: Seen) -> None:
        """Crash the recovery itself everywhere: what is left must still be the same disk."""
        recorder = images(state.files, recording=True)
        assert await recover(recorder, self._chain) == seen
        for again in Explorer(recorder, AGAIN, seed=state.at).states():
            assert await see(images(again.files), self._chain, clean=False) == seen
            assert await recover(images(again.files), self._chain) == seen
            COUNT.crashed_again += 1

    async def _ask_qemu(self, content: Content, seen: Seen) -> None:
        """See that QEMU finds the same disk in an image, after it replayed the log if there is one.

        It does not make a file as long as its log says, so it is not asked then.
        """

        async def read(offset: int, length: int) -> bytes:
            return content.read(offset, max(0, min(length, content.length - offset)))

        image = await load_image(read, content.length, filename="crashed")
        if image.target_length > content.length:
            return
        path = self._scratch / "crashed.vhdx"
        content.save(path)
        truth = Content(seen.size, dict(seen.pages))
        truth.save(self._scratch / "truth.raw")
        run_qemu_img("check", "-f", "vhdx", "-r", "all", path)
        run_qemu_img("compare", "-f", "vhdx", "-F", "raw", path, self._scratch / "truth.raw")
        COUNT.by_others += 1


def run_qemu_img(*arguments: str | Path) -> None:
    """Run a command of qemu-img that must succeed."""
    ran = subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, check=False, timeout=100)
    assert ran.returncode == 0, ran.stdout + ran.stderr


async def explore(
    session: Session,
    scratch: Path,
    *,
    effort: Effort = EFFORT,
    seed: int = 0,
    since: int = 0,
    until: int | None = None,
    ignored: frozenset[Operation] = frozenset(),
) -> None:
    """Judge every state that a crash may leave of a session that was run; see `Explorer`.

    Raises:
        AssertionError: A state is wrong; its files are in `scratch`, and the text says which it is.
    """
    explorer = Explorer(session.recorder, effort, seed, ignored)
    judge = Judge(session, scratch)
    for state in explorer.states(session.disk.expectation.marks(), since=since, until=until):
        try:
            await judge.judge(state)
        except (AssertionError, BlockError) as error:
            for name, content in state.files.items():
                content.save(scratch / f"{name}.crashed")
            raise AssertionError(
                f"{type(error).__name__}: {error}\n"
                f"after a crash at {state.at} ({state.choice}), seed {seed}; the files are in {scratch}\n"
                + history(session.recorder, state.at)
            ) from error
    COUNT.add(explorer.tally)


def history(recorder: Recorder, at: int, last: int = 150) -> str:
    """Return the events before a crash, the latest last."""
    lines = [
        f"{number} {'ended' if event.ends else 'began'} {event.operation or 'something outside'}"
        for number, event in enumerate(recorder.events[:at])
    ]
    return "\n".join(lines[-last:])
