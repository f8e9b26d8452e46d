"""Bad inputs, cases D1 to D21: differencing images and their parents."""

import os
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.catalogue import (
    Catalogue,
    Make,
    Opens,
    Refused,
    judge_commands,
    judge_library,
    numbers,
    refused,
    refused_chain,
)
from tests.support.subject import Journal, Subject, filled, three_blocks
from tests.support.vhdx.image import Block, State, Vhdx
from tests.support.vhdx.records import KIB, LOCATOR_TYPE, MIB, encode_locator, linkage
from vblk.errors import CorruptImage, Cycle, OpenDenied, Reason
from vblk.graph.site import ChainRules

CASES = Catalogue("D", numbers(21))

WRITES = [(512, 1024), (5 * MIB, MIB), (15 * MIB + 512, 512)]

Pairs = list[tuple[str | bytes, str | bytes]]

MALFORMED = refused(Reason.PARENT_LOCATOR, error=CorruptImage)


def child_with(subject: Subject, pairs: Pairs) -> None:
    """Let the subject be a child whose locator has `pairs`."""
    chain = subject.chain()
    chain.child(WRITES, pairs=pairs)
    subject.use(chain)


@CASES.add("D1", Opens(clean=True))
def good_parent(subject: Subject) -> None:
    chain = subject.chain()
    chain.child(WRITES)
    subject.use(chain)


@CASES.add("D1-by-absolute-path", Opens(clean=True))
def parent_by_absolute_path(subject: Subject) -> None:
    elsewhere = subject.folder / "elsewhere" / "deep"
    elsewhere.mkdir(parents=True)
    chain = subject.chain()
    moved = elsewhere / "moved base.vhdx"
    chain.top.path.rename(moved)
    path = "\\\\?\\D:\\deep\\moved base.vhdx"
    pairs: Pairs = [("absolute_win32_path", path), ("parent_linkage", linkage(chain.top.vhdx.data_write))]
    chain.child(WRITES, pairs=pairs)
    subject.use(chain)
    subject.rules = ChainRules(path_map=(("D:\\", str(subject.folder / "elsewhere")),))


@CASES.add("D1-by-unc-path", Opens(clean=True))
def parent_by_unc_path(subject: Subject) -> None:
    chain = subject.chain()
    (subject.folder / "share").mkdir()
    chain.top.path.rename(subject.folder / "share" / "p.vhdx")
    path = "\\\\?\\UNC\\Server\\Share\\p.vhdx"
    pairs: Pairs = [("absolute_win32_path", path), ("parent_linkage", linkage(chain.top.vhdx.data_write))]
    chain.child(WRITES, pairs=pairs)
    subject.use(chain)
    subject.rules = ChainRules(path_map=(("\\\\server\\share\\", str(subject.folder / "share")),))


@CASES.add("D1-by-volume-path", Opens(clean=True))
def parent_by_volume_path(subject: Subject) -> None:
    chain = subject.chain()
    (subject.folder / "volume").mkdir()
    chain.top.path.rename(subject.folder / "volume" / "p.vhdx")
    guid = linkage(chain.top.vhdx.data_write)
    volume = "\\\\?\\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\\"
    pairs: Pairs = [
        ("volume_path", volume + "p.vhdx"),
        ("parent_linkage", guid),
    ]
    chain.child(WRITES, pairs=pairs)
    subject.use(chain)
    subject.rules = ChainRules(path_map=((volume, str(subject.folder / "volume")),))


@CASES.add("D1-below", Opens(clean=True))
def parent_in_a_folder_below(subject: Subject) -> None:
    chain = subject.chain()
    (subject.folder / "below").mkdir()
    chain.top.path.rename(subject.folder / "below" / "p.vhdx")
    pairs: Pairs = [
        ("relative_path", "below\\p.vhdx"),
        ("parent_linkage", linkage(chain.top.vhdx.data_write)),
    ]
    chain.child(WRITES, pairs=pairs)
    subject.use(chain)


