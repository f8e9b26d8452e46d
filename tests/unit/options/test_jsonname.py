"""Names of nodes, letter for letter as QEMU's tools print them."""

import pytest

from vblk.options import NodeOptions, parse_filename, parse_json, to_filename, to_json_filename

FILE = '"file": {"driver": "file", "filename": "x"}'


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("{'driver':'raw','file.filename':'x'}", "x"),
        ("{'driver':'file','filename':'x','locking':'off','aio':'threads'}", "x"),
        ("{'driver':'raw','file.filename':'a:b'}", "a:b"),
        ("{'driver':'raw','read-only':true,'node-name':'n','file.filename':'x'}", "x"),
        ("{'driver':'vhdx','backing':null,'file.filename':'x'}", "x"),
        ("{'driver':'raw','file.driver':'null-co','file.latency-ns':5}", "null-co://"),
        ("{'driver':'blkdebug','image.filename':'x'}", "blkdebug::x"),
        (
            "{'driver':'raw','file.driver':'blkdebug','file.config':'/c','file.image.filename':'x'}",
            "blkdebug:/c:x",
        ),
        (
            "{'driver':'raw','file.driver':'blkdebug','file.image.driver':'raw','file.image.file.filename':'x'}",
            "blkdebug::x",
        ),
        (
            "{'driver':'raw','file.driver':'blkverify','file.raw.filename':'r','file.test.filename':'t'}",
            "blkverify:r:t",
        ),
        (
            "{'driver':'raw','size':'4k','offset':'512','file.filename':'x'}",
            f'json:{{"offset": "512", "driver": "raw", "size": "4k", {FILE}}}',
        ),
        (
            "{'driver':'raw','offset':null,'file.filename':'x'}",
            f'json:{{"offset": null, "driver": "raw", {FILE}}}',
        ),
        ("{'driver':'null-co','read-zeroes':true}", 'json:{"read-zeroes": true, "driver": "null-co"}'),
        (
            "{'driver':'raw','file':{'driver':'raw','file.filename':'x'}}",
            f'json:{{"driver": "raw", "file": {{"driver": "raw", {FILE}}}}}',
        ),
        (
            "{'driver':'quorum','vote-threshold':1,'children':[{'driver':'null-co'},{'driver':'null-aio'}]}",
            'json:{"children": [{"driver": "null-co"}, {"driver": "null-aio"}], "driver": "quorum", '
            '"vote-threshold": 1}',
        ),
        (
            "{'driver':'raw','file':{'driver':'blkdebug','image':{'driver':'file','filename':'x'},"
            "'inject-error':[{'event':'read_aio','sector':300}],'set-state':[{'event':'read_aio','new_state':3}]}}",
            'json:{"driver": "raw", "file": {"set-state.0.event": "read_aio", "image": {"driver": "file", '
            '"filename": "x"}, "driver": "blkdebug", "set-state.0.new_state": 3, '
            '"inject-error.0.event": "read_aio", "inject-error.0.sector": 300}}',
        ),
        ("{'driver':'raw','file':'node'}", 'json:{"driver": "raw", "file": "node"}'),
        (
            "{'driver':'x','ratio':0.1,'a':1e3}",
            'json:{"driver": "x", "ratio": 0.10000000000000001, "a": 1000}',
        ),
    ],
)
def test_a_node_is_named_as_qemu_names_it(text: str, name: str) -> None:
    assert to_filename(parse_json(text)) == name


@pytest.mark.parametrize(
    "name", ["x", "./a:b", "null-co://", "blkdebug:/c:x", "nbd://h:1/x", "blkverify:r:t"]
)
def test_a_plain_name_comes_back_as_it_was(name: str) -> None:
    assert to_filename(parse_filename(name, format="raw")) == name


def test_strings_are_ascii_with_capital_escapes() -> None:
    options = NodeOptions(driver="x", own={"o": "q\"b\u00e9\n'\\\x7f\u20ac\U0001f600\t\udcff"})
    expected = r"""json:{"driver": "x", "o": "q\"b\u00E9\n'\\\u007F\u20AC\uD83D\uDE00\t\uFFFD"}"""
    assert to_json_filename(options) == expected
