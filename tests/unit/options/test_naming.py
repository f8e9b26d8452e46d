"""File names, `json:` and `--image-opts`, compared with what QEMU makes of them."""

import pytest

from vblk.errors import OptionError
from vblk.options import (
    NodeOptions,
    NodeReference,
    Scalar,
    parse_filename,
    parse_image_opts,
    parse_json,
    with_filename,
)


def leaf(driver: str | None, **own: Scalar) -> NodeOptions:
    return NodeOptions(driver=driver, own=own)


def over(
    child: NodeOptions | NodeReference | None, driver: str | None = None, name: str = "file"
) -> NodeOptions:
    return NodeOptions(driver=driver, children={name: child})


def refusal_of(text: str, format: str | None = None) -> str:
    with pytest.raises(OptionError) as caught:
        parse_filename(text, format=format)
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("x", leaf(None, filename="x")),
        ("./a:b", leaf(None, filename="./a:b")),
        ("d/a:b", leaf(None, filename="d/a:b")),
        ("/dev/loop0", leaf(None, filename="/dev/loop0")),
        ("x,y=z", leaf(None, filename="x,y=z")),
        ("a\udcffb", leaf(None, filename="a\udcffb")),
        ("file:x", leaf("file", filename="x")),
        ("file:a:b", leaf("file", filename="./a:b")),
        ("file:/d/a:b", leaf("file", filename="/d/a:b")),
        ("file:///x", leaf("file", filename="///x")),
        ("host_device:/dev/null", leaf("host_device", filename="/dev/null")),
        ("null-co://", leaf("null-co")),
        ("null-aio://", leaf("null-aio")),
        ("nbd:unix:/s", leaf("nbd", **{"server.type": "unix", "server.path": "/s"})),
        ("ssh://u@h:22/x", leaf("ssh", user="u", host="h", port="22", path="/x")),
        ("iscsi://h/v/x", leaf("iscsi", uri="iscsi://h/v/x")),
        ("https://h/x", leaf("https", url="https://h/x")),
        ("fat:rw:d", leaf("vvfat", uri="fat:rw:d")),
        ("blkdebug::x", over(leaf(None, filename="x"), "blkdebug", "image")),
        ("blkdebug::file:a:b", over(leaf("file", filename="./a:b"), "blkdebug", "image")),
    ],
)
def test_a_name_becomes_a_protocol_below_a_format_to_probe(text: str, file: NodeOptions) -> None:
    assert parse_filename(text) == over(file)


def test_filter_protocols_take_a_configuration_or_a_second_image() -> None:
    with pytest.raises(OptionError, match="Unknown protocol 'x'"):
        parse_filename("blkdebug:/c:x:y/")
    assert parse_filename("blkdebug:/c:./x:y/").children["file"] == NodeOptions(
        driver="blkdebug", own={"config": "/c"}, children={"image": leaf(None, filename="./x:y/")}
    )
    assert parse_filename("blkverify:r:t").children["file"] == NodeOptions(
        driver="blkverify", children={"raw": leaf(None, filename="r"), "test": leaf(None, filename="t")}
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a:b", "Unknown protocol 'a'"),
        (":x", "Unknown protocol ''"),
        ("foo-bar:", "Unknown protocol 'foo-bar'"),
        ("null://", "Unknown protocol 'null'"),
        ("vhdx:x", "Unknown protocol 'vhdx'"),
        ("null-co:", "The only allowed filename for this driver is 'null-co://'"),
        ("null-aio://x", "The only allowed filename for this driver is 'null-aio://'"),
        ("", "The 'file' block driver requires a file name"),
        ("file:", "The 'file' block driver requires a file name"),
        ("blkdebug:x", "blkdebug requires both config file and image path"),
        ("blkverify:x", "blkverify requires raw copy and original image path"),
        ("a\0b", "A file name must not contain a NUL character"),
        ("json:[]", "Invalid JSON object given"),
        ("json:", "Could not parse the JSON options: Expecting a JSON value"),
    ],
)
def test_a_name_that_cannot_be_right_is_refused_in_qemus_words(text: str, reason: str) -> None:
    assert refusal_of(text) == reason


def test_a_format_is_the_driver_of_the_root() -> None:
    assert parse_filename("x", format="vhdx") == over(leaf(None, filename="x"), "vhdx")
    assert parse_filename("a:b", format="file") == leaf("file", filename="a:b")
    assert parse_filename("null-co://", format="null-co") == leaf("null-co")
    assert refusal_of("x", "null-co") == "The only allowed filename for this driver is 'null-co://'"


def test_a_format_must_agree_with_the_driver_in_json() -> None:
    text = 'json:{"driver": "raw", "file": {"driver": "file", "filename": "x"}}'
    assert parse_filename(text, format="raw") == over(leaf("file", filename="x"), "raw")
    assert refusal_of(text, "vhdx") == "Option 'driver' is given twice, as 'vhdx' and as 'raw'"
    bare = 'json:{"file.filename": "x"}'
    assert parse_filename(bare, format="vhdx") == over(leaf(None, filename="x"), "vhdx")


