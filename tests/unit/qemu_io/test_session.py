"""Commands on disks in memory: what they say, where they say it, and the exit status."""

import asyncio
import io
import re
from dataclasses import dataclass

import pytest

from vblk.cli.console import Console
from vblk.qemu_io.commands import by_name
from vblk.qemu_io.session import Session

MEMORY = "open -o driver=memory,size=1M"
FAULTY = "open -o driver=blkdebug,image.driver=memory,image.size=1M"


@dataclass
class Outcome:
    out: list[str]
    err: list[str]
    status: int


def carry_out(*lines: str) -> Outcome:
    out, err = io.StringIO(), io.StringIO()

    async def run() -> int:
        session = Session(Console("qemu-io", out, err), commands=by_name())
        for line in lines:
            if not session.ended:
                await session.execute(line)
        await session.close()
        return session.status

    status = asyncio.run(run())
    masked = re.sub(r"; [0-9.:]+( sec)? \(.* ops/sec\)", "", out.getvalue())
    return Outcome(masked.splitlines(), err.getvalue().splitlines(), status)


def said(*lines: str) -> list[str]:
    outcome = carry_out(*lines)
    assert outcome.err == []
    return outcome.out


def test_what_was_written_is_read_and_shown() -> None:
    assert said(MEMORY, "write -P 0x61 510 3", "read -v 509 5") == [
        "wrote 3/3 bytes at offset 510",
        "3 bytes, 1 ops",
        "000001fd:  00 61 61 61 00  .aaa.",
        "read 5/5 bytes at offset 509",
        "5 bytes, 1 ops",
    ]


def test_a_wrong_pattern_is_told_and_remembered() -> None:
    outcome = carry_out(MEMORY, "read -P 5 -s 3 -l 4 0 512")
    assert outcome.out[0] == "Pattern verification failed at offset 3, 4 bytes"
    assert outcome.status == 1


def test_a_pattern_is_compared_to_the_last_byte_of_a_long_read() -> None:
    last = "write -q -P 1 1048575 1"
    assert "Pattern verification failed at offset 0, 1048576 bytes" in said(MEMORY, last, "read -P 0 0 1M")
    assert "Pattern" not in "".join(said(MEMORY, "read -P 0 0 1M"))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("read 0 3G", "length cannot exceed 2147483136, given 3G"),
        ("read 1M 1", "read failed: Input/output error"),
        ("read -b 0 512", "read failed: Operation not supported"),
        ("read -b 1 512", "1 is not a sector-aligned value for 'offset'"),
        ("read -P 0 -s 510 -l 3 0 512", "pattern verification range exceeds end of read data"),
        ("readv 1M 1", "readv failed: Input/output error"),
        ("write -c 0 512", "write failed: Operation not supported"),
        ("write -n 0 512", "-n requires -z to be specified"),
        ("write -u 0 512", "-u requires -z to be specified"),
        ("write -z -P 1 0 512", "Only one of -z, -P, and -s can be specified at the same time"),
        ("write -b -z 0 512", "-b and -z cannot be specified at the same time"),
        ("write -c -f 0 512", "-f and -b or -c cannot be specified at the same time"),
        ("write 0 3G", "length cannot exceed 2147483136 without -n, given 3G"),
        ("writev 1048575 2", "writev failed: Input/output error"),
        ("aio_write -z 0 1 2", "-z supports only a single length parameter"),
        ("aio_write -u 0 1", "-u requires -z to be specified"),
        ("discard 1M 1", "discard failed: Input/output error"),
        ("alloc x", "Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- x"),
        ("sleep 1k", "1k is not a valid number"),
        ("sigraise 99", "signal argument '99' is too large to be a valid signal"),
        ("help foo", "command foo not found"),
        ("break pwritev A", "Could not set breakpoint: Operation not supported"),
        ("resume A", "Could not resume request: Operation not supported"),
        ("remove_break A", "Could not remove breakpoint A: Operation not supported"),
        ("wait_break A", "Could not wait for a request: Operation not supported"),
    ],
)
def test_what_cannot_be_is_said_on_standard_output(line: str, sentence: str) -> None:
    outcome = carry_out(MEMORY, line)
    assert (outcome.out, outcome.err, outcome.status) == ([sentence], [], 1)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("foo", 'command "foo" not found'),
        ("read", "bad argument count 0 to read, expected at least 2 arguments"),
        ("write -s /nonexistent 0 1", "/nonexistent: No such file or directory"),
        ("write -s /dev/null 0 1", "/dev/null: file is empty"),
        (MEMORY, "qemu-io: file open already, try 'help close'"),
        ("truncate -m foo 1", "qemu-io: Invalid preallocation mode 'foo'"),
        ("reopen -r -w", "qemu-io: Only one -r/-w option may be given"),
        ("reopen -c foo", "qemu-io: Invalid cache option: foo"),
        ("reopen -o foo=1", "qemu-io: Cannot change the option 'foo'"),
        ("reopen -o driver=raw", "qemu-io: Cannot change the option 'driver'"),
        ("reopen -r -o read-only=on", "qemu-io: Cannot set both -r/-w and 'read-only'"),
        ("reopen -c none -o cache.direct=on", "qemu-io: Cannot set both -c and the cache options"),
    ],
)
def test_what_is_not_understood_is_said_on_standard_error(line: str, sentence: str) -> None:
    outcome = carry_out(MEMORY, line)
    assert (outcome.out, outcome.err, outcome.status) == ([], [sentence], 1)


