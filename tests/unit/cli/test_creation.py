"""`-o`, `-b` and `-F`: what is read, how it is announced, and QEMU's words for what makes no sense."""

import pytest

from vblk.cli.creation import beside, options_help, request
from vblk.cli.failure import Failure

NOT_A_SIZE = (
    "Parameter '{}' expects a non-negative number below 2^64\n"
    "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
    "and exabytes, respectively."
)
VHDX_QEMU = [
    "  block_size=<size>      - Block Size; min 1MB, max 256MB. 0 means auto-calculate based on image size.",
    "  block_state_zero=<bool (on/off)> - Force use of payload blocks of type 'ZERO'. Non-standard, but "
    "default.  Do not set to 'off' when using 'qemu-img convert' with subformat=dynamic.",
    "  extent_size_hint=<size> - Extent size hint for the image file, 0 to disable",
    "  log_size=<size>        - Log size; min 1MB.",
    "  nocow=<bool (on/off)>  - Turn off copy-on-write (valid only on btrfs)",
    "  preallocation=<str>    - Preallocation mode (allowed values: off, falloc, full)",
    "  size=<size>            - Virtual disk size; max of 64TB.",
    "  subformat=<str>        - VHDX format type, can be either 'dynamic' or 'fixed'. Default is 'dynamic'.",
]


def test_an_announcement_has_what_was_given_and_some_defaults_in_the_options_order() -> None:
    raw = request("raw", {"extent_size_hint": "1M", "preallocation": "off", "nocow": "on"}, None, None)
    assert raw.announced("x", 7) == (
        "Formatting 'x', fmt=raw size=7 nocow=on preallocation=off extent_size_hint=1048576"
    )
    vhdx = request("vhdx", {"block_state_zero": "off", "subformat": "fixed", "block_size": "2M"}, None, None)
    assert vhdx.announced("x", 513) == (
        "Formatting 'x', fmt=vhdx size=513 log_size=1048576 block_size=2097152 subformat=fixed "
        "block_state_zero=off"
    )
    child = request("vhdx", {}, "a,b.vhdx", "vhdx")
    assert child.announced("x", 512).endswith(" backing_file=a,,b.vhdx backing_fmt=vhdx")


@pytest.mark.parametrize(
    ("form", "values", "sentence"),
    [
        ("raw", {"foo": "1"}, "Invalid parameter 'foo'"),
        ("raw", {"log_size": "1M"}, "Invalid parameter 'log_size'"),
        ("raw", {"nocow": "maybe"}, "Parameter 'nocow' expects 'on' or 'off'"),
        ("raw", {"extent_size_hint": "8G"}, "Extent size hint is too large"),
        ("vhdx", {"block_state_zero": "maybe"}, "Parameter 'block_state_zero' expects 'on' or 'off'"),
        ("vhdx", {"block_size": "abc"}, NOT_A_SIZE.format("block_size")),
        ("vhdx", {"log_size": "-1"}, NOT_A_SIZE.format("log_size")),
        ("vhdx", {"block_size": "16E"}, "Value '16E' is out of range for parameter 'block_size'"),
        ("vhdx", {"backing_fmt": "vhdx"}, "Backing format cannot be used without backing file"),
    ],
)
def test_a_wrong_option_is_named(form: str, values: dict[str, str], sentence: str) -> None:
    with pytest.raises(Failure) as caught:
        request(form, values, None, None)
    assert caught.value.lines == (sentence,)


def test_the_help_lists_all_options_by_name_with_those_of_the_file_when_there_is_one() -> None:
    help_ = options_help("vhdx", with_file=True)
    assert help_[0] == "Supported options:"
    assert help_[1:] == sorted(help_[1:])
    assert set(VHDX_QEMU) <= set(help_)
    own = options_help("vhdx", with_file=False)
    assert own[0] == "Supported vhdx options:"
    assert set(help_) - set(own) == {"Supported options:", VHDX_QEMU[2], VHDX_QEMU[4], VHDX_QEMU[5]}
    assert options_help("file", with_file=False)[1:5] == options_help("raw", with_file=True)[1:]


@pytest.mark.parametrize(
    ("backing", "where"),
    [("b.vhdx", "dir/b.vhdx"), ("/a/b", "/a/b"), ("json:{}", "json:{}"), ("x/a:b", "dir/x/a:b")],
)
def test_a_backing_file_counts_from_the_folder_of_the_new_image(backing: str, where: str) -> None:
    assert beside("dir/new", backing) == where
