"""Crashing qcow2 images: record a session, crash it everywhere, open everything that is left.

Owns: opening images on recording leaves, the recorded session, and the
judgement of one crash state. What states there are is the kit's to say.

A state is right when vblk opens it for reading, its check finds at most leaks,
and every sector is one that is allowed; and when it can be written to, which
leaves everything else alone.
"""

from pathlib import Path
from typing import Any

from tests.support.crash import COUNT, EFFORT, Seen, Session, Workload, images, look
from tests.support.qcow2_disks import new_image
from vblk.drivers.qcow2 import Qcow2Node
from vblk.errors import BlockError
from vblk.graph.handle import Handle
from vblk.graph.registry import Graph
from vblk.opening import open_image
from vblk.options import NodeOptions, NodeReference
from vblk.testing import Content, CrashState, Explorer, Operation, Recorder, Witness
from vblk.testing.expectation import Allowed
from vblk.testing.witness import stamp

WRITE_EVERY = 5
PAGE = 4096


async def start_files(size: int, *, base: bytes | None = None, **new: Any) -> dict[str, Content]:
    """Return the files of a new image, and what it stands on."""
    files = {"disk": content_of(await new_image(size, **new))}
    if base is not None:
        files["base"] = content_of(base)
    return files


def content_of(data: bytes) -> Content:
    """Return content that holds `data`."""
    content = Content(len(data))
    content.write(0, data)
    return content


async def open_disk(graph: Graph, recorder: Recorder, *, read_only: bool) -> Handle:
    """Open an image from the recorder's leaves, which may be named "disk" and "base"."""
    for name, leaf in recorder.leaves.items():
        leaf.read_only = read_only or name != "disk"
        graph.add(leaf)
    backing = NodeReference("base") if "base" in recorder.leaves else None
    options = NodeOptions(driver="qcow2", children={"file": NodeReference("disk"), "backing": backing})
    return await open_image(graph, options, read_only=read_only)


class Qcow2Session(Session):
    """A recorded run on a qcow2 image."""

    async def open(self) -> None:
        """Open the image for writing."""
        graph = Graph()
        try:
            handle = await open_disk(graph, self.recorder, read_only=False)
        except BlockError:
            await graph.close()
            raise
        self._graph, self._handle = graph, handle
        if hasattr(self, "disk"):
            self.disk.disk = handle
        else:
            self.disk = Witness(self.recorder, handle, self._initial, tolerant=self._tolerant)

    async def run(self, workload: Workload) -> None:
        """Open the image, run a workload, close it, and see that all is there and nothing leaks."""
        await self.open()
        await workload(self)
        await self.close()
        allowed = self.disk.expectation.allowed(self.recorder.now)
        files = {name: leaf.content for name, leaf in self.recorder.leaves.items()}
        seen = await see(images(files), leaks=False)
        self.disk.expectation.judge(allowed, seen.size, seen.pages)


async def see(recorder: Recorder, *, leaks: bool) -> Seen:
    """Open an image for reading, check it, and look at the whole disk."""
    async with Graph() as graph:
        handle = await open_disk(graph, recorder, read_only=True)
        node = handle.node
        assert isinstance(node, Qcow2Node)
        report = await node.check()
        assert not report.errors, report.messages
        assert leaks or not report.leaks, report.messages
        assert all("its bitmaps are not used" in warning for warning in node.warnings), node.warnings
        seen = await look(handle)
        for bitmap in node.bitmaps.values():  # there since the disk was empty
            assert bitmap.inconsistent or all(bitmap.is_dirty(page * PAGE) for page in seen.pages)
        return seen


async def write_a_little(recorder: Recorder, before: Seen) -> Seen:
    """Use what a crash left, and see that everything else stays."""
    async with Graph() as graph:
        handle = await open_disk(graph, recorder, read_only=False)
        pages = dict(before.pages)
        for at in range(0, before.size, max(before.size // 5 // PAGE * PAGE, PAGE)):
            data = stamp(1 << 60, at, min(PAGE, before.size - at))
            await handle.write(at, data)
            pages[at // PAGE] = data.ljust(PAGE, b"\0")
        await handle.flush()
        after = Seen(before.size, pages)
        assert await look(handle) == after, "what was written after the crash changed something else"
        return after


class Judge:
    """Opens crash states of a session and compares them with what is allowed."""

    def __init__(self, session: Qcow2Session) -> None:
        self._expectation = session.disk.expectation
        self._allowed_at = -1
        self._allowed: Allowed
        self._number = 0

    async def judge(self, state: CrashState) -> None:
        """Judge one state; some are written to as well."""
        if state.at != self._allowed_at:
            self._allowed, self._allowed_at = self._expectation.allowed(state.at), state.at
        seen = await see(images(state.files), leaks=True)
        self._expectation.judge(self._allowed, seen.size, seen.pages)
        self._number += 1
        if self._number % WRITE_EVERY == 0:
            recorder = images(state.files)
            after = await write_a_little(recorder, seen)
            files = {name: leaf.content for name, leaf in recorder.leaves.items()}
            assert await see(images(files), leaks=True) == after


async def explore(
    session: Qcow2Session, scratch: Path, *, seed: int, ignored: frozenset[Operation] = frozenset()
) -> None:
    """Judge every state that a crash may leave of a session that was run; see `Explorer`.

    Raises:
        AssertionError: A state is wrong; its files are in `scratch`.
    """
    explorer = Explorer(session.recorder, EFFORT, seed, ignored)
    judge = Judge(session)
    for state in explorer.states(session.disk.expectation.marks()):
        try:
            await judge.judge(state)
        except (AssertionError, BlockError) as error:
            for name, content in state.files.items():
                content.save(scratch / f"{name}.crashed")
            text = (
                f"{type(error).__name__}: {error}\nafter a crash at {state.at} ({state.choice}), seed {seed}"
            )
            raise AssertionError(text) from error
    COUNT.add(explorer.tally)
