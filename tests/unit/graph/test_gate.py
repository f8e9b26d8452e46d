"""The open gate: what an image may name, and what it may not."""

import os
from pathlib import Path

import pytest

from vblk.errors import OpenDenied
from vblk.graph.gate import BesideGate, DenyGate, gate_of


@pytest.fixture
def image(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    for name in ("images/child.vhdx", "images/base.vhdx", "images/below/base.vhdx", "outside/base.vhdx"):
        (tmp_path / name).write_bytes(b"")
    return folder / "child.vhdx"


def admit(image: Path, path: Path | str, *roots: Path) -> str:
    return BesideGate().admit(str(path), named_by=str(image), roots=[str(root) for root in roots])


def test_a_file_beside_the_image_is_admitted(image: Path) -> None:
    assert admit(image, image.parent / "base.vhdx") == str(image.parent / "base.vhdx")


def test_a_file_below_the_images_folder_is_admitted(image: Path) -> None:
    path = image.parent / "below" / "base.vhdx"
    assert admit(image, path) == str(path)
    assert admit(image, image.parent / "below" / ".." / "base.vhdx") == str(image.parent / "base.vhdx")


def test_a_file_outside_is_refused_however_it_is_spelled(image: Path) -> None:
    for path in (
        image.parent.parent / "outside" / "base.vhdx",
        image.parent / ".." / "outside" / "base.vhdx",
        Path("/etc/passwd"),
    ):
        with pytest.raises(OpenDenied, match="outside"):
            admit(image, path)


def test_a_folder_with_a_longer_name_is_not_the_images_folder(image: Path) -> None:
    twin = image.parent.with_name("images2")
    twin.mkdir()
    (twin / "base.vhdx").write_bytes(b"")
    with pytest.raises(OpenDenied, match="outside"):
        admit(image, twin / "base.vhdx")


def test_a_listed_folder_is_trusted(image: Path) -> None:
    outside = image.parent.parent / "outside"
    assert admit(image, outside / "base.vhdx", outside) == str(outside / "base.vhdx")


def test_a_link_that_leads_outside_is_refused(image: Path) -> None:
    (image.parent / "link.vhdx").symlink_to(image.parent.parent / "outside" / "base.vhdx")
    (image.parent / "door").symlink_to(image.parent.parent / "outside")
    for name in ("link.vhdx", "door/base.vhdx"):
        with pytest.raises(OpenDenied, match="outside"):
            admit(image, image.parent / name)


def test_a_link_that_stays_inside_is_admitted_as_what_it_leads_to(image: Path) -> None:
    (image.parent / "link.vhdx").symlink_to("base.vhdx")
    assert admit(image, image.parent / "link.vhdx") == str(image.parent / "base.vhdx")


def test_both_folders_of_an_image_behind_a_link_count(image: Path) -> None:
    door = image.parent.parent / "outside" / "child.vhdx"
    door.symlink_to(image)
    assert admit(door, door.parent / "base.vhdx") == str(door.parent / "base.vhdx")
    assert admit(door, image.parent / "base.vhdx") == str(image.parent / "base.vhdx")


def test_a_loop_of_links_is_refused(image: Path) -> None:
    (image.parent / "one").symlink_to("two")
    (image.parent / "two").symlink_to("one")
    with pytest.raises(OpenDenied, match="cannot be resolved"):
        admit(image, image.parent / "one")


@pytest.mark.parametrize("name", ["base\0.vhdx", "base\ud800.vhdx", "n" * 300])
def test_a_name_that_no_file_has_is_refused(image: Path, name: str) -> None:
    with pytest.raises(OpenDenied) as caught:
        admit(image, f"{image.parent}/{name}")
    str(caught.value).encode()


def test_what_is_not_there_is_said_to_be_missing_only_inside(image: Path) -> None:
    with pytest.raises(FileNotFoundError):
        admit(image, image.parent / "gone.vhdx")
    with pytest.raises(FileNotFoundError):
        admit(image, image.parent / "base.vhdx" / "under-a-file")
    for path in ("gone.vhdx", "base.vhdx/under-a-file"):
        with pytest.raises(OpenDenied, match="outside"):
            admit(image, image.parent.parent / "outside" / path)


def test_a_fifo_is_refused_without_being_opened(image: Path) -> None:
    os.mkfifo(image.parent / "fifo")
    with pytest.raises(OpenDenied, match="neither a regular file nor a block device"):
        admit(image, image.parent / "fifo")


def test_character_devices_and_folders_are_refused(image: Path) -> None:
    with pytest.raises(OpenDenied, match="neither"):
        admit(image, "/dev/zero", Path("/dev"))
    with pytest.raises(OpenDenied, match="neither"):
        admit(image, image.parent / "below")


def test_the_deny_gate_refuses_even_the_file_beside(image: Path) -> None:
    with pytest.raises(OpenDenied, match="denied"):
        DenyGate().admit(str(image.parent / "base.vhdx"), named_by=str(image))


def test_under_qemus_names_what_is_behind_blkdebug_is_judged_itself(image: Path) -> None:
    gate, inside = gate_of("qemu-img"), image.parent / "base.vhdx"
    gate.admit_export(f"blkdebug::{inside}", named_by=str(image))
    gate.admit_export(f"blkdebug:{image.parent / 'rules'}:{inside}", named_by=str(image))
    for name in ("blkdebug::/etc/passwd", f"blkdebug:/etc/passwd:{inside}", "blkdebug::nbd://localhost/"):
        with pytest.raises(OpenDenied):
            gate.admit_export(name, named_by=str(image))
    with pytest.raises(OpenDenied, match="may only name files"):
        gate_of("vblk").admit_export(f"blkdebug::{inside}", named_by=str(image))
