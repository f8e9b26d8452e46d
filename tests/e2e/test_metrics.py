"""What commands that serve tell Prometheus of their exports."""

import http.client
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import call, good, start
from tests.support.mounts import needs_fuse, nothing_stays_mounted

SIZE = 1 << 20
DAEMON = (
    "daemon", "--blockdev", "driver=file,node-name=n,filename=disk.raw",
    "--nbd-server", "addr.type=unix,addr.path=nbd.sock", "--export", "nbd,id=e,node-name=n,name=",
)  # fmt: skip


class Metrics(http.client.HTTPConnection):
    """A connection to a responder on a unix socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("metrics.sock")


def told() -> dict[str, str]:
    connection = Metrics("x", timeout=30)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def bytes_read(labels: str) -> int:
    """Return what was read of the one export that has these labels."""
    start = "vblk_export_bytes_total{" + labels
    (count,) = (
        value for name, value in told().items() if name.startswith(start) and 'operation="read"' in name
    )
    return int(count)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "disk.raw").write_bytes(b"x" * SIZE)
    monkeypatch.chdir(tmp_path)
    with nothing_stays_mounted(tmp_path):
        yield tmp_path


def ready(process: "subprocess.Popen[str]", path: Path) -> None:
    while not path.exists():
        assert process.poll() is None


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        (("nbd", "-t", "-f", "raw", "-k", "nbd.sock", "disk.raw"), 'export="nbd",node="#block'),
        (DAEMON, 'export="e",node="n",type="nbd"'),
    ],
)
def test_reads_of_an_nbd_export_are_counted(words: tuple[str, ...], labels: str, folder: Path) -> None:
    process = start(words[0], "--metrics", "unix:metrics.sock", *words[1:])
    try:
        ready(process, folder / "metrics.sock")
        ready(process, folder / "nbd.sock")
        name = f"nbd+unix:///?socket={folder}/nbd.sock"
        good("convert", "-f", "raw", "-O", "raw", name, folder / "copy")
        assert bytes_read(labels) >= SIZE
    finally:
        process.terminate()
        assert process.communicate() == ("", "")
    assert not (folder / "metrics.sock").exists()


@needs_fuse
def test_reads_of_a_mounted_disk_are_counted(folder: Path) -> None:
    (folder / "there").mkdir()
    process = start("mount", "-f", "raw", "--metrics", "unix:metrics.sock", "disk.raw", "there")
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert len((folder / "there" / "disk.raw").read_bytes()) == SIZE
        assert bytes_read('export="mount",') == SIZE
    finally:
        process.terminate()
        process.communicate()


@pytest.mark.parametrize("words", [("nbd", "-k", "nbd.sock", "disk.raw"), DAEMON])
def test_an_address_that_others_reach_is_refused_in_a_sentence(words: tuple[str, ...]) -> None:
    outcome = call(words[0], "--metrics", "0.0.0.0:0", *words[1:])
    assert outcome.status == 1
    assert "metrics are told on loopback addresses and unix sockets alone" in outcome.err
