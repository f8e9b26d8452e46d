"""The mirror job by QMP: to a node, to a new image, and what is refused."""

import asyncio
from pathlib import Path

import pytest

from tests.support.chain_lab import make_chain
from tests.support.monitor import Monitor, monitor, told
from vblk.graph.edge import READING, WRITING, Role
from vblk.graph.handle import Handle

SIZE = 1 << 20


async def disk(talk: Monitor) -> Handle:
    """Add a disk with something on it, and be its user."""
    await talk.add("disk", "memory", size=SIZE)
    guest = talk.daemon.graph.hold(talk.daemon.graph.find("disk"), "the guest", WRITING)
    await guest.write(4096, b"content")
    return guest


async def ready(talk: Monitor, id: str) -> None:
    """Wait until a job is ready."""
    await told(talk, "BLOCK_JOB_READY", device=id)


def test_a_disk_is_mirrored_to_a_node_and_its_user_goes_on_there() -> None:
    async def session() -> None:
        async with monitor() as talk:
            guest = await disk(talk)
            await talk.add("target", "memory", size=SIZE)
            await talk.call("blockdev-mirror", job_id="m", device="disk", target="target", sync="full")
            await ready(talk, "m")
            (shown,) = await talk.call("query-block-jobs")
            assert (shown["type"], shown["ready"], shown["len"], shown["offset"]) == (
                "mirror",
                True,
                SIZE,
                SIZE,
            )
            (node,) = [
                each for each in await talk.call("query-named-block-nodes") if each["node-name"] == "disk"
            ]
            assert "dirty-bitmaps" not in node, "the job's own bitmap is nobody's business"
            busy = "Node 'disk' is busy: block device is in use by block job: mirror"
            assert await talk.refused("block_resize", node_name="disk", size=2 * SIZE) == busy
            job = talk.daemon.jobs["m"]
            await talk.call("block-job-complete", device="m")
            await job.ended()
            assert guest.node.name == "target"
            assert await guest.read(4096, 7) == b"content"
            await talk.call("blockdev-del", node_name="disk")

    asyncio.run(session())


@pytest.mark.parametrize("format", ["raw", "vhdx", "qcow2"])
def test_a_disk_is_mirrored_to_an_image_that_is_made(tmp_path: Path, format: str) -> None:
    async def session() -> None:
        async with monitor() as talk:
            guest = await disk(talk)
            target = str(tmp_path / "target")
            await talk.call("drive-mirror", device="disk", target=target, sync="full", format=format)
            await ready(talk, "disk")
            job = talk.daemon.jobs["disk"]
            await talk.call("block-job-complete", device="disk")
            await job.ended()
            assert (guest.node.driver, guest.node.filename) == (format, target)
            assert await guest.read(4096, 7) == b"content"

    asyncio.run(session())


def test_what_cannot_be_mirrored_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    async def session() -> None:
        async with monitor() as talk:
            await disk(talk)
            await talk.add("target", "memory", size=SIZE)
            mirror = {"job_id": "m", "device": "disk", "sync": "full"}
            for arguments, said in (
                ({**mirror, "target": "disk"}, "Can't mirror node into itself"),
                ({**mirror, "target": "none"}, "Cannot find device='none' nor node-name='none'"),
                ({**mirror, "target": "target", "granularity": 100}, None),
                ({**mirror, "target": "target", "buf_size": -1}, "Invalid parameter 'buf-size'"),
                ({**mirror, "target": "target", "converge": -1}, "Invalid parameter 'converge'"),
                ({**mirror, "target": "target", "sync": "bitmap"}, "Sync mode 'bitmap' not supported"),
                ({**mirror, "target": "target", "replaces": "x"}, "Failed to find node with node-name='x'"),
                ({**mirror, "target": "target", "replaces": "target"}, None),
                ({**mirror, "target": "target", "job_id": "1"}, "Invalid job ID '1'"),
            ):
                answer = await talk.refused("blockdev-mirror", **arguments)
                assert answer == said or said is None
            assert (talk.daemon.jobs, talk.events) == ({}, [])
            await talk.call("blockdev-del", node_name="target")

    asyncio.run(session())


@pytest.mark.parametrize("state", ["ready", "standby", "pending"])
def test_a_daemon_ends_whatever_its_job_waits_for(state: str) -> None:
    async def session() -> None:
        async with monitor() as talk:
            guest = await disk(talk)
            await talk.add("target", "memory", size=SIZE)
            mirror = {"job_id": "m", "device": "disk", "target": "target", "sync": "full"}
            await talk.call("blockdev-mirror", **mirror, auto_finalize=False)
            await ready(talk, "m")
            if state == "standby":
                await talk.call("job-pause", id="m")
            elif state == "pending":
                await talk.call("job-complete", id="m")
            await told(talk, "JOB_STATUS_CHANGE", id="m", status=state)
            job = talk.daemon.jobs["m"]
            writing = asyncio.create_task(guest.write(0, b"late"))  # held back while the job is pending
            await asyncio.wait_for(talk.daemon.close(), 60)
            await writing
            assert job.error == "Operation canceled"

    asyncio.run(session())


