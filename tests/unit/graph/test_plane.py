"""The data plane: every means of moving bytes, and what becomes of a move that goes wrong."""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from tests.support.filesystems import mounted, needs_root
from tests.support.nodes import content_of
from tests.support.turns import turns
from vblk.errors import NoSpace, StorageError
from vblk.extent import Kind
from vblk.graph.kernel_copy import KernelCopier, Means
from vblk.graph.node import Leaf, Node, Span
from vblk.graph.plane import BUFFER_MAX, Mover, read_spans
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.opening import open_node
from vblk.options import from_mapping
from vblk.protocols.memory import MemoryNode
from vblk.testing import FaultPlan, FaultyNode, PassingNode, ReluctantNode

MIB = 1 << 20
LENGTH = 5 * MIB + 4096 + 77


def with_graph(scenario: Callable[[Graph], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Graph() as graph:
            await scenario(graph)

    asyncio.run(main())


async def open_file(graph: Graph, path: Path, *, writable: bool = False, cache: str = "writeback") -> Node:
    mapping = {"driver": "file", "filename": str(path)}
    return await open_node(graph, from_mapping(mapping), Request(not writable, cache))


def whole(node: Node, length: int, offset: int = 0) -> Span:
    return Span(Kind.DATA, 0, length, node, offset)


def move_between(
    source: Path, target: Path, *, offset: int = 0, target_offset: int = 0, cache: str = "writeback"
) -> dict[Means, int]:
    """Move one file's bytes to another's and return what went by which means."""
    content = content_of(LENGTH)
    source.write_bytes(content)
    target.write_bytes(b"\xaa" * (target_offset + 100))
    means: dict[Means, int] = {}

    async def scenario(graph: Graph) -> None:
        below = await open_file(graph, source)
        above = await open_file(graph, target, writable=True, cache=cache)
        mover = Mover(graph.engine)
        await mover.move(whole(below, LENGTH - offset, offset), above, target_offset)
        assert above.size == target_offset + LENGTH - offset
        means.update(mover.moved.by_means)

    with_graph(scenario)
    found = target.read_bytes()
    assert found[:target_offset] == b"\xaa" * target_offset
    assert found[target_offset:] == content[offset:]
    assert sum(means.values()) == LENGTH - offset
    return means


@needs_root
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_blocks_are_shared_where_the_file_system_can(kind: str, tmp_path: Path) -> None:
    with mounted(kind, 400 * MIB, tmp_path) as folder:
        means = move_between(folder / "source", folder / "target")
        assert means[Means.REFLINK] == 5 * MIB + 4096
        assert Means.MEMORY not in means


@needs_root
def test_ranges_that_are_not_whole_blocks_are_copied_where_blocks_are_shared(tmp_path: Path) -> None:
    with mounted("xfs", 400 * MIB, tmp_path) as folder:
        means = move_between(folder / "source", folder / "target", offset=5, target_offset=1)
        assert Means.REFLINK not in means
        assert Means.MEMORY not in means


def test_the_kernel_copies_on_one_file_system(tmp_path: Path) -> None:
    means = move_between(tmp_path / "source", tmp_path / "target", target_offset=513)
    assert Means.MEMORY not in means
    assert means.get(Means.COPY_FILE_RANGE, 0) + means.get(Means.REFLINK, 0) == LENGTH


@needs_root
@pytest.mark.parametrize("cache", ["writeback", "writethrough"])
def test_the_kernel_sends_from_one_kind_of_file_system_to_another(cache: str, tmp_path: Path) -> None:
    with mounted("ext4", 32 * MIB, tmp_path) as folder, mounted("xfs", 400 * MIB, tmp_path) as other:
        means = move_between(folder / "source", other / "target", target_offset=3, cache=cache)
        assert means == {Means.SENDFILE: LENGTH}


def test_direct_files_are_copied_through_memory(tmp_path: Path) -> None:
    means = move_between(tmp_path / "source", tmp_path / "target", target_offset=4096, cache="none")
    assert means == {Means.MEMORY: LENGTH}


@pytest.mark.parametrize("opaque_source", [True, False])
def test_bytes_pass_memory_where_a_node_cannot_be_seen_through(opaque_source: bool, tmp_path: Path) -> None:
    content = content_of(LENGTH)
    (tmp_path / "source").write_bytes(content)
    (tmp_path / "target").write_bytes(bytes(LENGTH))

    async def scenario(graph: Graph) -> None:
        source: Node = await open_file(graph, tmp_path / "source")
        target: Node = await open_file(graph, tmp_path / "target", writable=True)
        over = ReluctantNode("over", source if opaque_source else target, 1)
        over.put_over(graph)
        mover = Mover(graph.engine)
        await mover.move(
            whole(over if opaque_source else source, LENGTH), target if opaque_source else over, 0
        )
        assert mover.moved.by_means == {Means.MEMORY: LENGTH}

    with_graph(scenario)
    assert (tmp_path / "target").read_bytes() == content


def test_a_target_of_several_places_gets_each_its_own_bytes() -> None:
    class Halves(PassingNode):
        """Places every write in two halves, the second in another node."""

        def __init__(self, name: str, file: Node, other: Node) -> None:
            super().__init__(name, file)
            self.other = other
            self.published = 0

        def place(self, offset: int, length: int):  # type: ignore[no-untyped-def]
            from contextlib import asynccontextmanager

            @asynccontextmanager
            async def halves():  # type: ignore[no-untyped-def]
                half = length // 2
                yield [
                    Span(Kind.DATA, offset, half, self.file, offset),
                    Span(Kind.DATA, offset + half, length - half, self.other, 1000),
                ]
                self.published += 1

            return halves()

    content = content_of(10_000)

    async def scenario(graph: Graph) -> None:
        source = MemoryNode("source", size=len(content), data=content)
        first, second = MemoryNode("first", size=20_000), MemoryNode("second", size=20_000)
        target = Halves("target", first, second)
        await Mover(graph.engine).move(whole(source, len(content)), target, 7)
        assert await first.read(7, 5000) == content[:5000]
        assert await second.read(1000, 5000) == content[5000:]
        assert target.published == 1

    with_graph(scenario)


def test_a_source_that_is_shorter_than_it_said_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(content_of(LENGTH))
    (tmp_path / "target").write_bytes(bytes(LENGTH))

    async def scenario(graph: Graph) -> None:
        source = await open_file(graph, tmp_path / "source")
        target = await open_file(graph, tmp_path / "target", writable=True)
        os.truncate(tmp_path / "source", MIB)
        with pytest.raises(StorageError, match="source"):
            await Mover(graph.engine).move(whole(source, LENGTH), target, 0)

    with_graph(scenario)


@needs_root
@pytest.mark.parametrize("through_memory", [True, False])
def test_a_full_target_is_no_space_and_is_named(through_memory: bool, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(content_of(16 * MIB).replace(b"\0", b"\1"))
    with mounted("ext4", 12 * MIB, tmp_path) as folder:
        (folder / "target").write_bytes(b"")

        async def scenario(graph: Graph) -> None:
            source: Node = await open_file(graph, tmp_path / "source")
            if through_memory:
                source = PassingNode("over", source)
                source.put_over(graph)
            target = await open_file(graph, folder / "target", writable=True)
            with pytest.raises(NoSpace) as caught:
                await Mover(graph.engine).move(whole(source, 16 * MIB), target, 0)
            assert caught.value.filename == str(folder / "target")
            assert caught.value.errno == errno.ENOSPC

        with_graph(scenario)


def test_what_arrived_before_a_cancellation_is_known_to_the_target(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(content_of(LENGTH))
    (tmp_path / "target").write_bytes(b"")

    async def scenario(graph: Graph) -> None:
        source = await open_file(graph, tmp_path / "source")
        target = await open_file(graph, tmp_path / "target", writable=True)
        mover = Mover(graph.engine)
        move = asyncio.create_task(mover.move(whole(source, LENGTH), target, 0))
        await turns(3)
        move.cancel()
        with pytest.raises(asyncio.CancelledError):
            await move
        assert target.size == (tmp_path / "target").stat().st_size == sum(mover.moved.by_means.values())

    with_graph(scenario)


def test_a_cancellation_between_two_pieces_stops_the_move() -> None:
    async def scenario(graph: Graph) -> None:
        size = 3 * BUFFER_MAX
        source: Node = MemoryNode("source", size=size, data=b"s" * size)
        graph.add(source)
        plan = FaultPlan(stop_at=3)
        slow = FaultyNode("slow", source, plan)
        slow.put_over(graph)
        target = MemoryNode("target", size=size)
        move = asyncio.create_task(Mover(graph.engine).move(whole(slow, size), target, 0))
        await plan.stopped.wait()
        move.cancel()
        await asyncio.wait([move])
        assert await target.read(0, size) == b"s" * BUFFER_MAX + bytes(size - BUFFER_MAX)

    with_graph(scenario)


def test_spans_are_read_into_their_places_side_by_side() -> None:
    content = content_of(400_000)

    async def scenario(graph: Graph) -> None:
        leaf = MemoryNode("leaf", size=len(content), data=content)
        slow = ReluctantNode("slow", leaf, 5)
        spans: Sequence[Span] = [
            Span(Kind.DATA, 100, 300_000, slow, 50_000),
            Span(Kind.ZERO, 300_100, 5000),
            *(Span(Kind.DATA, 305_100 + index * 10, 10, slow, 3000 - index * 20) for index in range(40)),
        ]
        buffer = bytearray(b"\xff" * 305_400)
        await read_spans(spans, 100, memoryview(buffer))
        wanted = content[50_000:350_000] + bytes(5000)
        wanted += b"".join(content[3000 - index * 20 :][:10] for index in range(40))
        assert bytes(buffer) == wanted

    with_graph(scenario)


def test_an_error_in_one_span_is_raised_as_itself() -> None:
    async def scenario(graph: Graph) -> None:
        leaf = FaultyNode("leaf", MemoryNode("memory", size=10_000), FaultPlan(fail_at=4))
        spans = [Span(Kind.DATA, index * 10, 10, leaf, 5000 - index * 20) for index in range(20)]
        with pytest.raises(StorageError, match="by plan"):
            await read_spans(spans, 0, memoryview(bytearray(200)))

    with_graph(scenario)


def test_a_full_disk_does_not_turn_the_cheap_means_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "source").open("w+b") as source, (tmp_path / "target").open("w+b") as target:
        source.write(b"x" * 8192)
        source.flush()
        copier = KernelCopier(source.fileno(), target.fileno(), piece_max=MIB)

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "full")

        with monkeypatch.context() as patch:
            patch.setattr(os, "copy_file_range", full)
            with pytest.raises(NoSpace):
                copier.copy(1, 0, 8000)
        assert copier.copy(1, 0, 8000) == (Means.COPY_FILE_RANGE, 8000)


def test_a_leaf_is_what_the_kernel_copies_from(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"")

    async def scenario(graph: Graph) -> None:
        node = await open_file(graph, tmp_path / "source")
        assert isinstance(node, Leaf)
        assert node.descriptor() is not None

    with_graph(scenario)
