"""What the commands do to a daemon, and what they refuse."""

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.monitor import Monitor, monitor
from vblk.creating import creator_of
from vblk.filters.events import Event, find_listener
from vblk.graph.edge import WRITING
from vblk.graph.registry import Graph
from vblk.monitor.blockdev import CHILDREN, drivers, options_of
from vblk.opening import FILTERS, FORMATS, PROTOCOLS, open_image


def files(folder: Path, **lengths: int) -> dict[str, str]:
    """Make files of zeros; return their paths by name."""
    for name, length in lengths.items():
        (folder / name).write_bytes(bytes(length))
    return {name: str(folder / name) for name in lengths}


async def add_raw(talk: Monitor, name: str, path: str, **options: Any) -> None:
    file = {"driver": "file", "filename": path, "node-name": f"{name}-file"}
    await talk.add(name, "raw", file=file, **options)


def test_every_driver_can_be_named_and_has_its_children_in_the_table() -> None:
    assert set(drivers()) == {*PROTOCOLS, *FORMATS, *FILTERS}
    assert all(options_of(driver) for driver in drivers())
    assert set(FORMATS) <= CHILDREN.keys()
    assert set(FILTERS) <= CHILDREN.keys()


def test_nodes_are_added_shown_resized_and_deleted(tmp_path: Path) -> None:
    paths = files(tmp_path, a=1 << 20)

    async def session() -> None:
        async with monitor() as talk:
            await add_raw(talk, "n", paths["a"])
            top, below = await talk.call("query-named-block-nodes")
            assert (top["node-name"], top["drv"], top["ro"], top["file"]) == ("n", "raw", False, paths["a"])
            assert (below["node-name"], below["drv"]) == ("n-file", "file")
            await talk.call("block_resize", node_name="n", size=3 << 20)
            assert await talk.refused("block_resize", node_name="n", size=-1) == (
                "Parameter 'size' expects a >0 size"
            )
            assert await talk.refused("blockdev-del", node_name="n-file") == (
                "Node n-file is not owned by the monitor"
            )
            await talk.call("blockdev-del", node_name="n")
            assert await talk.call("query-named-block-nodes") == []

    asyncio.run(session())
    assert (tmp_path / "a").stat().st_size == 3 << 20


def test_a_node_that_does_not_open_leaves_nothing(tmp_path: Path) -> None:
    paths = files(tmp_path, a=1 << 20)

    async def session() -> None:
        async with monitor() as talk:
            file = {"driver": "file", "filename": paths["a"]}
            assert await talk.refused("blockdev-add", driver="vhdx", node_name="v", file=file) == (
                "not a VHDX file: it does not start with the signature 'vhdxfile'"
            )
            await talk.add("n")
            assert await talk.refused("blockdev-add", driver="raw", node_name="n", file=file) == (
                "Duplicate nodes with node-name='n'"
            )
            assert await talk.refused("blockdev-add", driver="raw", file=file) == (
                "'node-name' must be specified for the root node"
            )
            assert [node["node-name"] for node in await talk.call("query-named-block-nodes")] == ["n"]

    asyncio.run(session())


def test_the_graph_is_shown_with_its_users() -> None:
    async def session() -> None:
        async with monitor() as talk:
            await talk.add("n")
            await talk.call(
                "nbd-server-start", addr={"type": "inet", "data": {"host": "127.0.0.1", "port": "0"}}
            )
            await talk.call("block-export-add", type="nbd", id="e", node_name="n", writable=True)
            shown = await talk.call("x-debug-query-block-graph")
            assert [node["name"] for node in shown["nodes"]] == ["n", "export 'e'"]
            (edge,) = shown["edges"]
            assert edge["name"] == "root"
            assert edge["perm"] == ["write", "consistent-read"]
            assert edge["shared-perm"] == ["write-unchanged", "write", "consistent-read"]

    asyncio.run(session())


