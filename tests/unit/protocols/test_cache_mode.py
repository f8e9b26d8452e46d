"""The five names of cache modes, and the switches of single nodes."""

import pytest

from vblk.errors import OptionError
from vblk.options import from_mapping
from vblk.protocols.cache_mode import CacheMode, cache_mode_of, parse_cache_mode


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("writeback", CacheMode()),
        ("none", CacheMode(direct=True)),
        ("writethrough", CacheMode(write_through=True)),
        ("directsync", CacheMode(direct=True, write_through=True)),
        ("unsafe", CacheMode(no_flush=True)),
    ],
)
def test_each_name_has_its_switches(name: str, mode: CacheMode) -> None:
    assert parse_cache_mode(name) == mode


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(OptionError, match="Invalid cache option: sometimes"):
        parse_cache_mode("sometimes")


def test_a_nodes_own_switches_come_first() -> None:
    options = from_mapping({"driver": "file", "cache": {"direct": "on", "no-flush": "off"}})
    assert cache_mode_of("unsafe", options) == CacheMode(direct=True)
    assert cache_mode_of("writethrough", from_mapping({"driver": "file"})) == CacheMode(write_through=True)
