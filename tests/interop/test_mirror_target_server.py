"""The server that has a mirror's target is killed and comes back: the job goes on and ends right."""

import json
import os
import random
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import REPOSITORY
from tests.support.nbd import Server
from tests.support.qmp import OURS, Talk

pytestmark = pytest.mark.interop

SIZE = 4 << 20
SERVERS: dict[str, tuple[str, ...]] = {
    "qemu-nbd": ("qemu-nbd", "-t", "-f", "raw"),
    "vblk nbd": ("env", f"PYTHONPATH={REPOSITORY / 'src'}", *OURS[:-1], "nbd", "-t", "-f", "raw"),
}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Server]:
    """Return a server that shows the target."""
    target = tmp_path / "target"
    target.touch()
    os.truncate(target, SIZE)
    with Server(tmp_path, *SERVERS[request.param], str(target)) as server:
        yield server


class Mirror:
    """A daemon that mirrors a disk to the server, which has got some of it already."""

    def __init__(self, folder: Path, server: Server, talk: Talk, delay: int, on_error: str) -> None:
        self.talk = talk
        self.content = random.Random(4).randbytes(SIZE)
        (folder / "source").write_bytes(self.content)
        talk.begin()
        file = {"driver": "file", "filename": "source"}
        talk.call("blockdev-add", driver="raw", node_name="source", file=file)
        address = {"type": "unix", "path": str(server.path)}
        talk.call("blockdev-add", driver="nbd", node_name="target", server=address, reconnect_delay=delay)
        job = {"job_id": "m", "device": "source", "target": "target", "on_target_error": on_error}
        talk.call("blockdev-mirror", sync="full", speed=1 << 20, **job)
        while not 0 < self.job()["offset"] < SIZE:
            pass

    def job(self) -> dict[str, Any]:
        (job,) = self.talk.call("query-block-jobs")
        return dict(job)

    def told(self, is_it: Callable[[dict[str, Any]], bool]) -> None:
        """Wait for an event, and forget those before it."""
        while True:
            event = self.talk.events.pop(0) if self.talk.events else json.loads(self.talk.line())
            assert event["event"] != "BLOCK_JOB_COMPLETED" or "error" not in event["data"], event
            if is_it(event):
                return

    def complete(self, target: Path) -> None:
        """Let the job come to its end, and see that the target is right."""
        self.told(lambda event: event["event"] == "BLOCK_JOB_READY")
        self.talk.call("job-complete", id="m")
        self.told(lambda event: event["data"].get("status") == "null")
        self.talk.end()
        assert target.read_bytes() == self.content


def test_with_reconnect_delay_the_job_waits_and_goes_on_by_itself(tmp_path: Path, server: Server) -> None:
    with Talk(OURS, folder=tmp_path) as talk:
        mirror = Mirror(tmp_path, server, talk, 60, "report")
        server.kill()
        talk.call("block-job-set-speed", device="m", speed=0)
        server.start()
        mirror.complete(tmp_path / "target")


def test_with_stop_the_job_stands_until_it_is_resumed(tmp_path: Path, server: Server) -> None:
    with Talk(OURS, folder=tmp_path) as talk:
        mirror = Mirror(tmp_path, server, talk, 0, "stop")
        server.kill()
        talk.call("block-job-set-speed", device="m", speed=0)
        mirror.told(lambda event: event["event"] == "BLOCK_JOB_ERROR")
        mirror.told(lambda event: event["data"].get("status") == "paused")
        assert mirror.job()["io-status"] == "failed"
        server.start()
        talk.call("job-resume", id="m")
        mirror.complete(tmp_path / "target")
