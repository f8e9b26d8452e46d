"""The front door: drains, and requests that are checked when they start."""

import asyncio
from array import array
from collections.abc import Awaitable, Callable

import pytest

from tests.support.turns import turns
from vblk.errors import GraphError, OutOfRange, ReadOnly
from vblk.graph.edge import READING, WRITING
from vblk.graph.handle import TURN, Handle, Traffic
from vblk.graph.node import Buffer
from vblk.graph.registry import Graph
from vblk.protocols.memory import MemoryNode
from vblk.testing import FaultPlan, FaultyNode

SIZE = 4096


def with_handle(
    scenario: Callable[[Graph, Handle, FaultPlan], Awaitable[None]], plan: FaultPlan | None = None
) -> None:
    """Run a scenario with a handle on memory behind a plan."""

    async def main() -> None:
        chosen = plan or FaultPlan()
        async with Graph() as graph:
            memory = MemoryNode("memory", size=SIZE)
            graph.add(memory)
            node = FaultyNode("node", memory, chosen)
            node.put_over(graph)
            await scenario(graph, graph.hold(node, "the test", WRITING), chosen)
            chosen.disarm()

    asyncio.run(main())


def test_a_drain_waits_for_the_requests_in_flight() -> None:
    async def scenario(graph: Graph, handle: Handle, plan: FaultPlan) -> None:
        read = asyncio.create_task(handle.read(0, 1))
        await plan.stopped.wait()
        drain = asyncio.create_task(handle.traffic.drain())
        await turns()
        assert not drain.done()
        plan.go_on.set()
        await drain
        assert read.done()
        handle.traffic.release()

    with_handle(scenario, FaultPlan(stop_at=1))


def test_requests_that_arrive_during_a_drain_wait_and_then_run() -> None:
    async def scenario(graph: Graph, handle: Handle, plan: FaultPlan) -> None:
        async with handle.drained():
            assert handle.try_read(0, 1) is None
            waiting = [
                asyncio.create_task(handle.write(0, b"x")),
                asyncio.create_task(handle.flush()),
            ]
            await turns()
            assert not any(task.done() for task in waiting)
            assert plan.count == 0
        await asyncio.gather(*waiting)
        assert await handle.read(0, 1) == b"x"

    with_handle(scenario)


def test_drains_nest() -> None:
    async def scenario(graph: Graph, handle: Handle, plan: FaultPlan) -> None:
        async with handle.drained():
            async with handle.drained():
                read = asyncio.create_task(handle.read(0, 1))
            await turns()
            assert not read.done()
        assert await read == b"\0"
        assert handle.traffic.held == 0

    with_handle(scenario)


def test_a_cancelled_drain_holds_nothing_back() -> None:
    async def scenario(graph: Graph, handle: Handle, plan: FaultPlan) -> None:
        read = asyncio.create_task(handle.read(0, 1))
        await plan.stopped.wait()
        drain = asyncio.create_task(handle.traffic.drain())
        await turns()
        drain.cancel()
        with pytest.raises(asyncio.CancelledError):
            await drain
        assert handle.traffic.held == 0
        plan.go_on.set()
        await read
        await handle.write(0, b"y")

    with_handle(scenario, FaultPlan(stop_at=1))


def test_a_request_that_is_cancelled_while_it_waits_was_never_in_flight() -> None:
    async def main() -> None:
        traffic = Traffic()
        await traffic.drain()

        async def request() -> None:
            async with traffic:
                raise AssertionError("nobody comes through here")

        task = asyncio.create_task(request())
        await turns()
        task.cancel()
        await asyncio.wait([task])
        traffic.release()
        await traffic.drain()
        assert traffic.in_flight == 0

    asyncio.run(main())


def test_a_request_is_checked_again_after_the_drain_that_it_waited_for() -> None:
    async def scenario(graph: Graph, handle: Handle, plan: FaultPlan) -> None:
        async with handle.drained():
            read = asyncio.create_task(handle.read(SIZE - 10, 10))
            write = asyncio.create_task(handle.write(SIZE - 10, b"x"))
            await turns()
            await handle.node.resize(512)
        for task in (read, write):
            with pytest.raises(OutOfRange):
                await task
        assert handle.size == 512

    with_handle(scenario)


