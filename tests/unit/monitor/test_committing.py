"""The commit job by QMP: what is vblk's own in it, filters, and what is refused."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.chain_lab import make_chain, names_of, shown
from tests.support.monitor import Monitor, monitor, told
from vblk.graph.edge import READING, WRITING, Role

FORMATS = ["raw", "qcow2", "qcow2", "qcow2"]
NAMES = names_of(FORMATS)


async def chain(talk: Monitor, folder: Path, filter: dict[str, Any] | None = None) -> None:
    """Add a chain, whose nodes are n0 (the base) to n3, with a filter over n1 if one is given."""
    below: dict[str, Any] = {}
    for number, name in enumerate(NAMES):
        file = {"driver": "file", "filename": str(folder / name)}
        node = {"driver": FORMATS[number], "node-name": f"n{number}", "file": file}
        below = node | ({"backing": below} if below else {})
        if number == 1 and filter is not None:
            below = {**filter, "node-name": "filter", "file": below}
    await talk.call("blockdev-add", **below)


def layers(**more: Any) -> dict[str, Any]:
    return {"job_id": "c", "device": "n3", "top_node": "n2", "base_node": "n0", **more}


def nodes(talk: Monitor) -> set[str]:
    return {node.name for node in talk.daemon.graph.nodes() if not node.name.startswith("#")}


@pytest.mark.parametrize(("top", "driver"), [("n2", "commit_top"), ("n3", "mirror_top")])
def test_a_filter_with_a_name_is_over_the_top_while_the_job_lives(
    tmp_path: Path, top: str, driver: str
) -> None:
    content = make_chain(tmp_path, FORMATS)

    async def session() -> None:
        async with monitor() as talk:
            await chain(talk, tmp_path)
            graph = talk.daemon.graph
            reader = graph.hold(graph.find("n3"), "a reader", READING)
            job = layers(top_node=top, auto_finalize=False)
            said = await talk.refused("block-commit", **job, filter_node_name="n1")
            assert said == "Duplicate nodes with node-name='n1'"
            said = await talk.refused("block-commit", **job, filter_node_name="1")
            assert said == "Invalid node-name: '1'"
            await talk.call("block-commit", **job, filter_node_name="over")
            begun = talk.daemon.jobs["c"]
            filter = graph.find("over")
            assert (filter.driver, filter.below) == (driver, graph.find(top))
            assert (reader.node if top == "n3" else reader.node.child(Role.BACKING)) is filter
            if top == "n3":
                await told(talk, "BLOCK_JOB_READY", device="c")
                await talk.call("job-complete", id="c")
            await told(talk, "BLOCK_JOB_PENDING", id="c")
            await talk.call("job-finalize", id="c")
            await begun.ended()
            assert begun.error is None
            left = {"n0", "n3"} if top == "n2" else {"n0", "n1", "n2", "n3"}
            assert nodes(talk) == left
            assert await reader.read(0, reader.size) == content

    asyncio.run(session())


def test_a_filter_inside_the_chain_goes_with_the_layers(tmp_path: Path) -> None:
    content = make_chain(tmp_path, FORMATS)

    async def session() -> None:
        async with monitor() as talk:
            await talk.call("object-add", qom_type="throttle-group", id="g")
            await chain(talk, tmp_path, {"driver": "throttle", "throttle-group": "g"})
            await talk.call("block-commit", **layers(speed=1))
            busy = await talk.refused("blockdev-remove", filter="filter")
            assert "Cannot change frozen" in busy
            job = talk.daemon.jobs["c"]
            await talk.call("block-job-set-speed", device="c", speed=0)
            await job.ended()
            assert job.error is None
            assert nodes(talk) == {"n0", "n3"}

    asyncio.run(session())
    assert asyncio.run(shown(tmp_path / "3.qcow2", "qcow2")) == content


def test_a_commit_that_died_behind_its_links_is_finished_by_the_same_command(tmp_path: Path) -> None:
    content = make_chain(tmp_path, FORMATS)
    journal = tmp_path / ".0.raw.vblk-journal"
    kept = b""

    async def begin() -> None:
        nonlocal kept
        async with monitor() as talk:
            await chain(talk, tmp_path)
            await talk.call("block-commit", **layers(resume=True, auto_finalize=False))
            await told(talk, "BLOCK_JOB_PENDING", id="c")
            job = talk.daemon.jobs["c"]
            await talk.call("job-finalize", id="c")
            kept = journal.read_bytes()
            await job.ended()
            assert job.error is None
            assert not journal.exists()

    async def again() -> None:
        async with monitor() as talk:
            file = {"driver": "file", "filename": str(tmp_path / NAMES[-1])}
            await talk.call("blockdev-add", driver="qcow2", node_name="n3", file=file)
            words = {"job_id": "c", "device": "n3", "top": str(tmp_path / NAMES[2]), "delete": True}
            said = await talk.refused("block-commit", **words, resume=True)
            assert said == f"Top image file {tmp_path / NAMES[2]} not found", "there is no journal"
            last = json.loads(kept.splitlines()[-1])
            journal.write_bytes(kept + json.dumps(last | {"above": 1, "is_linked": True}).encode() + b"\n")
            assert await talk.refused("block-commit", **words) == said, "nobody wants to go on"
            await talk.call("block-commit", **words, resume=True)
            job = talk.daemon.jobs["c"]
            await job.ended()
            assert job.error is None

    asyncio.run(begin())
    asyncio.run(again())
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAMES[0], NAMES[-1]]
    assert asyncio.run(shown(tmp_path / "3.qcow2", "qcow2")) == content


def test_layers_are_not_deleted_that_others_may_stand_on(tmp_path: Path) -> None:
    make_chain(tmp_path, FORMATS)
    journal = tmp_path / ".0.raw.vblk-journal"

    async def session() -> None:
        async with monitor() as talk:
            await chain(talk, tmp_path)
            await talk.call("block-commit", **layers(resume=True, auto_finalize=False))
            await told(talk, "BLOCK_JOB_PENDING", id="c")
            job = talk.daemon.jobs["c"]
            kept = journal.read_bytes()
            await talk.call("job-finalize", id="c")
            await job.ended()
            last = json.loads(kept.splitlines()[-1])
            journal.write_bytes(kept + json.dumps(last | {"above": 2}).encode() + b"\n")
            words = {"job_id": "c", "device": "n3", "top": NAMES[2], "delete": True, "resume": True}
            await talk.call("block-commit", **words)
            job = talk.daemon.jobs["c"]
            await job.ended()
            assert job.error == "more than one image stood on the layers: delete them when none does"
            assert (tmp_path / NAMES[1]).exists()

    asyncio.run(session())


def test_a_layer_that_is_no_file_here_is_not_deleted(tmp_path: Path) -> None:
    make_chain(tmp_path, FORMATS)

    async def session() -> None:
        async with monitor() as talk:
            data = (tmp_path / NAMES[2]).read_bytes()
            await talk.add("memory", "memory", size=len(data))
            writer = talk.daemon.graph.hold(talk.daemon.graph.find("memory"), "a writer", WRITING)
            await writer.write(0, data)
            await talk.daemon.graph.release(writer)
            below = {"driver": "qcow2", "file": {"driver": "file", "filename": str(tmp_path / NAMES[1])}}
            layer = {"driver": "qcow2", "node-name": "n2", "file": "memory", "backing": below}
            top = {"driver": "file", "filename": str(tmp_path / NAMES[3])}
            await talk.call("blockdev-add", driver="qcow2", node_name="n3", file=top, backing=layer)
            words = {"job_id": "c", "device": "n3", "top_node": "n2"}
            said = await talk.refused("block-commit", **words, delete=True)
            assert said == "'delete' is for files of this host, and node 'n2' is in none"
            said = await talk.refused("block-commit", **words, resume=True)
            assert "nobody can tell whether it has changed meanwhile" in said

    asyncio.run(session())
