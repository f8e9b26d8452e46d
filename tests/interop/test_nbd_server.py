"""Our exports in the hands of other people's clients: libnbd's tools and bindings, QEMU's, fio, nbd-client.

Every server here is `vblk nbd` as a process of its own, on a socket that the test
hands over as systemd does.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.support.command_line import REPOSITORY, call, good
from tests.support.nbd import Server, qemu_nbd
from tests.support.nodes import content_of

pytestmark = pytest.mark.interop

MIB = 1 << 20
SIZE = 8 * MIB
VBLK = (sys.executable, "-P", "-c", "from vblk.cli.main import run; run()")
PYTHON = "/usr/bin/python3"
"""The interpreter that has libnbd's module."""


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "src"))


def ran(*words: str | Path, text: str | None = None) -> str:
    """Run a program of the system that has to succeed; return its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"/usr/bin:{environment['PATH']}"  # nbdsh looks for the system's interpreter
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, input=text, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def vblk_nbd(folder: Path, image: Path, *options: str, form: str = "raw") -> Server:
    return Server(folder, *VBLK, "nbd", "-t", "-e", "16", "-f", form, "--discard=unmap", *options, str(image))


@pytest.fixture
def content() -> bytes:
    """A disk with data, runs of zeros, and a hole that is whole blocks long."""
    return content_of(3 * MIB) + bytes(3 * MIB) + content_of(2 * MIB, seed=2)


@pytest.fixture
def raw(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "disk.raw"
    with open(path, "wb") as file:
        file.write(content[: 3 * MIB])
        file.seek(6 * MIB)
        file.write(content[6 * MIB :])
    return path


@pytest.fixture
def vhdx(tmp_path: Path, raw: Path) -> Path:
    path = tmp_path / "disk.vhdx"
    good("convert", "-f", "raw", "-O", "vhdx", "-o", "block_size=1M", raw, path)
    return path


@pytest.fixture(params=["raw", "vhdx"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Server]:
    form = str(request.param)
    with vblk_nbd(tmp_path, request.getfixturevalue(form), form=form) as server:
        yield server


def test_nbdinfo_and_qemu_say_of_our_exports_what_they_say_of_qemu_nbds(
    raw: Path, vhdx: Path, tmp_path: Path
) -> None:
    for form, image in (("raw", raw), ("vhdx", vhdx)):
        said: list[list[object]] = []
        for make in (vblk_nbd, qemu_nbd):
            with make(tmp_path, image, "-x", "disk", "-D", "words", "-A", form=form) as server:
                info = json.loads(ran("nbdinfo", "--json", server.uri("disk")))
                for export in info["exports"]:
                    del export["uri"]
                    if form == "vhdx":  # of which QEMU takes whole sectors only
                        assert export.pop("block_size_minimum") in (1, 512)
                maps = [
                    json.loads(ran("nbdinfo", "--json", f"--map={context}", server.uri("disk")))
                    for context in ("base:allocation", "qemu:allocation-depth")
                ]
                listed = ran("qemu-nbd", "-L", "-k", server.path).replace("min block: 512", "min block: 1")
                mapped = json.loads(ran("qemu-img", "map", "--output=json", server.uri("disk")))
                if form == "vhdx":  # of whose blocks QEMU tells no holes
                    maps, mapped = [maps[1]], None
                said.append([info, maps, listed, mapped])
        for ours, theirs in zip(*said, strict=True):
            assert ours == theirs


def test_nbdinfo_lists_our_exports(served: Server) -> None:
    told = json.loads(ran("nbdinfo", "--json", "--list", served.uri()))
    (export,) = told["exports"]
    assert (export["export-name"], export["export-size"]) == ("", SIZE)
    assert ran("nbdinfo", "--size", served.uri()) == f"{SIZE}\n"
    assert ran("nbdinfo", "--can", "multi-conn", served.uri()) == ""


def test_nbdcopy_reads_and_writes_all_bytes(served: Server, content: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out.raw"
    ran("nbdcopy", served.uri(), out)
    assert out.read_bytes() == content
    other = content_of(SIZE, seed=9)
    out.write_bytes(other)
    ran("nbdcopy", "--flush", "--requests=32", out, served.uri())
    ran("nbdcopy", "--request-size=65536", served.uri(), tmp_path / "back.raw")
    assert (tmp_path / "back.raw").read_bytes() == other


def compared(*images: str | Path) -> None:
    told = ran("qemu-img", "compare", "-f", "raw", "-F", "raw", *images)
    assert told == "Images are identical.\n"


def test_qemu_converts_compares_and_maps_our_exports(served: Server, content: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out.raw"
    ran("qemu-img", "convert", "-f", "raw", "-O", "raw", served.uri(), out)
    assert out.read_bytes() == content
    compared(served.uri(), out)
    ran("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", out, served.uri())
    compared(served.uri(), out)


def test_qemu_io_writes_zeroes_discards_and_flushes(served: Server, content: bytes) -> None:
    commands = (
        "write -P 0xa5 4097 70001",
        "write -f -P 0x5a 200k 4k",
        "write -z 1M 128k",
        "write -z -u 2M 1M",
        "discard 7M 64k",
        "flush",
        "read -P 0xa5 4097 70001",
        "read -P 0x5a 200k 4k",
        "read -P 0 1M 128k",
        "read -P 0 2M 1M",
    )
    words = [word for command in commands for word in ("-c", command)]
    said = ran("qemu-io", "-f", "raw", *words, served.uri())
    assert "Pattern verification failed" not in said
    assert said.count("bytes at offset") == 9


def test_the_image_is_closed_clean_when_a_signal_comes(vhdx: Path, raw: Path, tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with socket.socket(socket.AF_UNIX) as listener:
            path = tmp_path / f"{number}.sock"
            listener.bind(str(path))
            listener.listen()
            server = Server(tmp_path, *VBLK, "nbd", "-t", "-f", "vhdx", str(vhdx))
            server.start()
            ran("qemu-io", "-f", "raw", "-c", f"write -P {int(number)} 3M 1M", server.uri())
            assert server.end(number) == 0
        report = json.loads(good("check", "--output=json", vhdx))
        assert report.get("corruptions", 0) == 0
        ran("qemu-io", "-r", "-f", "vhdx", "-c", f"read -P {int(number)} 3M 1M", vhdx)


def test_fio_verifies_what_it_wrote(served: Server) -> None:
    job = ("--ioengine=nbd", f"--uri={served.uri()}", "--rw=randwrite", "--bs=4k", "--iodepth=16")
    done = ran("fio", "--name=x", *job, f"--size={SIZE}", "--verify=crc32c", "--do_verify=1", "--minimal")
    assert done.count(";") > 50


def test_nbd_client_lists_our_exports(raw: Path, tmp_path: Path) -> None:
    with vblk_nbd(tmp_path, raw, "-x", "one disk") as server:
        assert "one disk" in ran("nbd-client", "-l", "-u", server.path)


def test_the_examples_of_libnbds_documentation_run(served: Server, content: bytes, tmp_path: Path) -> None:
    uri = served.uri()
    shown = ran("nbdsh", "-u", uri, "-c", "print(h.get_size())", "-c", "print(h.pread(4, 0).hex())")
    assert shown == f"{SIZE}\n{content[:4].hex()}\n"
    sector = ran("nbdsh", "-c", "-", text=f"h.connect_uri('{uri}')\nprint(h.pread(512, 0).hex())\n")
    assert bytes.fromhex(sector) == content[:512]
    shown = ran(
        "nbdsh", "--base-allocation", "-u", uri, "-c",
        "h.block_status(8 << 20, 0, lambda *told: print(told[0], told[1], len(told[2]) % 2))",
    )  # fmt: skip
    assert shown.split() == ["base:allocation", "0", "0"]
    dumped = ran("nbddump", "--length=32", uri)
    assert dumped.startswith(f"0000000000: {content[:1].hex()} ")


def test_libnbds_bindings_find_every_request_and_every_refusal(served: Server, tmp_path: Path) -> None:
    script = tmp_path / "client.py"
    script.write_text(LIBNBD_CLIENT)
    assert ran(PYTHON, script, served.path, str(SIZE)) == "ok\n"


LIBNBD_CLIENT = """\
import errno, sys
import nbd

