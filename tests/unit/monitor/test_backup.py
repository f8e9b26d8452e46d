"""Backups by QMP: to a node, to a new image, of several disks at one instant, and what is refused."""

import asyncio
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import good
from tests.support.monitor import Monitor, monitor, told
from vblk.graph.edge import READING, WRITING
from vblk.graph.handle import Handle

SIZE = 1 << 20
OLD = random.Random(1).randbytes(SIZE)


async def disk(talk: Monitor, name: str = "disk", **options: Any) -> Handle:
    """Add a disk, fill it, and be its user."""
    await talk.add(name, options.pop("driver", "memory"), **(options or {"size": SIZE}))
    guest = talk.daemon.graph.hold(talk.daemon.graph.find(name), "the guest", WRITING)
    await guest.write(0, OLD)
    return guest


async def target(talk: Monitor, name: str = "target") -> Handle:
    """Add a node to back up to, and be its reader."""
    await talk.add(name, "memory", size=SIZE)
    return talk.daemon.graph.hold(talk.daemon.graph.find(name), "a reader", READING)


async def completed(talk: Monitor, id: str) -> None:
    """Wait until a job has ended, and see to it that it went well."""
    job = talk.daemon.jobs.get(id)
    if job is not None:
        await job.ended()
        assert job.error is None


def test_a_disk_is_backed_up_to_a_node_while_it_changes() -> None:
    async def session() -> None:
        async with monitor() as talk:
            guest, saved = await disk(talk), await target(talk)
            backup = {"job_id": "b", "device": "disk", "target": "target", "sync": "full"}
            await talk.call("blockdev-backup", **backup, filter_node_name="filter", auto_finalize=False)
            await guest.write(5000, b"new")
            assert guest.node.name == "filter"
            (shown,) = await talk.call("query-block-jobs")
            assert (shown["type"], shown["device"], shown["len"]) == ("backup", "b", SIZE)
            busy = "Node 'disk' is busy: block device is in use by block job: backup"
            assert await talk.refused("block_resize", node_name="disk", size=2 * SIZE) == busy
            assert await talk.refused("blockdev-backup", **{**backup, "job_id": "c"}) == busy.replace(
                "disk", "target"
            )
            assert await talk.refused("blockdev-remove", filter="filter") == busy.replace("disk", "filter")
            await told(talk, "BLOCK_JOB_PENDING", id="b")
            await talk.call("job-finalize", id="b")
            await completed(talk, "b")
            assert await saved.read(0, SIZE) == OLD
            assert guest.node.name == "disk"
            assert [node.name for node in talk.daemon.graph.nodes()] == ["disk", "target"]

    asyncio.run(session())


@pytest.mark.parametrize("format", ["raw", "vhdx", "qcow2"])
@pytest.mark.parametrize("sync", ["full", "top"])
def test_a_disk_is_backed_up_to_an_image_that_is_made(tmp_path: Path, format: str, sync: str) -> None:
    async def session() -> None:
        async with monitor() as talk:
            guest = await disk(talk)
            image = str(tmp_path / "target")
            await talk.call("drive-backup", device="disk", target=image, sync=sync, format=format)
            await guest.write(0, b"new")
            await completed(talk, "disk")

    asyncio.run(session())
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-f", format, "-O", "raw", tmp_path / "target", raw], check=True)
    assert raw.read_bytes() == OLD