@CASES.add("D1-by-name", Opens(clean=True))
def parent_only_by_its_name_beside_the_child(subject: Subject) -> None:
    chain = subject.chain()
    pairs: Pairs = [
        ("parent_linkage", linkage(chain.top.vhdx.data_write)),
        ("absolute_win32_path", "X:\\gone\\base.vhdx"),
    ]
    chain.child(WRITES, pairs=pairs)
    subject.use(chain)


@CASES.add("D1-searched", Opens(clean=True))
def parent_in_a_search_folder(subject: Subject) -> None:
    chain = subject.chain()
    (subject.folder / "store").mkdir()
    chain.top.path.rename(subject.folder / "store" / "base.vhdx")
    chain.child(WRITES, pairs=chain.locator_pairs(chain.top))
    subject.use(chain)
    subject.rules = ChainRules(parent_dirs=(str(subject.folder / "store"),))


@CASES.add("D2", refused_chain(error=Cycle))
def own_parent(subject: Subject) -> None:
    own = uuid4()
    pairs: Pairs = [("parent_linkage", linkage(own)), ("relative_path", ".\\subject.vhdx")]
    subject.rebuild(three_blocks(locator=encode_locator(pairs), data_write=own))


@CASES.add("D3", refused_chain(error=Cycle))
def two_files_name_each_other(subject: Subject) -> None:
    guids = uuid4(), uuid4()
    for name, other, own, linked in (
        ("subject.vhdx", "b.vhdx", guids[0], guids[1]),
        ("b.vhdx", "subject.vhdx", guids[1], guids[0]),
    ):
        pairs: Pairs = [("parent_linkage", linkage(linked)), ("relative_path", ".\\" + other)]
        three_blocks(locator=encode_locator(pairs), data_write=own).build(subject.folder / name)
    subject.written = True


@CASES.add("D3-hard-link", refused_chain(error=Cycle))
def own_parent_by_a_hard_link(subject: Subject) -> None:
    own = uuid4()
    pairs: Pairs = [("parent_linkage", linkage(own)), ("relative_path", ".\\twin.vhdx")]
    three_blocks(locator=encode_locator(pairs), data_write=own).build(subject.path)
    os.link(subject.path, subject.folder / "twin.vhdx")
    subject.written = True


@CASES.add("D4-300", refused_chain(error=Cycle))
def chain_of_300(subject: Subject) -> None:
    chain = subject.chain()
    for _ in range(299):
        chain.child()
    subject.use(chain)


@CASES.add("D4-200", Opens())
def chain_of_200(subject: Subject) -> None:
    chain = subject.chain()
    for number in range(199):
        chain.child([(number * 4096, 512)] if number % 20 == 0 else ())
    subject.use(chain)


@CASES.add("D5", refused_chain(Reason.PARENT_MISSING))
def parent_missing(subject: Subject) -> None:
    good_parent(subject)
    (subject.folder / "base.vhdx").unlink()


@CASES.add("D5-given", refused_chain(Reason.PARENT_MISSING))
def given_parent_missing(subject: Subject) -> None:
    good_parent(subject)
    subject.rules = ChainRules(parent=str(subject.folder / "nowhere.vhdx"))


@CASES.add("D6", refused_chain(Reason.PARENT_MISMATCH))
def linkage_mismatch(subject: Subject) -> None:
    child_with(subject, [("parent_linkage", linkage(uuid4())), ("relative_path", "base.vhdx")])


@CASES.add("D6-override", Opens())
def linkage_mismatch_accepted(subject: Subject) -> None:
    linkage_mismatch(subject)
    subject.rules = ChainRules(ignore_linkage=True)


@CASES.add("D6-given", refused_chain(Reason.PARENT_MISMATCH))
def linkage_mismatch_of_a_given_parent(subject: Subject) -> None:
    good_parent(subject)
    other = three_blocks().build(subject.folder / "other.vhdx")
    subject.rules = ChainRules(parent=str(other))