path, size = sys.argv[1], int(sys.argv[2])
h = nbd.NBD()
h.set_strict_mode(0)  # let the server do the refusing
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_unix(path)
assert h.get_size() == size
assert h.get_structured_replies_negotiated()
assert h.can_meta_context("base:allocation")
assert (h.get_block_size(nbd.SIZE_MINIMUM), h.get_block_size(nbd.SIZE_MAXIMUM)) == (1, 32 << 20)

def refused(number, call, *words):
    try:
        call(*words)
    except nbd.Error as error:
        assert error.errnum == number, (error, number)
    else:
        raise AssertionError(f"{call} {words} was not refused")

h.pwrite(b"x" * 5000, 4095, nbd.CMD_FLAG_FUA)
assert h.pread(5002, 4094)[1:-1] == b"x" * 5000
h.zero(4096, 4096, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(4096, 4096) == bytes(4096)
h.trim(1 << 20, 1 << 20, nbd.CMD_FLAG_FUA)
h.cache(1 << 20, 0)
h.flush()
refused(errno.EINVAL, h.pread, 512, size)
refused(errno.ENOSPC, h.pwrite, bytes(512), size - 511)
refused(errno.ENOSPC, h.zero, 512, size)
refused(errno.EINVAL, h.trim, 512, size)
refused(errno.EINVAL, h.flush, 1 << 9)

chunks = []
def chunk(data, offset, status, error):
    chunks.append((offset, len(data), status))
    return 0
data = h.pread_structured(1 << 20, 3 << 20, chunk)
assert data == bytes(1 << 20)
assert sum(length for _, length, _ in chunks) in (0, 1 << 20) and chunks
many = [h.aio_pread(nbd.Buffer(4096), 4096 * number) for number in range(200)]
while h.aio_in_flight():
    h.poll(-1)
assert all(h.aio_command_completed(cookie) for cookie in many)
other = nbd.NBD()
other.connect_unix(path)
other.pwrite(b"seen by both", 0)
assert h.pread(12, 0) == b"seen by both"
other.shutdown()
h.shutdown()
print("ok")
"""


def test_our_own_client_and_command_line_work_on_our_exports(
    served: Server, content: bytes, tmp_path: Path
) -> None:
    good("convert", "-f", "raw", "-O", "raw", served.uri(), tmp_path / "out.raw")
    assert (tmp_path / "out.raw").read_bytes() == content
    good("io", "-f", "raw", "-c", "write -P 7 1M 1M", "-c", "flush", "-c", "read -P 7 1M 1M", served.uri())


def test_a_server_that_is_not_persistent_ends_with_its_last_client(raw: Path, tmp_path: Path) -> None:
    server = Server(tmp_path, *VBLK, "nbd", "-f", "raw", str(raw))
    server.start()
    ran("nbdinfo", "--list", server.uri())  # chooses nothing, so does not count
    assert ran("nbdinfo", "--size", server.uri()) == f"{SIZE}\n"
    assert server.end(None) == 0


def test_a_read_only_export_refuses_every_change(raw: Path, tmp_path: Path) -> None:
    before = raw.read_bytes()
    with vblk_nbd(tmp_path, raw, "-r") as server:
        assert json.loads(ran("nbdinfo", "--json", server.uri()))["exports"][0]["is_read_only"]
        code = (
            "h.set_strict_mode(0)\n"
            f"h.connect_unix('{server.path}')\n"
            "for call, words in ((h.pwrite, (b'x', 0)), (h.zero, (1, 0)), (h.trim, (1, 0))):\n"
            "    try:\n        call(*words)\n    except nbd.Error as error:\n        print(error.errno)\n"
        )
        assert ran("nbdsh", "-c", "-", text=code) == "EPERM\n" * 3
    assert raw.read_bytes() == before


def test_an_offset_and_a_temporary_overlay_lie_over_the_image(
    raw: Path, content: bytes, tmp_path: Path
) -> None:
    with vblk_nbd(tmp_path, raw, "-o", "65536", "-s") as server:
        assert ran("nbdinfo", "--size", server.uri()) == f"{SIZE - 65536}\n"
        shown = ran("nbdsh", "-u", server.uri(), "-c", "h.pwrite(b'over', 0); print(h.pread(8, 0).hex())")
        assert bytes.fromhex(shown) == b"over" + content[65540:65544]
    assert raw.read_bytes() == content


def test_only_under_qemus_names_may_an_image_name_an_export(
    raw: Path, content: bytes, tmp_path: Path
) -> None:
    overlay, out = tmp_path / "over.qcow2", tmp_path / "out.raw"
    with vblk_nbd(tmp_path, raw, "-r") as server:
        ran("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", server.uri(), overlay)
        good("convert", "-O", "raw", overlay, out, program="qemu-img")
        assert out.read_bytes() == content
        refused = call("convert", "-O", "raw", overlay, out)
        assert refused.status == 1
        assert "images may only name files" in refused.err
    far = tmp_path / "far.qcow2"
    ran("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "nbd://h:1/x", far, "1M")
    assert "images may only name files" in call("info", "--backing-chain", far, program="qemu-img").err


def test_our_client_asks_for_another_context(raw: Path, tmp_path: Path) -> None:
    with vblk_nbd(tmp_path, raw, "-A", "-r") as server:
        where = f"driver=nbd,server.type=unix,server.path={server.path},x-dirty-bitmap"
        good("map", "--output=json", "--image-opts", f"{where}=qemu:allocation-depth")
        refused = call("map", "--output=json", "--image-opts", f"{where}=qemu:dirty-bitmap:b")
        assert "requested x-dirty-bitmap qemu:dirty-bitmap:b not found" in refused.err