def test_exports_end_with_an_event_each() -> None:
    async def session() -> None:
        async with monitor() as talk:
            await talk.add("n")
            export = {"type": "nbd", "node_name": "n"}
            assert await talk.refused("block-export-add", id="e", **export) == "NBD server not running"
            await talk.call(
                "nbd-server-start", addr={"type": "inet", "data": {"host": "127.0.0.1", "port": "0"}}
            )
            await talk.call("block-export-add", id="e", **export)
            assert await talk.refused("block-export-add", id="e", **export) == (
                "Block export id 'e' is already in use"
            )
            assert await talk.refused("block-export-add", id="f", **export) == (
                "NBD server already has export named 'n'"
            )
            assert await talk.refused("block-export-add", id="f!", **export) == "Invalid block export id"
            assert await talk.refused("block-export-add", id="f", name="f", bitmaps=["b"], **export) == (
                "Bitmap 'b' is not found"
            )
            await talk.call("nbd-server-add", device="n", name="g")
            await talk.call("nbd-server-remove", name="g")
            await talk.call("nbd-server-stop")
            assert await talk.refused("nbd-server-stop") == "NBD server not running"
            assert talk.events == [
                ("BLOCK_EXPORT_DELETED", {"id": "g"}),
                ("BLOCK_EXPORT_DELETED", {"id": "e"}),
            ]

    asyncio.run(session())


def test_a_daemon_ends_though_a_request_of_a_client_is_stopped_at_a_breakpoint(tmp_path: Path) -> None:
    path = str(tmp_path / "nbd")

    async def session() -> None:
        async with monitor() as talk, Graph() as elsewhere:
            await talk.add("m", "memory", size=1 << 20)
            await talk.add("n", "blkdebug", image="m")
            await talk.call("nbd-server-start", addr={"type": "unix", "data": {"path": path}})
            await talk.call("block-export-add", id="e", type="nbd", node_name="n")
            client = await open_image(elsewhere, f"nbd+unix:///n?socket={path}", format="raw")
            listener = find_listener(talk.daemon.graph.find("n"))
            assert listener is not None
            listener.add_breakpoint(Event.READ_AIO, "A")
            reading = asyncio.create_task(client.read(0, 512))
            await listener.wait_stopped("A")
            await asyncio.wait_for(talk.daemon.close(), 60)
            assert await reading == bytes(512)

    asyncio.run(session())


def test_a_transaction_that_fails_leaves_no_trace() -> None:
    async def session() -> None:
        async with monitor() as talk:
            await talk.add("n", size=1 << 20)
            await talk.call("block-dirty-bitmap-add", node="n", name="kept", disabled=True)
            actions = [
                {"type": "block-dirty-bitmap-add", "data": {"node": "n", "name": "new"}},
                {"type": "block-dirty-bitmap-enable", "data": {"node": "n", "name": "kept"}},
                {"type": "block-dirty-bitmap-clear", "data": {"node": "n", "name": "new"}},
                {"type": "block-dirty-bitmap-remove", "data": {"node": "n", "name": "new"}},
            ]
            abort: dict[str, Any] = {"type": "abort", "data": {}}
            assert await talk.refused("transaction", actions=[*actions, abort]) == (
                "Transaction aborted using Abort action"
            )
            (node,) = await talk.call("query-named-block-nodes")
            (bitmap,) = node["dirty-bitmaps"]
            assert (bitmap["name"], bitmap["recording"]) == ("kept", False)
            await talk.call("transaction", actions=actions)
            (node,) = await talk.call("query-named-block-nodes")
            (bitmap,) = node["dirty-bitmaps"]
            assert (bitmap["name"], bitmap["recording"]) == ("kept", True)

    asyncio.run(session())


