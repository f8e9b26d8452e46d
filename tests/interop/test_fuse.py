"""`vblk mount` under the eyes of others: cp, dd, mmap, loop devices, file systems and QEMU."""

import mmap
import os
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.command_line import call, good, start
from tests.support.mounts import mounted_below, needs_fuse, nothing_stays_mounted
from tests.support.nodes import content_of
from tests.support.qmp import OURS, QEMU, Talk

pytestmark = [pytest.mark.interop, needs_fuse]

MIB = 1 << 20
DATA = content_of(MIB)


def sh(*words: str | Path) -> str:
    return subprocess.run(list(map(str, words)), check=True, capture_output=True, text=True).stdout


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where the disk is mounted; beside it, an image of 64 MiB with data at 3 MiB."""
    sh("qemu-img", "create", "-q", "-f", "vhdx", "-o", "block_size=1M", tmp_path / "disk.vhdx", "64M")
    (tmp_path / "data").write_bytes(DATA)
    sh("qemu-io", "-f", "vhdx", "-c", f"write -s {tmp_path}/data 3M 1M", tmp_path / "disk.vhdx")
    path = tmp_path / "there"
    path.mkdir()
    with nothing_stays_mounted(tmp_path):
        yield path


@contextmanager
def mounted(folder: Path, *options: str) -> Generator["subprocess.Popen[str]"]:
    """Run `vblk mount` in the foreground while the block runs; SIGTERM ends it, and the mount."""
    process = start("mount", *options, folder.parent / "disk.vhdx", folder)
    assert process.stdout is not None
    try:
        assert "Ctrl-C unmounts" in process.stdout.readline()
        yield process
    finally:
        process.terminate()
        _, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert mounted_below(folder.parent) == []


def test_the_disk_is_what_convert_makes_of_the_image_for_all_readers(folder: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    good("convert", "-O", "raw", tmp_path / "disk.vhdx", raw)
    disk = folder / "disk.vhdx"
    with mounted(folder):
        assert disk.stat().st_size == 64 * MIB
        sh("cmp", disk, raw)
        sh("dd", f"if={disk}", f"of={tmp_path}/direct", "bs=1M", "iflag=direct", "status=none")
        sh("cmp", tmp_path / "direct", raw)
        with open(disk, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
            assert view[3 * MIB : 4 * MIB] == DATA
            assert view[:MIB] == bytes(MIB)
            assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 3 * MIB
            assert os.lseek(file.fileno(), 3 * MIB, os.SEEK_HOLE) == 4 * MIB
            with pytest.raises(OSError, match="No such device or address"):
                os.lseek(file.fileno(), 4 * MIB, os.SEEK_DATA)
        sh("cp", "--sparse=auto", disk, tmp_path / "copy")
        sh("cmp", tmp_path / "copy", raw)
        assert (tmp_path / "copy").stat().st_blocks * 512 <= 2 * MIB
        assert sh("qemu-img", "compare", "-f", "raw", "-F", "vhdx", disk, tmp_path / "disk.vhdx", "-U")


@pytest.mark.skipif(not os.path.exists("/dev/loop-control"), reason="the kernel has no loop devices")
def test_a_file_system_lives_on_the_disk_and_qemu_reads_it_afterwards(folder: Path, tmp_path: Path) -> None:
    disk, inside = folder / "disk.vhdx", tmp_path / "inside"
    inside.mkdir()
    with mounted(folder, "--rw"):
        sh("mkfs.ext4", "-q", "-F", disk)
        sh("mount", "-o", "loop", disk, inside)
        (inside / "file").write_bytes(DATA)
        sh("umount", inside)
        sh("e2fsck", "-f", "-n", disk)
    sh("qemu-img", "check", "-q", tmp_path / "disk.vhdx")
    sh("qemu-img", "convert", "-O", "raw", tmp_path / "disk.vhdx", tmp_path / "raw")
    sh("e2fsck", "-f", "-n", tmp_path / "raw")
    assert subprocess.run(
        ["debugfs", "-R", "cat file", str(tmp_path / "raw")], check=True, capture_output=True
    ).stdout == DATA  # fmt: skip


def test_what_was_synchronised_is_there_after_the_process_was_killed(folder: Path, tmp_path: Path) -> None:
    process = start("mount", "--rw", tmp_path / "disk.vhdx", folder)
    assert process.stdout is not None
    process.stdout.readline()
    fd = os.open(folder / "disk.vhdx", os.O_RDWR)
    assert os.pwrite(fd, DATA, 10 * MIB) == MIB
    os.fsync(fd)
    process.kill()
    process.communicate()
    with pytest.raises(OSError, match="not connected"):
        os.close(fd)
    refused = call("mount", tmp_path / "disk.vhdx", folder)
    assert "what served it was killed: fusermount3 -u makes it free" in refused.err
    sh("fusermount3", "-u", folder)
    sh("qemu-img", "check", "-q", "-r", "all", tmp_path / "disk.vhdx")
    sh("qemu-io", "-r", "-f", "vhdx", "-c", "read 10M 1M", tmp_path / "disk.vhdx")
    good("convert", "-O", "raw", tmp_path / "disk.vhdx", tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes()[10 * MIB : 11 * MIB] == DATA


def test_for_reading_only_nobody_writes(folder: Path) -> None:
    with mounted(folder):
        with pytest.raises(OSError, match="Read-only file system"):
            (folder / "disk.vhdx").open("r+b")
        with pytest.raises(OSError, match="Read-only file system"):
            (folder / "other").touch()


def test_a_disk_in_use_is_unmounted_with_a_warning(folder: Path) -> None:
    process = start("mount", folder.parent / "disk.vhdx", folder)
    assert process.stdout is not None
    process.stdout.readline()
    with open(folder / "disk.vhdx", "rb", buffering=0) as file:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert process.returncode == 0
        assert f"warning: '{folder}' was in use: whoever has the disk open gets errors from now on" in err
        assert mounted_below(folder) == []
        with pytest.raises(OSError, match=r"not connected|aborted"):
            file.read(512)
        with pytest.raises(OSError, match="not connected"):
            file.close()


def test_in_the_background_it_is_there_when_the_command_returns_and_an_unmount_ends_it(folder: Path) -> None:
    outcome = start("mount", "--fork", "--name", "c", folder.parent / "disk.vhdx", folder)
    assert outcome.communicate() == ("", "")
    assert outcome.returncode == 0
    assert os.listdir(folder) == ["c"]
    sh("fusermount3", "-u", folder)
    # The process in the background holds the image's lock to its end.
    while call("io", "-f", "vhdx", "-c", "write 0 512", folder.parent / "disk.vhdx").status:
        pass


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["disk.vhdx"], "Expecting an image and a folder"),
        (["disk.vhdx", "none"], "Failed to stat 'none': No such file or directory"),
        (["disk.vhdx", "data"], "'data' is not a directory"),
        (["none.vhdx", "there"], "Could not open 'none.vhdx'"),
        (["--metrics", "0.0.0.0:1", "disk.vhdx", "there"], "loopback addresses and unix sockets alone"),
    ],
)
def test_what_cannot_be_mounted_is_said_in_a_sentence(
    words: list[str], sentence: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call("mount", *words)
    assert outcome.status == 1
    assert sentence in outcome.err
    assert mounted_below(tmp_path) == []


def daemon_session(program: tuple[str, ...], tmp_path: Path) -> list[object]:
    """Export a file over itself and elsewhere, as QEMU allows and as it refuses; return what came of it."""
    (tmp_path / "mountpoint").touch()
    (tmp_path / "folder").mkdir(exist_ok=True)
    disk, place = tmp_path / "disk.raw", tmp_path / "mountpoint"
    disk.write_bytes(DATA)
    node = f"driver=raw,node-name=n,file.driver=file,file.filename={disk}"
    found: list[object] = []
    with Talk(program, "--blockdev", node, folder=tmp_path) as talk:
        talk.begin()

        def add(id: str, where: Path, **more: object) -> dict[str, object]:
            return {"type": "fuse", "id": id, "node-name": "n", "mountpoint": str(where), **more}

        found += [
            talk.refused("block-export-add", **add("e", where))
            for where in (tmp_path / "none", tmp_path / "folder")
        ]
        talk.call("block-export-add", **add("e", place))
        found.append(talk.refused("block-export-add", **add("f", place)))
        found.append(talk.call("query-block-exports"))
        found += [place.read_bytes() == DATA, oct(place.stat().st_mode)]
        found += [
            refusal(lambda: place.chmod(0o600)),
            refusal(lambda: place.chmod(0o500)),
            oct(place.stat().st_mode),
        ]
        talk.call("block-export-add", **add("f", disk))
        found.append(disk.read_bytes() == DATA)
        talk.call("block-export-del", id="f")
        talk.call("block-export-del", id="e")
        talk.call("block-export-add", **add("e", place, writable=True, growable=True))
        with open(place, "r+b", buffering=0) as file:
            file.seek(MIB)
            found.append(file.write(b"x" * 4096))
        found += [place.stat().st_size, oct(place.stat().st_mode), talk.end()]
    return [*found, disk.read_bytes() == DATA + b"x" * 4096, mounted_below(tmp_path)]


def refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except OSError as error:
        return str(error.strerror)
    return ""


def test_the_daemon_exports_files_as_qemus_does(tmp_path: Path) -> None:
    with nothing_stays_mounted(tmp_path):
        assert daemon_session(OURS, tmp_path) == daemon_session(QEMU, tmp_path)
