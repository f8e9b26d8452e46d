"""`vblk merge` as a user meets it, also when it is killed."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.support.command_line import call, good
from tests.support.crash import NIGHTLY, SEED
from tests.support.killed_call import Killer
from tests.support.vhdx.chain import Chain
from vblk.testing import Content

KIB, MIB = 1 << 10, 1 << 20
SIZE = 8 * MIB
KILLS = 100 if NIGHTLY else 20


def chain_in(folder: Path, levels: int = 3) -> Chain:
    folder.mkdir(exist_ok=True)
    chain = Chain(folder)
    chain.base([(0, 2 * MIB), (5 * MIB, 64 * KIB)], size=SIZE)
    for level in range(1, levels):
        writes = [(level * 64 * KIB, 8 * KIB), ((2 + level) * MIB, 12 * KIB)]
        chain.child(writes, states={7 - level: 2}, name=f"disk_{level}.avhdx")
    return chain


def content_of(path: Path) -> bytes:
    raw = path.with_name("content.raw")
    good("convert", "-f", "vhdx", "-O", "raw", path, raw)
    content = raw.read_bytes()
    raw.unlink()
    return content


def truth(chain: Chain, level: int = -1) -> bytes:
    model = chain.levels[level].model
    return model.read(0, model.size)


def test_several_checkpoints_go_into_the_base_and_are_deleted(tmp_path: Path) -> None:
    chain = chain_in(tmp_path, 4)
    base, _, _, top = (level.path for level in chain.levels)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    facts = json.loads(good("merge", "--dry-run", "--output", "json", "--into", base, top))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert facts["delete"] == [str(tmp_path / "disk_2.avhdx"), str(tmp_path / "disk_1.avhdx"), str(top)]
    assert facts["data-bytes"] == (3 * 8 + 2 * 12) * KIB  # one piece is under a block of zeros
    assert "48 KiB of data would go into" in good("merge", "--dry-run", "--into", base, top)
    assert good("merge", "--into", base, top) == f"Image merged into '{base}'.\n"
    assert os.listdir(tmp_path) == ["base.vhdx"]
    assert content_of(base) == truth(chain)
    good("check", base)


def test_by_default_the_parent_takes_the_image(tmp_path: Path) -> None:
    chain = chain_in(tmp_path)
    base, middle, top = (level.path for level in chain.levels)
    assert good("merge", "-q", "-p", "--progress", "line", top) == ""
    assert sorted(os.listdir(tmp_path)) == sorted([base.name, middle.name])
    assert content_of(middle) == truth(chain)


def test_children_of_what_was_merged_get_the_new_parent(tmp_path: Path) -> None:
    chain = chain_in(tmp_path, 4)
    base, _, middle, top = (level.path for level in chain.levels)
    good("merge", "-q", "--into", base, middle)
    assert sorted(os.listdir(tmp_path)) == sorted([base.name, top.name])
    assert content_of(top) == truth(chain)
    good("check", top)


def test_what_is_kept_reads_the_same_until_the_parent_changes(tmp_path: Path) -> None:
    chain = chain_in(tmp_path)
    base, middle, top = (level.path for level in chain.levels)
    said = good("merge", "--keep", "--into", base, top)
    assert said.endswith(f"Kept, and of no more use, for their parent has changed: '{middle}'.\n")
    assert content_of(top) == content_of(base) == truth(chain)
    assert "linkage mismatch" in call("info", "--backing-chain", middle).err
    assert good("merge", "--into", base, top) == f"Image merged into '{base}'.\n"
    assert content_of(base) == truth(chain)


def test_other_images_on_what_changes_are_named_and_protected(tmp_path: Path) -> None:
    chain = chain_in(tmp_path)
    base, middle, top = (level.path for level in chain.levels)
    twin = tmp_path / "twin.avhdx"
    shutil.copy(top, twin)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    outcome = call("merge", "--into", base, top)
    assert outcome.status == 1
    assert f"'{twin}' would be lost" in outcome.err
    assert "--force" in outcome.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert f"'{twin}' would be lost" in good("merge", "--dry-run", "--into", base, top)
    good("merge", "--force", "--into", base, top)
    assert content_of(base) == truth(chain)
    assert not middle.exists()


def test_what_cannot_be_merged_is_said_and_nothing_changes(tmp_path: Path) -> None:
    chain = chain_in(tmp_path)
    base, _, top = (level.path for level in chain.levels)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    raw = tmp_path.parent / "a.raw"
    raw.write_bytes(bytes(MIB))
    for words, sentence in (
        ([base], "Image does not have a backing file"),
        (["--into", top, top], f"Did not find '{top}' in the backing chain of '{top}'"),
        (["-U", top], "-U does not go with merging"),
        (["-t", "unsafe", top], "which wants --keep"),
        (["-f", "raw", raw], "Image does not have a backing file"),
        ([tmp_path / "none"], "No such file or directory"),
    ):
        outcome = call("merge", *words)
        assert outcome.status == 1
        assert sentence in outcome.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_merge_killed_at_random_instants_goes_on_to_the_right_end(
    tmp_path: Path, in_memory: Path, tell: Callable[[str], None]
) -> None:
    source, folder = tmp_path / "source", in_memory / "chain"
    chain = chain_in(source)
    expected = truth(chain)
    files = {level.path.name: Content.load(level.path) for level in chain.levels}
    base, top = (folder / level.path.name for level in (chain.levels[0], chain.top))
    words: list[str | Path] = ["merge", "-q", "--into", base, top]
    folder.mkdir()
    lot = Random(SEED)
    left: Counter[str] = Counter()
    with Killer() as killer:
        put(files, folder)
        status, calls = killer.call(words)
        assert status == 0
        while left.total() < KILLS:
            put(files, folder)
            if killer.call(words, lot.randrange(calls // 50, calls))[0] == 0:
                continue  # it needed fewer calls this time
            left[f"{len(os.listdir(folder))} files left"] += 1
            assert content_of(top if top.exists() else base) == expected
            if top.exists():
                good(*words)
            assert os.listdir(folder) == [base.name]
            assert content_of(base) == expected
            good("check", "-q", base)
    tell(f"{KILLS} merges of 3 levels killed with SIGKILL, all went on to the right end: {dict(left)}")


def put(files: dict[str, Content], folder: Path) -> None:
    for name, content in files.items():
        content.save(folder / name)
