"""Fleecing: an overlay of a disk shows it as it was, while a guest writes to the disk."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import good
from tests.support.monitor import monitor
from vblk.errors import PermissionConflict
from vblk.extent import Kind
from vblk.filters.fleeced import Fleeced
from vblk.graph.edge import READING, WRITING
from vblk.graph.handle import Handle
from vblk.graph.node import Node
from vblk.units import KIB, MIB

SIZE = 4 * MIB


class Lab:
    """A guest's disk with a filter or a backup over it, and the overlay that shows what it was."""

    def __init__(self, talk: Any, guest: Handle, content: bytearray) -> None:
        self.talk = talk
        self.guest = guest
        self.old = bytes(content)
        self.content = content

    async def write(self, lot: random.Random) -> None:
        """Let the guest write somewhere."""
        offset = lot.randrange(0, SIZE - 64 * KIB, 512)
        data = lot.randbytes(lot.choice((512, 4 * KIB, 64 * KIB)))
        self.content[offset : offset + len(data)] = data
        await self.guest.write(offset, data)


def in_lab(folder: Path, form: str, scenario: Callable[[Lab], Awaitable[None]]) -> None:
    good("create", "-q", "-f", form, folder / "disk", str(SIZE))
    good("create", "-q", "-f", "qcow2", folder / "fleece", str(SIZE))

    async def main() -> None:
        async with monitor() as talk:
            graph = talk.daemon.graph
            await talk.add("disk", form, file={"driver": "file", "filename": str(folder / "disk")})
            guest = graph.hold(graph.find("disk"), "the guest", WRITING)
            content = bytearray(random.Random(1).randbytes(3 * MIB) + bytes(MIB))
            await guest.write(0, bytes(content[: 3 * MIB]))
            file = {"driver": "file", "filename": str(folder / "fleece")}
            await talk.add("fleece", "qcow2", file=file, backing="disk")
            room = Lab(talk, guest, content)
            await scenario(room)
            await graph.release(room.guest)

    asyncio.run(main())


async def shows_what_was(room: Lab, reader: Handle) -> None:
    """Read the overlay, in pieces and in all ways, while the guest writes."""
    lot = random.Random(2)
    for _ in range(60):
        writing = asyncio.gather(*(room.write(lot) for _ in range(4)))
        offset, length = lot.randrange(0, SIZE - MIB, 512), lot.choice((512, 64 * KIB, MIB))
        wanted = room.old[offset : offset + length]
        assert await reader.read(offset, length) == wanted
        assert (reader.try_read(offset, length) or wanted) == wanted
        buffer = bytearray(length)
        await reader.read_into(offset, memoryview(buffer))
        assert buffer == wanted
        spans = await reader.allocation(offset, length)
        assert all(span.kind is Kind.ZERO or span.leaf is reader.node for span in spans)
        await writing
    assert await reader.read(0, SIZE) == room.old
    assert await room.guest.read(0, SIZE) == room.content
    assert room.old != bytes(room.content)


@pytest.mark.parametrize("form", ["raw", "qcow2", "vhdx"])
def test_a_backup_of_nothing_into_an_overlay_of_the_disk_fleeces_it(tmp_path: Path, form: str) -> None:
    async def scenario(room: Lab) -> None:
        call, graph = room.talk.call, room.talk.daemon.graph
        await call("blockdev-backup", job_id="b", device="disk", target="fleece", sync="none")
        reader = graph.hold(graph.find("fleece"), "the backup program", READING)
        assert isinstance(reader.node, Fleeced)
        await shows_what_was(room, reader)
        await graph.release(reader)
        job = room.talk.daemon.jobs["b"]
        await call("block-job-cancel", device="b")
        await job.ended()
        assert not isinstance(graph.find("fleece"), Fleeced)
        assert room.guest.node.name == "disk"
        await call("blockdev-del", node_name="fleece")

    in_lab(tmp_path, form, scenario)


def test_a_filter_over_the_disk_fleeces_it(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        call, graph = room.talk.call, room.talk.daemon.graph
        await room.talk.add("cbw", "copy-before-write", file="disk", target="fleece")
        await call("blockdev-insert", node="disk", filter="cbw")
        reader = graph.hold(graph.find("fleece"), "the backup program", READING)
        await shows_what_was(room, reader)
        await graph.release(reader)
        await call("blockdev-remove", filter="cbw")
        await call("blockdev-del", node_name="cbw")
        assert not isinstance(graph.find("fleece"), Fleeced)
        await call("blockdev-del", node_name="fleece")

    in_lab(tmp_path, "raw", scenario)


def test_a_change_waits_for_who_is_reading_the_same_range(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        graph = room.talk.daemon.graph
        await room.talk.call("blockdev-backup", job_id="b", device="disk", target="fleece", sync="none")
        reader = graph.hold(graph.find("fleece"), "the backup program", READING)
        entered, leave = asyncio.Event(), asyncio.Event()
        let_wait(graph.find("disk").below, entered, leave)
        buffer = bytearray(64 * KIB)
        reading = asyncio.ensure_future(reader.read_into(0, memoryview(buffer)))
        await entered.wait()
        writing = asyncio.ensure_future(room.guest.write(0, b"new" * 1000))
        await asyncio.wait([writing], timeout=0.3)
        assert not writing.done()
        leave.set()
        await reading
        await writing
        assert buffer == room.old[: 64 * KIB]
        assert await reader.read(0, 64 * KIB) == room.old[: 64 * KIB]
        await graph.release(reader)
        await room.talk.call("block-job-cancel", device="b")

    in_lab(tmp_path, "raw", scenario)


def let_wait(node: Node | None, entered: asyncio.Event, leave: asyncio.Event) -> None:
    """Let the next read into a buffer wait, and tell that it does."""
    assert node is not None
    honest = type(node)

    async def read_into(self: Node, start: int, buffer: memoryview) -> None:
        node.__class__ = honest
        entered.set()
        await leave.wait()
        await honest.read_into(self, start, buffer)

    def try_read(self: Node, offset: int, length: int) -> None:
        """Have the read wait."""

    methods: dict[str, object] = {"read_into": read_into, "try_read": try_read}
    node.__class__ = type(honest.__name__, (honest,), methods)


def test_an_overlay_in_use_for_writing_lets_nobody_write_below_it(tmp_path: Path) -> None:
    async def scenario(room: Lab) -> None:
        graph = room.talk.daemon.graph
        with pytest.raises(PermissionConflict):
            graph.hold(graph.find("fleece"), "somebody", WRITING)
        with pytest.raises(PermissionConflict):
            graph.hold(graph.find("fleece"), "somebody", READING, READING)
        await graph.release(room.guest)
        writer = graph.hold(graph.find("fleece"), "somebody", WRITING)
        with pytest.raises(PermissionConflict):
            graph.hold(graph.find("disk"), "the guest", WRITING)
        await graph.release(writer)
        room.guest = graph.hold(graph.find("disk"), "the guest", WRITING)

    in_lab(tmp_path, "raw", scenario)
