"""Names of exports: what is read, what is refused, and that names come back as they were."""

import pytest

from vblk.errors import OptionError, Unsupported
from vblk.options import Scalar
from vblk.options.nbd import nbd_name, parse_nbd_name, with_server


def unix(path: str, **more: str) -> dict[str, str]:
    return {"server.type": "unix", "server.path": path, **more}


def inet(host: str, port: str = "10809", **more: str) -> dict[str, str]:
    return {"server.type": "inet", "server.host": host, "server.port": port, **more}


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("nbd://h", inet("h")),
        ("nbd://h/", inet("h")),
        ("nbd://Host.Example:1/x", inet("Host.Example", "1", export="x")),
        ("nbd+tcp://h//x%20y", inet("h", export="/x y")),
        ("nbd://[::1]:2/x", inet("::1", "2", export="x")),
        ("nbd+unix:///x?socket=/a/b", unix("/a/b", export="x")),
        ("nbd+unix://?socket=s", unix("s")),
        ("nbd:unix:/a:b", unix("/a:b")),
        ("nbd:unix:/a:exportname=x:y", unix("/a", export="x:y")),
        ("nbd:h:1", inet("h", "1")),
        ("nbd:[::1]:1:exportname=x", inet("::1", "1", export="x")),
    ],
)
def test_a_name_says_where_the_server_is_and_what_it_serves(text: str, options: dict[str, str]) -> None:
    assert parse_nbd_name(text) == options


@pytest.mark.parametrize(
    "text",
    [
        "nbd://", "nbd://:1/x", "nbd+unix:///x", "nbd+unix://h/x?socket=s", "nbd+unix:///x?socket=s&y=1",
        "nbd://h/x?socket=s", "nbd://h:port/x", "nbd://[::1/x", "nbd:h", "nbd::1", "nbd:h:", "nbd:",
    ],
)  # fmt: skip
def test_a_name_that_leads_nowhere_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"No valid URL specified|error parsing address"):
        parse_nbd_name(text)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("nbds://h/x", inet("h", export="x", tls="on")),
        ("nbds+tcp://h", inet("h", tls="on")),
        (
            "nbds+unix:///x?socket=s&tls-hostname=h&tls-verify-peer=0&tls-type=x509",
            unix("s", export="x", tls="on", **{"tls-hostname": "h", "tls-verify-peer": "off"}),
        ),
        (
            "nbds://me@h?tls-psk-file=/k&tls-type=psk",
            inet("h", tls="on", **{"tls-psk-file": "/k", "tls-username": "me"}),
        ),
        ("nbds://me@h?tls-certificates=/d", inet("h", tls="on", **{"tls-certificates": "/d"})),
    ],
)
def test_a_name_says_how_tls_is_to_be_proven(text: str, options: dict[str, str]) -> None:
    assert parse_nbd_name(text) == options


@pytest.mark.parametrize(
    "text",
    [
        "nbd://h?tls-hostname=x", "nbds://h?tls-verify-peer=no", "nbds://h?tls-type=psk", "nbds://h?x=y",
        "nbds://h?tls-type=x509&tls-psk-file=f", "nbds://h?tls-hostname=a&tls-hostname=b",
    ],
)  # fmt: skip
def test_a_name_whose_tls_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(OptionError):
        parse_nbd_name(text)


def test_tls_that_proves_nothing_is_refused_in_a_sentence() -> None:
    with pytest.raises(Unsupported, match="proves nothing"):
        parse_nbd_name("nbds://h?tls-type=anon")


@pytest.mark.parametrize(
    ("own", "name"),
    [
        (unix("/s"), "nbd+unix://?socket=/s"),
        (unix("/s", export="x"), "nbd+unix:///x?socket=/s"),
        (inet("h", "1", export="x"), "nbd://h:1/x"),
        (inet("::1"), "nbd://[::1]:10809"),
        ({"path": "/s", "export": "x"}, "nbd+unix:///x?socket=/s"),
        ({"host": "h"}, "nbd://h:10809"),
        ({"host": "h", "port": 1, "export": 5}, "nbd://h:1/5"),
        (unix("/s?"), "nbd+unix://?socket=/s?"),
        (unix("/s", export="a?b"), None),
        (unix("/s&c=d"), None),
        (inet("h", "http"), None),
        ({**inet("h"), "tls-creds": "t", "tls-hostname": "x"}, "nbd://h:10809"),
        ({**inet("h"), "tls": True}, "nbds://h:10809"),
        (
            {**inet("h", export="x"), "tls": "on", "tls-verify-peer": "off"},
            "nbds://h:10809/x?tls-verify-peer=0",
        ),
        (
            {**unix("/s"), "tls": True, "tls-psk-file": "/k", "tls-username": "me"},
            "nbds+unix://me@/?socket=/s&tls-psk-file=/k",
        ),
        ({**inet("h"), "tls-hostname": "x"}, None),
        ({**inet("h"), "connections": 1}, None),
        ({}, None),
    ],
)
def test_options_have_the_name_that_says_them_all_or_none(own: dict[str, Scalar], name: str | None) -> None:
    assert nbd_name(own) == name


@pytest.mark.parametrize(
    "own",
    [
        {"path": "p", "host": "h"}, {"path": "p", "port": "1"}, {"port": "1"},
        {"path": "p", "server.type": "unix"},
    ],
)  # fmt: skip
def test_an_address_that_is_said_in_two_ways_is_refused(own: dict[str, Scalar]) -> None:
    with pytest.raises(OptionError, match="may not be used"):
        with_server(own)
