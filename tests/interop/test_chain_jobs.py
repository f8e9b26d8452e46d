"""Commit and stream by QMP: the daemon answers, and tells of its jobs, as qemu-storage-daemon does."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.qmp import OURS, QEMU, Talk

pytestmark = pytest.mark.interop

SIZE = 4 << 20


def make(folder: Path, base: str) -> None:
    """Make a chain of four with QEMU's tools: b, m, t and the active a."""
    folder.mkdir()
    below = ""
    for number, name in enumerate("bmta"):
        form = base if name == "b" else "qcow2"
        words = ["-b", below, "-F", base if below == "b" else "qcow2"] if below else [str(SIZE)]
        size = words if below else []
        run = ["qemu-img", "create", "-q", "-f", form, *size, name, *([] if below else words)]
        subprocess.run(run, cwd=folder, check=True)
        write = f"write -P {number + 1} {number * 512}k 768k"
        subprocess.run(["qemu-io", "-f", form, "-c", write, name], cwd=folder, check=True, stdout=-3)
        below = name


def node(name: str, base: str, backing: dict[str, Any] | None) -> dict[str, Any]:
    """Return the options of one image."""
    file = {"driver": "file", "filename": name, "node-name": f"{name}-file"}
    form = base if name == "b" else "qcow2"
    below = {} if backing is None else {"backing": backing}
    return {"driver": form, "node-name": name, "file": file, **below}


def told(talk: Talk, event: str, **data: Any) -> None:
    """Wait until an event was told."""
    while not any(each["event"] == event and data.items() <= each["data"].items() for each in talk.events):
        line = talk.line()
        assert line, "the daemon has ended"
        talk.events.append(json.loads(line))


def facts(events: Sequence[dict[str, Any]]) -> list[Any]:
    """Return events without their times."""
    return [{key: value for key, value in event.items() if key != "timestamp"} for event in events]


