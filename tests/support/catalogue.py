"""How a case of the catalogue of bad inputs is judged: through the library and through the commands.

Owns: the words for what is expected, and the asking. It must not know how the
files are made.
"""

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import vblk
from tests.support.subject import Subject
from vblk.drivers.vhdx import VhdxNode
from vblk.errors import BlockError, ImageError, Reason
from vblk.graph.node import Node

WHOLE_MAX = 64 << 20
"""Larger disks are compared around their data only."""

OWN = ("*",)
"""As `codes`: the number of the case itself."""

Make = Callable[[Subject], None]


@dataclass(frozen=True)
class Refused:
    """The file does not open, for one of these reasons; `verbs` are the commands that must say so."""

    reasons: tuple[Reason, ...]
    error: type[BlockError] = ImageError
    verbs: tuple[str, ...] = ("check", "convert")


@dataclass(frozen=True)
class Opens:
    """The file opens and reads as its model says, except for what is damaged.

    `codes` are findings of which `vblk check` must report each; with `at_open`
    `vblk info` shows them too. With `clean` there are none at all. With
    `read_only` opening it for writing is refused.
    """

    codes: tuple[str, ...] = ()
    at_open: bool = True
    clean: bool = False
    read_only: bool = False


def refused(*reasons: Reason, error: type[BlockError] = ImageError) -> Refused:
    """Return the expectation of a refusal."""
    return Refused(reasons, error)


def refused_chain(*reasons: Reason, error: type[BlockError] = ImageError) -> Refused:
    """Return the expectation of a refusal because of a parent: info and check of the child still work."""
    return Refused(reasons, error, ("convert",))


class Catalogue:
    """The numbered cases of one section; a case may have several variants."""

    def __init__(self, letter: str, numbers: list[str]) -> None:
        self.letter = letter
        self.wanted = [letter + number for number in numbers]
        self.cases: list[tuple[str, Make, Refused | Opens]] = []

    def add(self, identity: str, expectation: Refused | Opens) -> Callable[[Make], Make]:
        """Register the decorated function as the maker of case `identity`, such as H2 or H2-empty."""

        if isinstance(expectation, Opens) and expectation.codes == OWN:
            expectation = replace(expectation, codes=(identity.split("-")[0],))

        def register(make: Make) -> Make:
            self.cases.append((identity, make, expectation))
            return make

        return register

    def missing(self) -> list[str]:
        """Return the numbers that no case carries."""
        carried = {identity.split("-")[0] for identity, _, _ in self.cases}
        return [number for number in self.wanted if number not in carried]

    def parameters(self) -> list[Any]:
        """Return all cases for `pytest.mark.parametrize`."""
        return [pytest.param(make, wanted, id=name) for name, make, wanted in self.cases]


def numbers(last: int) -> list[str]:
    """Return the numbers 1 to `last` as text."""
    return [str(number) for number in range(1, last + 1)]


def fingerprint(path: Path) -> tuple[object, ...]:
    """Return what changes when somebody writes to a file."""
    status = path.stat()
    if status.st_size > WHOLE_MAX:
        return status.st_size, status.st_mtime_ns
    return status.st_size, hashlib.sha256(path.read_bytes()).hexdigest()


