"""Quorum and blkverify: votes, differences, what is reported, and what is written back."""

import asyncio
import errno
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from tests.support.turns import turns
from vblk.errors import OptionError, PermissionConflict, ReadOnly, StorageError, Unsupported
from vblk.filters.blkverify import ContentsMismatch
from vblk.filters.copies import first_difference
from vblk.graph.edge import READING, WRITING, Permission
from vblk.graph.handle import Handle
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.opening import open_node
from vblk.options import from_mapping
from vblk.protocols.memory import MemoryNode
from vblk.testing import FaultPlan, FaultyNode, PassingNode

SIZE = 64 << 10
CONTENT = bytes(range(256)) * 256


class Children:
    """The children of a node under test, and the events that it raised."""

    def __init__(self, graph: Graph, count: int) -> None:
        self.nodes = [MemoryNode(f"child{number}", size=SIZE, data=CONTENT) for number in range(count)]
        self.faulty: list[FaultyNode] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        for number, node in enumerate(self.nodes):
            graph.add(node)
            faulty = FaultyNode(f"faulty{number}", node, FaultPlan())
            faulty.put_over(graph)
            self.faulty.append(faulty)
        graph.listeners.append(self._listen)

    def _listen(self, event: str, data: Mapping[str, Any]) -> None:
        self.events.append((event, dict(data)))

    async def spoil(self, number: int, offset: int, data: bytes = b"!") -> None:
        await self.nodes[number].write(offset, data)

    def fail(self, number: int, operation: str) -> None:
        self.faulty[number].plan = FaultPlan(fail_at=1, forever=True, only=frozenset((operation,)))


def with_quorum(
    scenario: Callable[[Graph, Handle, Children], Awaitable[None]],
    *,
    count: int = 3,
    read_only: bool = False,
    **options: Any,
) -> None:
    async def main() -> None:
        async with Graph() as graph:
            children = Children(graph, count)
            own = {"vote-threshold": 2, **{name.replace("_", "-"): value for name, value in options.items()}}
            mapping = {"driver": "quorum", "node-name": "q", "children": [n.name for n in children.faulty]}
            node = await open_node(graph, from_mapping({**mapping, **own}), Request(read_only=read_only))
            handle = graph.hold(node, "the test", READING if read_only else WRITING)
            await scenario(graph, handle, children)

    asyncio.run(main())


def bad(kind: str, node: str, first: int, count: int, error: str | None = None) -> tuple[str, dict[str, Any]]:
    told = {} if error is None else {"error": error}
    data = {"type": kind, **told, "node-name": node, "sector-num": first, "sectors-count": count}
    return "QUORUM_REPORT_BAD", data


def test_what_most_children_read_is_read_and_the_others_are_reported() -> None:
    async def scenario(graph: Graph, handle: Handle, children: Children) -> None:
        await children.spoil(1, 700)
        assert await handle.read(0, 2048) == CONTENT[:2048]
        assert children.events == [bad("read", "faulty1", 0, 4)]
        assert list(children.events[0][1]) == ["type", "node-name", "sector-num", "sectors-count"]
        assert await children.nodes[1].read(700, 1) == b"!"

    with_quorum(scenario)


def test_no_majority_fails_the_read_and_is_told() -> None:
    async def scenario(graph: Graph, handle: Handle, children: Children) -> None:
        await children.spoil(0, 9000, b"a")
        await children.spoil(1, 9000, b"b")
        with pytest.raises(StorageError, match="too few children agree"):
            await handle.read(8192, 2048)
        failure = {"reference": "q", "sector-num": 16, "sectors-count": 4}
        assert children.events == [("QUORUM_FAILURE", failure)]
        assert await handle.read(0, 100) == CONTENT[:100]

    with_quorum(scenario)