def conversation(program: Sequence[str], folder: Path, base: str, name: str) -> Iterator[Any]:
    """Carry out the script of a name on the chain; yield what is said, and how the images are linked then."""
    make(folder, base)
    with Talk(program, folder=folder) as talk:
        talk.begin()
        chain = node("a", base, node("t", base, node("m", base, node("b", base, None))))
        talk.call("blockdev-add", **chain)
        for command, arguments in SCRIPTS[name]:
            if command == "wait":
                told(talk, **arguments)
            else:
                yield talk.raw(command, **arguments)
        told(talk, "JOB_STATUS_CHANGE", status="null")
        yield facts(talk.events)
        shown = talk.call("query-named-block-nodes", flat=True)
        names = {each["node-name"]: each for each in shown if not each["node-name"].startswith("#")}
        yield {each: said["image"].get("backing-filename") for each, said in names.items()}
        shut = {"b", "b-file"} if "cancelled" in name else set[str]()  # QEMU leaves the base open for writing
        yield {each: names[each]["ro"] for each in names.keys() - shut}
        talk.end()
    for image in "abmt":
        form = base if image == "b" else "qcow2"
        info = subprocess.run(
            ["qemu-img", "info", "--output=json", "-f", form, image],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        said = json.loads(info.stdout)
        yield said.get("backing-filename"), said.get("backing-filename-format")


def content(folder: Path, name: str, form: str) -> bytes:
    """Return what QEMU reads of an image."""
    subprocess.run(["qemu-img", "convert", "-f", form, "-O", "raw", name, "read"], cwd=folder, check=True)
    return (folder / "read").read_bytes()


def job(**arguments: Any) -> dict[str, Any]:
    return {"job_id": "j", "device": "a", **arguments}


READY = ("wait", {"event": "BLOCK_JOB_READY"})
SCRIPTS: dict[str, list[Any]] = {
    "layers": [("block-commit", job(top_node="t", base_node="b"))],
    "one layer": [("block-commit", job(top_node="m"))],
    "layers below a filter": [("block-commit", job(top_node="t", base_node="b", filter_node_name="f"))],
    "files": [("block-commit", job(top="t", base="m", backing_file="./m"))],
    "the active layer": [("block-commit", job()), READY, ("job-complete", {"id": "j"})],
    "the active layer below a filter": [
        ("block-commit", job(filter_node_name="f")),
        READY,
        ("job-complete", {"id": "j"}),
    ],
    "the active layer into the next": [
        ("block-commit", job(base_node="t")),
        READY,
        ("block-job-complete", {"device": "j"}),
    ],
    "cancelled when ready": [("block-commit", job()), READY, ("block-job-cancel", {"device": "j"})],
    "cancelled by force": [("block-commit", job()), READY, ("job-cancel", {"id": "j"})],
    "finalized": [
        ("block-commit", job(top_node="t", auto_finalize=False)),
        ("wait", {"event": "BLOCK_JOB_PENDING"}),
        ("query-block-jobs", {}),
        ("block-job-finalize", {"id": "j"}),
    ],
    "dismissed": [
        ("block-commit", job(top_node="t", auto_dismiss=False)),
        ("wait", {"event": "JOB_STATUS_CHANGE", "status": "concluded"}),
        ("query-block-jobs", {}),
        ("job-dismiss", {"id": "j"}),
    ],
    "streamed": [("block-stream", job())],
    "streamed to the base": [("block-stream", job(base_node="b"))],
    "streamed above the bottom": [("block-stream", job(bottom="t"))],
    "streamed with a text": [("block-stream", job(base="m", backing_file="./m"))],
    "streamed below": [("block-stream", {**job(), "device": "t", "base_node": "b"})],
    "nothing to stream": [("block-stream", {**job(), "device": "b"})],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_job_on_a_chain_goes_as_with_qemu(tmp_path: Path, name: str) -> None:
    base = "qcow2" if "stream" in name or name == "one layer" else "raw"
    ours = list(conversation(OURS, tmp_path / "ours", base, name))
    theirs = list(conversation(QEMU, tmp_path / "theirs", base, name))
    assert ours == theirs
    for image, form in (("a", "qcow2"), ("b", base)):
        assert content(tmp_path / "ours", image, form) == content(tmp_path / "theirs", image, form)


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("block-commit", {"device": "x"}),
    ("block-commit", job(top_node="a", base_node="a")),
    ("block-commit", job(top="t", top_node="t")),
    ("block-commit", job(base="t", base_node="t")),
    ("block-commit", job(top_node="q")),
    ("block-commit", job(base_node="q")),
    ("block-commit", job(top_node="a-file")),
    ("block-commit", job(base_node="a-file")),
    ("block-commit", job(top="zz")),
    ("block-commit", job(base="zz")),
    ("block-commit", job(top_node="m", base_node="t")),
    ("block-commit", job(top_node="m", base_node="m")),
    ("block-commit", job(top="m", base="m")),
    ("block-commit", job(top_node="b")),
    ("block-commit", job(backing_file="x")),
    ("block-commit", {**job(), "device": "b"}),
    ("block-commit", job(top_node="t", filter_node_name="m")),
    ("block-commit", job(top_node="t", filter_node_name="1")),
    ("block-commit", job(filter_node_name="m")),
    ("block-commit", job(filter_node_name="1")),
    ("block-commit", job(top_node="t", job_id="1")),
    ("block-commit", job(top_node="t", on_error="maybe")),
    ("block-stream", {"device": "x"}),
    ("block-stream", job(base="t", base_node="t")),
    ("block-stream", job(base="t", bottom="t")),
    ("block-stream", job(base_node="t", bottom="t")),
    ("block-stream", job(base="zz")),
    ("block-stream", job(base_node="q")),
    ("block-stream", job(base_node="a")),
    ("block-stream", job(base_node="a-file")),
    ("block-stream", job(bottom="q")),
    ("block-stream", job(bottom="a-file")),
    ("block-stream", job(backing_file="x")),
    ("block-stream", {**job(), "device": "t", "base_node": "a"}),
    ("block-commit", job(top_node="t", speed=-1)),
    ("block-stream", job(speed=-1)),
]


def refusals(program: Sequence[str], folder: Path) -> list[Any]:
    """Return what a program says to what it refuses."""
    make(folder, "qcow2")
    with Talk(program, folder=folder) as talk:
        talk.begin()
        talk.call("blockdev-add", **node("a", "", node("t", "", node("m", "", node("b", "qcow2", None)))))
        said = [talk.raw(command, **arguments) for command, arguments in REFUSED]
        busy = [talk.raw("block-commit", **job(top_node="t", speed=1))]
        busy += [
            talk.raw("block-stream", **{**job(), "job_id": "k"}),
            talk.raw("block-stream", **{**job(), "job_id": "k", "device": "t"}),
        ]
        talk.raw("job-cancel", id="j")
        told(talk, "JOB_STATUS_CHANGE", status="null", id="j")
        talk.end()
    return said + busy


def test_what_cannot_be_is_refused_in_the_same_words(tmp_path: Path) -> None:
    ours, theirs = refusals(OURS, tmp_path / "ours"), refusals(QEMU, tmp_path / "theirs")
    assert ours == theirs
