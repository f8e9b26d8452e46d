"""The name under which `vblk mount` shows a disk."""

import pytest

from vblk.cli.mount import _file_name


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("/there/disk.vhdx", "disk.vhdx"),
        ("odd?name", "odd?name"),
        ("nbd://host:10809/disk", "disk"),
        ("nbd+unix:///a/b?socket=/s.sock", "b"),
        ("nbd+unix://?socket=/s.sock", "disk"),
        ('json:{"driver": "null-co", "path": "/x"}', "disk"),
        ("/" + "x" * 300, "disk"),
    ],
)
def test_it_is_that_of_the_file_or_export_if_it_has_one(image: str, name: str) -> None:
    assert _file_name(image) == name
