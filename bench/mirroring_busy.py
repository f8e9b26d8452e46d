"""A guest on a disk that is being mirrored: fio over NBD, beside qemu-storage-daemon.

Owns: the guest, which reads and writes at random, alone and then in bulk phases: as one
ends the next mirror begins, onto the same target, until fio has finished.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.images import make_vhdx, warm
from bench.measure import Result, Seconds, compare, run, take_turns
from bench.mirroring import OURS, PROGRAMS, THEIRS, Side, daemon
from bench.serving import Pattern, ask_fio, job_of, make_full
from bench.settings import Settings
from tests.support.qmp import Talk

GUEST = Pattern("guest", "randrw", "4k", 4, 0)
SHARE_LEAST = 0.6


class Load(NamedTuple):
    """How a guest fared: seconds a request, and the 99th percentile of reads and writes in seconds."""

    request: float
    latest: float


class Guest:
    """A client of a daemon's export, and the mirror beside it."""

    def __init__(self, settings: Settings, talk: Talk, place: Path, form: str) -> None:
        self._settings = settings
        self._mirror = Side(talk, place.with_suffix(".target"), "raw")
        self._socket = place.with_name(f"{place.name[0]}.sock")  # sockets have short names
        address = {"type": "unix", "data": {"path": str(self._socket)}}
        talk.call("nbd-server-start", addr=address)
        talk.call("block-export-add", type="nbd", id="x", node_name="source", name="disk", writable=True)
        run(["truncate", "-s", str(settings.served_bytes), self._mirror.target])

    def alone(self) -> Load:
        """Work without a job."""
        uri = f"nbd+unix:///disk?socket={self._socket}"
        (report,) = ask_fio(self._settings, uri, *job_of(self._settings, GUEST))
        ways = [report[way] for way in ("read", "write")]
        latest = max(way["clat_ns"]["percentile"]["99.000000"] for way in ways)
        return Load(1 / max(1, sum(way["iops"] for way in ways)), latest / 1e9)

    def in_bulk_phase(self) -> Load:
        """Work while the disk is mirrored."""
        with ThreadPoolExecutor(1) as pool:
            load: Future[Load] = pool.submit(self.alone)
            while not load.done():
                self._mirror.mirror()
                self._mirror.end()
            return load.result()


def busy(settings: Settings) -> Iterator[Result]:
    """Compare a guest in the bulk phase with one alone, and with QEMU's."""
    raw = make_full(settings.folder / "full.raw", settings.served_bytes)
    for form in ("vhdx", "raw"):
        image = raw if form == "raw" else make_vhdx(raw, settings.folder / "full.vhdx")
        yield from _contest(settings, form, image)


def _contest(settings: Settings, form: str, image: Path) -> Iterator[Result]:
    alone: Seconds = {name: [] for name in PROGRAMS}
    bulk: Seconds = {name: [] for name in PROGRAMS}
    latest: Seconds = {name: [] for name in PROGRAMS}
    with ExitStack() as running:
        guests: dict[str, Guest] = {}
        for name, command in PROGRAMS.items():
            place = settings.folder / f"{name}.{form}"
            run(["cp", "--reflink=never", image, place])
            warm(place)
            talk = running.enter_context(daemon(command, settings.folder, place, form, read_only=False))
            guests[name] = Guest(settings, talk, place, form)

        def ask(name: str) -> None:
            alone[name].append(1000 * guests[name].alone().request)
            load = guests[name].in_bulk_phase()
            bulk[name].append(1000 * load.request)
            latest[name].append(1000 * load.latest)

        take_turns({name: partial(ask, name) for name in guests}, settings.rounds)
    ours = {"alone": alone[OURS], "mirrored": bulk[OURS]}
    yield compare(f"{form}: IOPS in a bulk phase / alone", ours, "alone", "mirrored", SHARE_LEAST)
    yield compare(
        f"{form}: p99 in a bulk phase, of 1000: vblk / {THEIRS}", latest, OURS, THEIRS, 1.0, at_least=False
    )
    yield compare(f"{form}: IOPS in a bulk phase: vblk / {THEIRS}", bulk, THEIRS, OURS, 1.0)