def test_a_merge_of_bitmaps_is_of_all_or_of_none() -> None:
    async def session() -> None:
        async with monitor() as talk:
            await talk.add("n", size=1 << 20)
            for name in ("a", "b"):
                await talk.call("block-dirty-bitmap-add", node="n", name=name)
            await talk.call("block-dirty-bitmap-merge", node="n", target="a", bitmaps=["b"])
            await talk.call(
                "block-dirty-bitmap-merge", node="n", target="a", bitmaps=[{"node": "n", "name": "b"}]
            )
            digest = "x-debug-block-dirty-bitmap-sha256"
            same = [await talk.call(digest, node="n", name=name) for name in ("a", "b")]
            assert same[0] == same[1]
            talk.daemon.find_either("n").bitmaps["a"].mark(0, 1)
            assert await talk.call(digest, node="n", name="a") != same[1]
            assert await talk.refused(
                "block-dirty-bitmap-merge", node="n", target="a", bitmaps=["b", "c"]
            ) == ("Dirty bitmap 'c' not found")

    asyncio.run(session())


@pytest.mark.parametrize("form", ["qcow2", "vhdx"])
def test_an_image_is_made_by_a_job_and_put_on_another_as_a_snapshot(tmp_path: Path, form: str) -> None:
    base, overlay = str(tmp_path / f"base.{form}"), str(tmp_path / f"over.{form}")

    async def make(talk: Monitor, **options: Any) -> str | None:
        await talk.call("blockdev-create", job_id="j", options=options)
        await talk.daemon.jobs["j"].ended()
        (job,) = await talk.call("query-jobs")
        await talk.call("job-dismiss", id="j")
        error: str | None = job.get("error")
        return error

    async def session() -> None:
        async with monitor() as talk:
            assert await make(talk, driver="file", filename=base, size=0) is None
            file = {"driver": "file", "filename": base}
            assert await make(talk, driver=form, file=file, size=8 << 20) is None
            assert [data["status"] for _, data in talk.events[:6]] == [
                "created",
                "running",
                "waiting",
                "pending",
                "concluded",
                "null",
            ]
            assert await make(talk, driver=form, file="nobody", size=8 << 20) == (
                "Cannot find device='nobody' nor node-name='nobody'"
            )
            await talk.add("n", form, file=file)
            await talk.call(
                "blockdev-snapshot-sync",
                node_name="n",
                snapshot_file=overlay,
                snapshot_node_name="s",
                format=form,
            )
            shown = {node["node-name"]: node for node in await talk.call("query-named-block-nodes")}
            assert shown["s"]["image"]["backing-image"]["filename"] == base
            assert (shown["n"]["ro"], shown["s"]["ro"]) == (True, False)
            assert await talk.refused("blockdev-snapshot", node="n", overlay="s") == (
                "The overlay already has a backing image"
            )
            await talk.call("blockdev-del", node_name="s")
            await talk.call("blockdev-del", node_name="n")

    asyncio.run(session())


def test_a_snapshot_in_a_transaction_that_fails_is_taken_off(tmp_path: Path) -> None:
    base, overlay = str(tmp_path / "base.qcow2"), str(tmp_path / "over.qcow2")

    async def session() -> None:
        async with monitor() as talk:
            options = {"driver": "file", "filename": base, "size": 0}
            await talk.call("blockdev-create", job_id="j", options=options)
            await talk.daemon.jobs["j"].ended()
            await talk.call(
                "blockdev-create",
                job_id="k",
                options={"driver": "qcow2", "file": {"driver": "file", "filename": base}, "size": 1 << 20},
            )
            await talk.daemon.jobs["k"].ended()
            await talk.add("n", "qcow2", file={"driver": "file", "filename": base})
            snapshot = {"node-name": "n", "snapshot-file": overlay, "snapshot-node-name": "s"}
            actions: list[dict[str, Any]] = [
                {"type": "blockdev-snapshot-sync", "data": snapshot},
                {"type": "abort", "data": {}},
            ]
            assert await talk.refused("transaction", actions=actions) == (
                "Transaction aborted using Abort action"
            )
            shown = {node["node-name"]: node for node in await talk.call("query-named-block-nodes")}
            assert "s" not in shown
            assert shown["n"]["ro"] is False

    asyncio.run(session())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"block-size": 1234567}, "Block size must be a multiple of 1 MB"),
        ({"block-size": 3 << 20}, "Block size must be a power of two"),
        ({"block-size": 512 << 20}, "Block size must not exceed 268435456"),
        ({"log-size": 128}, "Log size must be a multiple of 1 MB"),
        ({"log-size": 1 << 32}, "Log size must be smaller than 4 GB"),
        ({"size": (1 << 64) - 512}, "Image size too large; max of 64TB"),
    ],
)
def test_sizes_of_a_vhdx_are_not_rounded_as_on_a_command_line(options: dict[str, int], said: str) -> None:
    async def session() -> None:
        async with monitor() as talk:
            await talk.add("m", "memory", size=1 << 20)
            wanted = {"driver": "vhdx", "file": "m", "size": 64 << 20} | options
            await talk.call("blockdev-create", job_id="j", options=wanted)
            await talk.daemon.jobs["j"].ended()
            (job,) = await talk.call("query-jobs")
            assert job["error"] == said

    asyncio.run(session())


