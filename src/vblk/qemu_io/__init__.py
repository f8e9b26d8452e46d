"""The language of qemu-io: commands that read, write and examine one image.

Owns: the language, the commands, and the session that carries them out. Who opens the
image, and where the words go, is the business of those who use it: `vblk io`, and the
monitor's command `qemu-io`. It offers its modules.
"""
