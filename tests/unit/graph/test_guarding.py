"""A guarded node asks before each change, and tells when it has ended."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from vblk.errors import BlockError, OutOfRange
from vblk.graph.edge import WRITING
from vblk.graph.guarding import Guard, Guarded, Ticket, guard_node, is_guarded, unguard
from vblk.graph.handle import Handle
from vblk.graph.registry import Graph
from vblk.opening import open_image
from vblk.options import NodeOptions

SIZE = 1 << 20


class Porter(Guard):
    """Permits what it was told to; remembers everything."""

    def __init__(self) -> None:
        self.is_open = False
        self.seen: list[str] = []

    def enter(self, offset: int, length: int) -> Ticket | None:
        if not self.is_open:
            return None
        self.seen.append("begun")
        return offset, offset + length

    async def permit(self, offset: int, length: int) -> None:
        self.seen.append(f"asked for {length} at {offset}")
        self.is_open = True

    def leave(self, ticket: Ticket) -> None:
        self.seen.append("ended")

    def flushing(self) -> None:
        self.seen.append("flushing")


def guarded(scenario: Callable[[Handle, Porter], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Graph() as graph:
            options = NodeOptions(driver="memory", own={"size": SIZE})
            disk = await open_image(graph, options, read_only=False)
            porter = Porter()
            plain = type(disk.node)
            guard_node(disk.node, porter)
            assert is_guarded(disk.node)
            await scenario(graph.hold(disk.node, "the guest", WRITING), porter)
            unguard(disk.node)
            assert type(disk.node) is plain

    asyncio.run(main())


CHANGES: dict[str, Callable[[Handle], Awaitable[object]]] = {
    "write": lambda disk: disk.write(512, bytes(1024)),
    "write with fua": lambda disk: disk.write(512, bytes(1024), fua=True),
    "write_zeroes": lambda disk: disk.write_zeroes(512, 1024),
    "discard": lambda disk: disk.discard(512, 1024),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_waits_until_it_is_permitted(change: str) -> None:
    async def scenario(disk: Handle, porter: Porter) -> None:
        assert not disk.try_write(512, b"x" * 512)
        await CHANGES[change](disk)
        assert porter.seen[:2] == ["asked for 1024 at 512", "begun"]
        assert porter.seen.count("begun") == porter.seen.count("ended")

    guarded(scenario)


def test_a_place_ends_when_its_bytes_are_there() -> None:
    async def scenario(disk: Handle, porter: Porter) -> None:
        async with disk.node.place(0, 512):
            assert porter.seen == ["asked for 512 at 0", "begun"]
        assert porter.seen[2:] == ["ended"]

    guarded(scenario)


def test_a_flush_is_told_and_needs_no_permission() -> None:
    async def scenario(disk: Handle, porter: Porter) -> None:
        await disk.flush()
        assert porter.seen == ["flushing", "flushing"]

    guarded(scenario)


def test_a_change_that_fails_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(disk: Handle, porter: Porter) -> None:
        async def fails(*_: object, **__: object) -> None:
            raise OutOfRange("no")

        assert isinstance(disk.node, Guarded)
        monkeypatch.setattr(disk.node.unguarded, "write_zeroes", fails)
        with pytest.raises(BlockError):
            await disk.write_zeroes(0, 512)
        assert porter.seen == ["asked for 512 at 0", "begun", "ended"]

    guarded(scenario)