def test_an_unknown_option_shows_the_usage() -> None:
    outcome = carry_out(MEMORY, "discard -X 0 1")
    assert outcome.err == ["discard: invalid option -- 'X'"]
    assert outcome.out == ["discard [-Cq] off len -- discards a number of bytes at a specified offset"]
    assert outcome.status == 1


@pytest.mark.parametrize("line", ["read 0 1 2", "write 0 1 2", "discard 0 1 2", "read -s 1 0 1", "reopen x"])
def test_a_command_that_does_not_fit_shows_its_usage(line: str) -> None:
    outcome = carry_out(MEMORY, line)
    assert outcome.out == [by_name()[line.split()[0]].usage()]
    assert outcome.status == 1


@pytest.mark.parametrize("line", ["length", "read", "close", "reopen", "map"])
def test_most_commands_want_an_image(line: str) -> None:
    outcome = carry_out(line)
    assert (outcome.out, outcome.err, outcome.status) == ([], ["no file open, try 'help open'"], 1)


def test_help_lists_every_command_without_an_image() -> None:
    lines = said("help")
    assert lines[: len(by_name())] != []
    assert lines[-2:] == ["", "Use 'help commandname' for extended help."]
    assert lines[:-2] == sorted({command.usage() for command in by_name().values()})


@pytest.mark.parametrize("line", ["write 0 1", "writev 0 1", "aio_write 0 1", "discard 0 1", "truncate 1"])
def test_a_read_only_image_is_not_changed(line: str) -> None:
    outcome = carry_out(f"{MEMORY} -r", line, "reopen -w", "truncate 512", "length", "reopen -r", line)
    assert outcome.err == ["qemu-io: Block node is read-only"] * 2
    assert outcome.out == ["512 bytes"]


def test_quit_ends_what_follows() -> None:
    assert said(MEMORY, "length", "quit", "length") == ["1 MiB"]


def test_writes_over_a_temporary_overlay_are_seen_until_the_end() -> None:
    lines = said(f"{MEMORY} -s", "write -q 64k 64k", "write -q -z 70k 1k", "read -q -P 0xcd 64k 6k", "map")
    assert lines == [
        "64 KiB (0x10000) bytes not allocated at offset 0 bytes (0x0)",
        "64 KiB (0x10000) bytes     allocated at offset 64 KiB (0x10000)",
        "896 KiB (0xe0000) bytes not allocated at offset 128 KiB (0x20000)",
    ]


def test_copy_on_read_makes_what_was_read_the_image_s_own() -> None:
    lines = said(f"{MEMORY} -s -C", "read -q -P 0 64k 64k", "alloc 0 256k", "alloc 64k 64k")
    assert lines == [
        "65536/262144 bytes allocated at offset 0 bytes",
        "65536/65536 bytes allocated at offset 64 KiB",
    ]