def test_a_child_that_cannot_be_read_is_outvoted_and_reported_with_its_error() -> None:
    async def scenario(graph: Graph, handle: Handle, children: Children) -> None:
        children.fail(2, "read")
        assert await handle.read(512, 512) == CONTENT[512:1024]
        [(event, data)] = children.events
        assert (event, data["node-name"], data["type"]) == ("QUORUM_REPORT_BAD", "faulty2", "read")
        assert "fails by plan" in data["error"]
        children.fail(1, "read")
        with pytest.raises(StorageError, match="fails by plan"):
            await handle.read(512, 512)
        assert children.events[-1][0] == "QUORUM_FAILURE"

    with_quorum(scenario)


@pytest.mark.parametrize("operation", ["write", "write-zeroes", "flush"])
def test_a_change_succeeds_when_enough_children_made_it(operation: str) -> None:
    async def scenario(graph: Graph, handle: Handle, children: Children) -> None:
        async def change() -> None:
            if operation == "write":
                await handle.write(0, b"new")
            elif operation == "write-zeroes":
                await handle.write_zeroes(0, 3)
            else:
                await handle.flush()

        children.fail(0, operation)
        await change()
        assert [event for event, _ in children.events] == ["QUORUM_REPORT_BAD"]
        assert children.events[0][1]["type"] == ("flush" if operation == "flush" else "write")
        if operation != "flush":
            assert await handle.read(0, 3) == (b"new" if operation == "write" else bytes(3))
        children.fail(2, operation)
        with pytest.raises(StorageError, match="fails by plan"):
            await change()
        assert children.events[-1][0] == "QUORUM_FAILURE"

    with_quorum(scenario)


def test_what_most_children_read_is_written_to_the_others_when_asked() -> None:
    async def scenario(graph: Graph, handle: Handle, children: Children) -> None:
        await children.spoil(1, 700)
        assert await handle.read(0, 2048) == CONTENT[:2048]
        assert await children.nodes[1].read(0, SIZE) == CONTENT
        children.events.clear()
        assert await handle.read(0, 2048) == CONTENT[:2048]
        assert not children.events
        await children.spoil(1, 700)
        children.fail(1, "write")
        await handle.read(0, 2048)
        assert [data["type"] for _, data in children.events] == ["read", "write"]

    with_quorum(scenario, rewrite_corrupted=True)


def test_a_quorum_that_is_read_only_writes_nothing_back() -> None:
    async def scenario(graph: Graph, handle: Handle, children: Children) -> None:
        await children.spoil(1, 700)
        assert await handle.read(0, 2048) == CONTENT[:2048]
        assert await children.nodes[1].read(700, 1) == b"!"
        with pytest.raises(ReadOnly):
            await handle.node.write(0, b"x")

    with_quorum(scenario, rewrite_corrupted=True, read_only=True)


def test_writing_back_does_not_undo_a_write_that_came_in_between() -> None:
    async def scenario(graph: Graph, handle: Handle, children: Children) -> None:
        await children.spoil(1, 0)
        children.faulty[1].plan = plan = FaultPlan(stop_at=1, only=frozenset(("read",)))
        read = asyncio.create_task(handle.read(0, 512))
        await plan.stopped.wait()
        write = asyncio.create_task(handle.write(0, b"w" * 512))
        await turns()
        plan.go_on.set()
        assert await read == CONTENT[:512]
        await write
        assert [await node.read(0, 512) for node in children.nodes] == [b"w" * 512] * 3

    with_quorum(scenario, rewrite_corrupted=True)


def test_a_read_never_votes_on_a_write_that_is_half_done() -> None:
    async def scenario(graph: Graph, handle: Handle, children: Children) -> None:
        children.faulty[2].plan = plan = FaultPlan(stop_at=1, only=frozenset(("write",)))
        write = asyncio.create_task(handle.write(0, b"w" * 512))
        await plan.stopped.wait()
        read = asyncio.create_task(handle.read(0, 512))
        await turns()
        assert not read.done()
        plan.go_on.set()
        await write
        assert await read == b"w" * 512
        assert not children.events

    with_quorum(scenario, vote_threshold=3)


