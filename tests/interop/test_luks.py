"""LUKS images of ours are read by QEMU and cryptsetup, and theirs by us."""

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

import vblk
from tests.support.command_line import call, good
from tests.support.nodes import content_of

pytestmark = pytest.mark.interop

SIZE = 1 << 20
SECRET = ("--object", "secret,id=s,data=open sesame")
FAST = "key-secret=s,iter-time=1"
CIPHERS = {
    "aes-256-xts": "",
    "aes-128-xts": ",cipher-alg=aes-128,hash-alg=sha512",
    "aes-256-cbc-essiv": ",cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha1",
}


def qemu(*words: str | Path) -> str:
    return subprocess.run(list(words), check=True, capture_output=True, text=True).stdout


def luks(path: Path) -> str:
    return f"driver=luks,key-secret=s,file.filename={path}"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.raw"
    path.write_bytes(content_of(SIZE))
    return path


@pytest.mark.parametrize("cipher", CIPHERS)
def test_an_image_of_ours_is_qemus_and_cryptsetups(cipher: str, plain: Path, tmp_path: Path) -> None:
    image = tmp_path / "ours.luks"
    good("convert", "-f", "raw", "-O", "luks", *SECRET, "-o", FAST + CIPHERS[cipher], plain, image)
    compare = ("qemu-img", "compare", *SECRET, "--image-opts")
    qemu(*compare, luks(image), f"driver=raw,file.filename={plain}")
    assert good("info", image, program="qemu-img") == qemu("qemu-img", "info", image)
    opened = ("cryptsetup", "luksOpen", "--test-passphrase", "--key-file", "-", str(image))
    assert subprocess.run(opened, input=b"open sesame", capture_output=True).returncode == 0
    assert subprocess.run(opened, input=b"open barley", capture_output=True).returncode != 0


FORMATTED = {
    "aes-256-xts": ("aes-xts-plain64", "512", "sha256"),
    "aes-128-xts-plain": ("aes-xts-plain", "256", "sha512"),
    "aes-256-cbc-essiv": ("aes-cbc-essiv:sha256", "256", "sha1"),
}


@pytest.mark.parametrize("cipher", FORMATTED)
def test_an_image_of_cryptsetup_that_qemu_filled_is_read_and_written(
    cipher: str, plain: Path, tmp_path: Path
) -> None:
    image = tmp_path / "theirs.luks"
    name, bits, hash_name = FORMATTED[cipher]
    with open(image, "wb") as file:
        file.truncate((2 << 20) + SIZE)
    subprocess.run(
        [
            "cryptsetup", "luksFormat", "--type", "luks1", "--batch-mode", "--pbkdf-force-iterations", "1000",
            "--cipher", name, "--key-size", bits, "--hash", hash_name, "--align-payload", "4096",
            "--key-file", "-", str(image),
        ],
        input=b"open sesame", check=True, capture_output=True,
    )  # fmt: skip
    into = ("qemu-img", "convert", "-n", *SECRET, "--target-image-opts", "-f", "raw")
    qemu(*into, plain, luks(image))
    good("compare", *SECRET, "--image-opts", luks(image), f"driver=raw,file.filename={plain}")
    good("io", *SECRET, "--image-opts", "-c", "write -P 9 700 3000", luks(image))
    qemu("qemu-io", *SECRET, "--image-opts", "-c", "read -P 9 700 3000", luks(image))


def test_ciphers_that_qemu_cannot_open_are_cryptsetups(tmp_path: Path) -> None:
    image = tmp_path / "ours.luks"
    for cipher in (",cipher-alg=aes-192,cipher-mode=cbc,ivgen-alg=plain", ",cipher-mode=ecb"):
        good("create", "-q", "-f", "luks", *SECRET, "-o", FAST + cipher, image, "1M")
        opened = ("cryptsetup", "luksOpen", "--test-passphrase", "--key-file", "-", str(image))
        assert subprocess.run(opened, input=b"open sesame", capture_output=True).returncode == 0


