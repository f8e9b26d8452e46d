"""Sweeps: the same scenario again and again, with trouble one operation later each time.

Owns: the loop, and the look for what a scenario left behind. Storage that
counts operations, and nothing else, decides when a sweep is at its end.
"""

import asyncio
from collections.abc import Awaitable, Callable

from vblk.graph.registry import Graph
from vblk.testing.faulty import FaultPlan

RUNS_MAX = 10_000
"""A scenario with more operations than this is not one for a sweep."""

Scenario = Callable[[FaultPlan], Awaitable[None]]


class Leak(AssertionError):
    """Something was left behind: a task, a request in flight, or a drain."""


async def each_failure(scenario: Scenario, *, forever: bool) -> int:
    """Run `scenario` with its first, second, ... operation failing, until all go well.

    The scenario sets up everything anew, catches the errors that it expects,
    and checks what must be true then; `plan.reached` tells it whether something
    failed.

    Returns: how many runs met their failure.

    Raises:
        Leak: A run left a task behind.
    """
    return await _sweep(scenario, lambda turn: FaultPlan(fail_at=turn, forever=forever))


async def each_cancellation(scenario: Scenario) -> int:
    """Run `scenario` with the task that it watches cancelled at the first, second, ... operation.

    The scenario hands the task to `plan.watch`.

    Returns: how many runs met their cancellation.

    Raises:
        Leak: A run left a task behind.
    """
    return await _sweep(scenario, lambda turn: FaultPlan(cancel_at=turn))


async def _sweep(scenario: Scenario, make_plan: Callable[[int], FaultPlan]) -> int:
    for turn in range(1, RUNS_MAX):
        plan = make_plan(turn)
        tasks = asyncio.all_tasks()
        await scenario(plan)
        left = [task for task in asyncio.all_tasks() - tasks if not task.done()]
        if left:
            raise Leak(f"operation {turn} left {len(left)} tasks behind: {left}")
        if not plan.reached:
            return turn - 1
    raise Leak(f"the scenario has more than {RUNS_MAX} operations")


def hold_everything_free(graph: Graph) -> None:
    """Check that no request is in flight in a graph, and that nothing is held back.

    Raises:
        Leak: Something is.
    """
    for handle in graph.handles():
        traffic = handle.traffic
        if traffic.in_flight or traffic.held:
            raise Leak(
                f"{handle.edge.user}: {traffic.in_flight} requests in flight, {traffic.held} drains under way"
            )