class Willing(MemoryNode):
    """Memory that is also written at once."""

    def try_write(self, offset: int, data: Buffer) -> bool:
        self._store(offset, memoryview(data))
        return True


def test_a_write_at_once_is_checked_as_any_other() -> None:
    async def main() -> None:
        async with Graph() as graph:
            node = Willing("node", size=SIZE)
            graph.add(node)
            handle, reader = graph.hold(node, "a writer", WRITING), graph.hold(node, "a reader", READING)
            assert handle.try_write(0, memoryview(array("H", [1, 2])))
            assert handle.try_write(SIZE, b"")
            with pytest.raises(OutOfRange):
                handle.try_write(SIZE - 1, b"xy")
            with pytest.raises(ReadOnly, match="a reader holds this image for reading only"):
                reader.try_write(0, b"x")
            assert await handle.read(0, 5) == bytes(array("H", [1, 2])) + b"\0"

    asyncio.run(main())


def test_whoever_writes_at_once_for_long_lets_others_have_a_turn() -> None:
    async def main() -> None:
        async with Graph() as graph:
            node = Willing("node", size=SIZE)
            graph.add(node)
            handle = graph.hold(node, "the test", WRITING)
            turn = asyncio.Event()
            asyncio.get_running_loop().call_soon(turn.set)
            for _ in range(2 * TURN // SIZE):
                await handle.write(0, bytes(SIZE))
            assert turn.is_set()

    asyncio.run(main())


def test_nothing_is_written_at_once_during_a_drain() -> None:
    async def main() -> None:
        async with Graph() as graph:
            node = Willing("node", size=SIZE)
            graph.add(node)
            handle = graph.hold(node, "the test", WRITING)
            async with handle.drained():
                assert not handle.try_write(0, b"x")
                write = asyncio.create_task(handle.write(0, b"x"))
                await turns()
                assert node.try_read(0, 1) == b"\0"
            await write
            assert node.try_read(0, 1) == b"x"

    asyncio.run(main())


def test_a_request_that_waits_while_the_handle_is_let_go_is_refused() -> None:
    async def scenario(graph: Graph, handle: Handle, plan: FaultPlan) -> None:
        await handle.traffic.drain()
        read = asyncio.create_task(handle.read(0, 1))
        await turns()
        await graph.release(handle)
        handle.traffic.release()
        with pytest.raises(GraphError, match="the test has let go"):
            await read

    with_handle(scenario)


def test_two_who_let_go_of_one_handle_both_succeed() -> None:
    async def scenario(graph: Graph, handle: Handle, plan: FaultPlan) -> None:
        read = asyncio.create_task(handle.read(0, 1))
        await plan.stopped.wait()
        letting_go = [asyncio.create_task(graph.release(handle)) for _ in range(2)]
        await turns()
        plan.go_on.set()
        await asyncio.gather(read, *letting_go)
        assert handle.closed

    with_handle(scenario, FaultPlan(stop_at=1))


def test_a_handle_for_reading_cannot_write_to_a_writable_node() -> None:
    async def scenario(graph: Graph, handle: Handle, plan: FaultPlan) -> None:
        reader = graph.hold(handle.node, "a reader", READING)
        assert reader.read_only
        assert not handle.read_only
        for change in (reader.write(0, b"x"), reader.discard(0, 1), reader.resize(0)):
            with pytest.raises(ReadOnly, match="a reader holds this image for reading only"):
                await change
        with pytest.raises(ReadOnly):
            await reader.write_zeroes(0, 1)

    with_handle(scenario)


def test_buffers_of_any_element_type_count_in_bytes() -> None:
    async def scenario(graph: Graph, handle: Handle, plan: FaultPlan) -> None:
        import array

        numbers = array.array("I", [1, 2, 3])
        with memoryview(numbers) as view:
            await handle.write(0, view)
        assert await handle.read(0, 12) == numbers.tobytes()
        found = array.array("I", [0, 0, 0])
        with memoryview(found) as view:
            await handle.read_into(0, view)
        assert found == numbers
        with pytest.raises(OutOfRange), memoryview(numbers) as view:
            await handle.write(SIZE - 4, view)

    with_handle(scenario)
