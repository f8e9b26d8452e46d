"""Nodes that come and go below others, votes, limits: what QMP changes while all goes on."""

import asyncio
from pathlib import Path

from tests.support.monitor import monitor


def test_a_format_goes_on_over_a_raw_node_that_is_put_below_it(tmp_path: Path) -> None:
    """As QEMU's test reopen-file has it."""
    path = str(tmp_path / "a.vhdx")

    async def session() -> None:
        async with monitor() as talk:
            await talk.call(
                "blockdev-create", job_id="j", options={"driver": "file", "filename": path, "size": 0}
            )
            await talk.daemon.jobs["j"].ended()
            file = {"driver": "file", "filename": path, "node-name": "file"}
            await talk.add("file", "file", filename=path)
            await talk.call(
                "blockdev-create", job_id="k", options={"driver": "vhdx", "file": "file", "size": 8 << 20}
            )
            await talk.daemon.jobs["k"].ended()
            await talk.add("format", "vhdx", file=file["node-name"])
            await talk.add("raw", "raw", file="file")
            options = {"driver": "vhdx", "node-name": "format", "file": "raw"}
            await talk.call("blockdev-reopen", options=[options])
            shown = await talk.call("x-debug-query-block-graph")
            names = {node["id"]: node["name"] for node in shown["nodes"]}
            assert {(names[edge["parent"]], names[edge["child"]]) for edge in shown["edges"]} == {
                ("format", "raw"),
                ("raw", "file"),
            }
            for line in ("write -P 42 0 64k", "read -P 42 0 64k"):
                answer = await talk.call("human-monitor-command", command_line=f'qemu-io format "{line}"')
                assert answer.startswith(("wrote 65536/65536", "read 65536/65536"))

    asyncio.run(session())


def test_children_of_a_quorum_come_and_go(tmp_path: Path) -> None:
    async def session() -> None:
        async with monitor() as talk:
            for name in ("a", "b", "c"):
                await talk.add(name, "memory", size=1 << 20)
            await talk.add("small", "memory", size=1 << 10)
            await talk.add("q", "quorum", vote_threshold=2, children=["a", "b"])
            change = "x-blockdev-change"
            assert await talk.refused(change, parent="q", child="children.0") == (
                "The number of children cannot be lower than the vote threshold 2"
            )
            await talk.call(change, parent="q", node="c")
            assert await talk.refused("blockdev-del", node_name="c") == "Block device c is in use"
            await talk.call(change, parent="q", child="children.0")
            await talk.call("blockdev-del", node_name="a")
            answer = await talk.call("human-monitor-command", command_line='qemu-io q "write -P 7 0 4k"')
            assert answer.startswith("wrote 4096/4096")
            for arguments, said in (
                ({"parent": "q"}, "Either child or node must be specified"),
                ({"parent": "q", "child": "x", "node": "c"}, "The parameters child and node are in conflict"),
                ({"parent": "q", "child": "x"}, "Node 'q' does not have child 'x'"),
                ({"parent": "q", "node": "x"}, "Node 'x' not found"),
                ({"parent": "q", "node": "small"}, "Node 'small' is not as long as the children of 'q'"),
                ({"parent": "c", "node": "b"}, "The node c does not support adding a child"),
            ):
                assert await talk.refused(change, **arguments) == said

    asyncio.run(session())


def test_a_flood_of_events_of_one_node_is_told_once_and_its_last_later() -> None:
    async def session() -> None:
        async with monitor() as talk:
            graph = talk.daemon.graph
            for number in range(5):
                graph.report("QUORUM_FAILURE", {"reference": "q", "sector-num": number, "sectors-count": 1})
            graph.report("QUORUM_FAILURE", {"reference": "p", "sector-num": 9, "sectors-count": 1})
            assert [data["sector-num"] for _, data in talk.events] == [0, 9]
            talk.daemon.tell_waiting()
            assert [data["sector-num"] for _, data in talk.events] == [0, 9, 4]

    asyncio.run(session())


def test_limits_of_a_throttle_group_are_shown_and_changed() -> None:
    async def session() -> None:
        async with monitor() as talk:
            await talk.call("object-add", qom_type="throttle-group", id="t", limits={"iops-total": 10})
            await talk.call("object-add", qom_type="secret", id="s", data="x")
            limits = await talk.call("qom-get", path="/objects/t", property="limits")
            assert (limits["iops-total"], limits["bps-total"], limits["bps-read-max-length"]) == (10, 0, 1)
            await talk.call("qom-set", path="t", property="limits", value={"iops-read": 5})
            limits = await talk.call("qom-get", path="t", property="limits")
            assert (limits["iops-total"], limits["iops-read"]) == (0, 5)
            for path, name, said in (
                ("x", "limits", "Device 'x' not found"),
                ("t", "x", "Property 'throttle-group.x' not found"),
                ("s", "data", "Property 'object.data' not found"),
            ):
                assert await talk.refused("qom-get", path=path, property=name) == said
            assert "cannot be used at the same time" in await talk.refused(
                "qom-set", path="t", property="limits", value={"iops-read": 5, "iops-total": 1}
            )

    asyncio.run(session())
