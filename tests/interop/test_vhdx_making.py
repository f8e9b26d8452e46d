"""VHDX images made by command: in QEMU's words, and read by others as they were meant."""

import os
import random
import subprocess
from pathlib import Path

import pytest

from tests.support.command_line import call, good
from tests.support.readers import dissect, qemu_sha256, seven_zip_sha256, sha256_of, sha256_through, vhdi
from vblk.units import KIB, MIB

pytestmark = pytest.mark.interop

CREATIONS = [
    "x 1G",
    "x 513",
    "x",
    "x 65T",
    "-o size=1G x",
    "-o size=1G x 2G",
    "-o size=abc x",
    "-u x 1G",
    "-q x 1G",
    "-o block_size=2M,log_size=2M x 1G",
    "-o block_size=1 x 1G",
    "-o block_size=1.5M x 1G",
    "-o block_size=0 x 1G",
    "-o block_size=3M x 1G",
    "-o block_size=abc x 1G",
    "-o block_size=16E x 1G",
    "-o log_size=0 x 1G",
    "-o log_size=1 x 1G",
    "-o log_size=4G x 1G",
    "-o log_size=5G x 1G",
    "-o log_size=-1 x 1G",
    "-o log_size=16E x 1G",
    "-o subformat=fixed,block_state_zero=off x 3M",
    "-o subformat=dynamic x 1G",
    "-o subformat=foo x 1G",
    "-o subformat=differencing x 1G",
    "-o subformat x 1G",
    "-o block_state_zero=maybe x 1G",
    "-o foo=1 x 1G",
    "-o nocow=on x 1G",
    "-o extent_size_hint=2M x 1G",
    "-F raw x 1G",
    "x 1X",
    "nodir/x 1G",
    "-b nobase x",
]
NOT_QEMUS = {"-F raw x 1G", "-b nobase x"}
"""Where QEMU has a sentence because it makes no VHDX on top of another image."""


def qemu(folder: Path, *words: str) -> tuple[int, str]:
    ran = subprocess.run(
        ["qemu-img", *words], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )
    return ran.returncode, ran.stdout + ran.stderr


@pytest.mark.parametrize("words", [each for each in CREATIONS if each not in NOT_QEMUS])
def test_create_says_and_makes_what_qemu_img_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    (tmp_path / "qemu").mkdir()
    (tmp_path / "ours").mkdir()
    status, text = qemu(tmp_path / "qemu", "create", "-f", "vhdx", *words.split())
    monkeypatch.chdir(tmp_path / "ours")
    ours = call("create", "-f", "vhdx", *words.split(), program="qemu-img")
    assert (ours.status, ours.out + ours.err) == (status, text)
    if status == 0:
        shown = [
            [line for line in qemu(tmp_path / who, "info", "x")[1].splitlines() if "disk size" not in line]
            for who in ("qemu", "ours")
        ]
        assert shown[0] == shown[1]
        assert qemu(tmp_path / "ours", "check", "x") == (0, "No errors were found on the image.\n")
    else:
        assert os.listdir(tmp_path / "ours") == []


def test_the_help_of_the_options_has_qemus_lines_and_ours(tmp_path: Path) -> None:
    for words in (["-o", "help"], ["-o", "help", "x"]):
        theirs = qemu(tmp_path, "create", "-f", "vhdx", *words)[1].splitlines()
        ours = good("create", "-f", "vhdx", *words, program="qemu-img").splitlines()
        own = [line for line in ours if line not in theirs]
        assert [line for line in ours if line not in own] == theirs
        assert [line.split("=")[0].strip() for line in own] == [
            "backing_file",
            "backing_fmt",
            "logical_sector_size",
            "physical_sector_size",
        ]


SIZE = 37 * MIB


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a raw disk with data, holes, and zeros that are written out."""
    path = tmp_path_factory.mktemp("source") / "raw"
    chance = random.Random(4)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for start, length in ((0, 3 * MIB), (7 * MIB - 512, 1024), (20 * MIB + 64 * KIB, 5 * MIB)):
            file.seek(start)
            file.write(chance.randbytes(length))
        file.seek(12 * MIB)
        file.write(bytes(4 * MIB))
        file.seek(SIZE - 4096)
        file.write(b"end." * 1024)
    return path


OPTIONS = {
    "plain": "",
    "1M": "block_size=1M",
    "32M": "block_size=32M,log_size=4M",
    "absent": "block_size=2M,block_state_zero=off",
    "fixed": "subformat=fixed,block_size=4M",
    "physical": "physical_sector_size=512",
}


@pytest.mark.parametrize("name", OPTIONS)
def test_what_convert_makes_is_read_by_everybody(tmp_path: Path, source: Path, name: str) -> None:
    path = tmp_path / "disk.vhdx"
    options = ["-o", OPTIONS[name]] if OPTIONS[name] else []
    good("convert", "-f", "raw", "-O", "vhdx", *options, source, path)
    expected = sha256_of(source)
    assert qemu(tmp_path, "check", str(path)) == (0, "No errors were found on the image.\n")
    assert qemu_sha256(path, tmp_path) == expected
    assert seven_zip_sha256(path, tmp_path) == expected
    with vhdi(path) as read:
        assert sha256_through(read, SIZE) == expected
    with dissect(path) as read:
        assert sha256_through(read, SIZE) == expected


@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
def test_sectors_of_4096_bytes_are_read_by_those_who_can(
    tmp_path: Path, source: Path, subformat: str
) -> None:
    path = tmp_path / "disk.vhdx"
    options = f"logical_sector_size=4096,subformat={subformat},block_size=2M"
    good("convert", "-f", "raw", "-O", "vhdx", "-o", options, source, path)
    assert seven_zip_sha256(path, tmp_path) == sha256_of(source)
    with vhdi(path) as read:
        assert sha256_through(read, SIZE) == sha256_of(source)


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_a_differencing_image_is_read_through_its_parent(
    tmp_path: Path, source: Path, sector_size: int
) -> None:
    parent, child, flat = (tmp_path / name for name in ("parent.vhdx", "child.vhdx", "flat.vhdx"))
    options = f"logical_sector_size={sector_size},block_size=1M"
    good("convert", "-f", "raw", "-O", "vhdx", "-o", options, source, parent)
    changed = tmp_path / "changed.raw"
    changed.write_bytes(source.read_bytes())
    with changed.open("r+b") as file:
        for start in (64 * KIB, 9 * MIB, 21 * MIB + 4 * KIB):
            file.seek(start)
            file.write(random.Random(start).randbytes(8 * KIB))
    good("convert", "-f", "raw", "-O", "vhdx", "-B", "parent.vhdx", changed, child)
    assert seven_zip_sha256(child, tmp_path) == sha256_of(changed)
    with vhdi(child, parent) as read:
        assert sha256_through(read, SIZE) == sha256_of(changed)
    good("convert", "-O", "vhdx", child, flat)
    assert qemu_sha256(flat, tmp_path) == sha256_of(changed)
