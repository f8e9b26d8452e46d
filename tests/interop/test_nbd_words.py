"""`vblk nbd` under the name qemu-nbd: words and exit status for what is wrong, files, background."""

import os
import select
import signal
import subprocess
from pathlib import Path

import pytest

from tests.interop.test_nbd_server import ran
from tests.support.command_line import call, good

pytestmark = pytest.mark.interop

WRONG: dict[str, tuple[str, ...]] = {
    "no image": ("-k", "{0}/s", "{0}/none.raw"),
    "unknown format": ("-k", "{0}/s", "-f", "nofmt", "{0}/a.raw"),
    "other format": ("-k", "{0}/s", "-f", "qcow2", "{0}/a.raw"),
    "no port": ("-f", "raw", "-b", "127.0.0.1", "-p", "x", "{0}/a.raw"),
    "not our interface": ("-f", "raw", "-b", "1.2.3.4", "-p", "1", "{0}/a.raw"),
    "negative clients": ("-e", "-1", "{0}/a.raw"),
    "clients in words": ("-e", "two", "{0}/a.raw"),
    "offset in words": ("-o", "far", "{0}/a.raw"),
    "offset behind the end": ("-f", "raw", "-k", "{0}/s", "-o", "2M", "{0}/a.raw"),
    "no such bitmap": ("-f", "raw", "-k", "{0}/s", "-B", "b", "{0}/a.raw"),
    "cache": ("--cache=foo", "{0}/a.raw"),
    "aio": ("--aio=foo", "{0}/a.raw"),
    "discard": ("--discard=foo", "{0}/a.raw"),
    "detect-zeroes": ("--detect-zeroes=foo", "{0}/a.raw"),
    "detect-zeroes without discard": ("--detect-zeroes=unmap", "{0}/a.raw"),
    "cache twice": ("-n", "--cache=none", "{0}/a.raw"),
    "no credentials": ("-f", "raw", "-k", "{0}/s", "--tls-creds=x", "{0}/a.raw"),
    "authorization without TLS": ("-k", "{0}/s", "--tls-authz=x", "{0}/a.raw"),
    "relative socket": ("-f", "raw", "-k", "relative", "{0}/a.raw"),
    "no folder for the socket": ("-f", "raw", "-k", "{0}/none/s", "{0}/a.raw"),
    "no folder for the number": ("-f", "raw", "-k", "{0}/s", "--pid-file={0}/none/p", "{0}/a.raw"),
    "list and image": ("-L", "{0}/a.raw"),
    "list and name": ("-L", "-x", "name"),
    "list of nobody": ("-L", "-k", "{0}/none"),
    "long name": ("-f", "raw", "-k", "{0}/s", "-x", "x" * 4097, "{0}/a.raw"),
    "long description": ("-f", "raw", "-k", "{0}/s", "-D", "x" * 4097, "{0}/a.raw"),
    "format twice": ("--image-opts", "-f", "raw", "-k", "{0}/s", "driver=raw,file.filename={0}/a.raw"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused_in_qemu_nbds_words(what: str, tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"x" * (1 << 20))
    words = [word.format(tmp_path) for word in WRONG[what]]
    theirs = subprocess.run(["qemu-nbd", *words], capture_output=True, text=True, timeout=20)
    ours = call(*words, program="qemu-nbd")
    assert (ours.status, ours.err) == (theirs.returncode, theirs.stderr)


@pytest.mark.parametrize(
    "words",
    [
        ("-c", "/dev/nbd0", "a.raw"),
        ("-d", "/dev/nbd0"),
        ("-l", "snapshot", "a.raw"),
        ("--aio=native", "a.raw"),
        ("--trace", "x", "a.raw"),
        ("--selinux-label", "x", "a.raw"),
        ("--tls-hostname", "x", "a.raw"),
    ],
    ids=lambda words: words[0],
)
def test_what_is_not_here_is_refused_in_a_sentence(words: tuple[str, ...]) -> None:
    ours = call("nbd", *words)
    assert ours.status == 1
    assert ours.err.startswith("vblk: --")
    assert ours.err.count("\n") == 1


def test_in_the_background_it_serves_at_once_and_ends_by_its_number(tmp_path: Path) -> None:
    image, path, number = tmp_path / "a.raw", tmp_path / "s", tmp_path / "number"
    image.write_bytes(b"x" * (1 << 20))
    program = tmp_path / "qemu-nbd"
    good("drop-in", tmp_path)
    done = subprocess.run(
        [program, "--fork", "-t", "-f", "raw", "-k", path, f"--pid-file={number}", image],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert ran("nbdinfo", "--size", f"nbd+unix:///?socket={path}") == f"{1 << 20}\n"
    process = int(number.read_text())
    descriptor = os.pidfd_open(process)
    os.kill(process, signal.SIGTERM)
    try:
        assert select.select([descriptor], [], [], 30)[0]
    finally:
        os.close(descriptor)
    assert not path.exists()


def test_what_goes_wrong_on_the_way_into_the_background_is_told_first(tmp_path: Path) -> None:
    good("drop-in", tmp_path)
    words = ("--fork", "-f", "raw", "-k", str(tmp_path / "none" / "s"), str(tmp_path / "a.raw"))
    (tmp_path / "a.raw").write_bytes(bytes(512))
    ours, theirs = (
        subprocess.run([program, *words], capture_output=True, text=True, timeout=20)
        for program in (str(tmp_path / "qemu-nbd"), "qemu-nbd")
    )
    assert (ours.returncode, ours.stderr) == (theirs.returncode, theirs.stderr)


def test_activation_excludes_another_address(tmp_path: Path) -> None:
    good("drop-in", tmp_path)
    (tmp_path / "a.raw").write_bytes(b"x" * 512)
    for words in (("-k", "/s"), ("-b", "::1"), ("-p", "1"), ("-c", "/dev/nbd0"), ("-f", "raw")):
        told: list[tuple[int, str]] = []
        for program in ("qemu-nbd", str(tmp_path / "qemu-nbd")):
            count = 2 if words == ("-f", "raw") else 1
            launch = f'exec 3</dev/null 4</dev/null; LISTEN_PID=$$ LISTEN_FDS={count} exec "$@"'
            done = subprocess.run(
                ["bash", "-c", launch, "-", program, *words, str(tmp_path / "a.raw")],
                capture_output=True,
                text=True,
            )
            told.append((done.returncode, done.stderr))
        assert told[0] == told[1]
