"""NBD servers beside each other: vblk nbd, qemu-nbd, nbdkit, asked by fio and nbdcopy.

Owns: the patterns, the servers, and what is read out of fio's report. All servers
show the same bytes, which is looked at before anything counts; they take turns, on
unix sockets, with the image in the page cache except where it says otherwise.
"""

import filecmp
import json
import os
import subprocess
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from bench.images import copy_by_pages, make_vhdx, warm
from bench.measure import NotMeasured, Result, Seconds, WrongResult, compare, program, run, take_turns
from bench.settings import VBLK, Settings
from tests.support.nbd import Server
from vblk.units import MIB

OURS: Final = "vblk"
QEMU: Final = "qemu-nbd"
NBDKIT: Final = "nbdkit"
CLIENTS: Final = 16
MEMORY_MOST: Final = 2048
"""KiB of a busy connection."""


class Pattern(NamedTuple):
    """What fio asks for, and what vblk has to reach: times qemu-nbd, and times nbdkit over raw."""

    name: str
    mode: str
    block: str
    depth: int
    over_qemu: float
    over_nbdkit: float | None = None


READS: Final = (
    Pattern("4k randread, depth 16", "randread", "4k", 16, 3.0, 1.2),
    Pattern("4k randread, depth 1", "randread", "4k", 1, 1.2),
    Pattern("64k randread, depth 16", "randread", "64k", 16, 1.5, 1.0),
    Pattern("1m read, depth 4", "read", "1m", 4, 2.0, 1.2),
)
WRITE: Final = Pattern("4k randwrite, depth 16", "randwrite", "4k", 16, 2.0, 1.0)
WRITE_VHDX: Final = WRITE._replace(over_nbdkit=None)


def serving(settings: Settings) -> Iterator[Result]:
    """Yield every row of the table."""
    raw = make_full(settings.folder / "full.raw", settings.served_bytes)
    vhdx = make_vhdx(raw, settings.folder / "full.vhdx")
    for form, image in (("raw", raw), ("vhdx", vhdx)):
        with _servers(settings, form, image) as servers:
            yield _memory(settings, form, servers[OURS])
            _check_bytes(servers, raw, settings.folder / "copied.raw")
            for pattern in READS:
                yield from _contest(settings, form, servers, pattern)
            yield from _slow_neighbours(settings, form, image, servers)
            if form == "vhdx":
                yield _copying(settings, servers)
        with _servers(settings, form, image, writable=True) as servers:
            yield from _contest(settings, form, servers, WRITE if form == "raw" else WRITE_VHDX)


def make_full(path: Path, size: int) -> Path:
    """Make a disk without a zero in it."""
    with path.open("wb") as file:
        for _ in range(0, size, MIB):
            file.write(os.urandom(MIB))
    return path


@contextmanager
def _servers(
    settings: Settings, form: str, image: Path, *, writable: bool = False
) -> Generator[dict[str, Server]]:
    """Start every server that can show an image; each writes to a copy of its own, made page by page."""
    commands: dict[str, list[str]] = {
        OURS: [str(VBLK), "nbd", "-t", "-e", "64", "-f", form],
        QEMU: ["qemu-nbd", "-t", "-e", "64", "-f", form],
    }
    if form == "raw":
        commands[NBDKIT] = ["nbdkit", "-f", "--exit-with-parent"]
    servers: dict[str, Server] = {}
    with ExitStack() as running:
        for name, command in commands.items():
            place = image
            if writable:
                place = settings.folder / f"{name}.{form}"
                copy_by_pages(image, place)
                running.callback(place.unlink)
            words = command if writable else [*command, "-r"]
            words += ["file", str(place)] if name == NBDKIT else [str(place)]
            warm(place)
            servers[name] = running.enter_context(Server(settings.folder, *words))
        yield servers


def _check_bytes(servers: dict[str, Server], raw: Path, copied: Path) -> None:
    for name, server in servers.items():
        run(["nbdcopy", server.uri(), copied])
        if not filecmp.cmp(raw, copied, shallow=False):
            raise WrongResult(f"{name} shows other bytes than the disk has")
        copied.unlink()