def test_creating_says_what_qemu_says(tmp_path: Path) -> None:
    words = ("create", "-f", "luks", *SECRET, "-o", FAST, "disk.luks", "1M")
    for wrong in ([], ["-o", "key-secret=t"], ["-o", FAST + ",cipher-alg=rot13"]):
        refused = ("create", "-f", "luks", *SECRET, *wrong, str(tmp_path / "a.luks"), "1M")
        theirs = subprocess.run(["qemu-img", *refused], capture_output=True, text=True)
        ours = call(*refused, program="qemu-img")
        assert (ours.status, ours.out, ours.err) == (theirs.returncode, theirs.stdout, theirs.stderr)
    theirs = subprocess.run(["qemu-img", *words], capture_output=True, text=True, cwd=tmp_path)
    expected = theirs.stdout.replace("disk.luks", str(tmp_path / "disk.luks"))
    assert good(*words[:-2], tmp_path / "disk.luks", "1M", program="qemu-img") == expected


@pytest.mark.parametrize(
    "object",
    [
        "secret,id=t,data=x", "secret,id=s,data=x", "secret,id=s", "secret,id=s,data=a,file=b",
        "secret,data=x", "secret,id=s,data=!!,format=base64",
    ],
)  # fmt: skip
def test_a_secret_that_does_not_fit_is_refused_in_qemus_words(
    object: str, plain: Path, tmp_path: Path
) -> None:
    image = tmp_path / "a.luks"
    good("create", "-q", "-f", "luks", *SECRET, "-o", FAST, image, "1M")
    words = ("convert", "--object", object, "--image-opts", luks(image), str(tmp_path / "out"))
    theirs = subprocess.run(["qemu-img", *words], capture_output=True, text=True)
    ours = call(*words, program="qemu-img")
    assert (ours.status, ours.err) == (theirs.returncode, theirs.stderr)
    assert not (tmp_path / "out").exists()


def test_secrets_come_from_files_and_as_base64(plain: Path, tmp_path: Path) -> None:
    image, key = tmp_path / "a.luks", tmp_path / "key"
    good("convert", "-f", "raw", "-O", "luks", *SECRET, "-o", FAST, plain, image)
    key.write_bytes(b"b3BlbiBzZXNhbWU=\n")
    for given in ("data=b3BlbiBzZXNhbWU=,format=base64", f"file={key},format=base64"):
        good(
            "compare",
            "--object",
            f"secret,id=s,{given}",
            "--image-opts",
            luks(image),
            f"file.filename={plain}",
        )


def test_a_locked_image_tells_its_facts_and_not_its_bytes(plain: Path, tmp_path: Path) -> None:
    image = tmp_path / "a.luks"
    good("convert", "-f", "raw", "-O", "luks", *SECRET, "-o", FAST, plain, image)
    assert "encrypted: yes" in good("info", image)
    outcome = call("convert", image, tmp_path / "out")
    assert outcome.status == 1
    assert "Parameter 'key-secret' is required for cipher" in outcome.err
    assert not (tmp_path / "out").exists()


def test_the_library_is_given_passphrases_by_their_ids(plain: Path, tmp_path: Path) -> None:
    image = tmp_path / "a.luks"
    good("convert", "-f", "raw", "-O", "luks", *SECRET, "-o", FAST, plain, image)
    options = {"driver": "luks", "key-secret": "mine", "file.driver": "file", "file.filename": str(image)}
    name = f"json:{json.dumps(options)}"

    async def scenario() -> None:
        async with vblk.open(name, secrets={"mine": b"open sesame"}) as disk:
            assert await disk.read(1000, 5000) == content_of(SIZE)[1000:6000]

    asyncio.run(scenario())


def test_no_passphrase_is_in_any_message(tmp_path: Path) -> None:
    image = tmp_path / "a.luks"
    good("create", "-q", "-f", "luks", "--object", "secret,id=s,data=s3cr3t", "-o", FAST, image, "1M")
    for words in (
        ("info", "--object", "secret,id=s,data=s3cr3t,format=base64", str(image)),
        ("info", "--object", "secret,id=s,data=s3cr3t,colour=red", str(image)),
        ("convert", "--object", "secret,id=s,data=s3cr3t2", "--image-opts", luks(image), str(tmp_path / "o")),
    ):
        outcome = call(*words)
        assert outcome.status == 1
        assert "s3cr3t" not in outcome.out + outcome.err
