"""The throttle and the delay filter: which requests wait, on the test's own clock."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.support.manual_clock import ManualClock
from tests.support.turns import turns
from vblk.errors import OptionError
from vblk.filters.throttle import ThrottleNode
from vblk.graph.edge import WRITING
from vblk.graph.handle import Handle
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.objects import add_object
from vblk.opening import open_node
from vblk.options import from_mapping
from vblk.protocols.memory import MemoryNode
from vblk.runtime.throttling import ThrottleGroup, ThrottleLimits

SIZE = 64 << 10
SECOND = 10**9

REQUESTS: dict[str, Callable[[Handle], Awaitable[Any]]] = {
    "read": lambda handle: handle.read(0, 100),
    "read_into": lambda handle: handle.read_into(0, memoryview(bytearray(100))),
    "write": lambda handle: handle.write(0, bytes(100)),
    "write_zeroes": lambda handle: handle.write_zeroes(0, 100),
    "discard": lambda handle: handle.discard(0, 100),
    "flush": lambda handle: handle.flush(),
    "resolve": lambda handle: handle.resolve(0, 100),
    "allocation": lambda handle: handle.allocation(0, 100),
}


def with_filter(
    mapping: dict[str, Any], scenario: Callable[[Graph, Handle, ManualClock], Awaitable[None]], **limits: int
) -> None:
    async def main() -> None:
        async with Graph() as graph:
            clock = ManualClock()
            graph.clock = clock
            graph.objects.add("group", ThrottleGroup(clock, ThrottleLimits(**limits)))
            graph.add(MemoryNode("memory", size=SIZE))
            node = await open_node(
                graph, from_mapping({**mapping, "file": "memory"}), Request(read_only=False)
            )
            await scenario(graph, graph.hold(node, "the test", WRITING), clock)

    asyncio.run(main())


THROTTLE = {"driver": "throttle", "throttle-group": "group"}


@pytest.mark.parametrize(
    ("limit", "waiting"),
    [
        ("bps_total", {"read", "read_into", "write", "write_zeroes", "discard"}),
        ("bps_read", {"read", "read_into"}),
        ("iops_write", {"write", "write_zeroes", "discard"}),
    ],
)
def test_requests_that_count_wait_and_others_do_not(limit: str, waiting: set[str]) -> None:
    async def scenario(graph: Graph, handle: Handle, clock: ManualClock) -> None:
        for name, request in REQUESTS.items():
            first = asyncio.ensure_future(request(handle))
            await turns()
            if not first.done():
                clock.advance(1000)
            await first
            task = asyncio.ensure_future(request(handle))
            await turns()
            assert task.done() is (name not in waiting), name
            clock.advance(1000)
            await task

    with_filter(THROTTLE, scenario, **{limit: 1})


def test_a_read_at_once_counts_and_is_refused_when_the_limit_is_reached() -> None:
    async def scenario(graph: Graph, handle: Handle, clock: ManualClock) -> None:
        assert handle.try_read(0, 100) == bytes(100)
        assert handle.try_read(0, 100) is None
        clock.advance(10)
        assert handle.try_read(0, 100) == bytes(100)

    with_filter(THROTTLE, scenario, bps_total=100)


def test_a_drain_does_not_wait_for_the_limits_and_heeds_them_afterwards() -> None:
    async def scenario(graph: Graph, handle: Handle, clock: ManualClock) -> None:
        await handle.read(0, SIZE)
        reads = [asyncio.create_task(handle.read(0, SIZE)) for _ in range(3)]
        await turns()
        async with graph.drained(graph.find("memory")):
            assert all(read.done() for read in reads)
        late = asyncio.create_task(handle.read(0, SIZE))
        await turns()
        assert not late.done()
        await graph.release(handle)
        assert late.done()

    with_filter(THROTTLE, scenario, bps_total=1)


def test_a_node_that_joins_another_group_while_it_is_hurried_heeds_its_limits_afterwards() -> None:
    async def scenario(graph: Graph, handle: Handle, clock: ManualClock) -> None:
        node = handle.node
        assert isinstance(node, ThrottleNode)
        graph.objects.add("other", ThrottleGroup(clock, ThrottleLimits(bps_total=1)))
        node.hurry()
        node.prepare_options(graph.objects, {"throttle-group": "other"})()
        for _ in range(2):
            assert handle.try_read(0, 100) is not None
        node.heed()
        assert handle.try_read(0, 100) is None

    with_filter(THROTTLE, scenario, bps_total=1)


def test_nodes_of_one_group_share_its_limits_and_the_group_is_in_use() -> None:
    async def scenario(graph: Graph, handle: Handle, clock: ManualClock) -> None:
        other = await open_node(
            graph, from_mapping({**THROTTLE, "file": {"driver": "null-co", "size": SIZE}}), Request()
        )
        second = graph.hold(other, "another")
        await handle.read(0, 1000)
        assert second.try_read(0, 1) is None
        with pytest.raises(OptionError, match="object 'group' is in use, can not be deleted"):
            graph.objects.remove("group")
        assert isinstance(handle.node, ThrottleNode)
        group = handle.node.group
        await graph.release(second)
        assert len(group.members) == 1
        await graph.release(handle)
        graph.objects.remove("group")

    with_filter(THROTTLE, scenario, bps_total=1000)


def test_a_group_is_made_by_options_under_either_name_of_a_limit() -> None:
    async def scenario(graph: Graph, handle: Handle, clock: ManualClock) -> None:
        add_object(graph.objects, {"qom-type": "throttle-group", "id": "one", "x-iops-total": "7"})
        add_object(
            graph.objects,
            {
                "qom-type": "throttle-group",
                "id": "two",
                "limits.bps-read": 5,
                "limits.bps-read-max": 9,
                "limits.bps-read-max-length": 2,
            },
            strict=True,
        )
        assert graph.objects.throttle_group("one").limits == ThrottleLimits(iops_total=7)
        assert graph.objects.throttle_group("two").limits == ThrottleLimits(
            bps_read=5, bps_read_max=9, bps_read_max_length=2
        )
        with pytest.raises(OptionError, match="iops size requires"):
            add_object(graph.objects, {"qom-type": "throttle-group", "id": "bad", "x-iops-size": 5})
        with pytest.raises(OptionError, match="Throttle group 'nope' does not exist"):
            await open_node(
                graph,
                from_mapping({"driver": "throttle", "throttle-group": "nope", "file": "memory"}),
                Request(),
            )
        with pytest.raises(OptionError, match="Parameter 'throttle-group' is missing"):
            await open_node(graph, from_mapping({"driver": "throttle", "file": "memory"}), Request())

    with_filter(THROTTLE, scenario)


@pytest.mark.parametrize(
    ("kind", "waiting"),
    [
        ("read", {"read", "read_into"}),
        ("write", {"write", "write_zeroes", "discard"}),
        ("flush", {"flush"}),
    ],
)
def test_a_delay_lets_one_kind_of_request_wait_for_as_long_as_it_says(kind: str, waiting: set[str]) -> None:
    async def scenario(graph: Graph, handle: Handle, clock: ManualClock) -> None:
        assert (handle.try_read(0, 1) is None) is (kind == "read")
        for name, request in REQUESTS.items():
            task = asyncio.ensure_future(request(handle))
            await turns(10)
            assert task.done() is (name not in waiting), name
            clock.advance(1.9)
            await turns(10)
            assert task.done() is (name not in waiting), name
            clock.advance(0.2)
            await task

    with_filter({"driver": "delay", f"{kind}-latency-ns": 2 * SECOND}, scenario)


def test_a_drain_ends_delays() -> None:
    async def scenario(graph: Graph, handle: Handle, clock: ManualClock) -> None:
        read = asyncio.create_task(handle.read(0, 1))
        await turns()
        async with graph.drained(handle.node):
            assert read.done()

    with_filter({"driver": "delay", "read-latency-ns": SECOND}, scenario)


def test_a_request_that_is_cancelled_in_its_delay_is_over() -> None:
    async def scenario(graph: Graph, handle: Handle, clock: ManualClock) -> None:
        read = asyncio.create_task(handle.read(0, 1))
        await turns()
        read.cancel()
        with pytest.raises(asyncio.CancelledError):
            await read
        await turns()
        assert len(asyncio.all_tasks()) == 1
        assert not handle.traffic.in_flight

    with_filter({"driver": "delay", "read-latency-ns": SECOND}, scenario)


@pytest.mark.parametrize("latency", [-1, 3601 * SECOND])
def test_an_impossible_latency_is_refused(latency: int) -> None:
    async def scenario(graph: Graph, handle: Handle, clock: ManualClock) -> None:
        with pytest.raises(OptionError, match="a latency must be 0 to"):
            await open_node(
                graph,
                from_mapping({"driver": "delay", "read-latency-ns": latency, "file": "memory"}),
                Request(),
            )

    with_filter(THROTTLE, scenario)