def test_copy_on_read_wants_a_writable_image() -> None:
    outcome = carry_out(f"{MEMORY} -C -r", "length")
    assert outcome.err[0] == "qemu-io: can't open: Can't use copy-on-read on read-only device"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("open -o foo=bar", "can't open: Must specify either driver or file"),
        ("open -o driver=foo", "can't open: Unknown driver 'foo'"),
        ("open -o driver=raw", 'can\'t open: A block device must be specified for "file"'),
        ("open -U -o driver=memory", "can't open: force-share=on can only be used with read-only images"),
        ("open -o driver=memory,read-only=on", "can't open: Block node is read-only"),
        (
            "open -k -o driver=memory",
            "can't open: aio=native was specified, but it requires cache.direct=on, which was not specified.",
        ),
        (
            "open -i io_uring -o driver=memory",
            "can't open: aio=io_uring is not supported in this version of vblk: use aio=threads",
        ),
        ("open -i foo -o driver=memory", "Invalid aio option: foo"),
        ("open -t foo -o driver=memory", "Invalid cache option: foo"),
        ("open -d foo -o driver=memory", "Invalid discard option: foo"),
        (
            "open /nonexistent",
            "can't open device /nonexistent: Could not open '/nonexistent': No such file or directory",
        ),
    ],
)
def test_an_image_that_does_not_open_is_told_why(line: str, sentence: str) -> None:
    outcome = carry_out(line)
    assert (outcome.out, outcome.err, outcome.status) == ([], [f"qemu-io: {sentence}"], 1)


def test_background_requests_end_before_the_image_is_closed() -> None:
    lines = said(MEMORY, "aio_write -P 7 0 1k", "aio_read -P 7 0 512", "close", MEMORY, "read -q -P 0 0 1k")
    assert lines == [
        "wrote 1024/1024 bytes at offset 0",
        "1 KiB, 1 ops",
        "read 512/512 bytes at offset 0",
        "512 bytes, 1 ops",
    ]


def test_a_failed_background_request_does_not_change_the_status() -> None:
    outcome = carry_out(MEMORY, "aio_read 1M 1", "aio_write 1M 1", "aio_flush")
    assert outcome.out == ["readv failed: Input/output error", "aio_write failed: Input/output error"]
    assert outcome.status == 0


def test_requests_stop_at_breakpoints_and_go_on() -> None:
    outcome = carry_out(
        FAULTY, "break pwritev A", "aio_write 0 512", "wait_break A", "resume A", "aio_flush", "resume A"
    )
    assert outcome.out == [
        "blkdebug: Suspended request 'A'",
        "blkdebug: Resuming request 'A'",
        "wrote 512/512 bytes at offset 0",
        "512 bytes, 1 ops",
        "Could not resume request: No such file or directory",
    ]


def test_a_stopped_request_goes_on_when_the_image_is_closed() -> None:
    lines = said(FAULTY, "break write_aio A", "aio_write 0 512", "wait_break A", "close")
    assert lines[1:] == [
        "blkdebug: Resuming request 'A'",
        "wrote 512/512 bytes at offset 0",
        "512 bytes, 1 ops",
    ]


def test_an_injected_error_is_told_with_its_name() -> None:
    rule = "inject-error.0.event=write_aio,inject-error.0.errno=28,inject-error.0.once=on"
    outcome = carry_out(f"{FAULTY},{rule}", "write 0 512", "write -q 0 512")
    assert (outcome.out, outcome.err) == (["write failed: No space left on device"], [])


def test_a_failed_flush_is_told_by_the_status_alone() -> None:
    rule = "inject-error.0.event=flush_to_disk"
    outcome = carry_out(f"{FAULTY},{rule} -t writeback", "write -q 0 512", "flush")
    assert (outcome.out, outcome.err, outcome.status) == ([], [], 1)


def test_a_writethrough_image_is_flushed_by_every_write() -> None:
    rule = "inject-error.0.event=none,inject-error.0.iotype=flush"
    assert carry_out(f"{FAULTY},{rule}", "write 0 512").out == ["write failed: Input/output error"]
    assert carry_out(f"{FAULTY},{rule} -t writeback", "write -q 0 512").out == []


def test_a_window_of_a_raw_image_moves_at_reopen() -> None:
    lines = said(
        "open -o driver=raw,offset=512,size=512,file.driver=memory,file.size=4k",
        "length",
        "reopen -o offset=1536,size=1024",
        "length",
    )
    assert lines == ["512 bytes", "1 KiB"]


def test_a_reopen_that_fails_leaves_the_image_open_as_it_was() -> None:
    outcome = carry_out(
        "open -o driver=raw,size=512,file.driver=memory,file.size=4k", "reopen -o size=1M", "length"
    )
    assert outcome.out == ["512 bytes"]
    assert len(outcome.err) == 1
    assert outcome.status == 1