def ask_fio(settings: Settings, uri: str, *words: str) -> list[dict[str, Any]]:
    """Run fio's jobs on an export; return their reports."""
    report = settings.folder / "fio.json"
    bound = ("--time_based", f"--runtime={settings.serving_seconds:g}")
    command = (
        "fio", "--ioengine=nbd", f"--uri={uri}", "--randrepeat=0", "--output-format=json",
        f"--output={report}", *(bound if settings.serving_seconds else ("--number_ios=64",)), *words,
    )  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotMeasured(f"fio: {done.stderr.strip() or done.stdout.strip()}")
    lines = report.read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("fio:"))  # it chats before its report
    return cast("list[dict[str, Any]]", json.loads(text)["jobs"])


def job_of(settings: Settings, pattern: Pattern) -> tuple[str, ...]:
    """Return fio's words for one pattern."""
    return (
        f"--name={pattern.mode}", f"--rw={pattern.mode}", f"--bs={pattern.block}",
        f"--iodepth={pattern.depth}", f"--size={settings.served_bytes}",
    )  # fmt: skip


def _contest(settings: Settings, form: str, servers: dict[str, Server], pattern: Pattern) -> Iterator[Result]:
    """Compare the time of a request."""
    seconds: Seconds = {name: [] for name in servers}
    way = "write" if "write" in pattern.mode else "read"

    def ask(name: str) -> None:
        (report,) = ask_fio(settings, servers[name].uri(), *job_of(settings, pattern))
        seconds[name].append(1 / max(report[way]["iops"], 1))

    take_turns({name: partial(ask, name) for name in servers}, settings.rounds)
    targets = {QEMU: pattern.over_qemu, NBDKIT: pattern.over_nbdkit}
    for name, target in targets.items():
        if target is not None and name in servers:
            yield compare(f"{form}: {pattern.name} over {name}", _thousands(seconds), name, OURS, target)


def _thousands(seconds: Seconds) -> Seconds:
    """Return the time of a thousand requests, which can be read."""
    return {name: [1000 * each for each in turns] for name, turns in seconds.items()}


def _slow_neighbours(
    settings: Settings, form: str, image: Path, servers: dict[str, Server]
) -> Iterator[Result]:
    """Compare the 99th percentile of one client's cached reads while fifteen read what is on the disk."""
    half = settings.served_bytes // 2
    latest: Seconds = {OURS: [], QEMU: []}
    common = ("--rw=randread", "--bs=4k", f"--size={half}")

    def ask(name: str) -> None:
        with image.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            _read(file.fileno(), half)
        reports = ask_fio(
            settings, servers[name].uri(), *common,
            "--name=cached", "--iodepth=1", "--offset=0",
            "--name=cold", "--iodepth=4", f"--offset={half}", f"--numjobs={CLIENTS - 1}",
        )  # fmt: skip
        (cached,) = (report["read"] for report in reports if report["jobname"] == "cached")
        latest[name].append(cached["clat_ns"]["percentile"]["99.000000"] / 1e9)

    take_turns({name: partial(ask, name) for name in latest}, settings.rounds)
    warm(image)
    yield compare(f"{form}: p99 beside 15 cold clients, of 1000", _thousands(latest), QEMU, OURS, 1.0)


def _read(descriptor: int, length: int) -> None:
    for offset in range(0, length, MIB):
        os.pread(descriptor, MIB, offset)


def _copying(settings: Settings, servers: dict[str, Server]) -> Result:
    """Compare nbdcopy from a VHDX export to a file."""
    target = settings.folder / "copied.raw"
    sides = {name: program("nbdcopy", server.uri(), target) for name, server in servers.items()}
    seconds = take_turns(sides, settings.rounds, before=lambda: target.unlink(missing_ok=True))
    target.unlink()
    return compare("vhdx: nbdcopy to a file", seconds, QEMU, OURS, 1.5)


def _memory(settings: Settings, form: str, server: Server) -> Result:
    """Tell what a busy connection takes, in KiB."""
    pattern = READS[2]
    before = _resident(server)
    ask_fio(settings, server.uri(), *job_of(settings, pattern), f"--numjobs={CLIENTS}")
    taken = max(0, _resident(server) - before) / CLIENTS
    return Result(f"{form}: memory of a connection", taken, MEMORY_MOST, at_least=False, unit="KiB")


def _resident(server: Server) -> int:
    """Return the most memory that a server has had, in KiB."""
    status = Path(f"/proc/{server.process_id}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