def test_a_write_that_is_cancelled_is_in_all_children_or_in_none() -> None:
    async def scenario(graph: Graph, handle: Handle, children: Children) -> None:
        children.faulty[2].plan = plan = FaultPlan(stop_at=1, only=frozenset(("write",)))
        write = asyncio.create_task(handle.write(0, b"w" * 512))
        await plan.stopped.wait()
        write.cancel()
        await turns()
        plan.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await write
        assert len({await node.read(0, 512) for node in children.nodes}) == 1
        assert await handle.read(0, 512)

    with_quorum(scenario, vote_threshold=3)


def test_fifo_believes_the_first_child_that_can_be_read() -> None:
    async def scenario(graph: Graph, handle: Handle, children: Children) -> None:
        await children.spoil(0, 0)
        assert (await handle.read(0, 2))[:1] == b"!"
        assert not children.events
        children.fail(0, "read")
        assert await handle.read(0, 2) == CONTENT[:2]
        assert [data["node-name"] for _, data in children.events] == ["faulty0"]
        children.fail(1, "read")
        children.fail(2, "read")
        with pytest.raises(StorageError, match="fails by plan"):
            await handle.read(0, 2)

    with_quorum(scenario, read_pattern="fifo")


def test_two_children_that_are_verified_differ_at_an_offset() -> None:
    async def scenario(graph: Graph, handle: Handle, children: Children) -> None:
        assert await handle.read(0, 100) == CONTENT[:100]
        await children.spoil(1, 8200)
        words = "quorum: offset=8192 bytes=2048 contents mismatch at offset 8200"
        with pytest.raises(ContentsMismatch, match=words):
            await handle.read(8192, 2048)

    with_quorum(scenario, count=2, blkverify=True)


def test_children_of_a_quorum_in_use_are_not_written_by_others_and_can_be_replaced() -> None:
    async def scenario(graph: Graph, handle: Handle, children: Children) -> None:
        names = [(name, edge.node.name) for name, edge in handle.node.children.items()]
        assert names == [(f"children.{number}", f"faulty{number}") for number in range(3)]
        with pytest.raises(PermissionConflict, match=r"a writer needs .*'q'"):
            graph.hold(children.faulty[0], "a writer", WRITING)
        filter = PassingNode("filter", children.faulty[1])
        filter.put_over(graph)
        await graph.insert_filter(children.faulty[1], filter)
        await handle.write(0, b"new")
        assert await children.nodes[1].read(0, 3) == b"new"
        await children.spoil(1, 0)
        await handle.read(0, 3)
        assert [data["node-name"] for _, data in children.events] == ["filter"]

    with_quorum(scenario)


def test_who_rewrites_needs_to_write_although_its_users_only_read() -> None:
    async def scenario(graph: Graph, handle: Handle, children: Children) -> None:
        await graph.release(graph.hold(handle.node, "another", READING))
        assert all(edge.permissions & Permission.WRITE for edge in handle.node.children.values())

    with_quorum(scenario, rewrite_corrupted=True)


