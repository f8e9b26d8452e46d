"""The human monitor's words, as QEMU reads and answers them."""

import asyncio

import pytest

from tests.support.monitor import Monitor, monitor
from vblk.monitor.human import HumanMonitor


async def say(talk: Monitor, *lines: str) -> list[str]:
    return [await talk.call("human-monitor-command", command_line=line) for line in lines]


def test_lines_are_answered_with_the_line_ends_of_a_terminal() -> None:
    async def session() -> None:
        async with monitor() as talk:
            await talk.add("n")
            assert await say(talk, "", "info block-jobs", "info block", "info block zz") == [
                "",
                "No active jobs\r\n",
                "n: null-co:// (null-co)\r\n    Cache mode:       writeback\r\n",
                "",
            ]

    asyncio.run(session())


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("foo", "unknown command: 'foo'\r\n"),
        ("info foo", "unknown command: 'info foo'\r\n"),
        ("help foo", "unknown command: 'foo'\r\n"),
        ("help info foo", "unknown command: 'info foo'\r\n"),
        (
            "quit x",
            'quit|q: extraneous characters at the end of line\r\nTry "help quit" for more information\r\n',
        ),
        ("qemu-io", 'qemu-io: block device name expected\r\nTry "help qemu-io" for more information\r\n'),
        ("qemu-io n", 'qemu-io: string expected\r\nTry "help qemu-io" for more information\r\n'),
        ('qemu-io zz "read 0 1k"', "Error: Cannot find device='' nor node-name='zz'\r\n"),
        ('qemu-io n "foo"', 'command "foo" not found\r\n'),
        ("qemu-io n abort", 'command "abort" not found\r\n'),
        ("info block -z", 'block: unsupported option -z\r\nTry "help info block" for more information\r\n'),
        ('qemu-io -d zz "read 0 1k"', "Error: Cannot find device='' nor node-name='zz'\r\n"),
        ("help qemu-io", 'qemu-io [-d] [device] "[command]" -- run a qemu-io command on a block device\r\n'),
        ("nbd_server_stop", "Error: NBD server not running\r\n"),
        ("nbd_server_start nowhere", "Error: 'nowhere' is no address: unix:PATH or HOST:PORT is\r\n"),
        ("block_job_cancel x", "Error: Block job 'x' not found\r\n"),
    ],
)
def test_what_makes_no_sense_is_said_in_the_words_of_qemu(line: str, answer: str) -> None:
    async def session() -> None:
        async with monitor() as talk:
            await talk.add("n")
            assert await say(talk, line) == [answer]

    asyncio.run(session())


def test_commands_of_qemu_io_work_on_a_node_in_use() -> None:
    async def session() -> None:
        async with monitor() as talk:
            await talk.add("n", "memory", size=1 << 20)
            written, right, wrong = await say(
                talk,
                'qemu-io n "write -P 5 0 64k"',
                'qemu-io n "read -P 5 0 64k"',
                'qemu-io n "read -P 6 0 64k"',
            )
            assert written.startswith("wrote 65536/65536 bytes at offset 0\r\n")
            assert right.startswith("read 65536/65536")
            assert wrong.startswith("Pattern verification failed at offset 0, 65536 bytes\r\n")
            taken: list[str] = []
            human = HumanMonitor(talk.daemon, io_output=taken.append)
            assert await human.execute('qemu-io n "read -P 5 0 64k"') == ""
            assert "".join(taken).startswith("read 65536/65536 bytes at offset 0\n")
            begun, waited = await say(talk, 'qemu-io n "aio_write -P 7 0 64k"', 'qemu-io n "aio_flush"')
            assert begun.startswith("wrote 65536/65536") or begun == ""
            assert waited == ""

    asyncio.run(session())


def test_a_request_that_is_stopped_at_a_breakpoint_does_not_stop_the_monitor() -> None:
    async def session() -> None:
        async with monitor() as talk:
            await talk.add("m", "memory", size=1 << 20)
            await talk.add("n", "blkdebug", image="m")
            assert await say(
                talk,
                'qemu-io n "break write_aio A"',
                'qemu-io n "aio_write 0 4k"',
                'qemu-io n "wait_break A"',
                'qemu-io n "resume A"',
            ) == [
                "",
                "blkdebug: Suspended request 'A'\r\n",
                "",
                "blkdebug: Resuming request 'A'\r\n",
            ]

    asyncio.run(session())


def test_words_complete_to_commands_and_nodes() -> None:
    async def session() -> None:
        async with monitor() as talk:
            await talk.add("disk")
            human = HumanMonitor(talk.daemon)
            assert list(human.completions("qem")) == ["qemu-io"]
            assert list(human.completions("info block-")) == ["block-jobs"]
            assert list(human.completions("help nbd_server_s")) == ["nbd_server_start", "nbd_server_stop"]
            assert list(human.completions("block_resize d")) == ["disk"]

    asyncio.run(session())
