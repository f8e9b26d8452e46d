"""Names of files on SSH servers become options, and options become names."""

import pytest

from vblk.errors import OptionError
from vblk.options import NodeOptions, Scalar, to_filename
from vblk.options.ssh import parse_ssh_name, with_server
from vblk.protocols.ssh import read_options


@pytest.mark.parametrize(
    "name",
    [
        "ssh://host/x",
        "ssh://user@host:22/a/b.vhdx",
        "ssh://user@[::1]:2222/x",
        "ssh://host/a%20b%3Fc?host_key_check=no",
        "ssh://host/x?host_key_check=sha256:00ff",
        "ssh://host/x?host_key_check=yes",
        "ssh://a%40b@host/x",
    ],
)
def test_a_name_survives_the_way_through_options(name: str) -> None:
    written = to_filename(NodeOptions("ssh", own=dict(parse_ssh_name(name))))
    assert parse_ssh_name(written) == parse_ssh_name(name)
    assert to_filename(NodeOptions("ssh", own=dict(parse_ssh_name(written)))) == written


def test_structures_become_the_same_name() -> None:
    own: dict[str, Scalar] = {
        "server.host": "h",
        "server.port": "22",
        "path": "/x",
        "user": "u",
        "host-key-check.mode": "hash",
        "host-key-check.type": "md5",
        "host-key-check.hash": "00",
    }
    assert to_filename(NodeOptions("ssh", own=own)) == "ssh://u@h:22/x?host_key_check=md5:00"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ssh:x", "missing hostname in URI"),
        ("ssh:///x", "missing hostname in URI"),
        ("ssh://h", "missing remote path in URI"),
        ("ssh://h:x/y", "No valid URL specified"),
        ("ssh://h:99999/y", "No valid URL specified"),
        ("ssh://u:p@h/y", "a password has no place in a URI"),
    ],
)
def test_a_malformed_name_is_refused(name: str, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        parse_ssh_name(name)


@pytest.mark.parametrize(
    ("own", "text"),
    [
        ({"path": "/x"}, "Parameter 'server' is missing"),
        ({"path": "/x", "port": 22}, "port may not be used without host"),
        ({"path": "/x", "host": "h", "port": 0.42}, "Parameter 'port' expects a number"),
        ({"path": "/x", "host": "h", "port": "0.42"}, "Parameter 'port' expects a number"),
        ({"path": "/x", "server.host": "h"}, "Parameter 'server.port' is missing"),
        ({"path": "/x", "server.host": "h", "server.port": "ssh"}, "Use only numeric port value"),
        ({"host": "h"}, "Parameter 'path' is missing"),
        ({"path": "/x", "host": "h", "foo": 1}, "Parameter 'foo' is unexpected"),
        ({"path": "/x", "host": "h", "host_key_check": "none"}, r"unknown host_key_check setting \(none\)"),
        (
            {"path": "/x", "host": "h", "host-key-check": "none"},
            "Invalid parameter type for 'host-key-check'",
        ),
        ({"path": "/x", "host": "h", "host-key-check.mode": "hash"}, "'host-key-check.type' is missing"),
        ({"path": "/x", "host": "h", "host-key-check.hash": "00"}, "'host-key-check.hash' is unexpected"),
    ],
)
def test_wrong_options_are_refused_in_qemus_words(own: dict[str, Scalar], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        read_options(own)


def test_the_short_options_stand_for_structures() -> None:
    assert with_server({"host": "h", "host_key_check": "no"}) == {
        "server.host": "h",
        "server.port": "",
        "host-key-check.mode": "none",
    }