@CASES.add("D6-next-candidate", Opens())
def mismatch_then_the_right_one(subject: Subject) -> None:
    good_parent(subject)
    (subject.folder / "store").mkdir()
    (subject.folder / "base.vhdx").rename(subject.folder / "store" / "base.vhdx")
    three_blocks().build(subject.folder / "base.vhdx")
    subject.rules = ChainRules(parent_dirs=(str(subject.folder / "store"),))


@CASES.add("D7", Opens(clean=True))
def second_linkage_matches(subject: Subject) -> None:
    chain = subject.chain()
    guid = chain.top.vhdx.data_write
    pairs: Pairs = [
        ("parent_linkage", linkage(uuid4())),
        ("relative_path", ".\\base.vhdx"),
        ("parent_linkage2", linkage(guid)),
    ]
    chain.child(WRITES, pairs=pairs)
    subject.use(chain)


@CASES.add("D8", MALFORMED)
def no_linkage(subject: Subject) -> None:
    child_with(subject, [("relative_path", ".\\base.vhdx")])


@CASES.add("D8-not-a-guid", MALFORMED)
def linkage_is_no_guid(subject: Subject) -> None:
    child_with(subject, [("parent_linkage", "{what}"), ("relative_path", ".\\base.vhdx")])


def _written_as(spell: str) -> Make:
    def make(subject: Subject) -> None:
        chain = subject.chain()
        text = linkage(chain.top.vhdx.data_write)
        text = {"upper": text.upper(), "bare": text[1:-1], "upper-bare": text.upper()[1:-1]}[spell]
        chain.child(WRITES, pairs=[("parent_linkage", text), ("relative_path", ".\\base.vhdx")])
        subject.use(chain)

    return make


for _spell in ("upper", "bare", "upper-bare"):
    CASES.add(f"D9-{_spell}", Opens(clean=True))(_written_as(_spell))


@CASES.add("D10", refused_chain(Reason.PARENT_LOCATOR, Reason.PARENT_MISSING))
def no_path(subject: Subject) -> None:
    chain = subject.chain()
    chain.child(WRITES, pairs=[("parent_linkage", linkage(chain.top.vhdx.data_write))])
    subject.use(chain)


@CASES.add("D10-given", Opens())
def no_path_but_given(subject: Subject) -> None:
    no_path(subject)
    subject.rules = ChainRules(parent=str(subject.folder / "base.vhdx"))


def _other_locator(subject: Subject) -> None:
    chain = subject.chain()
    pairs = chain.locator_pairs(chain.top)
    vhdx = chain.describe_child()
    vhdx.locator = encode_locator(pairs, locator_type=uuid4())
    vhdx.blocks[5] = filled(9, 5)
    subject.vhdx = vhdx
    subject.parts = vhdx.assemble()
    subject.model = vhdx.see(chain.top.model.copy())


@CASES.add("D11", refused_chain(Reason.PARENT_LOCATOR))
def unknown_locator_type(subject: Subject) -> None:
    _other_locator(subject)


@CASES.add("D11-given", Opens())
def unknown_locator_type_but_given(subject: Subject) -> None:
    _other_locator(subject)
    subject.rules = ChainRules(parent=str(subject.folder / "base.vhdx"), ignore_linkage=True)


def _raw_locator(
    change: bytes | None = None, *, at: int = 0, pairs: Pairs | None = None, count: int | None = None
) -> Make:
    """Break the item at byte `at`, or give it other pairs or another count."""

    def make(subject: Subject) -> None:
        chain = subject.chain()
        base = chain.locator_pairs(chain.top)
        raw = encode_locator([*base, *(pairs or [])], count=count)
        if change is not None:
            raw = raw[:at] + change + raw[at + len(change) :]
        vhdx = chain.describe_child()
        vhdx.locator = raw
        subject.vhdx, subject.parts = vhdx, vhdx.assemble()
        subject.model = vhdx.see(chain.top.model.copy())

    return make


