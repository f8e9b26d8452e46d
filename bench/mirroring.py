"""Mirroring a disk in a running daemon, beside qemu-storage-daemon and the kernel alone.

Owns: the two daemons, which hold the same source, and one target for each turn. A turn
is the bulk phase: from `blockdev-mirror` until the job is ready. Targets are made, and
disks synchronised, before it; nobody flushes in it.
"""

import json
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.convert import LOOP, copy_extents, extents_of
from bench.images import data_runs, digest, make_raw, make_vhdx, mounted, warm
from bench.making import HEADER
from bench.measure import Result, WrongResult, compare, run, take_turns
from bench.settings import VBLK, Settings
from tests.support.qmp import QEMU, Talk
from vblk.units import GIB

OURS: Final = "vblk"
THEIRS: Final = "qemu-storage-daemon"
PROGRAMS: Final = {OURS: (str(VBLK), "daemon"), THEIRS: QEMU}


def until(talk: Talk, name: str, status: str | None = None) -> None:
    """Wait until a daemon tells of an event, with that status if one is given.

    Raises:
        WrongResult: Its job failed.
    """
    while True:
        event = talk.events.pop(0) if talk.events else json.loads(talk.line())
        data = event["data"]
        if "error" in data:
            raise WrongResult(f"the job failed: {data['error']}")
        if event["event"] == name and data.get("status") == status:
            return


class Side:
    """A daemon, and the target of its next turn."""

    def __init__(self, talk: Talk, target: Path, form: str) -> None:
        self.talk = talk
        self.target = target
        self.form = form
        self.is_busy = False

    def mirror(self) -> None:
        """Mirror until the target has caught up."""
        file = {"driver": "file", "filename": str(self.target), "cache": {"no-flush": True}}
        options = {"driver": self.form, "node_name": "target", "cache": {"no-flush": True}}
        self.talk.call("blockdev-add", **options, file=file)
        self.talk.call("blockdev-mirror", job_id="m", device="source", target="target", sync="full")
        self.is_busy = True
        until(self.talk, "BLOCK_JOB_READY")

    def end(self) -> None:
        """Let go of the target, which is a copy then."""
        if self.is_busy:
            self.talk.call("block-job-cancel", device="m")
            until(self.talk, "JOB_STATUS_CHANGE", "null")
            self.talk.call("blockdev-del", node_name="target")
            self.is_busy = False


@contextmanager
def daemon(
    program: tuple[str, ...], folder: Path, source: Path, form: str, *, read_only: bool = True
) -> Generator[Talk]:
    """Run a daemon with a node called source."""
    with Talk(program, folder=folder) as talk:
        talk.begin()
        file = {"driver": "file", "filename": str(source)}
        talk.call("blockdev-add", driver=form, node_name="source", read_only=read_only, file=file)
        yield talk
        talk.end()


def contest(
    folder: Path, data_bytes: int, rounds: int, form: str, other: str, *, loop: bool = True
) -> dict[str, list[float]]:
    """Mirror a disk from one format to another by each side; return their seconds.

    Raises:
        WrongResult: A side made another disk.
    """
    raw = make_raw(folder / "source.raw", data_bytes)
    source = make_vhdx(raw, folder / "source.vhdx") if form == "vhdx" else raw
    empty = folder / f"empty.{other}"
    run(["qemu-img", "create", "-q", "-f", other, empty, str(raw.stat().st_size)])
    end, extents = _extents(source, form, data_bytes)
    warm(source)
    targets = {name: folder / f"{number}.{other}" for number, name in enumerate((*PROGRAMS, LOOP))}
    with (
        daemon(PROGRAMS[OURS], folder, source, form) as ours,
        daemon(PROGRAMS[THEIRS], folder, source, form) as theirs,
    ):
        sides = {OURS: Side(ours, targets[OURS], other), THEIRS: Side(theirs, targets[THEIRS], other)}

        def renew() -> None:
            for side in sides.values():
                side.end()
            for target in targets.values():
                target.unlink(missing_ok=True)
                run(["cp", "--sparse=always", "--reflink=never", empty, target])
            os.sync()

        turns = {name: side.mirror for name, side in sides.items()}
        for name, side in sides.items():
            renew()
            side.mirror()
            side.end()
            _check(name, targets[name], other, raw)
        if loop:
            turns[LOOP] = lambda: copy_extents(source, targets[LOOP], end, extents)
        seconds = take_turns(turns, rounds, renew)
        renew()
    for path in (*targets.values(), empty, raw, source):
        path.unlink(missing_ok=True)
    return seconds


def _extents(source: Path, form: str, data_bytes: int) -> tuple[int, list[tuple[int, int, int]]]:
    """Return what the loop copies: the target's size, and (target, source, length) of all data."""
    if form == "vhdx":
        return extents_of(source)
    extents: list[tuple[int, int, int]] = []
    end = HEADER
    for offset, length in data_runs(data_bytes):
        extents.append((end, offset, length))
        end += length
    return end, extents


def _check(name: str, target: Path, form: str, raw: Path) -> None:
    if form == "raw":
        is_right = digest(target) == digest(raw)
    else:
        run(["qemu-img", "compare", "-f", "raw", "-F", form, raw, target])
        is_right = True
    if not is_right:
        raise WrongResult(f"{name} made another disk than the one that went in")


def bulk(settings: Settings) -> Iterator[Result]:
    """Mirror a full disk in both directions."""
    for form, other in (("vhdx", "raw"), ("raw", "vhdx")):
        seconds = contest(settings.folder, settings.data_bytes, settings.rounds, form, other)
        what = f"mirror {form} to {other}"
        yield compare(f"{what}: {THEIRS} / vblk", seconds, THEIRS, OURS, 2)
        yield compare(f"{what}: vblk / copy_file_range loop", seconds, OURS, LOOP, 1.3, at_least=False)


def with_reflink(settings: Settings, kind: str) -> Iterator[Result]:
    """Mirror on a file system that shares blocks between files."""
    with mounted(settings.folder, kind, GIB + 5 * settings.shared_bytes) as place:
        seconds = contest(place, settings.shared_bytes, settings.rounds, "vhdx", "raw", loop=False)
    yield compare(f"mirror vhdx to raw on {kind}: {THEIRS} / vblk", seconds, THEIRS, OURS, 10)
