"""`vblk check -r`: QEMU's words and statuses, what was lost, what is left; and QEMU finds nothing to add."""

import json
from pathlib import Path

import pytest

from tests.support.catalogue import run_vblk
from tests.support.command_line import call, good
from tests.support.crash import run_qemu_img
from tests.support.damaged import DAMAGES, at, content_of, damage
from tests.support.small_vhdx import MIB
from vblk.graph.edge import READING
from vblk.protocols.image_lock import ImageLock

REPAIRED = """\
The following inconsistencies were found and repaired:

    {leaks} leaked clusters
    {corruptions} corruptions

{more}Double checking the fixed image now...
No errors were found on the image.
"""


def saved(name: str, folder: Path) -> Path:
    path = folder / "image.vhdx"
    content_of(DAMAGES[name].small).save(path)
    return path


def test_a_repair_is_reported_as_qemu_does_it(tmp_path: Path) -> None:
    path = saved("B9", tmp_path)
    ran = run_vblk("check", "-r", "all", path)
    assert ran.stdout.startswith(REPAIRED.format(leaks=0, corruptions=2, more=""))
    assert ran.stdout.endswith("Image end offset: 10485760\n")
    assert ran.returncode == 0
    assert "ERROR block 1 at 0x400000 has the same place as another block" in ran.stderr
    assert "Repaired: block 1 has its own copy of what it read, at 0x800000 [B9]" in ran.stderr
    again = run_vblk("check", "-r", "all", path)
    assert again.stdout.startswith("No errors were found on the image.\n")
    assert (again.returncode, again.stderr) == (0, "")


def test_what_is_lost_is_said(tmp_path: Path) -> None:
    ran = run_vblk("check", "-r", "all", saved("B5", tmp_path))
    more = "2097152 bytes of the disk were lost, and are zeros now.\n\n"
    assert ran.stdout.startswith(REPAIRED.format(leaks=0, corruptions=2, more=more))
    lost = "the data of block 2 is not in the file: 1048576 bytes of the disk from 2097152 on are zeros now"
    assert f"Repaired: {lost} [B5]" in ran.stderr
    assert ran.returncode == 0


def test_leaks_are_counted_apart_and_leave_their_own_status(tmp_path: Path) -> None:
    path = tmp_path / "image.vhdx"
    content_of(damage(entries={0: at(0), 4: at(1)}).small).save(path)
    assert run_vblk("check", path).returncode == 3
    ran = run_vblk("check", "-r", "leaks", path)
    assert ran.stdout.startswith(REPAIRED.format(leaks=1, corruptions=0, more=""))
    assert ran.returncode == 0
    assert path.stat().st_size == 5 * MIB


@pytest.mark.parametrize(("name", "status"), [("B1", 2), ("B15", 2), ("H18", 0)])
def test_what_is_left_says_why_and_keeps_its_status(tmp_path: Path, name: str, status: int) -> None:
    path = saved(name, tmp_path)
    before = path.read_bytes()
    ran = run_vblk("check", "-r", "all", path)
    assert ran.returncode == status
    assert f"[{name}]" in ran.stderr
    assert "Not repaired: " in ran.stderr
    assert "and repaired" not in ran.stdout
    assert path.read_bytes() == before


def test_the_report_for_programs_has_qemus_keys(tmp_path: Path) -> None:
    path = saved("many", tmp_path)
    report = json.loads(run_vblk("check", "-r", "all", "--output", "json", path).stdout)
    assert (report["corruptions-fixed"], report["leaks-fixed"], report["check-errors"]) == (5, 1, 0)
    assert report["lost-bytes"] == MIB
    assert {each["code"] for each in report["repaired"]} >= {"H3", "T2", "B2", "B3", "B9", "B20"}
    assert not {"corruptions", "leaks", "findings", "not-repaired"} & set(report)


def test_a_quiet_repair_says_on_standard_output_nothing(tmp_path: Path) -> None:
    ran = run_vblk("check", "-q", "-r", "all", saved("B9", tmp_path))
    assert (ran.returncode, ran.stdout) == (0, "")


def test_an_image_that_somebody_writes_is_not_repaired(tmp_path: Path) -> None:
    path = saved("B9", tmp_path)
    before = path.read_bytes()
    with path.open("r+b") as file:
        lock = ImageLock(file.fileno(), str(path), required=True)
        lock.change(READING, READING)
        ran = run_vblk("check", "-r", "all", path)
        lock.close()
    assert ran.returncode == 1
    assert "lock" in ran.stderr
    assert path.read_bytes() == before


def test_formats_without_a_check_have_no_repair(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(MIB))
    ran = run_vblk("check", "-f", "raw", "-r", "all", path)
    assert (ran.returncode, ran.stderr) == (63, "vblk: This image format does not support checks\n")


@pytest.mark.interop
@pytest.mark.parametrize(
    "name", ["H4", "H12", "T1", "L29", "B2", "B3", "B5", "B6", "B9", "B10", "B20", "many"]
)
def test_qemu_finds_a_repaired_image_sound_and_reads_the_same(tmp_path: Path, name: str) -> None:
    path, raw = saved(name, tmp_path), tmp_path / "disk.raw"
    assert run_vblk("check", "-r", "all", path).returncode == 0
    assert run_vblk("convert", "-O", "raw", path, raw).returncode == 0
    run_qemu_img("check", "-f", "vhdx", path)
    run_qemu_img("compare", "-f", "vhdx", "-F", "raw", path, raw)


def test_under_qemus_names_a_log_is_refused_and_replayed_in_qemus_words(tmp_path: Path) -> None:
    path = saved("L29", tmp_path)
    refused = call("-r", "-f", "vhdx", "-c", "read 0 512", path, program="qemu-io")
    assert (refused.status, refused.out, refused.err) == (
        1,
        "",
        f"qemu-io: can't open device {path}: VHDX image file '{path}' opened read-only, but contains a log "
        f"that needs to be replayed\nTo replay the log, run:\nqemu-img check -r all '{path}'\n",
    )
    assert "read 512/512 bytes" in good("io", "-r", "-f", "vhdx", "-c", "read 0 512", path)
    repaired = call("check", "-r", "all", path, program="qemu-img")
    assert repaired.status == 0
    assert "L29" not in repaired.err
    assert "found and repaired" in repaired.out
    assert repaired.out.endswith(
        "Double checking the fixed image now...\nNo errors were found on the image.\n"
    )
    assert "read 512/512 bytes" in good("-r", "-c", "read 0 512", path, program="qemu-io")
    assert good("check", path, program="qemu-img") == "No errors were found on the image.\n"