def test_a_running_mirror_takes_on_another_copy_mode_and_tells_how_it_gets_on() -> None:
    async def session() -> None:
        async with monitor() as talk:
            guest = await disk(talk)
            await talk.add("target", "memory", size=SIZE)
            await talk.call("blockdev-mirror", job_id="m", device="disk", target="target", sync="full")
            await ready(talk, "m")
            await talk.call("block-job-change", id="m", type="mirror", copy_mode="write-blocking")
            await guest.write(0, b"both")
            target = talk.daemon.graph.find("target")
            assert await target.read(0, 4) == b"both"
            (shown,) = await talk.call("query-job-progress")
            assert list(shown)[:5] == ["id", "type", "status", "offset", "length"]
            assert (shown["copy-mode"], shown["dirty-bytes"]) == ("write-blocking", 0)
            assert "reason" not in shown
            said = await talk.refused("block-job-change", id="m", type="mirror")
            assert said == "Parameter 'copy-mode' is missing"
            said = await talk.refused("block-job-change", id="x", type="mirror", converge=1)
            assert said == "Block job 'x' not found"
            await talk.call("block-job-pause", device="m")
            await told(talk, "JOB_STATUS_CHANGE", id="m", status="standby")
            (shown,) = await talk.call("query-job-progress")
            assert shown["reason"] == "it is paused: resume it"
            busy = "Node 'disk' is busy: block device is in use by block job: mirror"
            await talk.add("second", "memory", size=SIZE)
            second = {"job_id": "n", "device": "disk", "target": "second", "sync": "full"}
            assert await talk.refused("blockdev-mirror", **second) == busy

    asyncio.run(session())


@pytest.mark.parametrize("end", ["complete", "cancel", "force"])
def test_a_filter_with_a_name_is_over_the_disk_while_the_job_lives(end: str) -> None:
    async def session() -> None:
        async with monitor() as talk:
            guest = await disk(talk)
            await talk.add("target", "memory", size=SIZE)
            mirror = {"job_id": "m", "device": "disk", "target": "target", "sync": "full"}
            said = await talk.refused("blockdev-mirror", **mirror, filter_node_name="disk")
            assert said == "Duplicate nodes with node-name='disk'"
            said = await talk.refused("blockdev-mirror", **mirror, filter_node_name="1")
            assert said == "Invalid node-name: '1'"
            await talk.call("blockdev-mirror", **mirror, filter_node_name="top", copy_mode="write-blocking")
            await ready(talk, "m")
            assert (guest.node.name, guest.node.driver) == ("top", "mirror_top")
            await guest.write(0, b"through the filter")
            job = talk.daemon.jobs["m"]
            if end == "complete":
                await talk.call("block-job-complete", device="m")
            else:
                await talk.call("block-job-cancel", device="m", force=end == "force")
            await job.ended()
            assert guest.node.name == ("target" if end == "complete" else "disk")
            assert await guest.read(0, 18) == b"through the filter"
            assert all(node.name != "top" for node in talk.daemon.graph.nodes())
            assert talk.daemon.graph.users(talk.daemon.graph.find("disk")) == (
                [] if end == "complete" else [guest.edge]
            )

    asyncio.run(session())


@pytest.mark.parametrize("format", ["vhdx", "qcow2"])
def test_the_top_of_a_chain_is_mirrored_to_an_image_on_the_same_backing_image(
    tmp_path: Path, format: str
) -> None:
    base, top = make_chain(tmp_path, [format] * 2, [SIZE * 3, SIZE * 3]), tmp_path / f"1.{format}"

    async def session() -> None:
        async with monitor() as talk:
            graph = talk.daemon.graph
            await talk.add("top", format, file={"driver": "file", "filename": str(top)})
            guest = graph.hold(graph.find("top"), "the guest", WRITING)
            backing = graph.find("top").child(Role.BACKING)
            (tmp_path / "elsewhere").mkdir()
            target = str(tmp_path / "elsewhere" / "target")
            await talk.call(
                "drive-mirror", job_id="m", device="top", target=target, sync="top", format=format
            )
            await ready(talk, "m")
            await guest.write(5000, b"late")
            job = talk.daemon.jobs["m"]
            await talk.call("block-job-complete", device="m")
            await job.ended()
            assert job.error is None
            assert guest.node.filename == target
            assert guest.node.child(Role.BACKING) is backing
            assert await guest.read(0, len(base)) == base[:5000] + b"late" + base[5004:]

    asyncio.run(session())


def test_a_copy_that_somebody_else_uses_is_not_replaced(tmp_path: Path) -> None:
    async def session() -> None:
        async with monitor() as talk:
            graph = talk.daemon.graph
            for name in ("a", "b", "target"):
                await talk.add(name, "memory", size=SIZE)
            await talk.add("q", "quorum", vote_threshold=1, children=["a", "b"])
            other = graph.hold(graph.find("a"), "somebody", READING)
            mirror = {"job_id": "m", "device": "q", "sync": "full", "replaces": "a"}
            assert await talk.refused("blockdev-mirror", **mirror, target="target") == (
                "Cannot replace 'a' by a node mirrored from 'q', because it cannot be guaranteed"
                " that doing so would not lead to an abrupt change of visible data"
            )
            await graph.release(other)
            said = await talk.refused("drive-mirror", **mirror, target=str(tmp_path / "new"), format="raw")
            assert said == "a node-name must be provided when replacing a named node of the graph"
            assert not (tmp_path / "new").exists()
            await talk.call("blockdev-mirror", **mirror, target="target")
            await ready(talk, "m")
            job = talk.daemon.jobs["m"]
            await talk.call("block-job-complete", device="m")
            await job.ended()
            assert graph.find("q").children["children.0"].node.name == "target"

    asyncio.run(session())