def test_every_spelling_gives_one_model() -> None:
    expected = NodeOptions(
        driver="raw",
        read_only=True,
        cache_direct=False,
        own={"offset": "512"},
        children={"file": leaf("file", filename="a,b")},
    )
    nested = "{'driver':'raw','read-only':true,'cache':{'direct':false},'offset':'512',"
    assert parse_json(nested + "'file':{'driver':'file','filename':'a,b'}}") == expected
    assert parse_json(nested + "'file.driver':'file','file.filename':'a,b'}") == expected
    dotted = "driver=raw,read-only=on,cache.direct=off,offset=512,file.driver=file,file.filename=a,,b"
    assert parse_image_opts(dotted) == expected


def test_a_bare_first_value_refers_to_a_node() -> None:
    assert parse_image_opts("x") == over(NodeReference("x"))
    assert parse_image_opts("driver=raw,file=x") == over(NodeReference("x"), "raw")


def test_a_bare_name_is_a_switch_and_gives_a_warning() -> None:
    warnings: list[str] = []
    options = parse_image_opts("driver=raw,read-only,noforce-share", warn=warnings.append)
    assert (options.read_only, options.force_share) == (True, False)
    assert warnings == [
        "short-form boolean option 'read-only' deprecated\nPlease use read-only=on instead",
        "short-form boolean option 'noforce-share' deprecated\nPlease use force-share=off instead",
    ]
    assert parse_image_opts("raw", implied=None, warn=warnings.append).children == {
        "raw": NodeReference("on")
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("driver=raw,driver=qcow2", "Option 'driver' is given twice, as 'raw' and as 'qcow2'"),
        ("file.filename=x,file.filename=y", "Option 'file.filename' is given twice, as 'x' and as 'y'"),
        (
            "file=x,file.filename=y",
            "Cannot reference an existing block device with additional options or a new filename:"
            " 'file' and 'file.filename'",
        ),
        ("=x", "Invalid parameter ''"),
        ("file..filename=x", "Invalid parameter 'file..filename'"),
        ("read-only=maybe", "Parameter 'read-only' expects 'on' or 'off'"),
    ],
)
def test_contradictory_options_are_named(text: str, reason: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_image_opts(text)
    assert caught.value.message == reason


def test_the_same_option_twice_with_one_value_is_no_contradiction() -> None:
    assert parse_image_opts("driver=raw,driver=raw") == NodeOptions(driver="raw")


def test_a_name_is_placed_below_the_filters_that_options_describe() -> None:
    options = parse_image_opts(
        "driver=copy-on-read,file.driver=blkdebug,file.config=/c,file.image.driver=raw"
    )
    placed = with_filename(options, "x")
    raw = over(leaf(None, filename="x"), "raw")
    debug = NodeOptions(driver="blkdebug", own={"config": "/c"}, children={"image": raw})
    assert placed == over(debug, "copy-on-read")
    assert options.children["file"] == NodeOptions(
        driver="blkdebug", own={"config": "/c"}, children={"image": NodeOptions(driver="raw")}
    )


def test_a_name_takes_the_spelling_of_the_protocol_it_is_placed_at() -> None:
    assert with_filename(parse_image_opts("driver=file"), "a:b") == leaf("file", filename="a:b")
    assert with_filename(parse_image_opts("driver=file"), "file:a:b") == leaf("file", filename="./a:b")
    assert with_filename(parse_image_opts("file.driver=file"), "a:b") == over(leaf("file", filename="a:b"))
    with pytest.raises(OptionError, match="Unknown protocol 'a'"):
        with_filename(parse_image_opts("driver=raw"), "a:b")


@pytest.mark.parametrize(
    "text", ["driver=file,filename=x", "driver=raw,file.filename=x", "file.driver=file,file.filename=x"]
)
def test_a_second_file_name_is_refused(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        with_filename(parse_image_opts(text), "x")
    assert caught.value.message == "Can't specify 'file' and 'filename' options at the same time"


def test_a_name_cannot_replace_a_reference() -> None:
    with pytest.raises(OptionError, match=r"Cannot reference an existing .*: 'file' and 'file\.filename'"):
        with_filename(parse_image_opts("driver=raw,file=node"), "x")


def test_options_and_json_unite_where_they_agree() -> None:
    options = parse_image_opts("driver=raw,size=512,file.locking=off")
    text = "json:{'driver':'raw','size':'512','file.filename':'x'}"
    placed = with_filename(options, text)
    assert placed.own == {"size": "512"}
    assert placed.children == {"file": leaf(None, locking="off", filename="x")}
    with pytest.raises(OptionError, match="Option 'size' is given twice, as '512' and as '1024'"):
        with_filename(options, "json:{'size':'1024'}")
    with pytest.raises(OptionError, match=r"Option 'file\.locking' is given twice, as 'off' and as 'on'"):
        with_filename(options, "json:{'file.locking':'on'}")
