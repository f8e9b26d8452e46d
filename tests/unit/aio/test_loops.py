"""The loop's choice and the clock over it."""

import asyncio
import sys

import pytest

from vblk.aio.clock import LoopClock
from vblk.aio.loops import run


async def loop_module() -> str:
    return type(asyncio.get_running_loop()).__module__


def test_a_program_runs_on_the_plain_loop_by_default() -> None:
    assert run(loop_module()).startswith("asyncio")


def test_a_program_of_sockets_runs_on_uvloop() -> None:
    pytest.importorskip("uvloop")
    assert run(loop_module(), sockets=True).startswith("uvloop")


def test_without_uvloop_the_plain_loop_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert run(loop_module(), sockets=True).startswith("asyncio")


def test_the_loop_clock_never_goes_back() -> None:
    async def scenario() -> None:
        clock = LoopClock()
        before = clock.now()
        await clock.sleep(0)
        assert clock.now() >= before

    asyncio.run(scenario())
