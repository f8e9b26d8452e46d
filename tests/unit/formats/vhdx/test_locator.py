"""Parent locators: parsing (rows D7 to D14) and where a parent may be."""

from contextlib import suppress

import pytest

from tests.support.small_vhdx import LOCATOR, OTHER, Small, load, locator
from vblk.errors import CorruptImage, ImageError, Reason, UnsupportedFeature
from vblk.formats.vhdx import Found, parent_candidates
from vblk.formats.vhdx.locator import map_windows_path, parse_locator

LINKAGE = "{00112233-4455-6677-8899-aabbccddeeff}"
SECOND = "{ffffffff-4455-6677-8899-aabbccddeeff}"
LINK = {"parent_linkage": LINKAGE}
GOOD = locator(LINK | {"relative_path": ".\\p.vhdx"})


def candidates(
    pairs: dict[str, str], path_map: dict[str, str] | None = None, search: tuple[str, ...] = ()
) -> list[tuple[str, Found, bool]]:
    parsed = parse_locator(locator(LINK | pairs), 0)
    found = parent_candidates(parsed, "/link", "/real", path_map, search)
    return [(item.path, item.found, item.refusal is None) for item in found]


def test_pairs_and_linkage_are_read() -> None:
    parsed = parse_locator(GOOD, 100)
    assert parsed.pairs == LINK | {"relative_path": ".\\p.vhdx"}
    assert str(parsed.linkage) == LINKAGE
    assert parsed.linkage2 is None
    assert parsed.supported


def test_d7_either_linkage_is_accepted() -> None:
    parsed = parse_locator(locator(LINK | {"parent_linkage2": SECOND}), 0)
    assert parsed.linkage is not None
    assert parsed.linkage2 is not None
    assert parsed.accepts(parsed.linkage)
    assert parsed.accepts(parsed.linkage2)
    assert not parsed.accepts(type(parsed.linkage)(bytes(16)))


@pytest.mark.parametrize("text", [LINKAGE.upper(), LINKAGE.strip("{}")])
def test_d9_a_linkage_is_read_leniently(text: str) -> None:
    assert str(parse_locator(locator({"parent_linkage": text}), 0).linkage) == LINKAGE


def pair_field(offset: int, value: int, size: int) -> bytes:
    """Return the good locator with a field of its first pair replaced."""
    place = 20 + offset
    return GOOD[:place] + value.to_bytes(size, "little") + GOOD[place + size :]


def lone_surrogate() -> bytes:
    at = int.from_bytes(GOOD[24:28], "little")
    return GOOD[:at] + b"\x00\xd8" + GOOD[at + 2 :]


@pytest.mark.parametrize(
    "item",
    [
        pytest.param(locator({"relative_path": "p"}), id="D8"),
        pytest.param(locator({"parent_linkage": "no guid"}), id="D8-no-guid"),
        pytest.param(pair_field(0, 0, 4), id="D12-key-offset-0"),
        pytest.param(pair_field(0, 1 << 31, 4), id="D12-key-outside"),
        pytest.param(pair_field(4, len(GOOD) - 2, 4), id="D12-value-outside"),
        pytest.param(pair_field(8, 0, 2), id="D12-key-empty"),
        pytest.param(pair_field(10, 75, 2), id="D12-value-odd"),
        pytest.param(pair_field(10, 65534, 2), id="D12-value-long"),
        pytest.param(locator({"parent_linkage": LINKAGE, "a\0b": "x"}), id="D12-nul"),
        pytest.param(lone_surrogate(), id="D12-surrogate"),
        pytest.param(GOOD[:32] + GOOD[20:32] + GOOD[44:], id="D12-duplicate-key"),
        pytest.param(GOOD[:18] + b"\xff\xff" + GOOD[20:], id="D13"),
        pytest.param(GOOD[:19], id="too-short"),
        pytest.param(b"", id="empty"),
    ],
)
def test_a_locator_that_cannot_be_is_refused(item: bytes) -> None:
    with pytest.raises(CorruptImage) as caught:
        load(Small(bits=2, extra_items={LOCATOR: item}).build())
    assert caught.value.reason is Reason.PARENT_LOCATOR


def test_d10_without_a_path_there_is_no_candidate() -> None:
    image = load(Small(bits=2, extra_items={LOCATOR: locator(LINK)}).build())
    assert image.locator is not None
    with pytest.raises(CorruptImage) as caught:
        parent_candidates(image.locator, "/", "/")
    assert caught.value.filename == "small.vhdx"


