"""The sweeps themselves: they end, count, and find what a scenario leaves behind."""

import asyncio

import pytest

from vblk.errors import StorageError
from vblk.graph.edge import WRITING
from vblk.graph.registry import Graph
from vblk.protocols.memory import MemoryNode
from vblk.testing import FaultPlan, FaultyNode, Leak, each_cancellation, each_failure, hold_everything_free


def test_a_sweep_meets_every_operation_once() -> None:
    met: list[int] = []

    async def scenario(plan: FaultPlan) -> None:
        node = FaultyNode("node", MemoryNode("memory", size=10), plan)
        try:
            await node.read(0, 1)
            await node.write(0, b"x")
        except StorageError:
            met.append(plan.count)

    assert asyncio.run(each_failure(scenario, forever=False)) == 4
    assert met == [1, 2, 3, 4]


def test_a_failure_for_ever_goes_on_until_it_is_disarmed() -> None:
    async def main() -> None:
        plan = FaultPlan(fail_at=2, forever=True)
        await plan.step("read")
        for _ in range(3):
            with pytest.raises(StorageError):
                await plan.step("read")
        plan.disarm()
        await plan.step("read")

    asyncio.run(main())


def test_a_plan_can_count_some_operations_only() -> None:
    async def main() -> None:
        plan = FaultPlan(fail_at=1, only=frozenset(("write",)))
        await plan.step("read")
        assert not plan.reached
        with pytest.raises(StorageError):
            await plan.step("write")

    asyncio.run(main())


def test_a_task_that_runs_on_is_a_leak() -> None:
    left: list[asyncio.Task[bool]] = []

    async def scenario(plan: FaultPlan) -> None:
        await plan.step("read")
        left.append(asyncio.create_task(asyncio.Event().wait()))

    with pytest.raises(Leak, match="left 1 tasks behind"):
        asyncio.run(each_cancellation(scenario))


def test_a_request_in_flight_and_a_drain_are_leaks() -> None:
    async def main() -> None:
        async with Graph() as graph:
            node = MemoryNode("memory", size=10)
            graph.add(node)
            handle = graph.hold(node, "the test", WRITING)
            hold_everything_free(graph)
            async with handle.traffic:
                with pytest.raises(Leak, match="1 requests in flight"):
                    hold_everything_free(graph)
            async with handle.drained():
                with pytest.raises(Leak, match="1 drains"):
                    hold_everything_free(graph)
            hold_everything_free(graph)

    asyncio.run(main())
