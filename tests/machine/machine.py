"""The machine: a storage daemon with drives.

Owns: the drives by name, and what a machine does with them: take a medium out, show
them. Everything else is the daemon's.
"""

import sys
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import Any

from tests.machine.drives import Drive, DriveOptions, exports_of
from vblk.errors import GraphError
from vblk.graph.edge import READING, WRITING, Permission
from vblk.graph.node import Node
from vblk.monitor.commands.surgery import blockdev_snapshot_sync
from vblk.monitor.daemon import Daemon
from vblk.monitor.schema import SnapshotSync


def _say(text: str) -> None:
    """Write what the commands of qemu-io print where the machine's own words go, as QEMU does."""
    sys.stdout.write(text)
    sys.stdout.flush()


class Machine(Daemon):
    """A daemon whose nodes may also be named by the drive that they are in."""

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        self.io_output = _say
        self.drives: dict[str, Drive] = {}
        self.iothreads: set[str] = set()
        self._unnamed = 0
        self._above: TemporaryDirectory[str] | None = None
        """Where what is written to drives goes that stay as they are."""

    def find_device(self, device: str | None, node_name: str | None) -> Node:
        """Return the node of a drive, or of a name."""
        drive = self.drives.get(device or "") or self.drives.get(node_name or "")
        if drive is not None:
            if drive.node is None:
                raise GraphError(f"Device '{device}' has no medium")
            return drive.node
        return super().find_device(device, node_name)

    def find_either(self, name: str) -> Node:
        """Return the node of a drive, or of a name."""
        return self.find_device(name, None) if name in self.drives else super().find_either(name)

    async def add_drive(self, options: DriveOptions, *, snapshot: bool = False) -> None:
        """Open the medium of a drive, and put it in; with `snapshot` it stays as it is."""
        handle = None
        if options.node is not None:
            node = await self.add_node(options.node)
            handle = self.graph.hold(node, f"drive '{options.name}'", Permission.NONE)
            self.disown(node)
        path = ""
        if options.interface == "virtio":
            path = f"/machine/peripheral-anon/device[{len(self.drives)}]/virtio-backend"
            self._use(handle)
        if snapshot and handle is not None:
            self._above = self._above or TemporaryDirectory(prefix="machine-")
            file = f"{self._above.name}/{len(self.drives)}"
            await blockdev_snapshot_sync(
                self,
                SnapshotSync(
                    node_name=handle.node.name,
                    snapshot_file=file,
                    snapshot_node_name=f"above{len(self.drives)}",
                ),
            )
        self.drives[options.name] = Drive(options.name, handle, path, options.interface != "virtio")

    def disown(self, node: Node) -> None:
        """Let a node live only as long as the drive that it is in."""
        self.graph._kept.discard(node)

    def _use(self, handle: Any) -> None:
        """Let the guest's device have what it needs of its drive."""
        if handle is not None:
            edge = handle.edge
            edge.permissions = READING if handle.node.read_only else WRITING

    async def add_device(self, options: Mapping[str, str]) -> None:
        """Give a guest's device the drive, or the node, that it names."""
        drive = options.get("drive")
        if drive is None:
            return
        id = options.get("id")
        path = f"/machine/peripheral/{id}/virtio-backend" if id else "/machine/peripheral-anon/device[0]"
        if drive in self.drives:
            self.drives[drive].path = path
            self._use(self.drives[drive].handle)
            return
        node = self.find_device(None, drive)
        permissions = READING if node.read_only else WRITING
        handle = self.graph.hold(node, f"device '{id or drive}'", permissions)
        self._unnamed += 1
        self.drives[f"device {self._unnamed}"] = Drive("", handle, path, False)

    async def eject(self, drive: Drive) -> None:
        """Take the medium out; what was exported of it ends."""
        for export in exports_of(drive, self.exports):
            await export.stop(hard=True)
        handle, drive.handle = drive.handle, None
        if handle is not None:
            await self.graph.release(handle)

    async def close(self) -> None:
        """End everything, and forget what was written to drives that stay as they are."""
        await super().close()
        if self._above is not None:
            self._above.cleanup()
