"""The node that fails and stops requests: events in order, limits, options, breakpoints."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from vblk.errors import BlockError, Misaligned, OptionError, PermissionConflict, StorageError, Unsupported
from vblk.extent import Kind
from vblk.filters.events import Event, InjectedError, find_listener
from vblk.filters.fault import FaultNode
from vblk.graph.edge import WRITING, Permission
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.opening import open_node
from vblk.options import from_mapping
from vblk.protocols.memory import MemoryNode
from vblk.units import KIB, MIB

SIZE = 64 * KIB


class Watched(FaultNode):
    """Notes its events."""

    events: list[str]

    async def happened(self, event: Event) -> None:
        self.events.append(event.value)
        await super().happened(event)


@asynccontextmanager
async def opened(
    *, read_only: bool = False, size: int = SIZE, **options: Any
) -> AsyncGenerator[FaultNode, None]:
    async with Graph() as graph:
        mapping = {"driver": "blkdebug", "image": {"driver": "memory", "size": size}}
        named = {name.replace("_", "-"): value for name, value in options.items()}
        node = await open_node(graph, from_mapping(mapping | named), Request(read_only))
        assert isinstance(node, FaultNode)
        yield node


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


async def events_of(node: FaultNode, request: Coroutine[Any, Any, Any]) -> list[str]:
    node.__class__ = Watched
    assert isinstance(node, Watched)
    node.events = []
    await request
    return node.events


Ask = Callable[[Node], Coroutine[Any, Any, Any]]

EVENTS: list[tuple[Ask, list[str]]] = [
    (lambda node: node.read(0, 512), ["read_aio"]),
    (lambda node: node.write(0, bytes(4096)), ["write_aio", "pwritev", "pwritev_done"]),
    (
        lambda node: node.write(512, bytes(512)),
        [
            "write_aio",
            "pwritev_rmw_head",
            "pwritev_rmw_tail",
            "pwritev_rmw_after_head",
            "pwritev_rmw_after_tail",
            "pwritev",
            "pwritev_done",
        ],
    ),
    (
        lambda node: node.write(0, bytes(4608)),
        ["write_aio", "pwritev_rmw_tail", "pwritev_rmw_after_tail", "pwritev", "pwritev_done"],
    ),
    (lambda node: node.write_zeroes(0, 8192), ["pwritev_zero", "pwritev_done"]),
    (lambda node: node.flush(), ["flush_to_os"]),
]
ASKED: list[tuple[str, Ask]] = [
    ("read", lambda node: node.read(0, 1024)),
    ("write", lambda node: node.write(0, bytes(1024))),
    ("write-zeroes", lambda node: node.write_zeroes(0, 1024)),
    ("discard", lambda node: node.discard(0, 1024)),
    ("block-status", lambda node: node.allocation(0, 1024)),
]


@pytest.mark.parametrize(("call", "expected"), EVENTS)
def test_events_happen_in_qemus_order(call: Ask, expected: list[str]) -> None:
    async def scenario() -> None:
        async with opened(align=4096) as node:
            assert await events_of(node, call(node)) == expected

    run(scenario)


def test_a_flush_reaches_the_disk_when_something_was_written() -> None:
    async def scenario() -> None:
        async with opened() as node:
            await node.write(0, b"x")
            assert await events_of(node, node.flush()) == ["flush_to_os", "flush_to_disk"]
            assert await events_of(node, node.flush()) == ["flush_to_os"]

    run(scenario)


def rule(event: str, **more: Any) -> dict[str, Any]:
    return {"inject_error": [{"event": event, **more}]}


def test_an_injected_error_has_its_number() -> None:
    async def scenario() -> None:
        async with opened(**rule("write_aio", errno=28, once=True)) as node:
            with pytest.raises(InjectedError) as failed:
                await node.write(0, b"x")
            assert failed.value.errno == 28
            await node.write(0, b"x")
            assert await node.read(0, 2) == b"x\0"

    run(scenario)


@pytest.mark.parametrize(("iotype", "call"), ASKED)
def test_each_kind_of_request_fails_where_its_rule_says(iotype: str, call: Ask) -> None:
    async def scenario() -> None:
        async with opened(**rule("none", iotype=iotype, sector=1)) as node:
            with pytest.raises(StorageError):
                await call(node)
        async with opened(**rule("none", iotype=iotype, sector=2)) as node:
            await call(node)

    run(scenario)


def test_what_resolves_is_had_from_the_node_itself() -> None:
    async def scenario() -> None:
        async with opened() as node:
            await node.write(0, b"x" * 65536)
            for spans in (await node.resolve(0, SIZE), await node.allocation(0, SIZE)):
                assert [(span.kind, span.leaf, span.leaf_offset) for span in spans] == [(Kind.DATA, node, 0)]

    run(scenario)


def test_requests_are_cut_to_the_limits() -> None:
    async def scenario() -> None:
        lengths: list[tuple[str, int, int]] = []
        async with opened(
            max_transfer=4096, opt_write_zero=1024, max_write_zero=2048, opt_discard=1024, max_discard=1024
        ) as node:
            original = node._check

            async def check(kind: Any, offset: int, length: int) -> None:
                lengths.append((kind.value, offset, length))
                await original(kind, offset, length)

            node._check = check  # type: ignore[method-assign]
            await node.read(1000, 5000)
            await node.write(0, bytes(4097))
            await node.write_zeroes(512, 5 * KIB)
            await node.discard(512, 3 * KIB)
        assert lengths == [
            ("read", 1000, 4096),
            ("read", 5096, 904),
            ("write", 0, 4096),
            ("write", 4096, 1),
            ("write", 512, 512),
            ("write-zeroes", 1024, 2048),
            ("write-zeroes", 3072, 2048),
            ("write", 5120, 512),
            ("discard", 1024, 1024),
            ("discard", 2048, 1024),
        ]

    run(scenario)


def test_zeros_that_must_not_be_written_out_are_refused_at_uneven_edges() -> None:
    async def scenario() -> None:
        async with opened(opt_write_zero=1024) as node:
            await node.write_zeroes(1024, 1024, no_fallback=True)
            with pytest.raises(Unsupported):
                await node.write_zeroes(512, 1024, no_fallback=True)

    run(scenario)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"align": 3}, "Cannot meet constraints with align 3"),
        ({"align": 2 * MIB}, "greater than this version takes"),
        ({"align": 1024, "max_transfer": 512}, "Cannot meet constraints with max-transfer 512"),
        (
            {"opt_write_zero": 8192, "max_write_zero": 12288},
            "Cannot meet constraints with max-write-zero 12288",
        ),
        ({"opt_discard": 8192, "max_discard": 12288}, "Cannot meet constraints with max-discard 12288"),
        ({"inject_error": [{"errno": 5}]}, "Missing event name for rule"),
        ({"inject_error": [{"event": "none", "errno": 0}]}, "errno must be 1 to 4095, not 0"),
        ({"inject_error": [{"event": "none", "foo": 0}]}, "does.* support the option 'inject-error.0.foo'"),
        ({"inject_error": [{"event": "l1_update"}]}, "invalid parameter value: l1_update"),
        ({"set_state": [{"new_state": 2}]}, "Missing event name for rule"),
        ({"random_rate": 1.5}, "random-rate must be 0 to 1"),
        ({"take_child_perms": ["graph-mod"]}, "'take-child-perms.0' does not accept value 'graph-mod'"),
        ({"config": "/nonexistent"}, "Could not read blkdebug config file: No such file or directory"),
        ({"foo": 1}, "does.* support the option 'foo'"),
    ],
)
def test_options_that_cannot_be_are_named(options: dict[str, Any], reason: str) -> None:
    async def scenario() -> None:
        with pytest.raises(OptionError, match=reason):
            async with opened(**options):
                pass

    run(scenario)


def test_a_writable_image_is_whole_blocks_long() -> None:
    async def scenario() -> None:
        with pytest.raises(OptionError, match="Image size is not a multiple of request alignment"):
            async with opened(align=4096, size=4608):
                pass
        async with opened(align=4096, size=4608, read_only=True) as node:
            assert await node.read(4000, 608) == bytes(608)
            with pytest.raises(OptionError):
                await node.reopen(read_only=False)
        async with opened(align=4096) as node:
            with pytest.raises(Misaligned):
                await node.resize(4608)
            await node.resize(8192)
            assert node.size == 8192

    run(scenario)


def test_rules_of_a_file_stand_behind_those_of_the_options(tmp_path: Path) -> None:
    config = tmp_path / "rules"
    config.write_text('[inject-error]\nevent = "none"\nsector = "2"\n')

    async def scenario() -> None:
        async with opened(config=str(config), **rule("none", sector=0)) as node:
            for sector, fails in ((0, True), (1, False), (2, True)):
                try:
                    await node.read(sector * 512, 512)
                except InjectedError:
                    assert fails
                else:
                    assert not fails

    run(scenario)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"\xff", "Could not parse"), (b"#" * ((1 << 20) + 1), "longer than"), (b"[foo]", "no section 'foo'")],
)
def test_a_configuration_file_of_nonsense_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    config = tmp_path / "rules"
    config.write_bytes(content)

    async def scenario() -> None:
        with pytest.raises(OptionError, match=reason):
            async with opened(config=str(config)):
                pass

    run(scenario)


def test_the_same_seed_fails_the_same_requests() -> None:
    async def failures(seed: int) -> list[int]:
        found: list[int] = []
        async with opened(random_rate=0.3, random_seed=seed) as node:
            for number in range(40):
                try:
                    await node.read(0, 512)
                except InjectedError:
                    found.append(number)
        return found

    async def scenario() -> None:
        first = await failures(1)
        assert first == await failures(1)
        assert first != await failures(2)
        assert 0 < len(first) < 40

    run(scenario)


def test_a_stopped_request_waits_until_it_is_resumed() -> None:
    async def scenario() -> None:
        said: list[str] = []
        async with opened() as node:
            node.report_to(said.append)
            node.add_breakpoint(Event.PWRITEV, "A")
            task = asyncio.create_task(node.write(0, b"x"))
            await node.wait_stopped("A")
            assert await node.read(0, 1) == b"\0"
            assert not node.resume("B")
            assert node.resume("A")
            await task
            assert await node.read(0, 1) == b"x"
            await node.write(0, b"y")
        assert said == ["blkdebug: Suspended request 'A'", "blkdebug: Resuming request 'A'"]

    run(scenario)


def test_removing_a_breakpoint_lets_its_requests_go_on() -> None:
    async def scenario() -> None:
        async with opened() as node:
            node.add_breakpoint(Event.PWRITEV, "A")
            assert node.remove_breakpoint("A")
            assert not node.remove_breakpoint("A")
            await node.write(0, b"x")
            node.add_breakpoint(Event.PWRITEV, "A")
            task = asyncio.create_task(node.write(0, b"x"))
            await node.wait_stopped("A")
            assert not node.remove_breakpoint("A"), "it was used up when it stopped the request"
            await task

    run(scenario)


def test_a_cancelled_request_is_no_longer_stopped() -> None:
    async def scenario() -> None:
        async with opened(align=4096) as node:
            node.add_breakpoint(Event.PWRITEV_RMW_AFTER_HEAD, "A")
            task = asyncio.create_task(node.write(512, b"x"))
            await node.wait_stopped("A")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not node.resume("A")
            await node.write(0, bytes(4096))  # the block is free again

    run(scenario)


def test_a_stopped_write_holds_its_block_and_is_overtaken_elsewhere() -> None:
    async def scenario() -> None:
        async with opened(align=4096) as node:
            node.add_breakpoint(Event.PWRITEV_RMW_AFTER_TAIL, "A")
            first = asyncio.create_task(node.write(512, b"a" * 512))
            await node.wait_stopped("A")
            wide = asyncio.create_task(node.write(2048, b"b" * 4096))
            await asyncio.sleep(0)
            await node.write(4096 + 3584, b"c" * 512)
            assert not wide.done()
            node.resume("A")
            await asyncio.gather(first, wide)
            expected = bytes(512) + b"a" * 512 + bytes(1024) + b"b" * 4096 + bytes(1536) + b"c" * 512
            assert await node.read(0, 8192) == expected

    run(scenario)


def test_closing_lets_stopped_requests_go_on() -> None:
    async def scenario() -> None:
        async with opened() as node:
            node.add_breakpoint(Event.READ_AIO, "A")
            task = asyncio.create_task(node.read(0, 1))
            await node.wait_stopped("A")
            await node.close()
            assert await task == b"\0"

    run(scenario)


def test_a_listener_is_found_through_what_stands_on_it() -> None:
    async def scenario() -> None:
        async with Graph() as graph:
            mapping = {
                "driver": "raw",
                "file": {"driver": "blkdebug", "image": {"driver": "memory", "size": SIZE}},
            }
            node = await open_node(graph, from_mapping(mapping), Request(False))
            assert isinstance(find_listener(node), FaultNode)
            assert find_listener(node.children["file"].node.children["image"].node) is None

    run(scenario)


def test_nothing_stays_open_when_the_options_are_wrong() -> None:
    async def scenario() -> None:
        async with Graph() as graph:
            mapping = {"driver": "blkdebug", "align": 4096, "image": {"driver": "memory", "size": 512}}
            with pytest.raises(BlockError):
                await open_node(graph, from_mapping(mapping), Request(False))
            assert list(graph.nodes()) == []

    run(scenario)


def test_permissions_are_taken_and_forbidden_for_the_filters_own_sake() -> None:
    async def scenario() -> None:
        async with Graph() as graph:
            node = MemoryNode("memory", size=SIZE)
            graph.add(node)
            mapping = {
                "driver": "blkdebug",
                "node-name": "fault",
                "image": "memory",
                "take-child-perms": ["resize", "write-unchanged"],
                "unshare-child-perms": ["write"],
            }
            await open_node(graph, from_mapping(mapping), Request(False))
            [edge] = graph.users(node)
            assert edge.access == (
                Permission.RESIZE | Permission.WRITE_UNCHANGED,
                Permission.ALL & ~Permission.WRITE,
            )
            with pytest.raises(PermissionConflict, match=r"a writer needs \"write\".*'fault'"):
                graph.hold(node, "a writer", WRITING)
            graph.hold(graph.find("fault"), "the guest", WRITING)
            assert edge.permissions == WRITING | Permission.WRITE_UNCHANGED

    run(scenario)
