"""Files on a real sshd: who is let in, what is written there, and what is left when the server goes."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support import odd_sftp
from tests.support.command_line import call, good
from tests.support.filesystems import mounted, needs_root
from tests.support.named_nodes import leaf, opened
from tests.support.nodes import content_of, run
from tests.support.sshd import Sshd
from vblk.errors import BlockError, NoSpace, ReadOnly, Unsupported
from vblk.extent import Kind
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.opening import open_node
from vblk.protocols.ssh import read_options
from vblk.protocols.ssh_connection import connect
from vblk.testing import Subject, check_conformance

pytestmark = pytest.mark.interop

MIB = 1 << 20


@pytest.fixture
def sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Sshd, None, None]:
    with Sshd(tmp_path / "ssh") as server:
        monkeypatch.setenv("HOME", str(server.home))
        monkeypatch.setenv("SSH_AUTH_SOCK", "")
        yield server


@pytest.mark.parametrize(("loop", "read_only"), [("asyncio", False), ("uvloop", False), ("asyncio", True)])
def test_a_remote_file_keeps_all_promises(sshd: Sshd, tmp_path: Path, loop: str, read_only: bool) -> None:
    content = content_of(256 * 1024)

    @asynccontextmanager
    async def make() -> AsyncGenerator[Subject]:
        path = tmp_path / "disk"
        path.write_bytes(content)
        async with Graph() as graph:
            node = await open_node(graph, leaf(sshd.name(path)), Request(read_only=read_only))
            yield Subject(graph, node, content)

    run(check_conformance(make), loop)


def test_a_vhdx_is_made_written_and_read_there_and_qemu_finds_it_whole_here(
    sshd: Sshd, tmp_path: Path
) -> None:
    image, raw, back = tmp_path / "disk.vhdx", tmp_path / "disk.raw", tmp_path / "back.raw"
    raw.write_bytes(content_of(5 * MIB) + bytes(2 * MIB))
    good("create", "-f", "vhdx", sshd.name(image), "7M", "-q")
    good("convert", "-n", "-f", "raw", "-O", "vhdx", raw, sshd.name(image))
    good("io", "-c", "write -P 5 6M 64k", "-c", "flush", sshd.name(image))
    with raw.open("r+b") as file:
        file.seek(6 * MIB)
        file.write(b"\5" * 65536)
    subprocess.run(["qemu-img", "check", str(image)], check=True, capture_output=True)
    subprocess.run(
        ["qemu-img", "compare", str(image), "-F", "raw", str(raw)], check=True, capture_output=True
    )
    good("convert", "-O", "raw", sshd.name(image), back)
    assert back.read_bytes() == raw.read_bytes()


def test_what_stands_there_is_overwritten_by_a_new_image_and_can_be_resized(
    sshd: Sshd, tmp_path: Path
) -> None:
    image = tmp_path / "disk"
    image.write_bytes(b"\1" * 3 * MIB)
    good("create", "-q", "-f", "raw", sshd.name(image), "1M")
    assert image.read_bytes() == bytes(MIB)
    good("resize", "-f", "raw", sshd.name(image), "2M")
    assert image.stat().st_size == 2 * MIB


def test_zeros_past_the_end_take_no_space_and_no_time(sshd: Sshd, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"\1" * 1000)

    async def scenario() -> None:
        async with Graph() as graph:
            node = await opened(graph, sshd.name(path))
            await node.write_zeroes(500, 1 << 40)
            assert node.size == 500 + (1 << 40)
            with pytest.raises(Unsupported):
                await node.write_zeroes(0, 10, no_fallback=True)

    asyncio.run(scenario())
    assert path.stat().st_size == 500 + (1 << 40)
    assert path.stat().st_blocks < 100
    with path.open("rb") as file:
        assert file.read(1000) == b"\1" * 500 + bytes(500)


def test_the_configuration_names_the_host_its_port_and_its_key(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(MIB))
    with sshd.known_hosts.open("a") as file:
        file.write(f"[images]:{sshd.port} {sshd.host_key}\n")
    name = f"ssh://images{tmp_path}/disk"
    assert good("info", "-f", "raw", name).startswith(f"image: {name}\n")


def test_the_agent_is_asked_for_keys(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").write_bytes(bytes(MIB))
    (sshd.home / ".ssh" / "config").unlink()
    refused = call("info", "-f", "raw", sshd.name(tmp_path / "disk"))
    assert (refused.status, refused.out) == (1, "")
    assert "failed to authenticate at '127.0.0.1:" in refused.err
    socket = str(sshd.home / "agent")
    with subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        agent.stdout.readline()  # it listens
        monkeypatch.setenv("SSH_AUTH_SOCK", socket)
        subprocess.run(["ssh-add", "-q", str(sshd.folder / "user")], check=True)
        assert "virtual size: 1 MiB" in good("info", "-f", "raw", sshd.name(tmp_path / "disk"))
        agent.terminate()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("Port x", "Invalid Port integer value: x"),
        ("ProxyJump 127.0.0.1", "leads in a circle"),
        ("IdentityFile /missing", "cannot be used: /missing: No such file or directory"),
        ("IdentityFile ~/encrypted", "failed to authenticate"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_told_and_nothing_is_asked_for(
    sshd: Sshd, tmp_path: Path, line: str, text: str
) -> None:
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(sshd.home / "encrypted")]
    subprocess.run(words, check=True)
    (sshd.home / ".ssh" / "config").write_text(f"Host *\n  {line}\n")
    refused = call("info", "-f", "raw", sshd.name(tmp_path / "disk"))
    assert refused.status == 1
    assert text in refused.err
    assert refused.err.count("\n") == 1


def _hash(sshd: Sshd, kind: str) -> str:
    words = ["ssh-keygen", "-l", "-E", kind, "-f", str(sshd.folder / "host.pub")]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[1]


def test_a_server_with_another_key_is_refused_unless_its_hash_is_said(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(MIB))
    name, md5 = sshd.name(tmp_path / "disk"), _hash(sshd, "md5").removeprefix("MD5:")
    for known in ("", f"[127.0.0.1]:{sshd.port} {(sshd.folder / 'user.pub').read_text()}"):
        sshd.known_hosts.write_text(known)
        refused = call("info", "-f", "raw", name)
        assert refused.status == 1
        assert f"key '{_hash(sshd, 'sha256')}' is not the one in known_hosts" in refused.err
    wrong = call("info", "-f", "raw", f"{name}?host_key_check=md5:00{md5[2:]}x")
    assert "key fingerprint 'md5:" + md5.replace(":", "") + "' does not match" in wrong.err
    for check in ("no", f"md5:{md5}", f"md5:{md5.replace(':', '')}"):
        assert (
            good("info", "-f", "raw", f"{name}?host_key_check={check}").count(f"host_key_check={check}") == 1
        )


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (None, "SFTP server: No such file"),
        ("mkdir", "it is a directory"),
        ("mkfifo", "it is no regular file"),
    ],
)
def test_what_is_no_file_is_not_opened(sshd: Sshd, tmp_path: Path, make: str | None, text: str) -> None:
    path = tmp_path / "thing"
    if make is not None:
        getattr(os, make)(path)
    refused = call("info", "-f", "raw", sshd.name(path))
    name = sshd.name(path)
    assert refused.err == f"vblk: Could not open '{name}': failed to open remote file '{path}': {text}\n"


def test_a_server_without_flush_is_written_to_only_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").write_bytes(bytes(MIB))
    with Sshd(tmp_path / "ssh", sftp="internal-sftp -P fsync") as server:
        monkeypatch.setenv("HOME", str(server.home))
        monkeypatch.setenv("SSH_AUTH_SOCK", "")
        options = f"driver=raw,file.driver=ssh,file.host=127.0.0.1,file.port={server.port}"
        options += f",file.path={tmp_path}/disk"
        assert "virtual size: 1 MiB" in good("info", "--image-opts", options)
        refused = call("io", "--image-opts", options, "-c", "write 0 512")
        assert "no-flush-guarantee=on" in refused.err
        good(
            "io",
            "--image-opts",
            f"{options},file.no-flush-guarantee=on",
            "-c",
            "write -P 7 0 512",
            "-c",
            "flush",
        )
    assert (tmp_path / "disk").read_bytes()[:513] == b"\7" * 512 + b"\0"


def test_a_killed_server_fails_what_is_in_flight_and_what_comes_later(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(64 * MIB))

    async def scenario() -> None:
        async with Graph() as graph:
            node = await opened(graph, sshd.name(tmp_path / "disk"))
            await node.write(0, b"\1" * 4096)
            await node.flush()
            reads = [asyncio.ensure_future(node.read(0, 32 * MIB)) for _ in range(4)]
            await asyncio.sleep(0)
            await asyncio.to_thread(sshd.kill)
            for error in await asyncio.gather(*reads, return_exceptions=True):
                assert isinstance(error, BlockError)
                assert f"the connection to '127.0.0.1:{sshd.port}' is lost" in str(error)
            with pytest.raises(BlockError, match="is lost"):
                await node.write(0, b"x")
            with pytest.raises(BlockError, match="is lost"):
                await node.flush()

    asyncio.run(scenario())
    assert (tmp_path / "disk").read_bytes()[:4097] == b"\1" * 4096 + b"\0"


@pytest.mark.parametrize(
    ("way", "text"),
    [
        ("plain", None),
        ("short", None),
        ("long", "the server sent more than it was asked for"),
        ("cut", "breaks the protocol"),
        ("unknown", "breaks the protocol"),
        ("other", "breaks the protocol"),
        ("end", "the file is shorter than it was"),
        ("gone", "is lost"),
    ],
)
def test_a_server_that_answers_oddly_gets_an_error_and_no_byte_is_invented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, text: str | None
) -> None:
    with Sshd(tmp_path / "ssh", sftp=f"{sys.executable} {odd_sftp.__file__} {way}") as server:
        monkeypatch.setenv("HOME", str(server.home))
        monkeypatch.setenv("SSH_AUTH_SOCK", "")

        async def scenario() -> bytes:
            async with Graph() as graph:
                node = await opened(graph, server.name(tmp_path / "any"), read_only=True)
                return await node.read(0, node.size)

        if text is None:
            assert asyncio.run(scenario()) == odd_sftp.CONTENT
        else:
            with pytest.raises(BlockError, match=text):
                asyncio.run(scenario())


@needs_root
def test_a_full_disk_over_there_is_called_so_and_writing_goes_on_when_there_is_room(
    sshd: Sshd, tmp_path: Path
) -> None:
    async def scenario(path: Path) -> None:
        async with Graph() as graph:
            node = await opened(graph, sshd.name(path))
            with pytest.raises(NoSpace):
                await node.write(0, b"\1" * 2 * MIB)
            await node.resize(0)
            await node.write(0, b"\2" * 4096)
            await node.flush()

    with mounted("tmpfs", MIB, tmp_path) as place:
        (place / "disk").touch()
        asyncio.run(scenario(place / "disk"))
        assert (place / "disk").read_bytes() == b"\2" * 4096


def test_a_remote_file_becomes_writable_while_it_is_in_use(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(MIB))

    async def scenario() -> None:
        async with Graph() as graph:
            node = await opened(graph, sshd.name(tmp_path / "disk"), read_only=True)
            await node.reopen(read_only=False)
            await node.write(5, b"x", fua=True)
            await node.reopen(read_only=True)
            with pytest.raises(ReadOnly):
                await node.write(5, b"y")

    asyncio.run(scenario())
    assert (tmp_path / "disk").read_bytes()[4:7] == b"\0x\0"


def test_only_under_qemus_names_may_an_image_name_a_file_on_a_known_server(
    sshd: Sshd, tmp_path: Path
) -> None:
    base, overlay, back = tmp_path / "base.raw", tmp_path / "over.qcow2", tmp_path / "back.raw"
    base.write_bytes(content_of(MIB))
    for number, (name, program, follows) in enumerate(
        (
            (sshd.name(base), "qemu-img", True),
            (sshd.name(base), "vblk", False),
            (sshd.name(base, "?host_key_check=no"), "qemu-img", False),
        )
    ):
        image = overlay.with_stem(f"over{number}")
        good("create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", name, image, "1M")
        outcome = call("convert", "-O", "raw", image, back, program=program)
        assert (outcome.status == 0) is follows
        if follows:
            assert back.read_bytes() == base.read_bytes()
        else:
            assert "images may only name files" in outcome.err
    sshd.known_hosts.unlink()
    stranger = call("convert", "-O", "raw", overlay.with_stem("over0"), back, program="qemu-img")
    assert "is not the one in known_hosts" in stranger.err


def test_the_fastest_cipher_is_taken_unless_the_configuration_names_others(
    sshd: Sshd, tmp_path: Path
) -> None:
    async def cipher() -> str:
        session = await connect(read_options(leaf(sshd.name(tmp_path / "disk")).own))
        try:
            return str(session.connection.get_extra_info("recv_cipher"))
        finally:
            await session.close()

    assert asyncio.run(cipher()) == "aes128-gcm@openssh.com"
    with (sshd.home / ".ssh" / "config").open("a") as file:
        file.write("  Ciphers aes256-ctr\n")
    assert asyncio.run(cipher()) == "aes256-ctr"


def test_holes_are_found_by_the_servers_shell_and_do_not_travel(sshd: Sshd, tmp_path: Path) -> None:
    image, back = tmp_path / "it's sparse", tmp_path / "back.raw"
    with image.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(content_of(MIB))
    name = sshd.name(image)
    assert good("map", "-f", "raw", name).splitlines()[1:] == [
        f"0x8000000000    0x100000        0x8000000000    {name}"
    ]
    good("convert", "-f", "raw", "-O", "raw", name, back)
    assert back.stat().st_size == 1 << 40
    with back.open("rb") as file:
        file.seek(1 << 39)
        assert file.read(MIB) == content_of(MIB)


def test_holes_are_asked_for_while_the_file_is_written(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "disk").touch()
    os.truncate(tmp_path / "disk", 16 * MIB)

    async def scenario() -> None:
        async with Graph() as graph:
            node = await opened(graph, sshd.name(tmp_path / "disk"))
            assert [span.kind for span in await node.allocation(0, 16 * MIB)] == [Kind.ZERO]
            await node.write(8 * MIB, b"\1" * 65536)
            spans = [
                (span.kind, span.guest_offset, span.length) for span in await node.allocation(0, 16 * MIB)
            ]
            assert spans == [
                (Kind.ZERO, 0, 8 * MIB),
                (Kind.DATA, 8 * MIB, 65536),
                (Kind.ZERO, 8 * MIB + 65536, 8 * MIB - 65536),
            ]

    asyncio.run(scenario())


def test_where_there_is_no_shell_everything_is_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").touch()
    os.truncate(tmp_path / "disk", MIB)
    with Sshd(tmp_path / "ssh", more="ForceCommand internal-sftp\n") as server:
        monkeypatch.setenv("HOME", str(server.home))
        monkeypatch.setenv("SSH_AUTH_SOCK", "")
        name = server.name(tmp_path / "disk")
        assert good("map", "-f", "raw", name).splitlines()[1:] == [
            f"0               0x100000        0               {name}"
        ]