def test_d11_an_unknown_type_opens_and_has_no_candidates() -> None:
    image = load(Small(bits=2, extra_items={LOCATOR: locator({}, kind=OTHER)}).build())
    assert image.locator is not None
    assert not image.locator.supported
    with pytest.raises(UnsupportedFeature):
        parent_candidates(image.locator, "/", "/")


def test_a_relative_path_is_tried_from_the_real_directory_first() -> None:
    assert candidates({"relative_path": ".\\sub\\p.vhdx"}) == [
        ("/real/sub/p.vhdx", Found.RELATIVE_TO_REAL_DIRECTORY, True),
        ("/link/sub/p.vhdx", Found.RELATIVE_TO_DIRECTORY, True),
        ("/real/p.vhdx", Found.BESIDE, True),
        ("/link/p.vhdx", Found.BESIDE, True),
    ]


@pytest.mark.parametrize(
    "path",
    [
        "..\\..\\..\\etc\\passwd",
        "/etc/passwd",
        "\\\\server\\x",
        "\\etc\\passwd",
        "C:\\x",
        "..",
        "sub\\..\\..\\x",
    ],
)
def test_d14_a_path_that_leads_out_is_marked_and_the_name_is_tried_here(path: str) -> None:
    for place, found, allowed in candidates({"relative_path": path}):
        assert allowed is (found is Found.BESIDE)
        if allowed:
            assert place.startswith(("/real/", "/link/"))
            assert ".." not in place


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("\\\\?\\D:\\vm\\p.vhdx", "/mnt/d/vm/p.vhdx"),
        ("d:\\p.vhdx", "/mnt/d/p.vhdx"),
        ("\\\\?\\UNC\\server\\share\\p.vhdx", "/srv/share/p.vhdx"),
        ("\\\\SERVER\\share\\a\\p.vhdx", "/srv/share/a/p.vhdx"),
        ("\\\\?\\Volume{01}\\p.vhdx", "/mnt/x/p.vhdx"),
        ("D:\\deep\\p.vhdx", "/deep/p.vhdx"),
        ("E:\\p.vhdx", None),
        ("D:", None),
        ("\\\\server\\shared\\p.vhdx", None),
    ],
)
def test_windows_paths_are_mapped_by_the_longest_prefix(path: str, expected: str | None) -> None:
    path_map = {
        "D:\\": "/mnt/d",
        "D:\\deep": "/deep",
        "\\\\server\\share\\": "/srv/share",
        "\\\\?\\Volume{01}\\": "/mnt/x",
    }
    mapped = map_windows_path(path, path_map)
    assert (None if mapped is None else mapped[0]) == expected


def test_the_order_is_relative_volume_absolute_beside_searched() -> None:
    pairs = {
        "absolute_win32_path": "D:\\a\\p.vhdx",
        "volume_path": "\\\\?\\Volume{01}\\a\\p.vhdx",
        "relative_path": "p.vhdx",
    }
    path_map = {"D:\\": "/d", "Volume{01}": "/v"}
    assert [(path, found) for path, found, _ in candidates(pairs, path_map, ("/search",))] == [
        ("/real/p.vhdx", Found.RELATIVE_TO_REAL_DIRECTORY),
        ("/link/p.vhdx", Found.RELATIVE_TO_DIRECTORY),
        ("/v/a/p.vhdx", Found.MAPPED),
        ("/d/a/p.vhdx", Found.MAPPED),
        ("/search/p.vhdx", Found.SEARCHED),
    ]


def test_a_mapped_path_may_not_climb_out_of_its_directory() -> None:
    found = candidates({"absolute_win32_path": "D:\\..\\..\\etc\\passwd"}, {"D:": "/mnt/d"})
    assert found[0] == ("/etc/passwd", Found.MAPPED, False)


def test_a_locator_cut_or_flipped_is_read_or_refused() -> None:
    for length in range(len(GOOD)):
        with pytest.raises(ImageError):
            parse_locator(GOOD[:length], 0)
    for at in range(len(GOOD)):
        for bit in (1, 0x80):
            with suppress(CorruptImage):
                parse_locator(GOOD[:at] + bytes((GOOD[at] ^ bit,)) + GOOD[at + 1 :], 0)