def test_what_is_created_has_a_creator() -> None:
    from vblk.monitor.commands.creating import CREATED

    assert all(creator_of(driver) for driver in CREATED)


def test_nodes_are_reopened_or_stay_as_they_were(tmp_path: Path) -> None:
    paths = files(tmp_path, a=1 << 20)

    async def session() -> None:
        async with monitor() as talk:
            await add_raw(talk, "n", paths["a"])

            async def access() -> list[bool]:
                return [node["ro"] for node in await talk.call("query-named-block-nodes")]

            raw = {"driver": "raw", "node-name": "n", "file": "n-file"}
            await talk.call("blockdev-reopen", options=[raw | {"read-only": True}])
            assert await access() == [True, True]
            file = {"driver": "file", "node-name": "n-file", "filename": paths["a"]}
            await talk.call("blockdev-reopen", options=[raw])
            assert await access() == [False, False]
            writer = talk.daemon.graph.hold(talk.daemon.find_either("n"), "a writer", WRITING)
            read_only = {"driver": "null-co", "node-name": "m", "read-only": True}
            await talk.add("m")
            assert await talk.refused("blockdev-reopen", options=[read_only, file | {"read-only": True}]) == (
                f"'{paths['a']}' cannot become read-only: node 'n' ({paths['a']}) as its file writes to it"
            )
            assert await access() == [False, False, False]
            await talk.daemon.graph.release(writer)
            await talk.call("blockdev-del", node_name="m")
            for options, said in (
                ({"driver": "raw", "file": "n-file"}, "node-name not specified"),
                (raw | {"node-name": "x"}, "Failed to find node with node-name='x'"),
                (file | {"node-name": "n"}, "Cannot change the option 'driver'"),
                (raw | {"offset": 512}, "Cannot change the option 'offset'"),
                (raw | {"cache": {"direct": True}}, "Cannot change the option 'cache.direct'"),
                (raw | {"file": "x"}, "Cannot find device='x' nor node-name='x'"),
            ):
                assert await talk.refused("blockdev-reopen", options=[options]) == said

    asyncio.run(session())


def test_objects_are_made_and_forgotten() -> None:
    async def session() -> None:
        async with monitor() as talk:
            await talk.call("object-add", qom_type="secret", id="s", data="x")
            assert talk.daemon.graph.objects.secret("s") == b"x"
            assert "duplicate property 's'" in await talk.refused(
                "object-add", qom_type="secret", id="s", data="y"
            )
            await talk.call("object-del", id="s")
            assert await talk.refused("object-del", id="s") == "object 's' not found"

    asyncio.run(session())