def run_vblk(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the `vblk` command as a user would, without a terminal."""
    command = [str(Path(sys.executable).with_name("vblk")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def judge_library(make: Make, wanted: Refused | Opens, folder: Path) -> None:
    """Make the file and ask the library."""
    subject = Subject(folder)
    make(subject)
    path = subject.write()
    before = fingerprint(path)
    if isinstance(wanted, Refused):
        error = asyncio.run(_refusal(subject))
        assert isinstance(error, wanted.error), repr(error)
        if isinstance(error, ImageError):
            assert error.reason in wanted.reasons, repr(error)
        assert str(folder) in str(error)
    else:
        asyncio.run(_read_all(subject, wanted))
        if wanted.read_only:
            asyncio.run(_refuses_writing(subject))
    assert fingerprint(path) == before


def judge_commands(make: Make, wanted: Refused | Opens, folder: Path) -> None:
    """Make the file and ask the commands."""
    subject = Subject(folder)
    make(subject)
    path = subject.write()
    before = fingerprint(path)
    flags = command_flags(subject)
    if isinstance(wanted, Refused):
        for verb in wanted.verbs:
            target = [folder / "target.raw"] if verb == "convert" else []
            ran = run_vblk(verb, "-f", "vhdx", *flags, path, *target)
            assert_refused(ran, folder)
        assert not (folder / "target.raw").exists()
    else:
        reported = findings("check", subject, flags)
        assert set(wanted.codes) <= set(reported), reported
        if wanted.clean:
            assert reported == []
        if wanted.at_open and wanted.codes:
            assert set(wanted.codes) <= set(findings("info", subject, flags))
        if subject.model.size <= WHOLE_MAX:
            judge_conversion(subject, flags, folder / "target.raw")
    assert fingerprint(path) == before


def judge_conversion(subject: Subject, flags: list[str], target: Path) -> None:
    """Convert to raw: the content is right, or the damage is said and nothing is left behind."""
    ran = run_vblk("convert", "-f", "vhdx", "-O", "raw", *flags, subject.path, target)
    if subject.damaged:
        assert_refused(ran, subject.folder)
        assert not target.exists()
    else:
        assert ran.returncode == 0, ran.stderr
        assert hashlib.sha256(target.read_bytes()).hexdigest() == subject.model.sha256()


def command_flags(subject: Subject) -> list[str]:
    """Return the options of a case as the commands take them."""
    rules = subject.rules
    flags = [f"--parent={rules.parent}"] if rules.parent is not None else []
    flags += [f"--parent-dir={directory}" for directory in rules.parent_dirs]
    flags += [f"--path-map={wanted}={local}" for wanted, local in rules.path_map]
    flags += ["--ignore-linkage"] if rules.ignore_linkage else []
    return flags + (["--strict"] if rules.strict else [])


def findings(verb: str, subject: Subject, flags: list[str]) -> list[str]:
    """Return the codes of all findings that a command reports about the file."""
    ran = run_vblk(verb, "-f", "vhdx", "--output", "json", *flags, subject.path)
    assert "Traceback" not in ran.stderr
    report = json.loads(ran.stdout)
    told = report if verb == "check" else report["format-specific"]["data"]
    return [each["code"] for each in told.get("findings", [])]


def assert_refused(ran: subprocess.CompletedProcess[str], folder: Path) -> None:
    """Assert that a command failed as commands should: one line that names the file, no traceback."""
    assert ran.returncode != 0
    lines = ran.stderr.splitlines()
    assert len(lines) == 1, ran.stderr
    assert "Traceback" not in lines[0]
    assert str(folder) in lines[0]


async def _refusal(subject: Subject) -> BlockError:
    with pytest.raises(BlockError) as caught:
        async with vblk.open(subject.path, format="vhdx", rules=subject.rules) as disk:
            await disk.read(0, 512)
    return caught.value


async def _refuses_writing(subject: Subject) -> None:
    with pytest.raises(BlockError):
        async with vblk.open(subject.path, format="vhdx", read_only=False, rules=subject.rules):
            pass


async def _read_all(subject: Subject, wanted: Opens) -> None:
    async with vblk.open(subject.path, format="vhdx", rules=subject.rules) as disk:
        assert disk.size == subject.model.size
        await _check(disk.node, wanted)
        for offset, length in windows(subject):
            await _compare(disk, subject, offset, length)
        for offset, length in subject.damaged:
            for at in {offset, offset + length - 512, offset + length // 2}:
                with pytest.raises(ImageError):
                    await disk.read(at, 512)


async def _check(node: Node, wanted: Opens) -> None:
    assert isinstance(node, VhdxNode)
    if wanted.at_open:
        await node.scan()
        assert set(wanted.codes) <= {finding.code for finding in node.image.findings}
    report = await node.check()
    reported = {finding.code for finding in report.findings}
    assert set(wanted.codes) <= reported, report.findings
    assert not (wanted.clean and reported), report.findings
    assert bool(report.read_only_reasons) or not wanted.read_only


async def _compare(disk: Any, subject: Subject, offset: int, length: int) -> None:
    for first, count in around(offset, length, subject.damaged):
        read = await disk.read(first, count)
        assert read == subject.model.read(first, count), f"wrong bytes in {count:#x} from {first:#x}"


def around(offset: int, length: int, holes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return what is left of a range without the holes."""
    left: list[tuple[int, int]] = []
    end = offset + length
    for start, size in sorted(holes):
        if start < end and start + size > offset:
            if offset < start:
                left.append((offset, start - offset))
            offset = max(offset, start + size)
    if offset < end:
        left.append((offset, end - offset))
    return left


def windows(subject: Subject) -> list[tuple[int, int]]:
    """Return the ranges to compare: all of a small disk, what matters of a large one."""
    size = subject.model.size
    if size <= WHOLE_MAX:
        return [(offset, min(1 << 20, size - offset)) for offset in range(0, size, 1 << 20)]
    starts = {0, size - 512, *subject.model.pages(), *(at for at, _ in subject.damaged)}
    ranges = {max(0, start - 65536) for start in starts} | starts
    return [(start, min(65536, size - start)) for start in sorted(ranges)]
