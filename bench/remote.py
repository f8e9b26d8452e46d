"""Disks on other machines: over SSH beside qemu-img and scp, and on gluster beside qemu-img.

Owns: the servers, on this machine, and the ways to them: the loopback network, and one
on which everything comes 10 ms late. Both ends have the disk in the page cache.
"""

import os
import re
import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.images import warm
from bench.measure import NotMeasured, Result, Seconds, Side, WrongResult, compare, run, take_turns
from bench.settings import VBLK, Settings
from tests.support.delaying_proxy import DelayingProxy
from tests.support.gluster import Gluster
from tests.support.sshd import Sshd
from vblk.units import GIB, KIB, MIB

OURS: Final = "vblk"
THEIRS: Final = "qemu-img -W -m 16"
SCP: Final = "scp"
DELAY: Final = 0.01
"""Seconds, each way."""
_COMPLETED: Final = re.compile(r"Run completed in ([0-9.]+) seconds")


class _Client:
    """Whoever has the key of the server's user, by an agent, as libssh and everybody else finds it."""

    def __init__(self, server: Sshd, agent: str) -> None:
        self.server = server
        self.environment = os.environ | {"HOME": str(server.home), "SSH_AUTH_SOCK": agent}

    def runs(self, *command: str | Path) -> Side:
        """Return a side that runs a command."""

        def side() -> None:
            done = subprocess.run(
                command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
            )
            if done.returncode:
                raise WrongResult(f"{' '.join(map(str, command))}: {done.stderr.decode(errors='replace')}")

        return side


@contextmanager
def _sshd(folder: Path) -> Generator[_Client]:
    """Run a server, and an agent that has its user's key."""
    socket = str(folder / "agent")
    with Sshd(folder / "ssh") as server:
        agent = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.PIPE)
        try:
            assert agent.stdout is not None
            agent.stdout.readline()  # it listens
            client = _Client(server, socket)
            client.runs("ssh-add", "-q", server.folder / "user")()
            yield client
        finally:
            agent.terminate()
            agent.communicate()


def _full(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        for _ in range(0, size, MIB):
            file.write(os.urandom(MIB))
    return path


def ssh(settings: Settings) -> Iterator[Result]:
    """Copy a full disk from a server and to it, far and near, and a sparse one."""
    size = settings.data_bytes // 3
    source = _full(settings.folder / "source.raw", size)
    target = settings.folder / "target.raw"
    warm(source)
    with _sshd(settings.folder) as client:
        port = client.server.port
        key = ("-o", f"UserKnownHostsFile={client.server.known_hosts}")
        scp = client.runs("scp", "-q", "-P", str(port), *key, f"127.0.0.1:{source}", target)
        sides = {**_converting(client, _name(port, source), target), SCP: scp}
        seconds = _copies(sides, source, target, settings.rounds)
        yield compare("ssh: read, qemu-img / vblk", seconds, THEIRS, OURS, 4)
        yield compare("ssh: read, scp / vblk", seconds, SCP, OURS, 1.2)
        sides = _converting(client, str(source), _name(port, target))
        seconds = _copies(sides, source, target, settings.rounds)
        yield compare("ssh: write, qemu-img / vblk", seconds, THEIRS, OURS, 3)
        small = _full(settings.folder / "small.raw", min(size, 32 * MIB))
        with DelayingProxy(port, DELAY) as way:
            sides = _converting(client, _name(way.port, small), target)
            seconds = _copies(sides, small, target, min(2, settings.rounds))
        yield compare("ssh: read 32 MiB with 20 ms of delay", seconds, THEIRS, OURS, 20)
        yield _sparse(settings, client, target)


def _name(port: int, path: Path) -> str:
    """Return a file's name there; QEMU's library looks for known keys in the real home only."""
    return f"ssh://127.0.0.1:{port}{path}?host_key_check=no"


def _converting(client: _Client, source: str, target: str | Path) -> dict[str, Side]:
    words = ("-f", "raw", "-O", "raw", source, str(target))
    return {
        OURS: client.runs(VBLK, "convert", *words),
        THEIRS: client.runs("qemu-img", "convert", "-W", "-m", "16", *words),
    }


def _copies(sides: dict[str, Side], source: Path, target: Path, rounds: int) -> Seconds:
    """Let the sides copy in turn, after a turn of each that does not count and has to be right."""
    for side in sides.values():
        target.unlink(missing_ok=True)
        side()
        run(["cmp", source, target])
    return take_turns(sides, rounds, before=lambda: target.unlink(missing_ok=True))


def _sparse(settings: Settings, client: _Client, target: Path) -> Result:
    """Count what travels of a disk that is mostly holes."""
    data = min(200 * MIB, settings.data_bytes)
    sparse = _full(settings.folder / "sparse.raw", data)
    os.truncate(sparse, 40 * data if data < 200 * MIB else 8 * GIB)
    target.unlink(missing_ok=True)
    with DelayingProxy(client.server.port) as way:
        _converting(client, _name(way.port, sparse), target)[OURS]()
        passed = way.passed
    run(["cmp", sparse, target])
    return Result("ssh: bytes sent / data of a sparse disk", passed / data, 1.1, at_least=False)


def gluster(settings: Settings) -> Iterator[Result]:
    """Read a full disk on a volume, in order and at random, by both sides' `bench`."""
    if os.geteuid():
        raise NotMeasured("glusterd wants root")
    size = settings.data_bytes // 3
    source = _full(settings.folder / "source.raw", size)
    with Gluster(settings.folder / "gluster") as server:
        server.make_volume("disks", 1)
        name = server.name("disks", "disk.raw")
        run([VBLK, "convert", "-f", "raw", "-O", "raw", source, name])
        for what, length, depth, count in (
            ("1 MiB in order, depth 4", MIB, 4, size // MIB),
            ("4 KiB at random, depth 16", 4 * KIB, 16, settings.reads // 5),
        ):
            step = length if length == MIB else 7919 * length
            sizes = ("-c", str(count), "-d", str(depth), "-s", str(length), "-S", str(step % size))
            words = ("bench", "-f", "raw", *sizes, name)
            seconds: Seconds = {OURS: [], "qemu-img": []}
            for _ in range(settings.rounds):
                for side, program in ((OURS, str(VBLK)), ("qemu-img", "qemu-img")):
                    seconds[side].append(_completed(program, *words))
            yield compare(f"gluster: read {what}", seconds, "qemu-img", OURS, 1.2)


def _completed(*command: str) -> float:
    """Return how long a run took by its own clock: neither connecting nor leaving counts."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = _COMPLETED.search(done.stdout)
    if done.returncode or found is None:
        raise WrongResult(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return max(float(found[1]), 0.001)
