"""Names of files on gluster volumes, and back."""

import pytest

from vblk.errors import OptionError
from vblk.options import NodeOptions, parse_filename, to_filename
from vblk.options.gluster import gluster_name, parse_gluster_name
from vblk.protocols.gluster import read_options

FILE = {"volume": "v", "path": "a"}


def inet(host: str = "localhost", port: str = "24007", kind: str = "inet") -> dict[str, str]:
    return {"server.0.type": kind, "server.0.host": host, "server.0.port": port}


@pytest.mark.parametrize(
    ("text", "server", "volume", "path"),
    [
        ("gluster://1.2.3.4/testvol/a.img", inet("1.2.3.4"), "testvol", "a.img"),
        ("gluster+tcp://1.2.3.4/testvol/a.img", inet("1.2.3.4"), "testvol", "a.img"),
        ("gluster+tcp://1.2.3.4:24010/testvol/dir/a.img", inet("1.2.3.4", "24010"), "testvol", "dir/a.img"),
        ("gluster+tcp://[1:2::8]/testvol/dir/a.img", inet("1:2::8"), "testvol", "dir/a.img"),
        ("gluster+tcp://[::1]:24010/testvol/a.img", inet("::1", "24010"), "testvol", "a.img"),
        ("gluster+tcp://s.example.com:24008/v/a b.img", inet("s.example.com", "24008"), "v", "a b.img"),
        ("gluster:///testvol/a.img", inet(), "testvol", "a.img"),
        ("gluster://server:0/testvol//a.img", inet("server"), "testvol", "a.img"),
        ("gluster+rdma://1.2.3.4:24008/v/a.img", inet("1.2.3.4", "24008", "rdma"), "v", "a.img"),
        (
            "gluster+unix:///testvol/dir/a.img?socket=/tmp/glusterd.socket",
            {"server.0.type": "unix", "server.0.path": "/tmp/glusterd.socket"},
            "testvol",
            "dir/a.img",
        ),
    ],
)  # fmt: skip
def test_a_name_says_the_server_the_volume_and_the_path(
    text: str, server: dict[str, str], volume: str, path: str
) -> None:
    assert parse_gluster_name(text) == {**server, "volume": volume, "path": path}
    options = parse_filename(text).children["file"]
    assert isinstance(options, NodeOptions)
    assert options.driver == "gluster"
    back = to_filename(options)
    assert parse_gluster_name(back) == parse_gluster_name(text)
    read_options(options.own)


@pytest.mark.parametrize(
    "text",
    [
        "gluster://1.2.3.4",
        "gluster://1.2.3.4/testvol",
        "gluster://1.2.3.4/testvol/",
        "gluster://1.2.3.4//",
        "gluster://1.2.3.4:99999/v/a",
        "gluster://1.2.3.4:x/v/a",
        "gluster://1.2.3.4/v/a?socket=/tmp/s",
        "gluster://1.2.3.4/v/a?x=1",
        "gluster://1.2.3.4/v/a#b",
        "gluster://user@1.2.3.4/v/a",
        "gluster+unix:///v/a",
        "gluster+unix:///v/a?socket=",
        "gluster+unix:///v/a?sock=/tmp/s",
        "gluster+unix:///v/a?socket=/tmp/s&socket=/tmp/t",
        "gluster+unix://server/v/a?socket=/tmp/s",
        "gluster://[::1/v/a",
    ],
)
def test_a_malformed_name_is_refused_with_its_usage(text: str) -> None:
    with pytest.raises(OptionError, match=r"^invalid URI .*\nUsage: file=gluster"):
        parse_gluster_name(text)


@pytest.mark.parametrize(
    "own",
    [
        {**inet(), "volume": "v", "path": "a", "debug": 9},
        {**inet(), "server.1.type": "unix", "server.1.path": "/s", "volume": "v", "path": "a"},
        {**inet(), "volume": "v", "path": "/a"},
        {"volume": "v", "path": "a"},
    ],
)
def test_what_a_name_cannot_say_has_none(own: dict[str, str | int]) -> None:
    assert gluster_name(own) is None


@pytest.mark.parametrize(
    ("own", "text"),
    [
        ({"volume": "v", "path": "a"}, "Parameter 'server' is missing"),
        ({**inet(), "path": "a"}, "Parameter 'volume' is missing"),
        ({**inet(), "volume": "v"}, "Parameter 'path' is missing"),
        ({**FILE, "server.0.type": "inet", "server.0.host": "h"}, "Parameter 'port' is missing"),
        ({**FILE, "server.0.type": "unix"}, "Parameter 'path' is missing"),
        ({**FILE, **inet(), "server.0.path": "/s"}, "Parameter 'server.path' is unexpected"),
        ({**inet("h", "70000"), "volume": "v", "path": "a"}, "'70000' is not a valid port number"),
        ({**inet(), "volume": "v", "path": "a", "colour": "red"}, "Parameter 'colour' is unexpected"),
    ],
)  # fmt: skip
def test_options_that_mean_nothing_are_refused(own: dict[str, str], text: str) -> None:
    with pytest.raises(OptionError) as caught:
        read_options(own)
    assert caught.value.message == text


def test_a_port_may_be_a_number_and_debug_is_bounded() -> None:
    options = read_options({**FILE, **inet(kind="tcp"), "server.0.port": 7, "debug": 99})
    assert (options.server[0].port, options.debug) == ("7", 9)