def test_the_top_image_alone_is_backed_up_on_the_same_backing(tmp_path: Path) -> None:
    base, top, image = (str(tmp_path / name) for name in ("base", "top", "target"))
    Path(base).write_bytes(OLD)
    good("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top)

    async def session() -> None:
        async with monitor() as talk:
            await talk.add("disk", "qcow2", file={"driver": "file", "filename": top})
            guest = talk.daemon.graph.hold(talk.daemon.graph.find("disk"), "the guest", WRITING)
            await guest.write(SIZE // 2, b"t" * 512)
            await talk.call("drive-backup", device="disk", target=image, sync="top")
            await completed(talk, "disk")

    asyncio.run(session())
    assert f"backing file: {base}" in good("info", image)
    good("compare", "-q", top, image)
    allocated = good("map", image).splitlines()
    assert len(allocated) == 4, allocated


def test_backups_of_one_transaction_are_of_one_instant() -> None:
    async def session() -> None:
        async with monitor() as talk:
            guests = [await disk(talk, f"disk{number}") for number in range(3)]
            saved = [await target(talk, f"target{number}") for number in range(3)]
            ended = False

            async def write() -> None:
                for number in range(1, 1 << 30):
                    for guest in guests:  # each disk is never behind the next one
                        await guest.write(SIZE - 8, number.to_bytes(8, "big"))
                    await asyncio.sleep(0)
                    if ended:
                        return

            busy = asyncio.ensure_future(write())
            for _ in range(50):
                await asyncio.sleep(0)
            actions = [
                {
                    "type": "blockdev-backup",
                    "data": {"device": f"disk{at}", "target": f"target{at}", "sync": "full"},
                }
                for at in range(3)
            ]
            await talk.call("transaction", actions=actions, properties={"completion-mode": "grouped"})
            await asyncio.gather(*(completed(talk, f"disk{at}") for at in range(3)))
            ended = True
            await busy
            numbers = [int.from_bytes(await each.read(SIZE - 8, 8), "big") for each in saved]
            assert numbers[0] - 1 <= numbers[2] <= numbers[1] <= numbers[0]
            states = [data["status"] for name, data in talk.events if name == "JOB_STATUS_CHANGE"]
            assert states[:6] == ["created"] * 3 + ["running"] * 3

    asyncio.run(session())


def test_a_transaction_that_fails_leaves_no_job_and_frees_the_bitmap() -> None:
    async def session() -> None:
        async with monitor() as talk:
            guest = await disk(talk)
            await target(talk)
            add = {"type": "block-dirty-bitmap-add", "data": {"node": "disk", "name": "b"}}
            backup = {
                "type": "blockdev-backup",
                "data": {"device": "disk", "target": "target", "sync": "incremental", "bitmap": "b"},
            }
            last: dict[str, Any] = {"type": "abort", "data": {}}
            for properties in ({}, {"properties": {"completion-mode": "grouped"}}):
                said = await talk.refused("transaction", actions=[add, backup, last], **properties)
                assert said == "Transaction aborted using Abort action"
                assert talk.daemon.jobs == {}
                assert guest.node.name == "disk"
                assert guest.node.bitmaps == {}
            states = [data.get("status", name) for name, data in talk.events]
            assert states[:5] == ["created", "aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]

    asyncio.run(session())


def test_grouped_jobs_end_together(tmp_path: Path) -> None:
    async def session() -> None:
        async with monitor() as talk:
            guest = await disk(talk)
            await disk(talk, "other")
            await target(talk)
            rule = {"event": "write_aio", "errno": 5}
            image = {"driver": "memory", "size": SIZE}
            await talk.add("bad", "blkdebug", image=image, **{"inject-error": [rule]})
            actions = [
                {"type": "blockdev-backup", "data": {"device": name, "target": goal, "sync": "full"}}
                for name, goal in (("disk", "target"), ("other", "bad"))
            ]
            await talk.call("transaction", actions=actions, properties={"completion-mode": "grouped"})
            jobs = list(talk.daemon.jobs.values())
            await asyncio.gather(*(job.ended() for job in jobs))
            assert [job.error for job in jobs] == ["Operation canceled", "Input/output error"]
            assert guest.node.name == "disk"

    asyncio.run(session())


def test_an_incremental_backup_copies_what_changed_since_the_last_one() -> None:
    async def session() -> None:
        async with monitor() as talk:
            guest, saved = await disk(talk), await target(talk)
            await talk.call("block-dirty-bitmap-add", node="disk", name="b")
            backup = {"device": "disk", "target": "target"}
            await talk.call("blockdev-backup", **backup, sync="full", bitmap="b", bitmap_mode="on-success")
            await completed(talk, "disk")
            await guest.write(70_000, b"changed")
            writes = talk.daemon.graph.find("target")
            await writes.write(0, b"a mark")
            await talk.call("blockdev-backup", **backup, sync="incremental", bitmap="b")
            await completed(talk, "disk")
            copy = bytearray(OLD)
            copy[70_000:70_007] = b"changed"
            copy[:6] = b"a mark"
            assert await saved.read(0, SIZE) == copy
            assert not guest.node.bitmaps["b"].count

    asyncio.run(session())


def test_what_cannot_be_backed_up_is_refused_and_leaves_nothing() -> None:
    async def session() -> None:
        async with monitor() as talk:
            guest = await disk(talk)
            await target(talk)
            await talk.add("small", "memory", size=SIZE // 2)
            await talk.call("block-dirty-bitmap-add", node="disk", name="b")
            backup: dict[str, Any] = {"job_id": "b", "device": "disk", "target": "target", "sync": "full"}
            for more, said in (
                ({"target": "disk"}, "Source and target cannot be the same"),
                ({"target": "small"}, "Source and target image have different sizes"),
                ({"job_id": "1"}, "Invalid job ID '1'"),
                (
                    {"filter_node_name": "target"},
                    "Could not create node: Duplicate nodes with node-name='target'",
                ),
                ({"speed": -1}, "Parameter 'speed' expects a non-negative value"),
                ({"compress": True}, "Compression is not supported for this drive target"),
                ({"sync": "bitmap"}, "must provide a valid bitmap name for 'bitmap' sync mode"),
                ({"sync": "none", "bitmap": "b", "bitmap_mode": "always"}, None),
                ({"bitmap": "b"}, "Bitmap sync mode must be given when providing a bitmap"),
                ({"bitmap_mode": "always"}, "Cannot specify bitmap sync mode without a bitmap"),
                ({"bitmap": "c", "bitmap_mode": "always"}, "Bitmap 'c' could not be found"),
            ):
                answer = await talk.refused("blockdev-backup", **{**backup, **more})
                assert answer == said or said is None
            assert talk.daemon.jobs == {}
            assert guest.node.name == "disk"
            assert not guest.node.bitmaps["b"].busy
            for name in ("small",):
                await talk.call("blockdev-del", node_name=name)

    asyncio.run(session())
