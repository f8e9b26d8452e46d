"""Image locks against QEMU's own programs, in both directions."""

import asyncio
import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.command_line import call
from vblk.aio.threads import ThreadEngine
from vblk.graph.edge import SHARED_BY_READER, Permission
from vblk.protocols.file import Options, open_file
from vblk.protocols.file_node import FileNode
from vblk.protocols.image_lock import ImageLocked

pytestmark = pytest.mark.interop


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Make an image with a format: QEMU's raw driver forbids nothing to others, its formats do."""
    path = tmp_path / "disk.vhdx"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", str(path), "1M"], check=True)
    return path


@contextmanager
def qemu_io(image: Path, *options: str) -> Generator[int, None, None]:
    """Hold an image open in qemu-io; yields its process id."""
    command = ["qemu-io", "-f", "raw", *options, str(image)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("length\n")
        process.stdin.flush()
        while "MiB" not in (line := process.stdout.readline()):
            assert line, "qemu-io ended early"
        try:
            yield process.pid
        finally:
            process.stdin.write("quit\n")
            process.stdin.close()
            process.wait(30)


def qemu_io_opens(image: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = ["qemu-io", "-f", "raw", *options, "-c", "read 0 512", str(image)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def qemu_img_info(image: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = ["qemu-img", "info", "-f", "vhdx", *options, str(image)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


async def opened(
    engine: ThreadEngine,
    image: Path,
    *,
    read_only: bool = True,
    force_share: bool = False,
    shared: Permission = SHARED_BY_READER,
) -> FileNode:
    return await open_file(
        engine,
        Options(str(image)),
        name="disk",
        read_only=read_only,
        force_share=force_share,
        shared=shared,
    )


@pytest.mark.parametrize("read_only", [False, True])
def test_an_image_that_qemu_io_writes_is_refused_and_the_holder_named(image: Path, read_only: bool) -> None:
    async def scenario(pid: int) -> None:
        engine = ThreadEngine(1)
        try:
            with pytest.raises(ImageLocked) as caught:
                await opened(engine, image, read_only=read_only)
        finally:
            await engine.close()
        error = caught.value
        assert error.message == (
            f'Failed to get shared "write" lock\nIs another process using the image [{image}]?'
        )
        assert [(holder.pid, holder.command, holder.writing) for holder in error.holders] == [
            (pid, "qemu-io", True)
        ]
        assert f"process {pid} (qemu-io) has it open for writing" in str(error)

    with qemu_io(image) as pid:
        asyncio.run(scenario(pid))


def test_a_refused_open_leaves_nothing_open_and_nothing_locked(image: Path) -> None:
    async def scenario() -> None:
        engine = ThreadEngine(1)
        await engine.run(lambda: None)
        before = os.listdir("/proc/self/fd")
        with pytest.raises(ImageLocked):
            await opened(engine, image, read_only=False)
        assert os.listdir("/proc/self/fd") == before
        await engine.close()

    with qemu_io(image):
        asyncio.run(scenario())
    assert str(image.stat().st_ino) not in Path("/proc/locks").read_text()


def test_an_image_that_vblk_writes_is_refused_to_qemu(image: Path) -> None:
    async def scenario() -> None:
        engine = ThreadEngine(2)
        node = await opened(engine, image, read_only=False)
        refused = await engine.run(lambda: qemu_io_opens(image))
        assert 'Failed to get "write" lock' in refused.stderr + refused.stdout
        refused = await engine.run(lambda: qemu_img_info(image))
        assert refused.returncode == 1
        assert 'Failed to get shared "write" lock' in refused.stderr
        shared = await engine.run(lambda: qemu_img_info(image, "-U"))
        assert shared.returncode == 0
        await node.close()
        assert (await engine.run(lambda: qemu_io_opens(image))).returncode == 0
        await engine.close()

    asyncio.run(scenario())


def test_readers_share(image: Path) -> None:
    async def scenario() -> None:
        engine = ThreadEngine(2)
        nodes = [await opened(engine, image) for _ in range(3)]
        assert (await engine.run(lambda: qemu_io_opens(image, "-r"))).returncode == 0
        assert (await engine.run(lambda: qemu_img_info(image))).returncode == 0
        refused = await engine.run(lambda: qemu_io_opens(image))
        assert 'Failed to get "write" lock' in refused.stderr + refused.stdout
        for node in nodes:
            await node.close()
        await engine.close()

    with qemu_io(image, "-r"):
        asyncio.run(scenario())


def test_force_share_reads_what_somebody_writes(image: Path) -> None:
    async def scenario() -> None:
        engine = ThreadEngine(1)
        node = await opened(engine, image, force_share=True)
        assert await node.read(0, 8) == b"vhdxfile"
        await node.close()
        await engine.close()

    with qemu_io(image):
        asyncio.run(scenario())


def test_writers_that_allow_each_other_share(image: Path) -> None:
    async def scenario() -> None:
        engine = ThreadEngine(1)
        node = await opened(engine, image, read_only=False, shared=Permission.ALL)
        await node.close()
        await engine.close()

    with qemu_io(image):
        asyncio.run(scenario())


def test_the_locks_follow_a_reopen(image: Path) -> None:
    async def scenario() -> None:
        engine = ThreadEngine(2)
        node = await opened(engine, image)
        assert (await engine.run(lambda: qemu_io_opens(image, "-r"))).returncode == 0
        await node.reopen(read_only=False)
        assert (await engine.run(lambda: qemu_img_info(image))).returncode == 1
        await node.reopen(read_only=True)
        assert (await engine.run(lambda: qemu_img_info(image))).returncode == 0
        await node.close()
        await engine.close()

    asyncio.run(scenario())


def test_a_reopen_that_others_forbid_changes_nothing(image: Path) -> None:
    async def scenario() -> None:
        engine = ThreadEngine(2)
        node = await opened(engine, image)
        other = await opened(engine, image)
        with pytest.raises(ImageLocked) as caught:
            await node.reopen(read_only=False)
        assert [holder.pid for holder in caught.value.holders] == [os.getpid()]
        assert "this process has it open for reading" in str(caught.value)
        assert node.read_only
        assert (await engine.run(lambda: qemu_img_info(image))).returncode == 0
        await other.close()
        await node.reopen(read_only=False)
        await node.close()
        await engine.close()

    asyncio.run(scenario())


def test_locking_off_takes_no_lock_and_minds_none(image: Path) -> None:
    async def scenario() -> None:
        engine = ThreadEngine(1)
        node = await open_file(engine, Options(str(image), locking="off"), name="disk", read_only=False)
        await node.close()
        await engine.close()

    with qemu_io(image):
        asyncio.run(scenario())


def test_the_command_line_names_the_process_that_holds_an_image(image: Path) -> None:
    with qemu_io(image) as pid:
        outcome = call("info", str(image))
        assert outcome.status == 1
        assert f"vblk: process {pid} (qemu-io) has it open for writing\n" in outcome.err
        assert "process" not in call("info", str(image), program="qemu-img").err.replace(
            "another process", ""
        )
