"""Objects: what options make, under which ids they are found, and what is refused."""

from pathlib import Path

import pytest

from tests.support.tls import make_credentials, make_keys
from vblk.errors import OptionError, Unsupported
from vblk.graph.objects import Objects
from vblk.objects import add_object, read_object_text


def made(*texts: str) -> Objects:
    objects = Objects()
    for text in texts:
        add_object(objects, read_object_text(text))
    return objects


def test_objects_share_one_space_of_ids_and_are_found_by_kind(tmp_path: Path) -> None:
    make_keys(make_credentials(tmp_path), "qemu")
    objects = made(
        "secret,id=a,data=x",
        f"tls-creds-x509,id=b,dir={tmp_path},endpoint=server",
        f"tls-creds-psk,id=c,dir={tmp_path}",
    )
    assert objects.secret("a") == b"x"
    assert objects.credentials("b", "server").endpoint == "server"
    assert [id for id, _ in objects.of_kind(bytes)] == ["a"]
    for name, endpoint, words in (
        ("b", "client", "Expected TLS credentials for a client endpoint"),
        ("a", "client", "Object with id 'a' is not TLS credentials"),
        ("z", "client", "No TLS credentials with id 'z'"),
    ):
        with pytest.raises(OptionError, match=words):
            objects.credentials(name, "client" if endpoint == "client" else "server")
    with pytest.raises(OptionError, match="attempt to add duplicate property 'a'"):
        add_object(objects, {"qom-type": "secret", "id": "a", "data": "y"})
    objects.remove("a")
    with pytest.raises(OptionError, match="object 'a' not found"):
        objects.remove("a")
    with pytest.raises(OptionError, match="No secret with id 'a'"):
        objects.secret("a")


def test_an_encrypted_key_is_opened_by_a_secret(tmp_path: Path) -> None:
    make_credentials(tmp_path, password=b"open sesame")
    text = f"tls-creds-x509,id=t,dir={tmp_path},endpoint=server,passwordid=s"
    assert "t" in made("secret,id=s,data=open sesame", text)
    with pytest.raises(OptionError, match="Cannot load certificate"):
        made("secret,id=s,data=open barley", text)


def test_who_may_come_is_one_name_or_decided_by_the_first_rule_that_matches() -> None:
    objects = made(
        "authz-simple,id=one,identity=CN=client,,O=us",
        '{"qom-type": "authz-list", "id": "many", "rules.0.match": "bad*", "rules.0.policy": "deny",'
        ' "rules.0.format": "glob", "rules.1.match": "badger", "rules.1.policy": "allow",'
        ' "rules.2.match": "g*", "rules.2.policy": "allow"}',
    )
    assert objects.authorization("one").allows("CN=client,O=us")
    assert not objects.authorization("one").allows("CN=client")
    allowed = [name for name in ("badger", "g*", "good", "") if objects.authorization("many").allows(name)]
    assert allowed == ["g*"]
    with pytest.raises(OptionError, match="Cannot find QAuthZ object ID none"):
        objects.authorization("none")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tls-creds-x509,id=t", "Missing 'dir' property value"),
        ("tls-creds-psk,id=t", "Missing 'dir' property value"),
        ("tls-creds-x509,id=t,dir=/,endpoint=foo", "Parameter 'endpoint' does not accept value 'foo'"),
        ("tls-creds-x509,id=t,dir=/,foo=1", "Parameter 'foo' is unexpected"),
        ("tls-creds-x509,id=t,dir=/,verify-peer=maybe", "Parameter 'verify-peer' expects 'on' or 'off'"),
        ("tls-creds-psk,id=t,dir=/,endpoint=server,username=u", "username should not be set"),
        ("tls-creds-foo,id=t", "Parameter 'qom-type' does not accept value 'tls-creds-foo'"),
        ("secret,data=x", "Parameter 'id' is missing"),
        ("secret,id=a/b,data=x", "Parameter 'id' expects an identifier"),
        ("authz-simple,id=a", "Parameter 'identity' is missing"),
        ("", "Parameter 'qom-type' is missing"),
    ],
)
def test_what_makes_no_sense_is_refused_in_qemus_words(text: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        made(text)


@pytest.mark.parametrize(
    "text",
    [
        "tls-creds-anon,id=t",
        "secret,id=s,data=x,keyid=k",
        "tls-creds-psk,id=t,dir=/,verify-peer=off",
        "tls-creds-x509,id=t,dir=/,priority=NORMAL:-VERS-TLS1.2",
    ],
)
def test_what_this_version_has_not_is_named(text: str) -> None:
    with pytest.raises(Unsupported, match=r"not in this version|not supported"):
        made(text)
