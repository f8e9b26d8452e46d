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
from vblk.graph.edge import READING, WRITING, Access, Permission
from vblk.graph.edges import Rewiring
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

    def find_guest_device(self, name: str) -> Node:
        """Return the node of a device, by its name or its path."""
        drive = self.drive_of(name)
        return super().find_guest_device(name) if drive is None or drive.node is None else drive.node

    def drive_of(self, device: str) -> Drive | None:
        """Return what a guest's device has, by its name or its path."""
        for drive in self.drives.values():
            path = drive.path.removesuffix("/virtio-backend")
            if path and device in (path, path.rpartition("/")[2]):
                return drive
        return None

    async def put_in(self, drive: Drive, node: Node) -> None:
        """Let a device use another node, with nothing in flight."""
        assert drive.handle is not None
        async with self.graph.changing(drive.handle.node, node):
            self.graph.rewire(Rewiring(moved={drive.handle.edge: node}))

    async def add_drive(self, options: DriveOptions, *, snapshot: bool = False) -> None:
        """Open the medium of a drive, and put it in; with `snapshot` every medium stays as it is."""
        handle = None
        if options.node is not None:
            node = await self.open_node(options.node)
            handle = self.graph.hold(node, f"drive '{options.name}'", Permission.NONE)
            if snapshot or options.snapshot:
                await self._put_overlay(node)
        drive = Drive(options.name, handle, removable=options.interface != "virtio")
        if options.interface == "virtio":
            self._give(drive, f"/machine/peripheral-anon/device[{len(self.drives)}]/virtio-backend")
        self.drives[options.name] = drive

    async def _put_overlay(self, node: Node) -> None:
        """Put an image on a node that is forgotten with the machine."""
        self._above = self._above or TemporaryDirectory(prefix="machine-")
        name = f"above{len(self.drives)}"
        await blockdev_snapshot_sync(
            self,
            SnapshotSync(
                node_name=node.name, snapshot_file=f"{self._above.name}/{name}", snapshot_node_name=name
            ),
        )

    def _give(self, drive: Drive, path: str) -> None:
        """Let the guest's device at `path` have a drive, and do with it what devices do."""
        drive.path = path
        if drive.handle is not None:
            edge = drive.handle.edge
            permissions = READING if edge.node.read_only else WRITING
            self.graph.rewire(Rewiring(access={edge: Access(permissions, edge.shared)}))

    async def add_device(self, options: Mapping[str, str]) -> None:
        """Give a guest's device the drive, or the node, that it names."""
        name = options.get("drive")
        if name is None:
            return
        id = options.get("id")
        path = f"/machine/peripheral/{id}/virtio-backend" if id else "/machine/peripheral-anon/device[0]"
        drive = self.drives.get(name)
        if drive is None:
            handle = self.graph.hold(self.find_device(None, name), f"device '{id or name}'", Permission.NONE)
            drive = self.drives[f"device of {name}"] = Drive("", handle, removable=False)
        self._give(drive, path)

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
