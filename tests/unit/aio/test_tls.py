"""TLS between two ends in memory: what gets through, who is believed, and what is said of the others."""

from pathlib import Path

import pytest

from tests.support.tls import HOST, PSK, make_credentials, make_keys
from vblk.aio.gnutls import PskCredentials
from vblk.aio.tls import TlsSession
from vblk.aio.x509 import X509Credentials
from vblk.errors import OptionError, PeerError

Ends = tuple[TlsSession, TlsSession]


def x509(folder: Path, *, host: str = HOST, server: Path | None = None, verify: bool = True) -> Ends:
    client = X509Credentials(str(folder), "client", verify_peer=verify).client_session(host)
    return client, X509Credentials(str(server or folder), "server").server_session()


def psk(folder: Path, *, server: Path | None = None, user: str = "qemu") -> Ends:
    client = PskCredentials(str(folder / "keys.psk"), "client", username=user).client_session(None)
    return client, PskCredentials(str((server or folder) / "keys.psk"), "server").server_session()


def shake_hands(client: TlsSession, server: TlsSession) -> None:
    """Carry bytes to and fro until there are none; also those after a refusal, which is raised at the end."""
    refusal: PeerError | None = None
    while flights := [(server, client.to_send()), (client, server.to_send())]:
        if not any(data for _, data in flights):
            break
        for session, data in flights:
            try:
                assert session.receive(data) == b""
            except PeerError as error:
                refusal = refusal or error
    if refusal is not None:
        raise refusal


@pytest.fixture(params=["x509", "psk"])
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Ends:
    made = x509(make_credentials(tmp_path)) if request.param == "x509" else psk(make_keys(tmp_path, "qemu"))
    shake_hands(*made)
    return made


def test_after_the_handshake_bytes_get_through_both_ways_in_pieces_of_any_size(ends: Ends) -> None:
    client, server = ends
    assert client.handshake_done
    assert server.handshake_done
    payload = bytes(range(256)) * 300
    for sender, receiver in ((client, server), (server, client)):
        sender.send(memoryview(payload))
        wire = sender.to_send()
        assert payload[:64] not in wire
        assert b"".join(receiver.receive(wire[at : at + 999]) for at in range(0, len(wire), 999)) == payload


def test_an_end_that_says_so_is_told_from_one_that_is_cut(ends: Ends) -> None:
    client, server = ends
    client.send(b"last")
    client.farewell()
    assert not server.ended
    assert server.receive(client.to_send()) == b"last"
    assert server.ended


def test_bytes_that_were_changed_on_the_way_are_refused(ends: Ends) -> None:
    client, server = ends
    client.send(b"x" * 100)
    wire = bytearray(client.to_send())
    wire[50] ^= 1
    with pytest.raises(PeerError, match="Cannot read from TLS channel"):
        server.receive(bytes(wire))


@pytest.mark.parametrize("kind", ["x509", "psk"])
def test_a_client_that_speaks_no_tls_is_refused(kind: str, tmp_path: Path) -> None:
    folder = make_keys(make_credentials(tmp_path), "qemu")
    _, server = x509(folder) if kind == "x509" else psk(folder)
    with pytest.raises(PeerError, match="TLS handshake failed"):
        server.receive(b"IHAVEOPT" * 10)


def test_the_server_knows_the_client_by_its_name(tmp_path: Path) -> None:
    folder = make_keys(make_credentials(tmp_path), "qemu", "other")
    for (client, server), name in ((x509(folder), "CN=client"), (psk(folder, user="other"), "other")):
        assert server.peer_name is None
        shake_hands(client, server)
        assert server.peer_name == name
    client, server = x509(folder)
    shake_hands(client, server)
    assert client.peer_name == "CN=server"


def test_a_session_that_was_ended_sends_nothing_more(ends: Ends) -> None:
    client, _ = ends
    client.farewell()
    with pytest.raises(PeerError, match="Cannot write to TLS channel"):
        client.send(b"more")


def test_a_server_of_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=r"^Certificate does not match the hostname other.example$"):
        shake_hands(*x509(make_credentials(tmp_path), host="other.example"))
    shake_hands(*x509(tmp_path, host="127.0.0.1"))
    with pytest.raises(PeerError, match=r"^Certificate does not match the hostname 127\.0\.0\.2$"):
        shake_hands(*x509(tmp_path, host="127.0.0.2"))
    with pytest.raises(OptionError, match=r"^No hostname for certificate validation$"):
        X509Credentials(str(tmp_path), "client").client_session(None)


def test_a_server_that_is_not_believed_is_refused_unless_nobody_asks(tmp_path: Path) -> None:
    mine = make_credentials(tmp_path / "mine")
    other = make_credentials(tmp_path / "other", authority="other authority")
    expired = make_credentials(tmp_path / "expired", days=-1)
    with pytest.raises(PeerError, match=r"^The certificate hasn't got a known issuer$"):
        shake_hands(*x509(mine, server=other))
    with pytest.raises(PeerError, match=r"^The certificate has expired$"):
        shake_hands(*x509(mine, server=expired))
    client = X509Credentials(str(mine), "client", verify_peer=False).client_session(None)
    shake_hands(client, X509Credentials(str(other), "server", verify_peer=False).server_session())
    assert client.handshake_done


def test_a_client_without_a_certificate_is_refused_if_clients_are_verified(tmp_path: Path) -> None:
    server = make_credentials(tmp_path / "server")
    client = make_credentials(tmp_path / "client", client=False)
    with pytest.raises(PeerError, match=r"^Verify failed: No certificate was found.$"):
        shake_hands(*x509(client, server=server))


def test_another_key_or_an_unknown_user_is_refused(tmp_path: Path) -> None:
    folder = make_keys(tmp_path / "a", "qemu")
    other = make_keys(tmp_path / "b", "qemu", "stranger")
    (other / "keys.psk").write_text((other / "keys.psk").read_text().replace(PSK, PSK[::-1]))
    for user in ("qemu", "stranger"):
        with pytest.raises(PeerError, match="TLS handshake failed"):
            shake_hands(*psk(other, server=folder, user=user))


def test_a_key_that_is_encrypted_needs_its_password(tmp_path: Path) -> None:
    folder = str(make_credentials(tmp_path, password=b"open sesame"))
    X509Credentials(folder, "server", password=b"open sesame")
    for wrong in (None, b"open barley"):
        with pytest.raises(OptionError, match="Cannot load certificate"):
            X509Credentials(folder, "server", password=wrong)


def test_files_that_are_missing_or_make_no_sense_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match=r"^Unable to access credentials .*ca-cert.pem: No such file or dir"
    ):
        X509Credentials(str(tmp_path), "client")
    with pytest.raises(OptionError, match=r"^Unable to access credentials .*keys.psk: No such file or dir"):
        PskCredentials(str(tmp_path / "keys.psk"), "server")
    (tmp_path / "ca-cert.pem").write_text("nonsense")
    with pytest.raises(OptionError, match="Cannot load CA certificate"):
        X509Credentials(str(tmp_path), "client")
    (tmp_path / "keys.psk").write_text("qemu:nonsense\n")
    with pytest.raises(OptionError, match="not written in hexadecimal"):
        PskCredentials(str(tmp_path / "keys.psk"), "client")
    with pytest.raises(OptionError, match="Username 'other' not found"):
        PskCredentials(str(tmp_path / "keys.psk"), "client", username="other")
    with pytest.raises(OptionError, match="Unable to set TLS session priority NONSENSE"):
        PskCredentials(str(tmp_path / "keys.psk"), "server", priority="NONSENSE")
