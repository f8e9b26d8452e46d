"""QEMU's own QMP client drives the daemon; the daemon answers as qemu-storage-daemon does."""

import asyncio
import json
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError, QMPClient

from tests.support.command_line import good
from tests.support.qmp import OURS, QEMU, Talk

pytestmark = pytest.mark.interop

MIB = 1 << 20


def serving(folder: Path) -> subprocess.Popen[bytes]:
    """Start a daemon whose monitor is a socket in a folder, and wait until it is there."""
    options = ("--chardev", "socket,id=m,path=qmp.sock,server=on,wait=off", "--monitor", "m")
    process = subprocess.Popen([*OURS, *options, "--pidfile", "pid"], cwd=folder)
    while not (folder / "pid").exists():
        assert process.poll() is None
    return process


def test_the_asyncio_client_goes_through_a_whole_session(tmp_path: Path) -> None:
    base, overlay = str(tmp_path / "base.vhdx"), str(tmp_path / "over.vhdx")
    good("create", "-q", "-f", "vhdx", base, "16M")
    name = f"nbd+unix:///disk?socket={tmp_path / 'nbd.sock'}"

    async def session() -> None:
        client = QMPClient("test")
        await client.connect(str(tmp_path / "qmp.sock"))
        assert client.greeting is not None

        async def ask(command: str, **arguments: Any) -> Any:
            members = {key.replace("_", "-"): value for key, value in arguments.items()}
            return await client.execute(command, members)

        file = {"driver": "file", "filename": base}
        await ask("blockdev-add", driver="vhdx", node_name="disk", file=file)
        await ask("nbd-server-start", addr={"type": "unix", "data": {"path": str(tmp_path / "nbd.sock")}})
        await ask("block-export-add", type="nbd", id="e", node_name="disk", name="disk", writable=True)
        written = await asyncio.create_subprocess_exec(
            "qemu-io", "-f", "raw", "-c", "write -P 7 0 1M", name, stdout=subprocess.DEVNULL
        )
        assert await written.wait() == 0
        await ask(
            "blockdev-snapshot-sync",
            node_name="disk",
            snapshot_file=overlay,
            snapshot_node_name="snap",
            format="vhdx",
        )
        written = await asyncio.create_subprocess_exec(
            "qemu-io", "-f", "raw", "-c", "read -P 7 0 1M", "-c", "write -P 8 1M 1M", name,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        assert await written.wait() == 0
        shown = {node["node-name"]: node for node in await ask("query-named-block-nodes")}
        assert shown["snap"]["image"]["backing-image"]["filename"] == base
        (export,) = await ask("query-block-exports")
        assert export["node-name"] == "snap"
        with pytest.raises(ExecuteError, match="is in use"):
            await ask("blockdev-del", node_name="disk")
        with client.listener("BLOCK_EXPORT_DELETED") as events:
            await ask("block-export-del", id="e")
            event = await events.get()
            assert (event["event"], event["data"]) == ("BLOCK_EXPORT_DELETED", {"id": "e"})
        await ask("blockdev-del", node_name="disk")
        await ask("quit")
        with suppress(EOFError):  # the daemon hangs up first
            await client.disconnect()

    process = serving(tmp_path)
    try:
        asyncio.run(session())
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    assert "read -P" not in good("io", "-r", "-c", "read -P 7 0 1M", "-c", "read -P 8 1M 1M", overlay)
    good("check", "-q", base)
    good("check", "-q", overlay)


def test_the_shell_program_goes_through_a_whole_session(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(MIB))
    words = (
        'blockdev-add driver=raw node-name=n file={"driver":"file","filename":"a.raw"}',
        "block-dirty-bitmap-add node=n name=b granularity=65536",
        "block_resize node-name=n size=2097152",
        'human-monitor-command command-line="info block"',
        "query-named-block-nodes flat=true",
        "blockdev-del node-name=nobody",
        "blockdev-del node-name=n",
        "quit",
    )
    process = serving(tmp_path)
    shell = Path(sys.executable).parent / "qmp-shell"
    try:
        talked = subprocess.run(
            [shell, "qmp.sock"],
            input="\n".join(words) + "\n",
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        )
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    assert "Welcome to the QMP low-level shell!" in talked.stdout
    assert talked.stdout.count('"return": {}') == 5
    assert "Failed to find node with node-name='nobody'" in talked.stdout
    assert '"node-name": "n"' in talked.stdout
    assert (tmp_path / "a.raw").stat().st_size == 2 * MIB


# The same texts to both

FILE = '{"driver": "file", "filename": "a.raw", "node-name": "f0"}'
ADD = '{"execute": "blockdev-add", "arguments": '
SCRIPTS = {
    "the session": [
        '{"execute":"query-version","foo":1,"id":5}',
        '{"execute":"query-version","id":{"a":[1,2.5,0.1,1e3,null,"x\\u00e9\\n"]}}',
        '{"execute":"nope"}',
        '{"execute":1}',
        '{"foo":1}',
        "[1]",
        '"abc"',
        '{"execute":"query-version","execute":"x"}',
        '{"exec-oob":"query-version","id":5}',
        '{"execute":"query-version","arguments":1,"id":5}',
        '{"execute":"query-version","arguments":{"x":1},"id":5}',
        '{"execute":"query-version"]',
        "garbage",
        "{'execute':'query-block-exports','id':'it\\'s'}",
        '{"execute":"query-version","id":1,}',
        '{"execute":"query-version","id":"\\ud800"}',
        '{"execute":"query-jobs","id":18446744073709551616}',
        '{"execute":"query-jobs","id":"\\u007f\\b\\f</>&\\\\"}',
        "@",
        "{1:2}",
        '{"a"}',
        '{"id":null,"execute":"query-jobs"}',
        '{"execute":"qmp_capabilities"}',
    ],
    "nodes": [
        ADD + '{"driver":"raw","node-name":"n0","file":' + FILE + "}}",
        ADD + '{"driver":"raw","node-name":"n0","file":{"driver":"file","filename":"b.raw"}}}',
        ADD + '{"driver":"raw","file":"f0"}}',
        ADD + '{"driver":"raw","node-name":"1x","file":"f0"}}',
        ADD + '{"driver":"foo","node-name":"n2","file":"f0"}}',
        ADD + '{"node-name":"n2","file":"f0"}}',
        ADD + '{"driver":"raw","node-name":"n2"}}',
        ADD + '{"driver":"raw","node-name":"n2","file":{"filename":"a"}}}',
        ADD + '{"driver":"raw","node-name":"n2","file":{"driver":"file"}}}',
        ADD + '{"driver":"raw","node-name":"n2","file":{"driver":"file","filename":1}}}',
        ADD + '{"driver":"raw","node-name":"n2","file":{"driver":"file","filename":"nope"}}}',
        ADD + '{"driver":"raw","node-name":"n2","file":"nope"}}',
        ADD + '{"driver":"raw","node-name":"n2","file":1}}',
        ADD + '{"driver":"raw","node-name":"n2","file":null}}',
        ADD + '{"driver":"raw","node-name":"n2","size":"1M","file":"f0"}}',
        ADD + '{"driver":"raw","node-name":"n2","foo":1,"file":"f0"}}',
        ADD + '{"driver":"raw","node-name":"n2","read-only":"on","file":"f0"}}',
        ADD + '{"driver":"raw","node-name":"n2","discard":"foo","file":"f0"}}',
        ADD + '{"driver":"qcow2","node-name":"n2","file":{"driver":"file","filename":"b.raw"}}}',
        ADD
        + '{"driver":"vhdx","node-name":"v","read-only":true,"file":{"driver":"file","filename":"c.vhdx"}}}',
        '{"execute":"query-named-block-nodes"}',
        '{"execute":"query-named-block-nodes","arguments":{"flat":true}}',
        '{"execute":"block_resize","arguments":{"node-name":"n0","size":2097152}}',
        '{"execute":"block_resize","arguments":{"node-name":"v","size":2097152}}',
        '{"execute":"block_resize","arguments":{"node-name":"n0","size":-1}}',
        '{"execute":"block_resize","arguments":{"node-name":"x","size":1.5}}',
        '{"execute":"block_resize","arguments":{"device":"y","size":1}}',
        '{"execute":"block_resize","arguments":{"size":1}}',
        '{"execute":"blockdev-del","arguments":{"node-name":"f0"}}',
        '{"execute":"blockdev-del","arguments":{"node-name":"n0"}}',
        '{"execute":"blockdev-del","arguments":{"node-name":"n0"}}',
        '{"execute":"blockdev-del"}',
    ],
    "exports": [
        '{"execute":"nbd-server-start","arguments":{"addr":{"type":"unix","data":{"path":"nbd.sock"}}}}',
        '{"execute":"nbd-server-start","arguments":{"addr":{"type":"unix","data":{"path":"nbd.sock"}}}}',
        '{"execute":"nbd-server-start","arguments":{"addr":{"type":"unix"}}}',
        '{"execute":"nbd-server-start","arguments":{"addr":{"type":"unix","data":{}}}}',
        '{"execute":"nbd-server-start","arguments":{"addr":{"type":"foo","data":{}}}}',
        '{"execute":"nbd-server-start","arguments":{"addr":1}}',
        ADD + '{"driver":"raw","node-name":"n0","file":' + FILE + "}}",
        ADD
        + '{"driver":"raw","node-name":"r0","read-only":true,"file":{"driver":"file","filename":"b.raw"}}}',
        '{"execute":"block-export-add","arguments":{"type":"nbd","id":"e0","node-name":"n0","writable":true}}',
        '{"execute":"block-export-add","arguments":{"type":"nbd","id":"e0","node-name":"n0"}}',
        '{"execute":"block-export-add","arguments":{"type":"nbd","id":"e1","node-name":"n0"}}',
        '{"execute":"block-export-add","arguments":{"type":"nbd","id":"e1","node-name":"zz"}}',
        '{"execute":"block-export-add","arguments":{"type":"nbd","id":"e1","node-name":"r0","writable":true}}',
        '{"execute":"block-export-add","arguments":{"type":"nbd","id":"e1","node-name":"n0","name":"o","bitmaps":["b"]}}',
        '{"execute":"block-export-add","arguments":{"type":"nbd","id":"e_2!","node-name":"n0"}}',
        '{"execute":"block-export-add","arguments":{"type":"foo","id":"1","node-name":"x"}}',
        '{"execute":"block-export-add","arguments":{"type":"nbd","id":"1","node-name":"x","writable":1}}',
        '{"execute":"block-export-add","arguments":{"type":"nbd","id":"1"}}',
        '{"execute":"block-export-add","arguments":{"id":"1"}}',
        '{"execute":"query-block-exports"}',
        '{"execute":"blockdev-del","arguments":{"node-name":"n0"}}',
        '{"execute":"nbd-server-add","arguments":{"device":"n0"}}',
        '{"execute":"nbd-server-add","arguments":{"device":"nn"}}',
        '{"execute":"nbd-server-add","arguments":{"device":"r0","name":"third","writable":true}}',
        '{"execute":"query-block-exports"}',
        '{"execute":"nbd-server-remove","arguments":{"name":"third"}}',
        '{"execute":"nbd-server-remove","arguments":{"name":"third"}}',
        '{"execute":"block-export-del","arguments":{"id":"e0","mode":"foo"}}',
        '{"execute":"block-export-del","arguments":{"id":"e0"}}',
        '{"execute":"nbd-server-stop"}',
        '{"execute":"nbd-server-stop"}',
        '{"execute":"block-export-add","arguments":{"type":"nbd","id":"e0","node-name":"n0"}}',
    ],
    "bitmaps, transactions, objects": [
        ADD + '{"driver":"file","node-name":"n","filename":"a.raw"}}',
        '{"execute":"block-dirty-bitmap-add","arguments":{"node":"n","name":"b0"}}',
        '{"execute":"block-dirty-bitmap-add","arguments":{"node":"n","name":"b0"}}',
        '{"execute":"block-dirty-bitmap-add","arguments":{"node":"zz","name":"b0"}}',
        '{"execute":"block-dirty-bitmap-add","arguments":{"node":"n","name":""}}',
        '{"execute":"block-dirty-bitmap-add","arguments":{"node":"n","name":"b1","granularity":1000}}',
        '{"execute":"block-dirty-bitmap-add","arguments":{"node":"n","name":"b1","granularity":4096,"disabled":true}}',
        '{"execute":"block-dirty-bitmap-add","arguments":{"node":"n","name":"b2","persistent":true}}',
        '{"execute":"block-dirty-bitmap-disable","arguments":{"node":"n","name":"b0"}}',
        '{"execute":"block-dirty-bitmap-clear","arguments":{"node":"n","name":"b9"}}',
        '{"execute":"block-dirty-bitmap-merge","arguments":{"node":"n","target":"b0","bitmaps":["b1","b7"]}}',
        '{"execute":"block-dirty-bitmap-merge","arguments":{"node":"n","target":"b7","bitmaps":["b1"]}}',
        '{"execute":"block-dirty-bitmap-merge","arguments":{"node":"n","target":"b0","bitmaps":["b1",5]}}',
        '{"execute":"query-named-block-nodes"}',
        '{"execute":"transaction","arguments":{"actions":[{"type":"block-dirty-bitmap-add","data":{"node":"n",'
        '"name":"t"}},{"type":"abort","data":{}}]}}',
        '{"execute":"transaction","arguments":{"actions":[{"type":"block-dirty-bitmap-add","data":{"node":"n",'
        '"name":"t"}},{"type":"block-dirty-bitmap-remove","data":{"node":"n","name":"b1"}}]}}',
        '{"execute":"transaction","arguments":{"actions":[{"type":"foo","data":{}}]}}',
        '{"execute":"transaction","arguments":{"actions":[{"data":{}}]}}',
        '{"execute":"transaction","arguments":{"actions":[{"type":"abort"}]}}',
        '{"execute":"transaction","arguments":{"actions":[1]}}',
        '{"execute":"query-named-block-nodes"}',
        '{"execute":"object-add","arguments":{"qom-type":"secret","id":"s0","data":"abc"}}',
        '{"execute":"object-add","arguments":{"qom-type":"secret","id":"s0","data":"abc"}}',
        '{"execute":"object-add","arguments":{"qom-type":"secret","id":"s1"}}',
        '{"execute":"object-add","arguments":{"qom-type":"secret","id":"s1","foo":1}}',
        '{"execute":"object-add","arguments":{"id":"s1"}}',
        '{"execute":"object-add","arguments":{"qom-type":"secret","id":"2 s","data":"a"}}',
        '{"execute":"object-del","arguments":{"id":"s0"}}',
        '{"execute":"object-del","arguments":{"id":"s0"}}',
        '{"execute":"job-dismiss","arguments":{"id":"j"}}',
        '{"execute":"block-job-cancel","arguments":{"device":"x"}}',
        '{"execute":"blockdev-create","arguments":{"job-id":"0j!","options":{"driver":"file","filename":"n","size":1}}}',
        '{"execute":"blockdev-create","arguments":{"job-id":"j","options":{"driver":"vhdx","size":1048576}}}',
        '{"execute":"blockdev-create","arguments":{"job-id":"j","options":{"driver":"foo","size":1048576}}}',
        '{"execute":"blockdev-create","arguments":{"options":{"driver":"file","filename":"n","size":1}}}',
        '{"execute":"blockdev-reopen","arguments":{"options":[{"driver":"raw","file":"n"}]}}',
        '{"execute":"blockdev-reopen","arguments":{"options":[{"driver":"raw","node-name":"zz","file":"n"}]}}',
    ],
}


def answers(program: tuple[str, ...], folder: Path, script: list[str]) -> list[str]:
    """Send lines to a daemon in a folder with three images; return all that it answers, made alike."""
    folder.mkdir()
    for name in ("a.raw", "b.raw"):
        (folder / name).write_bytes(bytes(MIB))
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", folder / "c.vhdx", "16M"], check=True)
    with Talk(program, folder=folder) as talk:
        said = [talk.greeting, talk.ask('{"execute": "qmp_capabilities"}')]
        for line in script:
            reply = talk.ask(line)
            said += [*(json.dumps(event["data"]) for event in talk.events), line, reply]
            talk.events.clear()
        assert talk.end() == 0
    return [_alike(line) for line in said]


def _alike(line: str) -> str:
    """Take out what is the program's own: its version, names that it chose, blocks on the disk."""
    line = re.sub(r'"package": "[^"]*"', '"package": ""', line)
    line = re.sub(r"#block\d+", "#block", line)
    line = re.sub(r'"actual-size": \d+', '"actual-size": 0', line)
    return re.sub(r', "format-specific": \{"type": "vhdx", "data": .*?\}\}(?=, "dirty-flag")', "", line)


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_the_answers_are_those_of_the_storage_daemon_letter_for_letter(
    tmp_path: Path, script: list[str]
) -> None:
    assert answers(OURS, tmp_path / "ours", script) == answers(QEMU, tmp_path / "qemu", script)
