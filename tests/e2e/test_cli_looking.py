"""The verbs that look at images: info, map, check, compare, measure, chain."""

import json
from pathlib import Path

import pytest

from tests.support.command_line import call, good
from tests.support.vhdx.chain import Chain
from tests.support.vhdx.image import Block, State, Vhdx

MIB = 1 << 20


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    made = Chain(tmp_path)
    made.base([(0, 3 * MIB)], size=16 * MIB)
    made.child([(MIB, 512), (8 * MIB, MIB)])
    return made


def raw_file(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_info_of_a_raw_file_is_four_lines(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "a", MIB + 1)
    lines = good("info", path).splitlines()
    assert lines[:3] == [f"image: {path}", "file format: raw", "virtual size: 1 MiB (1049088 bytes)"]
    assert lines[3].startswith("disk size: ")
    assert len(lines) == 4


def test_info_json_has_the_members_in_order(chain: Chain) -> None:
    report = json.loads(good("info", "--output", "json", chain.top.path))
    assert list(report) == [
        "backing-filename-format",
        "virtual-size",
        "filename",
        "cluster-size",
        "format",
        "actual-size",
        "format-specific",
        "backing-filename",
        "dirty-flag",
    ]
    assert report["virtual-size"] == 16 * MIB
    assert report["format-specific"]["data"]["type"] == "differencing"


def test_info_of_a_chain_lists_every_image(chain: Chain) -> None:
    reports = json.loads(good("info", "--output=json", "--backing-chain", chain.top.path))
    assert [report["filename"] for report in reports] == [
        str(chain.top.path),
        reports[0]["full-backing-filename"],
    ]
    text = good("info", "--backing-chain", chain.top.path)
    assert f"\n\nimage: {chain.folder / 'base.vhdx'}\n" in text


def test_info_works_without_the_parent_and_the_chain_does_not(chain: Chain) -> None:
    (chain.folder / "base.vhdx").unlink()
    assert "backing file: " in good("info", chain.top.path)
    outcome = call("info", "--backing-chain", chain.top.path)
    assert outcome.status == 1
    assert outcome.err.count("\n") == 1
    assert "no such file" in outcome.err


def test_map_tells_depth_file_and_offset(chain: Chain) -> None:
    spans = json.loads(good("map", "--output", "json", chain.top.path))
    assert sum(span["length"] for span in spans) == 16 * MIB
    at = {span["start"]: span for span in spans}
    assert (at[0]["depth"], at[0]["data"], at[0]["present"]) == (1, True, True)
    assert (at[MIB]["depth"], at[MIB]["length"], at[MIB]["data"]) == (0, 512, True)
    assert (at[8 * MIB]["depth"], at[8 * MIB]["length"]) == (0, MIB)
    assert (at[9 * MIB]["data"], at[9 * MIB]["present"]) == (False, False)
    lines = good("map", chain.top.path).splitlines()
    assert lines[0] == f"{'Offset':16}{'Length':16}{'Mapped to':16}File"
    assert lines[1].split()[:2] == ["0", "0x100000"]
    assert lines[1].split()[3] == str(chain.folder / "base.vhdx")


def test_map_of_a_window_and_of_nothing(chain: Chain) -> None:
    spans = json.loads(
        good("map", "--output=json", "--start-offset=8M", "--max-length", "64k", chain.top.path)
    )
    assert [(span["start"], span["length"]) for span in spans] == [(8 * MIB, 64 << 10)]
    assert good("map", "--start-offset=20M", "--output=json", chain.top.path) == (
        '[{ "start": 20971520, "length": 0, "depth": 0, "present": false, "zero": false, "data": false}]\n'
    )


def test_check_tells_sound_damaged_and_unchecked_apart(tmp_path: Path) -> None:
    sound = Vhdx(blocks={0: Block(State.FULLY_PRESENT, b"x")})
    sound.build(tmp_path / "sound")
    assert good("check", tmp_path / "sound").startswith("No errors were found on the image.\n")
    damaged = Vhdx(
        blocks={
            0: Block(State.FULLY_PRESENT, b"x"),
            1: Block(State.FULLY_PRESENT, b"y", file_offset=1 << 40),
        }
    )
    damaged.build(tmp_path / "damaged")
    outcome = call("check", tmp_path / "damaged")
    assert outcome.status == 2
    assert "ERROR" in outcome.err
    assert "1 errors were found on the image." in outcome.out
    report = json.loads(call("check", "--output=json", tmp_path / "damaged").out)
    assert (report["corruptions"], report["check-errors"]) == (1, 0)
    unchecked = call("check", raw_file(tmp_path / "raw", MIB))
    assert (unchecked.status, unchecked.err) == (63, "vblk: This image format does not support checks\n")


def test_compare_says_what_differs_and_its_status_says_it_too(tmp_path: Path, chain: Chain) -> None:
    flat = tmp_path / "flat"
    good("convert", chain.top.path, flat)
    assert good("compare", chain.top.path, flat) == "Images are identical.\n"
    with flat.open("r+b") as file:
        file.seek(5 * MIB + 1000)
        file.write(b"x")
    outcome = call("compare", chain.top.path, flat)
    assert (outcome.status, outcome.out) == (1, f"Content mismatch at offset {5 * MIB + 512}!\n")
    assert call("compare", "-q", chain.top.path, flat).out == ""
    larger = raw_file(tmp_path / "larger", 32 * MIB)
    smaller = raw_file(tmp_path / "smaller", 16 * MIB)
    assert good("compare", smaller, larger) == "Warning: Image size mismatch!\nImages are identical.\n"
    strict = call("compare", "-s", smaller, larger)
    assert (strict.status, strict.out) == (1, "Strict mode: Image size mismatch!\n")
    assert call("compare", smaller, tmp_path / "nosuch").status == 2


def test_measure_checks_its_words_in_order(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "a", MIB)
    assert good("measure", path) == "required size: 1048576\nfully allocated size: 1048576\n"
    assert json.loads(good("measure", "--output=json", "--size", "1000")) == {
        "required": 1024,
        "fully-allocated": 1024,
    }
    refusals: list[tuple[list[str | Path], str]] = [
        ([], "Either --size N or one filename must be specified."),
        (["--size", "2G", path], "--size N cannot be used together with a filename."),
        ([path, path], "At most one filename argument is allowed."),
        (["-f", "raw"], "--image-opts, -f, and -l require a filename argument."),
        (["-o", ","], "Invalid option list: ,"),
        (["-O", "foo", path], "Unknown file format 'foo'"),
    ]
    for words, sentence in refusals:
        assert call("measure", *words).err == f"vblk: {sentence}\n"


def test_chain_tells_how_each_parent_was_found(chain: Chain) -> None:
    facts = json.loads(good("chain", "--output=json", chain.top.path))["chain"]
    assert [layer["depth"] for layer in facts] == [0, 1]
    assert facts[0]["linkage"] == facts[1]["data-write-guid"]
    assert facts[1]["found"]["key"] == "relative_path"
    assert facts[0]["data-bytes"] == MIB + 512
    assert facts[1]["data-bytes"] == 3 * MIB - 512
    text = good("chain", chain.top.path)
    assert text.startswith(f"{chain.top.path} (vhdx, 16 MiB)\n")
    assert f"└── {chain.folder / 'base.vhdx'} (vhdx, 16 MiB)" in text


def test_a_chain_with_a_missing_parent_is_shown_as_far_as_it_goes(chain: Chain) -> None:
    (chain.folder / "base.vhdx").unlink()
    outcome = call("chain", chain.top.path)
    assert outcome.status == 1
    assert "parent not opened: " in outcome.out
    assert json.loads(call("chain", "--output=json", chain.top.path).out)["error"]


def test_a_parent_may_be_given_by_the_user(chain: Chain) -> None:
    elsewhere = chain.folder / "elsewhere"
    elsewhere.mkdir()
    (chain.folder / "base.vhdx").rename(elsewhere / "base.vhdx")
    assert call("compare", chain.top.path, chain.top.path).status == 2
    ways: list[list[str | Path]] = [["--parent-dir", elsewhere], ["--parent", elsewhere / "base.vhdx"]]
    for words in ways:
        assert good("compare", *words, chain.top.path, chain.top.path) == "Images are identical.\n"
    denied = call("map", "--deny-implicit", "--parent-dir", elsewhere, chain.top.path)
    assert denied.status == 1
