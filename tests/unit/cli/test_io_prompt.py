"""Commands from a descriptor: lines, the end of input, and what runs on meanwhile."""

import asyncio
import os
import tempfile
from collections.abc import Callable

import pytest

from vblk.cli.failure import Failure
from vblk.cli.io_prompt import LINE_MAX, LineReader


def lines_of(fd: int) -> list[str]:
    async def read() -> list[str]:
        reader = LineReader(fd)
        found: list[str] = []
        while (line := await reader.next_line()) is not None:
            found.append(line)
        return found

    return asyncio.run(read())


def through_pipe(data: bytes) -> int:
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    return reading


def through_file(data: bytes) -> int:
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(data)
        fd = os.dup(file.fileno())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


@pytest.mark.parametrize("through", [through_pipe, through_file])
@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"length\n", ["length"]),
        (b"length\n\nread 0 1", ["length", "", "read 0 1"]),
        (b"\xff\n", ["\udcff"]),
    ],
)
def test_input_is_cut_into_lines(through: Callable[[bytes], int], data: bytes, lines: list[str]) -> None:
    fd = through(data)
    try:
        assert lines_of(fd) == lines
    finally:
        os.close(fd)


def test_a_line_without_an_end_is_refused() -> None:
    fd = through_file(b"x" * (LINE_MAX + (1 << 17)))
    try:
        with pytest.raises(Failure, match=f"longer than {LINE_MAX} bytes"):
            lines_of(fd)
    finally:
        os.close(fd)


def test_a_descriptor_that_cannot_be_read_is_told() -> None:
    fd = os.open(os.curdir, os.O_RDONLY)
    try:
        with pytest.raises(Failure, match="cannot read commands: Is a directory"):
            lines_of(fd)
    finally:
        os.close(fd)


def test_other_tasks_run_while_a_line_is_waited_for() -> None:
    reading, writing = os.pipe()

    async def scenario() -> str | None:
        reader = LineReader(reading)
        waiting = asyncio.create_task(reader.next_line())
        await asyncio.sleep(0)
        assert not waiting.done()
        os.write(writing, b"len")
        await asyncio.sleep(0)
        os.write(writing, b"gth\n")
        return await waiting

    try:
        assert asyncio.run(scenario()) == "length"
    finally:
        os.close(reading)
        os.close(writing)
