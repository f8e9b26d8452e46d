"""Exports over TLS of other people's servers: certificates, shared keys, and QEMU's words for what fails."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command_line import REPOSITORY, call, good
from tests.support.nbd import Server, nbdkit, qemu_nbd
from tests.support.nodes import content_of
from tests.support.tls import HOST, PSK, make_credentials, make_keys

pytestmark = pytest.mark.interop

SIZE = 256 << 10
VBLK = (sys.executable, "-P", "-c", "from vblk.cli.main import run; run()")
OTHER_HOST = "elsewhere.example"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(content_of(SIZE))
    return path


def credentials(folder: Path, kind: str, endpoint: str = "client") -> str:
    return f"tls-creds-{kind},id=tls0,dir={folder},endpoint={endpoint}"


def secure_qemu_nbd(folder: Path, image: Path, keys: Path, kind: str, *, tcp: bool = False) -> Server:
    words = (
        "--object",
        credentials(keys, kind, "server"),
        "--tls-creds",
        "tls0",
        "-f",
        "raw",
        "-t",
        str(image),
    )
    return Server(folder, "qemu-nbd", *words, tcp=tcp)


def storage_daemon(folder: Path, image: Path, keys: Path, kind: str) -> Server:
    server = Server(folder, "qemu-storage-daemon")
    server.command = (
        "qemu-storage-daemon", "--object", credentials(keys, kind, "server"),
        "--blockdev", f"file,node-name=f,filename={image}",
        "--nbd-server", "addr.type=fd,addr.str=3,tls-creds=tls0",
        "--export", "nbd,id=e,node-name=f,name=,writable=on",
    )  # fmt: skip
    return server


def vblk_nbd(folder: Path, image: Path, keys: Path, kind: str) -> Server:
    server = secure_qemu_nbd(folder, image, keys, kind)
    server.command = (*VBLK, "nbd", *server.command[1:])
    return server


def vblk_daemon(folder: Path, image: Path, keys: Path, kind: str) -> Server:
    server = storage_daemon(folder, image, keys, kind)
    server.command = (*VBLK, "daemon", *server.command[1:])
    return server


def secure_nbdkit(folder: Path, image: Path, keys: Path, kind: str) -> Server:
    proof = f"--tls-psk={keys}/keys.psk" if kind == "psk" else f"--tls-certificates={keys}"
    verify = () if kind == "psk" else ("--tls-verify-peer",)
    return Server(
        folder, "nbdkit", "-f", "--exit-with-parent", "--tls=require", proof, *verify, "file", str(image)
    )


SERVERS = {
    "qemu-nbd": secure_qemu_nbd,
    "qemu-storage-daemon": storage_daemon,
    "nbdkit": secure_nbdkit,
    "vblk nbd": vblk_nbd,
    "vblk daemon": vblk_daemon,
}


@pytest.mark.parametrize("kind", ["x509", "psk"])
@pytest.mark.parametrize("program", SERVERS)
def test_a_disk_is_read_and_written_over_tls(
    program: str, kind: str, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "src"))
    keys = make_keys(make_credentials(tmp_path / "keys"), "qemu")
    with SERVERS[program](tmp_path, image, keys, kind) as server:
        name = f"driver=nbd,path={server.path},tls-creds=tls0"
        name += f",tls-hostname={HOST}" if kind == "x509" else ""
        given = ("--object", credentials(keys, kind), "--image-opts")
        good(
            "convert",
            *given,
            f"driver=raw,{name.replace('driver', 'file.driver').replace(',', ',file.')}",
            tmp_path / "c",
        )
        assert (tmp_path / "c").read_bytes() == content_of(SIZE)
        good("io", *given, "-c", "write -P 7 4k 70000", "-c", "flush", "-c", "read -P 7 4k 70000", name)
    assert image.read_bytes()[4096:74096] == b"\7" * 70000


@pytest.mark.parametrize("kind", ["x509", "psk"])
def test_a_uri_says_all_of_it(kind: str, image: Path, tmp_path: Path) -> None:
    keys = make_keys(make_credentials(tmp_path / "keys"), "me")
    proof = {
        "x509": f"tls-certificates={keys}&tls-hostname={HOST}",
        "psk": f"tls-psk-file={keys}/keys.psk",
    }[kind]
    with secure_nbdkit(tmp_path, image, keys, kind) as server:
        name = f"nbds+unix://me@/?socket={server.path}&{proof}"
        good("compare", "-q", name, image)
        info = ["nbdinfo", "--size", name]  # libnbd takes the same
        assert subprocess.run(info, check=True, capture_output=True, text=True).stdout == f"{SIZE}\n"


def test_over_tcp_the_host_is_the_name_that_is_verified(image: Path, tmp_path: Path) -> None:
    keys = make_credentials(tmp_path / "keys")
    with secure_qemu_nbd(tmp_path, image, keys, "x509", tcp=True) as server:
        given = ("info", "--object", credentials(keys, "x509"), "--image-opts")
        good(*given, f"driver=nbd,host=127.0.0.1,port={server.port},tls-creds=tls0")
        for words in (
            f"driver=nbd,host=localhost,port={server.port},tls-creds=tls0",
            f"driver=nbd,host=127.0.0.1,port={server.port},tls-creds=tls0,tls-hostname={OTHER_HOST}",
        ):
            same_refusal(*given, words)


def same_refusal(*words: str) -> None:
    theirs = subprocess.run(["qemu-img", *words], capture_output=True, text=True)
    ours = call(*words, program="qemu-img")
    assert (ours.status, ours.err) == (1, theirs.stderr)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    folders = {
        "right": make_keys(make_credentials(tmp_path / "right"), "qemu"),
        "stranger": make_keys(make_credentials(tmp_path / "stranger", authority="stranger"), "qemu"),
        "nameless": make_credentials(tmp_path / "nameless", client=False),
    }
    keys = folders["stranger"] / "keys.psk"
    keys.write_text(keys.read_text().replace(PSK, PSK[::-1]))
    return folders


@pytest.mark.parametrize(
    ("client", "options"),
    [
        ("right", ""),
        ("right", f",tls-hostname={OTHER_HOST}"),
        ("stranger", f",tls-hostname={HOST}"),
    ],
)
def test_certificates_that_do_not_fit_are_refused_in_qemus_words(
    client: str, options: str, folders: dict[str, Path], image: Path, tmp_path: Path
) -> None:
    with secure_qemu_nbd(tmp_path, image, folders["right"], "x509") as server:
        name = f"driver=nbd,path={server.path},tls-creds=tls0{options}"
        same_refusal("info", "--object", credentials(folders[client], "x509"), "--image-opts", name)


def test_a_client_without_a_certificate_is_refused_by_a_server_that_asks_for_one(
    folders: dict[str, Path], image: Path, tmp_path: Path
) -> None:
    with secure_qemu_nbd(tmp_path, image, folders["right"], "x509") as server:
        name = f"driver=nbd,path={server.path},tls-creds=tls0,tls-hostname={HOST}"
        outcome = call("info", "--object", credentials(folders["nameless"], "x509"), "--image-opts", name)
        assert outcome.status == 1
        # The server goes without a word; we notice when we read, or when we write.
        assert "TLS channel" in outcome.err or "Failed to send option request" in outcome.err


def test_a_key_that_does_not_fit_is_refused_in_qemus_words(
    folders: dict[str, Path], image: Path, tmp_path: Path
) -> None:
    with secure_qemu_nbd(tmp_path, image, folders["right"], "psk") as server:
        name = f"driver=nbd,path={server.path},tls-creds=tls0"
        same_refusal("info", "--object", credentials(folders["stranger"], "psk"), "--image-opts", name)


def test_one_side_that_wants_tls_alone_is_refused_in_qemus_words(
    folders: dict[str, Path], image: Path, tmp_path: Path
) -> None:
    proof = ("--object", credentials(folders["right"], "psk"))
    with secure_qemu_nbd(tmp_path, image, folders["right"], "psk") as server:
        same_refusal("info", server.uri())
    for plain in (
        qemu_nbd(tmp_path, image),
        nbdkit(tmp_path, "memory", "1M"),
        Server(tmp_path, "nbdkit", "-f", "--exit-with-parent", "--mask-handshake=0", "memory", "1M"),
    ):
        with plain as server:
            same_refusal("info", *proof, "--image-opts", f"driver=nbd,path={server.path},tls-creds=tls0")
