"""Crashing changes of whole chains: record a job over several files, crash it, judge what is left.

Owns: the images of a job on recording leaves, deletions included, and the states
that a crash leaves of a folder. What a job has to keep is its test's to say.

A deletion is durable when the folder was synchronised after it; until then a
crash may undo it, each for itself.
"""

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import product

from tests.support.crash import COUNT, Seen, look, options_of
from tests.support.crash_workloads import content_of
from tests.support.vhdx.model import Model
from vblk.aio.clock import Clock, LoopClock
from vblk.drivers.vhdx import VhdxNode, read_up_to
from vblk.errors import CorruptImage, Reason, StorageError
from vblk.formats.vhdx import load_image
from vblk.formats.vhdx.image import VhdxImage
from vblk.formats.vhdx.locator import KEY_RELATIVE
from vblk.graph.edge import Role
from vblk.graph.handle import Handle
from vblk.graph.node import Node
from vblk.graph.plane import Mover
from vblk.graph.registry import Graph
from vblk.jobs.chain import Kin
from vblk.opening import open_image
from vblk.options import NodeOptions, NodeReference
from vblk.testing import Content, CrashState, Effort, Explorer, Fault, Operation, Recorder


class RecordedImages:
    """`vblk.jobs.chain.Images` on the leaves of a recorder, all in one folder."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.present = set(recorder.leaves)
        self.removals: list[tuple[int, str]] = []
        self.syncs: list[int] = []
        self.graph = Graph()
        self.mover = Mover(self.graph.engine)
        self.clock: Clock = LoopClock()

    async def load(self, name: str) -> VhdxImage:
        """Return what a file says of itself."""
        if name not in self.present:
            raise StorageError(2, "No such file or directory", filename=name)
        leaf = self.recorder.leaves[name]

        async def read(offset: int, length: int) -> bytes:
            return await read_up_to(leaf, offset, length)

        return await load_image(read, leaf.content.length, filename=name)

    async def chain(self, top: str) -> list[str]:
        """Follow and verify the links of a chain.

        Raises:
            CorruptImage: A parent is missing or does not match.
        """
        names = [top]
        image = await self.load(top)
        while image.locator is not None:
            name = self.named_by(names[-1], image.locator.pairs[KEY_RELATIVE])
            if name is None or name in names:
                raise CorruptImage(Reason.PARENT_MISSING, "the parent is gone", filename=names[-1])
            parent = await self.load(name)
            if not image.locator.accepts(parent.data_write_guid):
                raise CorruptImage(Reason.PARENT_MISMATCH, "linkage mismatch", filename=names[-1])
            names.append(name)
            image = parent
        return names

    @asynccontextmanager
    async def opened(
        self, name: str, *, read_only: bool = True, backing: bool = False
    ) -> AsyncGenerator[Handle, None]:
        """Open an image while the block runs."""
        chain = await self.chain(name) if backing else [name]
        await self.load(name)
        options = options_of(chain)
        if not backing:
            children = {"file": NodeReference(name)}
            options = NodeOptions(driver="vhdx", children={**children})
        async with Graph() as graph:
            for number, each in enumerate(chain):
                self.recorder.leaves[each].read_only = read_only or number > 0
                graph.add(self.recorder.leaves[each])
            yield await open_image(graph, options, read_only=read_only, backing=backing)

    def name_of(self, node: Node) -> str:
        """Return the name of a node's leaf."""
        below = node.child(Role.FILE)
        assert below is not None
        return below.name

    def is_same(self, name: str, other: str) -> bool:
        """Compare names."""
        return name == other

    def path_between(self, child: str, parent: str) -> str:
        """Return a path in the same folder."""
        return ".\\" + parent

    def named_by(self, child: str, path: str) -> str | None:
        """Return the leaf of that name."""
        name = path.rpartition("\\")[2]
        name = name if name in self.recorder.leaves else name.removesuffix(".vhdx")
        return name if name in self.present else None

    async def kin(self, names: Sequence[str]) -> list[Kin]:
        """Look at all other leaves."""
        found: list[Kin] = []
        for name in sorted(self.present - set(names)):
            image = await self.load(name)
            if image.locator is not None:
                found.append(Kin(name, image.data_write_guid, image.locator))
        return found

    async def remove(self, names: Sequence[str]) -> None:
        """Take leaves out of the folder."""
        for name in names:
            self.removals.append((self.recorder.note(), name))
            self.present.discard(name)
        self.syncs.append(self.recorder.note())

    def folders(self, state: CrashState) -> Iterator[dict[str, Content]]:
        """Yield every set of files that a crash may leave in the folder in a state."""
        gone: set[str] = set()
        unsure: list[str] = []
        for instant, name in self.removals:
            if instant < state.at:
                synced = any(instant < sync < state.at for sync in self.syncs)
                gone.add(name) if synced else unsure.append(name)
        for choice in product((False, True), repeat=len(unsure)):
            lost = gone | {name for name, is_lost in zip(unsure, choice, strict=True) if is_lost}
            yield {name: content for name, content in state.files.items() if name not in lost}

    def marks(self) -> list[int]:
        """Return the instants at which something becomes of the folder."""
        return [instant + 1 for instant, _ in self.removals] + [sync + 1 for sync in self.syncs]


def images_on(
    files: Mapping[str, Content],
    *,
    recording: bool = False,
    seed: int | None = None,
    fault: Callable[[Operation], Fault | None] | None = None,
) -> RecordedImages:
    """Put files onto leaves; see `Recorder`."""
    recorder = Recorder(recording=recording, seed=seed, fault=fault)
    for name, content in files.items():
        recorder.leaf(name, content)
    return RecordedImages(recorder)


def seen_of(model: Model) -> Seen:
    """Return what a user finds who sees what a model holds."""
    content = content_of(model)
    return Seen(content.length, {at: page for at, page in content.pages.items() if any(page)})


def files_of(images: RecordedImages) -> dict[str, Content]:
    """Return the files as they are now."""
    return {name: images.recorder.leaves[name].content for name in sorted(images.present)}


async def see_chain(images: RecordedImages, top: str, *, clean: bool = False) -> Seen:
    """Open a chain, check every image of it, and look at the whole disk."""
    async with images.opened(top, backing=True) as handle:
        node: Node | None = handle.node
        while node is not None:
            assert isinstance(node, VhdxNode)
            report = await node.check()
            found = [str(each) for each in report.findings if clean or each.code != "L29"]
            assert not found, found
            node = node.child(Role.BACKING)
        return await look(handle)


def crash_states(
    images: RecordedImages, effort: Effort, seed: int = 0
) -> Iterator[tuple[CrashState, dict[str, Content]]]:
    """Yield what a crash may leave of a recorded job."""
    explorer = Explorer(images.recorder, effort, seed)
    for state in explorer.states(images.marks()):
        for files in images.folders(state):
            yield state, files
    COUNT.add(explorer.tally)