FIRST = 20
for _name, _change, _at in (
    ("key-outside", b"\xff\xff\0\0", FIRST),
    ("key-far-outside", b"\xff\xff\xff\xff", FIRST),
    ("value-outside", b"\xff\xff\xff\x7f", FIRST + 4),
    ("key-length-outside", b"\xfe\xff", FIRST + 8),
    ("value-length-outside", b"\xfe\xff", FIRST + 10),
    ("key-length-odd", b"\x0d\0", FIRST + 8),
    ("value-length-odd", b"\x0d\0", FIRST + 10),
    ("key-length-zero", b"\0\0", FIRST + 8),
    ("value-length-zero", b"\0\0", FIRST + 10),
    ("key-offset-zero", b"\0\0\0\0", FIRST),
):
    CASES.add(f"D12-{_name}", MALFORMED)(_raw_locator(_change, at=_at))

for _name, _pairs in (
    ("duplicate-key", [("relative_path", "x.vhdx")]),
    ("nul-in-value", [("volume_path", "a\0b")]),
    ("nul-in-key", [("volume\0", "a")]),
    ("lone-surrogate", [("volume_path", b"a\0\x00\xd8b\0")]),
    ("lone-surrogate-key", [(b"\x00\xdc", "x")]),
):
    CASES.add(f"D12-{_name}", MALFORMED)(_raw_locator(pairs=list(_pairs)))

CASES.add("D12-other-key", Opens(clean=True))(_raw_locator(pairs=[("x", "y"), ("Relative_Path", "z")]))
CASES.add("D13", MALFORMED)(_raw_locator(count=65535))
CASES.add("D13-short", MALFORMED)(_raw_locator(count=4))


@CASES.add("D13-tiny", MALFORMED)
def locator_shorter_than_its_header(subject: Subject) -> None:
    subject.rebuild(three_blocks(locator=LOCATOR_TYPE.bytes_le + b"\0\0"))


def _pointing_to(path: str, reasons: tuple[Reason, ...]) -> None:
    name = "".join(letter if letter.isalnum() else "-" for letter in path)

    @CASES.add(f"D14{name if name.startswith('-') else '-' + name}", refused_chain(*reasons))
    def make(subject: Subject) -> None:  # pyright: ignore[reportUnusedFunction]
        child_with(subject, [("parent_linkage", linkage(uuid4())), ("relative_path", path)])


for _path in ("..\\..\\..\\etc\\passwd", "/etc/passwd", "\\\\server\\x", "..\\..\\..\\dev\\zero"):
    _pointing_to(_path, (Reason.POLICY, Reason.PARENT_MISSING))


@CASES.add("D14-outside", refused_chain(Reason.POLICY, error=OpenDenied))
def right_parent_outside_the_folder(subject: Subject) -> None:
    chain = subject.chain()
    (subject.folder / "own").mkdir()
    guid = linkage(chain.top.vhdx.data_write)
    chain.child(
        WRITES, name="own/child.vhdx", pairs=[("parent_linkage", guid), ("relative_path", "..\\base.vhdx")]
    )
    subject.use(chain)


@CASES.add("D14-outside-listed", Opens(clean=True))
def right_parent_in_a_listed_folder(subject: Subject) -> None:
    right_parent_outside_the_folder(subject)
    subject.rules = ChainRules(parent_dirs=(str(subject.folder),))


@CASES.add("D14-link-out", refused_chain(Reason.POLICY, error=OpenDenied))
def symbolic_link_leads_out(subject: Subject) -> None:
    right_parent_outside_the_folder(subject)
    own = subject.folder / "own"
    (own / "base.vhdx").symlink_to(subject.folder / "base.vhdx")


@CASES.add("D14-fifo", refused_chain(Reason.POLICY, error=OpenDenied))
def parent_is_a_fifo(subject: Subject) -> None:
    good_parent(subject)
    (subject.folder / "base.vhdx").unlink()
    os.mkfifo(subject.folder / "base.vhdx")


@CASES.add("D14-folder", refused_chain(Reason.POLICY, Reason.PARENT_MISSING))
def parent_is_a_folder(subject: Subject) -> None:
    good_parent(subject)
    (subject.folder / "base.vhdx").unlink()
    (subject.folder / "base.vhdx").mkdir()


