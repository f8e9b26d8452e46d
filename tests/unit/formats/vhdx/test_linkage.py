"""The links of a chain while it changes."""

import pytest

from vblk.codec.guid import new_guid
from vblk.formats.vhdx.encode import encode_locator
from vblk.formats.vhdx.linkage import Absorbed, MergeNote, announced, merge_note, reparented, settled
from vblk.formats.vhdx.locator import ParentLocator, parse_locator

PARENT, COMING, TOP = new_guid(), new_guid(), new_guid()
PAIRS = {"parent_linkage": str(new_guid()), "relative_path": ".\\p.vhdx", "volume_path": "\\\\?\\v\\p.vhdx"}


def parsed(pairs: dict[str, str]) -> ParentLocator:
    return parse_locator(encode_locator(pairs), 0)


def test_an_announced_identity_is_accepted_beside_the_present_one() -> None:
    locator = parsed(announced(parsed(PAIRS), PARENT, COMING))
    assert locator.accepts(PARENT)
    assert locator.accepts(COMING)
    assert locator.paths == {key: PAIRS[key] for key in ("relative_path", "volume_path")}


def test_a_settled_link_accepts_one_identity() -> None:
    locator = parsed(settled(parsed(announced(parsed(PAIRS), PARENT, COMING)), COMING))
    assert (locator.linkage, locator.linkage2) == (COMING, None)


def test_a_new_parent_leaves_no_path_of_the_old_one() -> None:
    assert parsed(reparented(PARENT, "..\\q.vhdx")).paths == {"relative_path": "..\\q.vhdx"}


def test_the_note_of_a_merge_survives_the_locator_whatever_its_names() -> None:
    note = MergeNote(TOP, (Absorbed(".\\a;b\n\udc80ü.avhdx", PARENT), Absorbed("..\\c", COMING)))
    pairs = reparented(PARENT, ".\\base.vhdx", coming=TOP, note=note)
    assert merge_note(parsed(pairs).pairs) == note


NONSENSE = ("", "{", "[]", '{"identity": 1, "files": []}', '{"files": [[1]]}', "9" * 9999, "[" * 99999)


@pytest.mark.parametrize("text", NONSENSE, ids=range(len(NONSENSE)))
def test_a_note_that_makes_no_sense_is_none(text: str) -> None:
    assert merge_note({"vblk_merged": text}) is None