@pytest.mark.parametrize(
    ("count", "options", "words"),
    [
        (1, {"vote-threshold": 2}, "threshold may not exceed children count"),
        (2, {"vote-threshold": 0}, "Parameter 'vote-threshold' expects a value >= 1"),
        (2, {}, "Parameter 'vote-threshold' is missing"),
        (0, {"vote-threshold": 1}, "Number of provided children must be 1 or more"),
        (33, {"vote-threshold": 1}, "a quorum has at most 32 children"),
        (3, {"vote-threshold": 2, "blkverify": True}, "exactly two files and vote-threshold is 2"),
        (
            2,
            {"vote-threshold": 2, "blkverify": True, "rewrite-corrupted": True},
            "rewrite-corrupted=on cannot be used with blkverify=on",
        ),
        (
            2,
            {"vote-threshold": 2, "read-pattern": "fifo", "rewrite-corrupted": True},
            "rewrite-corrupted=on has no meaning with read-pattern=fifo",
        ),
        (2, {"vote-threshold": 2, "read-pattern": "lifo"}, "does not accept value 'lifo'"),
    ],
)
def test_a_quorum_that_cannot_be_is_refused(count: int, options: dict[str, Any], words: str) -> None:
    async def main() -> None:
        async with Graph() as graph:
            children = [{"driver": "null-co", "size": 512}] * count
            mapping = {"driver": "quorum", **options}
            mapping.update({f"children.{number}": child for number, child in enumerate(children)})
            with pytest.raises(OptionError, match=words):
                await open_node(graph, from_mapping(mapping), Request())
            assert not list(graph.nodes())

    asyncio.run(main())


@pytest.mark.parametrize("driver", ["quorum", "blkverify"])
def test_children_of_different_sizes_are_refused(driver: str) -> None:
    async def main() -> None:
        async with Graph() as graph:
            sizes = [{"driver": "null-co", "size": size} for size in (512, 1024)]
            mapping: dict[str, Any] = {"driver": driver}
            if driver == "quorum":
                mapping |= {"vote-threshold": 2, "children": sizes}
            else:
                mapping |= {"raw": sizes[0], "test": sizes[1]}
            with pytest.raises(StorageError, match="the children differ in size: 512, 1024 bytes"):
                await open_node(graph, from_mapping(mapping), Request())
            assert not list(graph.nodes())

    asyncio.run(main())


def test_a_quorum_is_not_resized() -> None:
    async def scenario(graph: Graph, handle: Handle, children: Children) -> None:
        with pytest.raises(Unsupported, match="does not support resize"):
            await handle.resize(SIZE * 2)

    with_quorum(scenario)


# blkverify


def with_verify(scenario: Callable[[Handle, Children], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Graph() as graph:
            children = Children(graph, 2)
            mapping = {"driver": "blkverify", "raw": "faulty0", "test": "faulty1"}
            node = await open_node(graph, from_mapping(mapping), Request(read_only=False))
            await scenario(graph.hold(node, "the test", WRITING), children)

    asyncio.run(main())


def test_a_difference_is_an_error_that_says_where_as_qemu_does() -> None:
    async def scenario(handle: Handle, children: Children) -> None:
        await handle.write(100, b"both")
        assert [await node.read(100, 4) for node in children.nodes] == [b"both", b"both"]
        assert await handle.read(0, 2048) == CONTENT[:100] + b"both" + CONTENT[104:2048]
        await children.spoil(1, 700)
        words = "blkverify: read offset=0 bytes=2048 contents mismatch at offset 700"
        with pytest.raises(ContentsMismatch, match=words):
            await handle.read(0, 2048)
        assert await handle.read(1024, 100) == CONTENT[:100]

    with_verify(scenario)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_child_that_fails_alone_is_a_difference(failing: int) -> None:
    async def scenario(handle: Handle, children: Children) -> None:
        children.fail(failing, "write")
        name = ("raw", "test")[failing]
        with pytest.raises(ContentsMismatch, match=f"blkverify: write .* only the child '{name}' failed"):
            await handle.write(0, b"x")
        children.fail(1 - failing, "write")
        with pytest.raises(StorageError, match="fails by plan") as caught:
            await handle.write(0, b"x")
        assert not isinstance(caught.value, ContentsMismatch)
        assert caught.value.errno == errno.EIO

    with_verify(scenario)


@pytest.mark.parametrize("at", [0, 1, 511, 512, 1000])
def test_the_first_difference_is_found(at: int) -> None:
    one = bytearray(1000)
    other = bytearray(one)
    for position in {at, 990} - {1000}:
        if position >= at:
            other[position] = 1
    assert first_difference(bytes(one), bytes(other) if at < 1000 else bytes(one)) == at
