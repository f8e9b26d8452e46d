"""Committing an overlay: `vblk commit` beside `qemu-img commit`, and a daemon's beside QEMU's.

Owns: the chains, of which what a commit changes is made anew for each turn. Disks are
synchronised before it; nobody flushes in it, and no overlay is emptied: what is measured
is how the data goes down.
"""

import os
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.images import digest, make_raw, warm
from bench.measure import Result, Seconds, Side, WrongResult, compare, program, run, take_turns
from bench.mirroring import OURS, PROGRAMS, THEIRS, until
from bench.settings import VBLK, Settings
from tests.support.qmp import Talk

QEMU_IMG: Final = "qemu-img"
UNFLUSHED: Final = {"no-flush": True}


class Chain:
    """A base with nothing in it, an overlay with all data, and one above that with nothing."""

    def __init__(self, folder: Path, raw: Path, form: str) -> None:
        folder.mkdir()
        self.form = form
        self.base, self.full, self.top = (folder / name for name in ("base", "full", "top"))
        self.size = raw.stat().st_size
        self.renew()
        run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, self.full])
        run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", self.base, "-F", form, self.full])
        self.renew()
        warm(self.full)

    def renew(self) -> None:
        """Make what a commit changes anew."""
        for path in (self.base, self.top):
            path.unlink(missing_ok=True)
        run(["qemu-img", "create", "-q", "-f", self.form, self.base, str(self.size)])
        words: list[str | Path] = ["-b", self.full, "-F", "qcow2", self.top, str(self.size)]
        run(["qemu-img", "create", "-q", "-f", "qcow2", "-u", *words])

    def node(self) -> dict[str, Any]:
        """Return the options of the chain, whose nodes are called as the files."""

        def image(form: str, path: Path, **more: Any) -> dict[str, Any]:
            file = {"driver": "file", "filename": str(path), "cache": UNFLUSHED}
            return {"driver": form, "node-name": path.name, "cache": UNFLUSHED, "file": file, **more}

        base = image(self.form, self.base)
        return image("qcow2", self.top, backing=image("qcow2", self.full, backing=base))

    def check(self, name: str, raw: Path) -> None:
        """See that the base is the disk now.

        Raises:
            WrongResult: It is another.
        """
        shown = raw.with_suffix(".shown")
        run(["qemu-img", "convert", "-f", self.form, "-O", "raw", self.base, shown])
        if digest(shown) != digest(raw):
            raise WrongResult(f"{name} made another base than the disk is")
        shown.unlink()


@contextmanager
def _chains(settings: Settings, form: str, names: Sequence[str]) -> Generator[tuple[Path, dict[str, Chain]]]:
    """Make a chain for each side; yield the disk that it shows, too."""
    raw = make_raw(settings.folder / "disk.raw", settings.data_bytes)
    folders = {name: settings.folder / name for name in names}
    yield raw, {name: Chain(folder, raw, form) for name, folder in folders.items()}
    raw.unlink()
    for folder in folders.values():
        shutil.rmtree(folder)


def _contest(
    settings: Settings, raw: Path, chains: Mapping[str, Chain], sides: Mapping[str, Side], renew: Side
) -> Seconds:
    """Let the sides take turns, after one that is looked at."""

    def put() -> None:
        renew()
        os.sync()

    put()
    for name, side in sides.items():
        side()
        chains[name].check(name, raw)
    return take_turns(sides, settings.rounds, put)


def offline(settings: Settings) -> Iterator[Result]:
    """Commit an overlay that nobody uses."""
    for form in ("raw", "qcow2"):
        seconds = _offline(settings, form)
        yield compare(f"commit qcow2 to {form}: {QEMU_IMG} / vblk", seconds, QEMU_IMG, OURS, 1.5)


def _offline(settings: Settings, form: str) -> Seconds:
    commands = {OURS: str(VBLK), QEMU_IMG: QEMU_IMG}
    words = ["commit", "-q", "-d", "-t", "unsafe", "-f", "qcow2"]
    with _chains(settings, form, tuple(commands)) as (raw, chains):

        def renew() -> None:
            for chain in chains.values():
                chain.renew()

        sides = {name: program(command, *words, chains[name].full) for name, command in commands.items()}
        return _contest(settings, raw, chains, sides, renew)


def live(settings: Settings) -> Iterator[Result]:
    """Commit a layer of a chain that a daemon has open."""
    for form in ("raw", "qcow2"):
        seconds = _live(settings, form)
        yield compare(f"block-commit qcow2 to {form}: {THEIRS} / vblk", seconds, THEIRS, OURS, 1.5)


def _live(settings: Settings, form: str) -> Seconds:
    with (
        _chains(settings, form, tuple(PROGRAMS)) as (raw, chains),
        Talk(PROGRAMS[OURS], folder=settings.folder) as ours,
        Talk(PROGRAMS[THEIRS], folder=settings.folder) as theirs,
    ):
        talks = {OURS: ours.begin(), THEIRS: theirs.begin()}

        def commit(name: str) -> None:
            job = {"job_id": "c", "device": "top", "top_node": "full", "base_node": "base"}
            talks[name].call("block-commit", **job)
            until(talks[name], "JOB_STATUS_CHANGE", "null")

        def renew() -> None:
            for name, talk in talks.items():
                if talk.call("query-named-block-nodes", flat=True):
                    talk.call("blockdev-del", node_name="top")
                chains[name].renew()
                talk.call("blockdev-add", **chains[name].node())

        return _contest(settings, raw, chains, {name: partial(commit, name) for name in talks}, renew)
