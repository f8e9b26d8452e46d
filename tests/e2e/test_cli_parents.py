"""`vblk commit` and `vblk rebase` as a user meets them."""

import os
import re
from pathlib import Path

import pytest

from tests.support.command_line import call, good
from tests.support.vhdx.chain import Chain

KIB, MIB = 1 << 10, 1 << 20
SIZE = 8 * MIB


def chain_in(folder: Path) -> Chain:
    chain = Chain(folder)
    chain.base([(0, 2 * MIB), (5 * MIB, 64 * KIB)], size=SIZE)
    chain.child([(64 * KIB, 8 * KIB), (3 * MIB, 12 * KIB)], states={6: 2})
    chain.child([(MIB, 8 * KIB)], states={4: 2})
    return chain


def content_of(path: Path) -> bytes:
    raw = path.with_name("content.raw")
    good("convert", "-f", "vhdx", "-O", "raw", path, raw)
    content = raw.read_bytes()
    raw.unlink()
    return content


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def truth(chain: Chain) -> bytes:
    return chain.top.model.read(0, SIZE)


def identity(path: Path) -> str:
    found = re.search(r"data write guid: (\S+)", good("chain", path))
    assert found is not None
    return found[1]


def test_commit_empties_the_image_unless_told_not_to(tmp_path: Path) -> None:
    chain = chain_in(tmp_path)
    base, middle, top = (level.path for level in chain.levels)
    before = identity(top)
    assert good("commit", "-d", top) == "Image committed.\n"
    assert "1 partially-present, 1 zero" in good("chain", top)
    assert content_of(top) == content_of(middle) == truth(chain)
    assert good("commit", "-p", "-t", "writethrough", top).endswith("(100.00/100%)\r\nImage committed.\n")
    assert "blocks: 8 not-present\n" in good("chain", top)
    assert content_of(top) == truth(chain)
    assert identity(top) == before
    assert good("commit", "-q", "-b", base, top) == ""
    assert content_of(base) == content_of(top) == truth(chain)
    good("check", "-q", top)


def test_commit_protects_other_images_on_its_parent(tmp_path: Path) -> None:
    chain = chain_in(tmp_path)
    _, middle, top = (level.path for level in chain.levels)
    other = tmp_path / "other.vhdx"
    other.write_bytes(top.read_bytes())
    before = files_in(tmp_path)
    outcome = call("commit", top)
    assert outcome.status == 1
    assert f"'{other}' would be lost" in outcome.err
    assert files_in(tmp_path) == before
    good("commit", "--force", top)
    assert content_of(middle) == truth(chain)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["commit", "base.vhdx"], "Image does not have a backing file"),
        (
            ["commit", "-b", "no.vhdx", "child2.vhdx"],
            "Did not find 'no.vhdx' in the backing chain of 'child2.vhdx'",
        ),
        (["commit", "-t", "foo", "child2.vhdx"], "Invalid cache option: foo"),
        (["commit"], "Expecting one image file name\nTry 'vblk --help' for more information"),
        (
            ["rebase", "child2.vhdx"],
            "Must specify backing file (-b) or use unsafe mode (-u)\nTry 'vblk --help' for more information",
        ),
        (
            ["rebase", "-b", "no.vhdx", "child2.vhdx"],
            "Could not open new backing file 'no.vhdx': Could not open 'no.vhdx': No such file or directory",
        ),
        (["rebase", "-b", "base.vhdx", "-F", "foo", "child2.vhdx"], "Invalid format name: 'foo'"),
        (
            ["rebase", "-b", "base.vhdx", "-F", "raw", "child2.vhdx"],
            "the parent of a VHDX image is a VHDX image, not raw",
        ),
        (["rebase", "-b", "child2.vhdx", "child1.vhdx"], "'child1.vhdx' would be its own ancestor"),
        (["rebase", "-u", "-b", "child1.vhdx", "child1.vhdx"], None),
        (["rebase", "-b", "child1.vhdx", "base.vhdx"], None),
        (["rebase", "-b", "sectors.vhdx", "child2.vhdx"], None),
        (["rebase", "-u", "-b", "sectors.vhdx", "child2.vhdx"], None),
    ],
)
def test_what_is_not_possible_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str | None
) -> None:
    chain_in(tmp_path)
    Chain(tmp_path).base(size=SIZE, sector_size=4096, name="sectors.vhdx")
    monkeypatch.chdir(tmp_path)
    before = files_in(tmp_path)
    outcome = call(*words)
    assert outcome.status == 1
    assert sentence is None or outcome.err == f"vblk: {sentence}\n"
    assert "Traceback" not in outcome.err
    assert files_in(tmp_path) == before


def test_rebase_copies_what_the_new_parent_does_not_show(tmp_path: Path) -> None:
    chain = chain_in(tmp_path)
    base, middle, top = (level.path for level in chain.levels)
    before = identity(top)
    assert good("rebase", "--dry-run", "-b", "base.vhdx", top).startswith("20 KiB of data would be copied")
    assert good("rebase", "-b", "base.vhdx", top) == ""
    middle.unlink()
    assert content_of(top) == truth(chain)
    assert identity(top) == before
    good("rebase", "-b", "", top)
    base.unlink()
    assert content_of(top) == truth(chain)
    assert "type: dynamic" in good("chain", top)
    assert identity(top) == before


def test_an_unsafe_rebase_finds_a_parent_that_was_moved(tmp_path: Path) -> None:
    chain = chain_in(tmp_path)
    _, middle, top = (level.path for level in chain.levels)
    before = identity(top) if middle.exists() else ""
    (tmp_path / "moved").mkdir()
    middle.rename(tmp_path / "moved" / "new.vhdx")
    chain.levels[0].path.rename(tmp_path / "moved" / "base.vhdx")
    assert call("chain", top).status == 1
    said = good("rebase", "-u", "--dry-run", "-b", "moved/new.vhdx", top)
    assert "relative_path: .\\child1.vhdx -> .\\moved\\new.vhdx\n" in said
    assert "new identity" not in said
    assert call("chain", top).status == 1
    assert good("rebase", "-u", "-b", "moved/new.vhdx", top) == ""
    assert content_of(top) == truth(chain)
    assert identity(top) == before


def test_an_unsafe_rebase_onto_a_stranger_says_so_and_gives_a_new_identity(tmp_path: Path) -> None:
    chain = chain_in(tmp_path)
    top = chain.top.path
    before = identity(top)
    assert "new identity" in good("rebase", "-u", "--dry-run", "-b", "base.vhdx", top)
    outcome = call("rebase", "-u", "-b", "base.vhdx", top)
    assert outcome.status == 0
    assert "its disk may read differently" in outcome.err
    assert identity(top) != before
    assert "has a new identity" in call("rebase", "-u", "-b", "", top).err
    expected = bytearray(SIZE)
    expected[MIB : MIB + 8 * KIB] = truth(chain)[MIB : MIB + 8 * KIB]
    assert content_of(top) == expected
    assert sorted(os.listdir(tmp_path)) == ["base.vhdx", "child1.vhdx", "child2.vhdx"]