def test_what_clients_asked_for_is_shown_by_node() -> None:
    async def session() -> None:
        async with monitor() as talk:
            await talk.add("n")
            assert await talk.call("query-blockstats") == []
            assert await talk.call("query-block") == []
            (node,) = await talk.call("query-blockstats", query_nodes=True)
            assert (node["node-name"], node["stats"]["rd_bytes"]) == ("n", 0)

    asyncio.run(session())


def test_reopening_changes_backing_images_and_zero_detection(tmp_path: Path) -> None:
    paths = files(tmp_path, a=1 << 20, b=0)
    subprocess.run(["qemu-img", "create", "-qf", "qcow2", paths["b"], "1M"], check=True)

    async def session() -> None:
        async with monitor() as talk:
            await add_raw(talk, "base", paths["a"])
            file = {"driver": "file", "filename": paths["b"]}
            overlay = {"driver": "qcow2", "node-name": "top", "file": file}
            await talk.call("blockdev-add", **overlay, backing=None)

            async def backing_of() -> object:
                graph = await talk.call("x-debug-query-block-graph")
                return [edge["name"] for edge in graph["edges"]].count("backing")

            await talk.call("blockdev-reopen", options=[overlay | {"backing": "base"}])
            assert await backing_of() == 1
            assert await talk.refused("blockdev-reopen", options=[overlay]) == "backing is missing for 'top'"
            options = overlay | {"backing": None, "detect-zeroes": "on"}
            await talk.call("blockdev-reopen", options=[options])
            assert await backing_of() == 0
            found = {node["node-name"]: node for node in await talk.call("query-named-block-nodes")}
            assert found["top"]["detect_zeroes"] == "on"
            assert found["base"]["detect_zeroes"] == "off"

    asyncio.run(session())


def test_a_quorum_tells_of_children_that_are_outvoted(tmp_path: Path) -> None:
    paths = files(tmp_path, a=1 << 16, b=1 << 16, c=1 << 16)
    Path(paths["b"]).write_bytes(b"!" * (1 << 16))

    async def session() -> None:
        async with monitor() as talk:
            for name, path in paths.items():
                await add_raw(talk, name, path)
            await talk.add("q", "quorum", **{"vote-threshold": 2, "children": list(paths)})
            handle = talk.daemon.graph.hold(talk.daemon.graph.find("q"), "the test")
            assert await handle.read(512, 512) == bytes(512)
            data = {"type": "read", "node-name": "b", "sector-num": 1, "sectors-count": 1}
            assert talk.events == [("QUORUM_REPORT_BAD", data)]

    asyncio.run(session())


def test_reopening_changes_what_filters_do() -> None:
    async def session() -> None:
        async with monitor() as talk:
            for name, limit in (("fast", 1 << 30), ("slow", 1)):
                limits = {"bps-total": limit}
                await talk.call("object-add", **{"qom-type": "throttle-group", "id": name, "limits": limits})
            await talk.add("n", size=1 << 20)
            throttle = {"driver": "throttle", "node-name": "t", "file": "n"}
            await talk.call("blockdev-add", **throttle, **{"throttle-group": "fast"})
            handle = talk.daemon.graph.hold(talk.daemon.graph.find("t"), "the test")
            assert handle.try_read(0, 1024) is not None
            assert handle.try_read(0, 1024) is not None
            said = await talk.refused("blockdev-reopen", options=[throttle | {"throttle-group": "none"}])
            assert said == "Throttle group 'none' does not exist"
            await talk.call("blockdev-reopen", options=[throttle | {"throttle-group": "slow"}])
            assert handle.try_read(0, 1024) is not None
            assert handle.try_read(0, 1024) is None
            await talk.call("object-del", id="fast")
            delay = {"driver": "delay", "node-name": "d", "file": "n"}
            await talk.call("blockdev-add", **delay, **{"read-latency-ns": 1})
            late = talk.daemon.graph.hold(talk.daemon.graph.find("d"), "the test")
            assert late.try_read(0, 1) is None
            await talk.call("blockdev-reopen", options=[delay])
            assert late.try_read(0, 1) is not None

    asyncio.run(session())
