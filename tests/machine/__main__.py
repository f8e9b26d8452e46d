"""The program: `qemu-system-x86_64` for QEMU's block tests.

Owns: the order in which options take effect, and the life of the process.
"""

import asyncio
import os
import shlex
import signal
import socket
import sys
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Final

from tests.machine.commands import machine_commands
from tests.machine.drives import Names, read_drive
from tests.machine.machine import Machine
from tests.machine.options import read_options
from vblk.aio import loops
from vblk.cli.daemon_run import Startup
from vblk.errors import BlockError
from vblk.graph.gate import gate_of
from vblk.graph.registry import Graph
from vblk.monitor.log import Log
from vblk.options.keyval import split_pairs
from vblk.wire.qmp import QmpError

PROGRAM: Final = "qemu-system-x86_64"
_SAME: Final = {"blockdev": "--blockdev", "chardev": "--chardev", "mon": "--monitor"}
_LATER: Final = ("mon", "monitor", "qmp", "qmp-pretty")

_HELP: Final = {
    ("-machine", "help"): "pc                   Standard PC (default)",
    ("-device", "help"): 'name "virtio-blk", bus virtio-bus\nname "virtio-blk-pci", bus PCI',
}


def answered(words: list[str]) -> bool:
    """Answer the questions that the suite asks before it starts a machine."""
    for pair in pairwise(words):
        if pair in _HELP:
            print(_HELP[pair])
            return True
        if pair[0] == "-drive" and "format=help" in pair[1]:
            from vblk.opening import FILTERS, FORMATS, PROTOCOLS

            names = " ".join(sorted({*FILTERS, *FORMATS, *PROTOCOLS}))
            print(f"Supported formats: {names}\nSupported formats (read-only): ")
            return True
    return False


class Starting:
    """Carries the options out, in QEMU's order: objects and nodes, drives, devices, then the monitors."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._startup = Startup(machine, machine_commands())
        self._names = Names()
        self._stack = ExitStack()
        self._silent: set[str] = set()
        """Devices that say nothing and take everything: their monitors have nothing to do."""

    async def run(self, words: list[str]) -> None:
        """Carry all options out."""
        options = list(read_options(words))
        snapshot = any(name == "snapshot" for name, _ in options)
        for name, value in options:
            if name in ("object", "add-fd", "chardev", "qtest"):
                await self._step(name, value)
        for name, value in options:
            if name == "blockdev":
                await self._step(name, value)
            elif name == "drive":
                await self.machine.add_drive(read_drive(value, self._names), snapshot=snapshot)
        for name, value in options:
            if name == "device" or name in _LATER:
                await self._step(name, value)

    async def _step(self, name: str, value: str) -> None:
        startup, machine = self._startup, self.machine
        pairs = {pair.name: pair.value for pair in split_pairs(value, implied="first")} if value else {}
        if name == "add-fd":
            machine.graph.fd_sets.add(int(pairs["fd"]), int(pairs["set"]), pairs.get("opaque"))
        elif name == "chardev" and pairs.get("first") == "null":
            self._silent.add(pairs["id"])
        elif name == "mon" and pairs.get("chardev") in self._silent:
            return
        elif name in _SAME:
            await startup.step(_SAME[name], value)
        elif name == "object":
            await self._object(value)
        elif name == "add-fd":
            passed = {pair.name: pair.value for pair in split_pairs(value)}
            machine.graph.fd_sets.add(int(passed["fd"]), int(passed["set"]), passed.get("opaque"))
        elif name == "device":
            await machine.add_device({pair.name: pair.value for pair in split_pairs(value, implied="driver")})
        elif name == "qtest":
            await self._connect_qtest(value)
        elif value == "stdio":
            mode = "readline" if name == "monitor" else "control"
            pretty = ",pretty=on" if name == "qmp-pretty" else ""
            await startup.step("--chardev", "stdio,id=stdio")
            await startup.step("--monitor", f"stdio,mode={mode}{pretty}")
        elif value not in ("none", "null"):
            raise QmpError(f"-{name} {value}: the machine of these tests has stdio alone")

    async def _object(self, value: str) -> None:
        pairs = {pair.name: pair.value for pair in split_pairs(value, implied="qom-type")}
        if pairs.get("qom-type") == "iothread":  # one loop does all I/O
            self.machine.iothreads.add(pairs["id"])
        else:
            await self._startup.step("--object", value)

    async def _connect_qtest(self, value: str) -> None:
        """Be there for who would drive the guest's clock and ports: nobody does."""
        path = value.removeprefix("unix:").removeprefix("path=").partition(",")[0]
        found = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        found.connect(path)

    async def close(self) -> None:
        """End everything."""
        await self._startup.close()
        self._stack.close()


async def live(words: list[str]) -> int:
    """Be the machine until it is told to end."""
    machine = Machine(Graph(gate=gate_of(PROGRAM)), Log(PROGRAM, sys.stderr))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, machine.ended.set)
    starting = Starting(machine)
    try:
        await starting.run(words)
        await machine.ended.wait()
    except (BlockError, QmpError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    finally:
        await starting.close()
    return 0


def install(folder: str) -> None:
    """Write the program into a folder."""
    root = Path(__file__).resolve().parents[2]
    paths = [str(root / "src"), str(root)]
    code = (
        f"import sys; sys.path[:0] = {paths!r}; sys.argv[0] = {PROGRAM!r}; "
        "from tests.machine.__main__ import main; main()"
    )
    path = os.path.join(folder, PROGRAM)
    Path(path).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -c {shlex.quote(code)} "$@"\n')
    os.chmod(path, 0o755)
    print(path)


def main() -> None:
    """Run with the words of this process's call."""
    words = sys.argv[1:]
    if words[:1] == ["--install"]:
        install(words[1])
        return
    if answered(words):
        return
    status = loops.run(live(words), sockets=True)
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
