"""Our exports over TLS: certificates and shared keys, who may come, and what the others are told."""

import subprocess
from pathlib import Path

import pytest

from tests.interop.test_nbd_server import VBLK, ran
from tests.support.command_line import REPOSITORY, call, good
from tests.support.nbd import Server
from tests.support.nodes import content_of
from tests.support.tls import HOST, make_credentials, make_keys

pytestmark = pytest.mark.interop

SIZE = 1 << 20
CONTENT = content_of(SIZE)


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "src"))


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return make_keys(make_credentials(tmp_path / "keys"), "qemu", "other")


def secure(folder: Path, keys: Path, kind: str, *options: str) -> Server:
    image = folder / "disk.raw"
    image.write_bytes(CONTENT)
    creds = f"tls-creds-{kind},id=tls0,dir={keys},endpoint=server"
    return Server(
        folder, *VBLK, "nbd", "-t", "-e", "8", "--object", creds, "--tls-creds", "tls0",
        *options, "-f", "raw", str(image),
    )  # fmt: skip


def image_opts(server: Server) -> str:
    where = f"driver=nbd,server.type=unix,server.path={server.path},tls-creds=c"
    return where + f",tls-hostname={HOST}"


def objects(keys: Path, kind: str, user: str = "") -> tuple[str, str]:
    return "--object", f"tls-creds-{kind},id=c,dir={keys},endpoint=client" + (user and f",username={user}")


@pytest.mark.parametrize("kind", ["x509", "psk"])
def test_qemus_libnbds_and_our_clients_come_over_tls(kind: str, keys: Path, tmp_path: Path) -> None:
    mine = objects(keys, kind, "qemu" if kind == "psk" else "")
    out, back = tmp_path / "out.raw", tmp_path / "back.raw"
    with secure(tmp_path, keys, kind) as server:
        ran("qemu-img", "convert", *mine, "--image-opts", "-O", "raw", image_opts(server), out)
        assert out.read_bytes() == CONTENT
        proof = f"tls-certificates={keys}&tls-hostname={HOST}"
        if kind == "psk":
            proof = f"tls-psk-file={keys}/keys.psk"
        other = content_of(SIZE, seed=4)
        out.write_bytes(other)
        who = "qemu@" if kind == "psk" else ""
        ran("nbdcopy", out, f"nbds+unix://{who}/?socket={server.path}&{proof}")
        good("convert", *mine, "--image-opts", "-O", "raw", image_opts(server), back)
        assert back.read_bytes() == other
        listing = ("-L", "-k", server.path, *mine, "--tls-creds", "c", "--tls-hostname", HOST)
        assert good("nbd", *listing) == ran("qemu-nbd", *listing)


def test_without_tls_nothing_is_told_and_qemus_words_say_so(keys: Path, tmp_path: Path) -> None:
    with secure(tmp_path, keys, "x509") as server:
        words = ("info", server.uri("secret"))
        theirs = subprocess.run(["qemu-img", *words], capture_output=True, text=True)
        ours = call(*words, program="qemu-img")
        assert "server reported: Option 0x7 not permitted before TLS" in theirs.stderr
        assert ours.err == theirs.stderr


def test_a_client_of_another_authority_is_refused_and_the_next_one_served(keys: Path, tmp_path: Path) -> None:
    strange = make_credentials(tmp_path / "strange", authority="nobody")
    (strange / "ca-cert.pem").write_bytes((keys / "ca-cert.pem").read_bytes())
    with secure(tmp_path, keys, "x509") as server:
        refused = call("info", *objects(strange, "x509"), "--image-opts", image_opts(server))
        assert refused.status == 1
        assert "internal error" not in refused.err
        good("info", *objects(keys, "x509"), "--image-opts", image_opts(server))


def test_only_those_come_whom_the_authorization_lets_in(keys: Path, tmp_path: Path) -> None:
    for identity, lets in (("CN=client", True), ("CN=somebody", False)):
        rule = f"authz-simple,id=az,identity={identity}"
        with secure(tmp_path, keys, "x509", "--object", rule, "--tls-authz", "az") as server:
            told = call("info", *objects(keys, "x509"), "--image-opts", image_opts(server))
            assert (told.status == 0) is lets, told.err
