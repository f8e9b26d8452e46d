"""A disk of the daemon changes its graph while clients write to it over NBD: no byte is lost."""

import asyncio
import random
import subprocess
from pathlib import Path
from typing import Any

from tests.support.monitor import monitor
from vblk.graph.handle import Handle
from vblk.graph.registry import Graph
from vblk.opening import open_image

SIZE = 8 << 20
CLIENTS = 4
SHARE = SIZE // CLIENTS


class Guest:
    """A client with a share of the disk of its own: it writes, reads back and compares."""

    def __init__(self, handle: Handle, number: int) -> None:
        self.handle = handle
        self.start = number * SHARE
        self.content = bytearray(SHARE)
        self.dice = random.Random(number)
        self.rounds = 0
        self.leaving = False

    async def live(self) -> None:
        while not self.leaving:
            at = self.dice.randrange(SHARE - 30_000)
            length = self.dice.randrange(1, 30_000)
            if self.dice.random() < 0.2:
                self.content[at : at + length] = bytes(length)
                await self.handle.write_zeroes(self.start + at, length)
            else:
                data = self.dice.randbytes(length)
                self.content[at : at + length] = data
                await self.handle.write(self.start + at, data, fua=self.dice.random() < 0.1)
            look = self.dice.randrange(SHARE - 30_000)
            found = await self.handle.read(self.start + look, 30_000)
            assert found == self.content[look : look + 30_000]
            self.rounds += 1


async def rounds(guests: list[Guest], tasks: list["asyncio.Task[None]"], count: int = 5) -> None:
    """Let every guest go on for so many rounds."""
    wanted = [guest.rounds + count for guest in guests]
    while any(guest.rounds < rounds for guest, rounds in zip(guests, wanted, strict=True)):
        for task in tasks:
            if task.done():
                task.result()
        await asyncio.sleep(0)


def test_snapshots_filters_and_bitmaps_under_clients_lose_no_byte(tmp_path: Path) -> None:
    base, socket = tmp_path / "base.vhdx", tmp_path / "nbd.sock"
    subprocess.run(["qemu-img", "create", "-qf", "vhdx", str(base), str(SIZE)], check=True)

    async def session() -> bytes:
        async with monitor() as talk:
            address = {"type": "unix", "data": {"path": str(socket)}}
            await talk.call("nbd-server-start", addr=address)
            await talk.add("n", "vhdx", file={"driver": "file", "filename": str(base)})
            await talk.call("block-export-add", type="nbd", id="e", node_name="n", name="disk", writable=True)
            async with Graph() as outside:
                url = f"nbd+unix:///disk?socket={socket}"
                handles = [
                    await open_image(outside, url, format="raw", read_only=False) for _ in range(CLIENTS)
                ]
                guests = [Guest(handle, number) for number, handle in enumerate(handles)]
                tasks = [asyncio.create_task(guest.live()) for guest in guests]
                await rounds(guests, tasks)
                await _change_everything(talk.call, tmp_path, lambda: rounds(guests, tasks))
                for guest in guests:
                    guest.leaving = True
                await asyncio.gather(*tasks)
                content = b"".join(guest.content for guest in guests)
                assert await handles[0].read(0, SIZE) == content
        return content

    content = asyncio.run(session())

    async def look() -> None:
        async with Graph() as graph:
            handle = await open_image(graph, str(tmp_path / "two.vhdx"))
            assert await handle.read(0, SIZE) == content

    asyncio.run(look())


async def _change_everything(call: Any, folder: Path, live: Any) -> None:
    await call("object-add", **{"qom-type": "throttle-group", "id": "g", "limits": {"bps-total": 1 << 30}})
    await call("blockdev-add", driver="throttle", node_name="t", throttle_group="g", file="n")
    await call("blockdev-insert", node="n", filter="t")
    await live()
    await call("block-dirty-bitmap-add", node="n", name="b")
    await live()
    await _snapshot(call, "n", folder / "one.vhdx", "one")
    await live()
    marked = await _bitmap_of(call, "n")
    assert marked["count"] > 0
    await call("blockdev-remove", filter="t")
    await call("blockdev-del", node_name="t")
    await live()
    await call("blockdev-add", driver="copy-on-read", node_name="c", file="one")
    await call("blockdev-insert", node="one", filter="c")
    await live()
    await call("blockdev-remove", filter="c")
    await _snapshot(call, "one", folder / "two.vhdx", "two")
    await live()
    assert await _bitmap_of(call, "n") == marked, "written to below a snapshot"


async def _bitmap_of(call: Any, name: str) -> Any:
    """Return what is shown of the only bitmap of a node."""
    [node] = [each for each in await call("query-named-block-nodes") if each["node-name"] == name]
    [bitmap] = node["dirty-bitmaps"]
    return bitmap


async def _snapshot(call: Any, node: str, path: Path, name: str) -> None:
    await call(
        "blockdev-snapshot-sync",
        node_name=node,
        snapshot_file=str(path),
        snapshot_node_name=name,
        format="vhdx",
    )
