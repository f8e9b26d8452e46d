"""From a name to nodes: probing, explicit formats, references, and what a failed open leaves."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.nodes import content_of
from tests.support.vhdx.chain import Chain
from tests.support.vhdx.image import Vhdx
from vblk.drivers.raw import RawNode
from vblk.errors import (
    BlockError,
    GraphError,
    ImageError,
    OptionError,
    PermissionConflict,
    ReadOnly,
    StorageError,
    Unsupported,
    WrongFormat,
)
from vblk.graph.edge import READING, SHARED_BY_READER, Role
from vblk.graph.registry import Graph
from vblk.graph.site import ChainRules
from vblk.opening import KNOWN_ELSEWHERE, open_image
from vblk.options import NodeOptions, from_mapping, parse_image_opts
from vblk.protocols.memory import MemoryNode

MIB = 1 << 20


def with_graph(scenario: Callable[[Graph], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Graph() as graph:
            await scenario(graph)

    asyncio.run(main())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(content_of(MIB))
    return path


@pytest.fixture
def vhdx(tmp_path: Path) -> Path:
    return Vhdx().build(tmp_path / "disk.vhdx")


def test_the_format_is_probed_where_it_is_not_named(raw: Path, vhdx: Path) -> None:
    async def scenario(graph: Graph) -> None:
        for path, wanted in ((raw, "raw"), (vhdx, "vhdx")):
            handle = await open_image(graph, str(path))
            assert handle.node.driver == wanted
            assert handle.node.filename == str(path)
            assert handle.read_only

    with_graph(scenario)


def test_a_named_format_is_not_probed(vhdx: Path, raw: Path) -> None:
    async def scenario(graph: Graph) -> None:
        handle = await open_image(graph, str(vhdx), format="raw", read_only=False)
        assert handle.node.driver == "raw"
        assert await handle.read(0, 8) == b"vhdxfile"
        await handle.write(0, b"anything")
        with pytest.raises(WrongFormat):
            await open_image(graph, str(raw), format="vhdx")

    with_graph(scenario)


def test_a_format_that_contradicts_the_options_is_refused(raw: Path) -> None:
    async def scenario(graph: Graph) -> None:
        options = parse_image_opts(f"driver=raw,file.driver=file,file.filename={raw}")
        with pytest.raises(OptionError, match="'vhdx' contradicts the driver 'raw'"):
            await open_image(graph, options, format="vhdx")

    with_graph(scenario)


@pytest.mark.parametrize("driver", sorted(KNOWN_ELSEWHERE))
def test_a_driver_of_others_is_refused_in_a_sentence(driver: str, raw: Path) -> None:
    async def scenario(graph: Graph) -> None:
        options = NodeOptions(
            driver, children={"file": from_mapping({"driver": "file", "filename": str(raw)})}
        )
        with pytest.raises(Unsupported) as caught:
            await open_image(graph, options)
        assert caught.value.message == f"the driver '{driver}' is not supported in this version of vblk"

    with_graph(scenario)


def test_a_format_of_others_that_was_probed_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "disk.qed"
    path.write_bytes(b"QED\0" + bytes(2000))

    async def scenario(graph: Graph) -> None:
        with pytest.raises(Unsupported, match="'qed' is not supported") as caught:
            await open_image(graph, str(path))
        assert caught.value.filename == str(path)

    with_graph(scenario)


@pytest.mark.parametrize("mapping", [{}, {"filename": "{}"}, {"backing": None}])
def test_a_root_without_driver_and_file_is_refused(mapping: dict[str, Any], raw: Path) -> None:
    own = {key: str(raw) if value == "{}" else value for key, value in mapping.items()}

    async def scenario(graph: Graph) -> None:
        with pytest.raises(OptionError, match="Must specify either driver or file"):
            await open_image(graph, from_mapping(own))

    with_graph(scenario)


def test_an_unknown_driver_is_told(raw: Path) -> None:
    async def scenario(graph: Graph) -> None:
        with pytest.raises(OptionError, match="Unknown driver 'flux'"):
            await open_image(graph, NodeOptions("flux"))

    with_graph(scenario)


@pytest.mark.parametrize(
    "mapping",
    [
        {"driver": "raw", "file": {"driver": "file", "filename": "{}"}},
        {"driver": "raw", "file.driver": "file", "file.filename": "{}"},
        {"file": {"filename": "{}"}},
    ],
)
def test_a_json_name_opens_the_tree_that_it_describes(mapping: dict[str, Any], raw: Path) -> None:
    name = "json:" + json.dumps(mapping).replace("{}", str(raw))
    wanted = raw.read_bytes()[:100]

    async def scenario(graph: Graph) -> None:
        handle = await open_image(graph, name)
        assert handle.node.driver == "raw"
        assert await handle.read(0, 100) == wanted

    with_graph(scenario)


def test_a_node_that_exists_is_used_by_its_name(raw: Path) -> None:
    async def scenario(graph: Graph) -> None:
        file = await open_image(
            graph, from_mapping({"driver": "file", "filename": str(raw), "node-name": "disk-file"})
        )
        handle = await open_image(graph, from_mapping({"driver": "raw", "file": "disk-file", "offset": 512}))
        assert handle.node.below is file.node
        assert handle.size == MIB - 512
        with pytest.raises(GraphError, match="node-name='nobody'"):
            await open_image(graph, from_mapping({"driver": "raw", "file": "nobody"}))

    with_graph(scenario)


def test_a_failed_open_does_not_close_the_node_that_it_refers_to() -> None:
    async def scenario(graph: Graph) -> None:
        node = MemoryNode("mine", size=1024)
        graph.add(node)
        for mapping in (
            {"driver": "raw", "file": "mine", "offset": 4096},
            {"driver": "vhdx", "file": "mine"},
            {"driver": "raw", "file": "mine", "size": 1000},
        ):
            with pytest.raises(BlockError):
                await open_image(graph, from_mapping(mapping))
            assert graph.find("mine") is node
        handle = await open_image(graph, from_mapping({"file": "mine"}))
        assert handle.node.driver == "raw"

    with_graph(scenario)


@pytest.mark.parametrize(
    "fault", ["offset", "format", "options", "name", "user", "parent", "mode", "children"]
)
def test_a_failed_open_leaves_nothing_open(fault: str, raw: Path, vhdx: Path, tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.base([(0, MIB)])
    lost = chain.child([(0, 512)])
    chain.levels[0].path.unlink()

    async def attempt(graph: Graph) -> None:
        file = {"driver": "file", "filename": str(raw)}
        if fault == "offset":
            await open_image(graph, from_mapping({"driver": "raw", "file": file, "offset": 2 * MIB}))
        elif fault == "format":
            await open_image(graph, from_mapping({"driver": "vhdx", "file": file}))
        elif fault == "options":
            await open_image(graph, from_mapping({"driver": "raw", "file": file, "colour": "red"}))
        elif fault == "name":
            await open_image(graph, from_mapping({"driver": "raw", "file": file, "node-name": "taken"}))
        elif fault == "user":
            await open_image(graph, NodeOptions("raw", children={"file": from_mapping(file)}), format="vhdx")
        elif fault == "parent":
            await open_image(graph, str(lost.path))
        elif fault == "mode":
            locked = {"driver": "file", "filename": str(vhdx), "read-only": True}
            await open_image(graph, from_mapping({"driver": "vhdx", "file": locked}), read_only=False)
        else:
            own = from_mapping({"driver": "raw", "file": file, "backing": file})
            await open_image(graph, own)

    async def scenario(graph: Graph) -> None:
        taken = MemoryNode("taken", size=1)
        graph.add(taken)
        await graph.engine.run(lambda: None)
        before = descriptors()
        for _ in range(2):
            with pytest.raises(BlockError):
                await attempt(graph)
            assert list(graph.nodes()) == [taken]
            assert descriptors() <= before + 1  # the engine's notifier

    with_graph(scenario)


def test_a_cancelled_open_leaves_nothing_open(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.base([(0, MIB)])
    for _ in range(3):
        chain.child([(0, 512)])

    async def scenario(graph: Graph) -> None:
        await graph.engine.run(lambda: None)
        for turn in range(60):
            before = descriptors()
            task = asyncio.create_task(open_image(graph, str(chain.top.path)))
            for _ in range(turn):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                await graph.release(task.result())
            assert list(graph.nodes()) == []
            assert descriptors() == before

    with_graph(scenario)


def test_a_writer_over_a_read_only_file_is_refused(raw: Path) -> None:
    async def scenario(graph: Graph) -> None:
        options = parse_image_opts(
            f"driver=raw,read-only=off,file.driver=file,file.filename={raw},file.read-only=on"
        )
        with pytest.raises(ReadOnly, match="read-only"):
            await open_image(graph, options, read_only=False)
        assert list(graph.nodes()) == []

    with_graph(scenario)


def test_whoever_opens_for_reading_does_not_write_to_a_writable_node() -> None:
    async def scenario(graph: Graph) -> None:
        graph.add(MemoryNode("mine", size=1024))
        handle = await open_image(graph, from_mapping({"driver": "raw", "file": "mine", "read-only": False}))
        with pytest.raises(ReadOnly):
            await handle.write(0, b"x")

    with_graph(scenario)


def test_a_conflict_with_another_user_is_told_and_leaves_nothing(raw: Path) -> None:
    async def scenario(graph: Graph) -> None:
        node = MemoryNode("mine", size=1024)
        graph.add(node)
        graph.hold(node, "the guest", READING, SHARED_BY_READER)
        with pytest.raises(PermissionConflict, match="the guest"):
            await open_image(graph, from_mapping({"driver": "raw", "file": "mine"}), read_only=False)
        assert list(graph.nodes()) == [node]

    with_graph(scenario)


def test_sharing_is_forced_for_reading_only(raw: Path) -> None:
    async def scenario(graph: Graph) -> None:
        with pytest.raises(OptionError, match="force-share"):
            await open_image(graph, str(raw), read_only=False, force_share=True)
        await open_image(graph, str(raw), force_share=True)

    with_graph(scenario)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    async def scenario(graph: Graph) -> None:
        with pytest.raises(StorageError, match="No such file"):
            await open_image(graph, str(tmp_path / "gone"))

    with_graph(scenario)


def test_a_parent_is_left_closed_when_it_is_not_wanted(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.base([(0, MIB)])
    chain.child([(0, 512)])

    async def scenario(graph: Graph) -> None:
        handle = await open_image(graph, str(chain.top.path), backing=False)
        assert handle.node.child(Role.BACKING) is None
        assert await handle.read(0, 512) == chain.top.model.read(0, 512)
        with pytest.raises(GraphError, match="not opened"):
            await handle.read(0, 1024)

    with_graph(scenario)


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_an_image_that_is_its_own_parent_is_a_cycle_in_every_cache_mode(cache: str, tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.base()
    child = chain.child([(0, 512)])
    rules = ChainRules(ignore_linkage=True)
    chain.levels[0].path.unlink()
    chain.levels[0].path.symlink_to(child.path)

    async def scenario(graph: Graph) -> None:
        with pytest.raises(BlockError, match="its own ancestor"):
            await open_image(graph, str(child.path), cache=cache, rules=rules)
        assert list(graph.nodes()) == []

    with_graph(scenario)


def test_what_was_said_about_the_parent_is_not_meant_for_the_parents_parent(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.base([(0, MIB)])
    middle = chain.child([(512, 512)])
    top = chain.child([(1024, 512)])

    async def scenario(graph: Graph) -> None:
        options = from_mapping(
            {
                "driver": "vhdx",
                "file": {"driver": "file", "filename": str(top.path)},
                "backing": {"driver": "vhdx", "file": {"driver": "file", "filename": str(middle.path)}},
            }
        )
        handle = await open_image(graph, options, rules=ChainRules(parent=str(middle.path)))
        assert await handle.read(0, 2 * MIB) == top.model.read(0, 2 * MIB)

    with_graph(scenario)


def test_an_image_that_is_not_differencing_takes_no_backing(vhdx: Path, raw: Path) -> None:
    async def scenario(graph: Graph) -> None:
        options = from_mapping(
            {
                "driver": "vhdx",
                "file": {"driver": "file", "filename": str(vhdx)},
                "backing": {"driver": "file", "filename": str(raw)},
            }
        )
        with pytest.raises(OptionError, match="backing"):
            await open_image(graph, options)
        assert list(graph.nodes()) == []

    with_graph(scenario)


def test_what_damage_says_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.vhdx"
    path.write_bytes(b"vhdxfile" + bytes(MIB))

    async def scenario(graph: Graph) -> None:
        with pytest.raises(ImageError) as caught:
            await open_image(graph, str(path))
        assert caught.value.filename == str(path)

    with_graph(scenario)


def test_a_probed_raw_image_knows_that_it_was_probed(raw: Path) -> None:
    async def scenario(graph: Graph) -> None:
        probed = await open_image(graph, str(raw), read_only=False)
        assert isinstance(probed.node, RawNode)
        with pytest.raises(StorageError, match="guessed"):
            await probed.write(0, b"vhdxfile")

    with_graph(scenario)