@CASES.add("D14-link-loop", refused_chain(Reason.POLICY, Reason.PARENT_MISSING))
def symbolic_links_go_in_circles(subject: Subject) -> None:
    good_parent(subject)
    (subject.folder / "base.vhdx").unlink()
    (subject.folder / "base.vhdx").symlink_to("base.vhdx")


@CASES.add("D15", Opens(clean=True))
def child_larger_than_parent(subject: Subject) -> None:
    chain = subject.chain(size=3 * MIB - 64 * KIB)
    chain.child([(512, 512), (6 * MIB + 4096, 4096)], size=9 * MIB, block_size=4 * MIB)
    subject.use(chain)


@CASES.add("D16", Opens(clean=True))
def child_smaller_than_parent(subject: Subject) -> None:
    chain = subject.chain()
    chain.child([(512, 512)], size=2 * MIB - 4096)
    subject.use(chain)


@CASES.add("D16-grandchild", Opens(clean=True))
def small_one_between_larger_ones(subject: Subject) -> None:
    chain = subject.chain()
    chain.child([(512, 512)], size=MIB + 4096)
    chain.child([(8 * MIB, 512)], size=12 * MIB, block_size=2 * MIB)
    subject.use(chain)


@CASES.add("D17", refused_chain(Reason.BAD_VALUE, Reason.PARENT_MISMATCH))
def sectors_differ(subject: Subject) -> None:
    chain = subject.chain()
    chain.child([(4096, 4096)], sector_size=4096)
    subject.use(chain)


@CASES.add("D17-physical", Opens(clean=True))
def physical_sectors_differ(subject: Subject) -> None:
    chain = subject.chain()
    chain.child(WRITES, physical_sector_size=4096)
    subject.use(chain)


@CASES.add("D18", Opens())
def parent_dirty(subject: Subject) -> None:
    journal = Journal(subject)
    journal.put(0, journal.entry(3, journal.map(3)))
    base = subject.folder / "base.vhdx"
    journal.parts.write(base)
    guid = linkage(subject.vhdx.data_write)
    locator = encode_locator([("parent_linkage", guid), ("relative_path", ".\\base.vhdx")])
    child = Vhdx(size=subject.vhdx.size, locator=locator)
    child.blocks[1] = Block(State.ZERO)
    child.blocks[4] = filled(44, 4)
    model = child.see(subject.model)
    subject.rebuild(child)
    subject.model = model


@CASES.add("D19", Opens(clean=True))
def parent_shared_with_a_reader(subject: Subject) -> None:
    good_parent(subject)


@CASES.add("D20", refused_chain(Reason.PARENT_MISMATCH))
def parent_was_written_to(subject: Subject) -> None:
    good_parent(subject)
    command = ["qemu-io", "-f", "vhdx", "-c", "write 14M 64k", str(subject.folder / "base.vhdx")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


@CASES.add("D21-raw", refused_chain(Reason.PARENT_MISSING, Reason.WRONG_SIGNATURE, Reason.PARENT_MISMATCH))
def parent_is_raw(subject: Subject) -> None:
    good_parent(subject)
    (subject.folder / "base.vhdx").write_bytes(bytes(16 * MIB))


@CASES.add("D21-vhd", refused_chain(Reason.PARENT_MISSING, Reason.WRONG_SIGNATURE, Reason.PARENT_MISMATCH))
def parent_is_an_older_vhd(subject: Subject) -> None:
    good_parent(subject)
    base = subject.folder / "base.vhdx"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vpc", str(base), "16M"], check=True, timeout=60)


def test_every_number_of_the_section_has_a_case() -> None:
    assert CASES.missing() == []


@pytest.mark.parametrize(("make", "wanted"), CASES.parameters())
def test_the_library_does_what_is_asked(make: Make, wanted: Refused | Opens, tmp_path: Path) -> None:
    judge_library(make, wanted, tmp_path)


@pytest.mark.parametrize(("make", "wanted"), CASES.parameters())
def test_the_commands_do_what_is_asked(make: Make, wanted: Refused | Opens, tmp_path: Path) -> None:
    judge_commands(make, wanted, tmp_path)
