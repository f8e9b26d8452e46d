"""Every operation below a graph fails once, fails for ever, or meets a cancellation.

Whatever happens: the error is typed, no task runs on, no request stays in
flight, no lock stays held, no byte outside of a request changes, and the graph
closes.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.manual_clock import EagerClock
from tests.support.nodes import content_of
from tests.support.vhdx.chain import Chain
from vblk.aio.threads import ThreadEngine
from vblk.errors import BlockError
from vblk.extent import Kind
from vblk.filters import copy_on_read, snapshot
from vblk.graph.edge import WRITING
from vblk.graph.edges import reachable
from vblk.graph.handle import Handle
from vblk.graph.plane import BUFFER_MAX, PIECE_MAX, Mover
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.opening import open_image, open_node
from vblk.options import from_mapping
from vblk.protocols.memory import MemoryNode
from vblk.runtime.throttling import ThrottleGroup, ThrottleLimits
from vblk.testing import (
    FaultPlan,
    FaultyEngine,
    FaultyNode,
    each_cancellation,
    each_failure,
    hold_everything_free,
)

MIB = 1 << 20
SIZE = 64 * 1024
WAIT_MAX = 60
"""Seconds after which something that should go on is stuck."""

MODES = ("once", "forever", "cancelled")
Scenario = Callable[[FaultPlan], Awaitable[None]]


def sweep(mode: str, scenario: Scenario) -> int:
    """Run a scenario with trouble at each of its operations; return how many met it."""
    if mode == "cancelled":
        return asyncio.run(each_cancellation(scenario))
    return asyncio.run(each_failure(scenario, forever=mode == "forever"))


async def attempt(plan: FaultPlan, work: Awaitable[None]) -> bool:
    """Do some work as the task that may be cancelled; tell whether it succeeded."""

    async def main() -> None:
        await work

    task = asyncio.create_task(main())
    plan.watch(task)
    await asyncio.wait([task], timeout=WAIT_MAX)
    assert task.done(), "the work is stuck"
    if task.cancelled():
        assert plan.reached
        return False
    error = task.exception()
    if error is not None:
        assert isinstance(error, BlockError), repr(error)
        assert plan.reached
        return False
    return True


async def requests(handle: Handle) -> None:
    """Use every kind of request, some side by side."""
    await handle.read(0, 5000)
    await handle.write(1000, b"w" * 3000)
    async with asyncio.TaskGroup() as group:
        for offset in (9000, 9100, 20_000):
            group.create_task(handle.write(offset, b"p" * 90))
        group.create_task(handle.read_into(30_000, memoryview(bytearray(100))))
    await handle.write_zeroes(2000, 500, unmap=True)
    await handle.discard(4096, 4096)
    await handle.allocation(0, handle.size)
    await handle.flush()


async def ungrouped(work: Awaitable[None]) -> None:
    """Raise the first error of a group as itself."""
    try:
        await work
    except* BlockError as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


TOUCHED = ((0, 512), (1000, 4000), (4096, 8192), (9000, 9200), (20_000, 20_100))
"""The ranges that `requests` changes, and the sector that a guess keeps its eye on."""


def untouched(data: bytes) -> list[bytes]:
    """Return what lies between the touched ranges."""
    kept: list[bytes] = []
    position = 0
    for start, end in TOUCHED:
        kept.append(data[position:start])
        position = max(position, end)
    return [*kept, data[position:]]


async def goes_on(handle: Handle, content: bytes) -> None:
    """Check that after trouble everything works again, everywhere."""
    found = await asyncio.wait_for(handle.read(0, handle.size), WAIT_MAX)
    assert untouched(found) == untouched(content)
    for offset in (0, 500, 1000, 9000, 20_000):
        await asyncio.wait_for(handle.write(offset, b"again"), WAIT_MAX)
        assert await asyncio.wait_for(handle.read(offset, 5), WAIT_MAX) == b"again"
    await asyncio.wait_for(handle.flush(), WAIT_MAX)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "kind", ["raw", "probed", "snapshot", "copy-on-read", "blkdebug", "throttle", "delay", "quorum"]
)
def test_trouble_in_a_node_stays_with_its_request(kind: str, mode: str) -> None:
    content = content_of(SIZE)

    async def scenario(plan: FaultPlan) -> None:
        async with Graph() as graph:
            memory = MemoryNode("memory", size=SIZE, data=content)
            graph.add(memory)
            setup = FaultPlan()
            faulty = FaultyNode("faulty", memory, setup)
            faulty.put_over(graph)
            graph.clock = EagerClock()
            graph.objects.add("group", ThrottleGroup(graph.clock, ThrottleLimits(bps_total=SIZE)))
            kinds: dict[str, dict[str, object]] = {
                "raw": {"driver": "raw", "file": "faulty"},
                "probed": {"file": "faulty"},
                "blkdebug": {"driver": "blkdebug", "image": "faulty", "align": 4096},
                "throttle": {"driver": "throttle", "throttle-group": "group", "file": "faulty"},
                "delay": {"driver": "delay", "read-latency-ns": 1, "write-latency-ns": 1, "file": "faulty"},
                "quorum": {"driver": "quorum", "vote-threshold": 1, "children": ["faulty"]},
            }
            mapping = kinds.get(kind, kinds["raw"])
            node = await open_node(graph, from_mapping(mapping), Request(read_only=False))
            if kind in ("snapshot", "copy-on-read"):
                node = await snapshot.put_over(graph, node)
            if kind == "copy-on-read":
                node = await copy_on_read.put_over(graph, node)
            handle = graph.hold(node, "the test", WRITING)
            faulty.plan = plan
            await attempt(plan, ungrouped(requests(handle)))
            hold_everything_free(graph)
            plan.disarm()
            await goes_on(handle, content)
            hold_everything_free(graph)

    assert sweep(mode, scenario) > 5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cache", ["writeback", "none", "writethrough"])
def test_trouble_in_the_engine_stays_with_its_request_until_a_flush_fails(
    cache: str, mode: str, tmp_path: Path
) -> None:
    content = content_of(SIZE)
    path = tmp_path / "disk"

    async def scenario(plan: FaultPlan) -> None:
        path.write_bytes(content)
        before = len(os.listdir("/proc/self/fd"))
        engine = FaultyEngine(ThreadEngine(2), FaultPlan())
        async with Graph(engine) as graph:
            options = from_mapping({"driver": "raw", "file": {"driver": "file", "filename": str(path)}})
            handle = await open_image(graph, options, read_only=False, cache=cache)
            engine.plan = plan
            await attempt(plan, ungrouped(requests(handle)))
            hold_everything_free(graph)
            plan.disarm()
            try:
                await asyncio.wait_for(handle.flush(), WAIT_MAX)
            except BlockError:
                assert mode != "cancelled"
            else:
                await goes_on(handle, content)
            hold_everything_free(graph)
        assert len(os.listdir("/proc/self/fd")) == before

    def closing_may_fail() -> int:
        return sweep(mode, lambda plan: _closing(scenario, plan))

    assert closing_may_fail() > 5


async def _closing(scenario: Scenario, plan: FaultPlan) -> None:
    """Run a scenario whose graph may tell at its end that a flush has failed."""
    try:
        await scenario(plan)
    except BlockError:
        assert plan.reached


@pytest.mark.parametrize("mode", MODES)
def test_trouble_while_a_chain_is_opened_and_read_leaves_nothing_open(mode: str, tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.base([(0, MIB)])
    chain.child([(512, 1024)])
    chain.child([(4096, 512)])
    wanted = chain.top.model.read(0, MIB + 512)

    async def scenario(plan: FaultPlan) -> None:
        before = len(os.listdir("/proc/self/fd"))
        async with Graph(FaultyEngine(ThreadEngine(2), plan)) as graph:

            async def work() -> None:
                handle = await open_image(graph, str(chain.top.path), cache="none")
                assert await handle.read(0, MIB + 512) == wanted
                spans = await handle.allocation(0, handle.size)
                assert sum(span.length for span in spans) == handle.size
                await graph.release(handle)

            if not await attempt(plan, work()):
                for handle in graph.handles():
                    await graph.release(handle)
            assert list(graph.nodes()) == []
        assert len(os.listdir("/proc/self/fd")) == before

    assert sweep(mode, scenario) > 20


@pytest.mark.parametrize("mode", MODES)
def test_trouble_during_a_move_through_memory_leaves_old_or_new_bytes(mode: str) -> None:
    length = BUFFER_MAX + 7
    data = b"s" * length

    async def scenario(plan: FaultPlan) -> None:
        async with Graph() as graph:
            source, target = (
                MemoryNode("source", size=length, data=data),
                MemoryNode("target", size=length + 9),
            )
            graph.add(source)
            graph.add(target)
            reading, writing = FaultyNode("reading", source, plan), FaultyNode("writing", target, plan)
            reading.put_over(graph)
            writing.put_over(graph)
            handle = graph.hold(writing, "the test", WRITING)
            mover = Mover(graph.engine)
            [span] = await reading.resolve(0, length)
            done = await attempt(plan, mover.move(span, handle.node, 4))
            found = await target.read(0, length + 9)
            assert not found[:4].strip(b"\0")
            assert not found[4 + length :].strip(b"\0")
            assert not found[4 : 4 + length].replace(b"s", b"").replace(b"\0", b"")
            if done:
                assert found[4 : 4 + length] == data
            hold_everything_free(graph)
            plan.disarm()
            await mover.move(span, handle.node, 4)
            assert await target.read(4, length) == data

    assert sweep(mode, scenario) == 8


@pytest.mark.parametrize("mode", MODES)
def test_trouble_during_a_move_in_the_kernel_leaves_a_target_that_can_be_moved_to(
    mode: str, tmp_path: Path
) -> None:
    content = content_of(PIECE_MAX + 4 * MIB)
    (tmp_path / "source").write_bytes(content)

    async def scenario(plan: FaultPlan) -> None:
        (tmp_path / "target").write_bytes(b"")
        engine = FaultyEngine(ThreadEngine(2), FaultPlan())
        async with Graph(engine) as graph:
            source = await open_image(graph, str(tmp_path / "source"), format="raw")
            target = await open_image(graph, str(tmp_path / "target"), format="raw", read_only=False)
            await target.resize(len(content))
            spans = [span for span in await source.resolve(0, source.size) if span.kind is Kind.DATA]
            engine.plan = plan
            mover = Mover(engine)

            async def work() -> None:
                for span in spans:
                    await mover.move(span, target.node, span.guest_offset)

            await attempt(plan, work())
            hold_everything_free(graph)
            plan.disarm()
            await work()
            assert await target.read(0, target.size) == content

    assert sweep(mode, scenario) >= 2


@pytest.mark.parametrize("mode", MODES)
def test_trouble_while_reopening_leaves_a_graph_of_one_mind(mode: str, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(SIZE))

    async def scenario(plan: FaultPlan) -> None:
        engine = FaultyEngine(ThreadEngine(2), FaultPlan())
        async with Graph(engine) as graph:
            handle = await open_image(graph, str(tmp_path / "disk"), format="raw", read_only=False)
            await handle.write(0, b"x")
            nodes = reachable(handle.node)

            async def work() -> None:
                await graph.reopen(handle.node, read_only=True)
                await graph.reopen(handle.node, read_only=False)

            engine.plan = plan
            await attempt(plan, work())
            plan.disarm()
            hold_everything_free(graph)
            assert len({node.read_only for node in nodes}) == 1
            assert handle.read_only is handle.node.read_only
            assert await handle.read(0, 1) == b"x"

    assert sweep(mode, lambda plan: _closing(scenario, plan)) > 3
