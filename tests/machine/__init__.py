"""A machine by name only: QEMU's options of a machine, turned into vblk's daemon.

Owns: what a machine has beyond the storage daemon and QEMU's block tests ask for:
drives and their names, a little of its human and QMP monitor, a qtest socket that
is there. No guest runs. `python -m tests.machine --install DIR` writes the program
`qemu-system-x86_64` into DIR.
"""
