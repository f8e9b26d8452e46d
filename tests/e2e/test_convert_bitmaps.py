"""`vblk convert --bitmaps`: the bitmaps of a disk come along, as with qemu-img."""

import subprocess
from pathlib import Path

import pytest

from tests.support.command_line import call, good

FORMATS = ("qcow2", "raw", "vhdx")


def image(folder: Path, form: str) -> Path:
    """Make a disk with two bitmaps, the older one with a mark, the other one not enabled."""
    path = folder / f"source.{form}"
    good("create", "-q", "-f", form, path, "4M")
    good("bitmap", "--add", "-f", form, path, "one")
    good("bitmap", "--add", "--disable", "-g", "4096", "-f", form, path, "two")
    good("io", "-f", form, "-c", "write -q 1M 64k", path)
    return path


def marks(path: Path, form: str) -> str:
    good("create", "-q", "-f", "qcow2", path.parent / "look.qcow2", "4M")
    good("bitmap", "--add", "--merge", "one", "-b", path, "-F", form, path.parent / "look.qcow2", "one")
    return good("info", "-f", "qcow2", path.parent / "look.qcow2").partition("bitmaps:")[2]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("words", [[], ["--resume", "--verify", "-q"]])
def test_bitmaps_come_along(tmp_path: Path, form: str, target: str, words: list[str]) -> None:
    source, copy = image(tmp_path, form), tmp_path / "copy"
    call("convert", "--bitmaps", *words, "-f", form, "-O", target, source, copy)
    shown = good("info", "--output=json", "-f", target, copy)
    assert shown.count('"granularity"') == 2
    assert shown.count('"auto"') == 1
    assert "in-use" not in shown
    good("compare", "-q", "-f", form, "-F", target, source, copy)
    assert marks(copy, target) == marks(source, form)
    assert sorted(path.name for path in tmp_path.glob(".*")) == sorted(
        f".{path.name}.vblk-bitmaps" for path, kind in ((source, form), (copy, target)) if kind != "qcow2"
    )


def test_a_bitmap_of_an_overlay_is_merged_into_one_of_its_backing_image(tmp_path: Path) -> None:
    base, top = image(tmp_path, "qcow2"), tmp_path / "top.qcow2"
    good("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    good("bitmap", "--add", top, "three")
    good("bitmap", "--add", "--merge", "three", "-b", top, "-F", "qcow2", base, "four")
    assert "name: four" in good("info", base)


@pytest.mark.interop
def test_it_says_what_qemu_img_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = image(tmp_path, "qcow2")
    broken = tmp_path / "broken.qcow2"
    broken.write_bytes(source.read_bytes())
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "sigraise 9", str(broken)], check=False, timeout=60)
    good("create", "-q", "-f", "qcow2", "-o", "compat=0.10", tmp_path / "old.qcow2", "4M")
    monkeypatch.chdir(tmp_path)
    told: list[list[tuple[int, str]]] = []
    shown: list[str] = []
    for program in ("ours", "qemu-img"):
        steps: list[tuple[int, str]] = []
        for words in (
            ["source.qcow2", "new.qcow2"],
            ["-n", "source.qcow2", "new.qcow2"],
            ["-n", "source.qcow2", "old.qcow2"],
            ["source.qcow2", "source.qcow2", "no.qcow2"],
            ["broken.qcow2", "no.qcow2"],
            ["--skip-broken-bitmaps", "broken.qcow2", "new2.qcow2"],
        ):
            line = ["convert", "--bitmaps", "-O", "qcow2", *words]
            if program == "ours":
                outcome = call(*line, program="qemu-img")
                steps.append((outcome.status, outcome.err))
            else:
                ran = subprocess.run(
                    [program, *line], capture_output=True, text=True, check=False, timeout=60
                )
                steps.append((ran.returncode, ran.stderr))
        told.append(steps)
        shown.append(good("info", "new.qcow2").partition("Format specific")[2])
        subprocess.run(["qemu-img", "check", "-q", "new.qcow2"], check=True, timeout=60)
        (tmp_path / "new.qcow2").unlink()
    assert told[0] == told[1]
    assert shown[0] == shown[1]
