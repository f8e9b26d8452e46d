"""The long texts of the program: version and help.

Owns: how the verbs are listed, in QEMU's layout under a QEMU name and in ours
under ours. Imported only when one of these texts is asked for.
"""

from typing import Final

from vblk.cli.verbs import VERBS

QEMU_VERSION: Final = "7.2.0"
"""The release whose command line this one follows."""

VERSION: Final = "0.1.0"

_OWN_NAME: Final = "vblk"
_NOT_QEMU: Final = frozenset(("chain", "daemon", "drop-in", "io", "monitor", "nbd"))
_PARAMETERS: Final = """\
Command parameters:
  'filename' is a disk image filename
  'fmt' is the disk image format. It is guessed automatically in most cases
  'cache' is the cache mode used to write the output disk image, the valid
    options are: 'none', 'writeback' (default, except for convert), 'writethrough',
    'directsync' and 'unsafe' (default for convert)
  'src_cache' is the cache mode used to read input disk images, the valid
    options are the same as for the 'cache' option
  'size' is the disk image size in bytes. Optional suffixes k, M, G, T, P and E
    count in powers of 1024
  'output_filename' is the destination disk image filename
  'output_fmt' is the destination format
  'options' is a comma separated list of format specific options in a
    name=value format. Use -o help for an overview of the options supported by
    the used format
  '-h' shows this help and lists the supported formats
  '-p' show progress of command (only certain commands)
  '-q' use Quiet mode - do not print any output (except errors)
  '--output' takes the format in which the output must be done (human or json)
  '-n' skips the target volume creation (useful if the volume is created
       prior to running the command)"""


def version_text(program: str) -> str:
    """Return what `--version` prints."""
    if program == _OWN_NAME:
        return f"vblk {VERSION}"
    return (
        f"{program} version {QEMU_VERSION} (vblk {VERSION})\n"
        f"This is vblk, an independent program with the command line of {program}"
    )


def help_text(program: str) -> str:
    """Return what `--help` prints, without the last newline."""
    return _own_help() if program == _OWN_NAME else _qemu_help(program)


def _own_help() -> str:
    width = max(map(len, VERBS)) + 2
    lines = [
        "Usage: vblk VERB [OPTIONS] ...",
        "",
        "Looks at virtual disks, checks, compares and converts them.",
        "",
        "Verbs:",
        *(f"  {name:{width}}{entry.summary}" for name, entry in VERBS.items()),
        "",
        "Options:",
        "  -h, --help     Show this text; after a verb, the verb's own.",
        "  -V, --version  Show the version.",
        "",
        f"Formats: {_formats()}",
    ]
    return "\n".join(lines)


def _qemu_help(program: str) -> str:
    lines = [
        version_text(program),
        f"usage: {program} [standard options] command [command options]",
        "Disk image utility",
        "",
        "    '-h', '--help'       display this help and exit",
        "    '-V', '--version'    output version information and exit",
        "",
        "Command syntax:",
        *(f"  {name} {entry.usage}" for name, entry in VERBS.items() if name not in _NOT_QEMU),
        "",
        _PARAMETERS,
        "",
        f"Supported formats: {_formats()}",
    ]
    return "\n".join(lines)


def _formats() -> str:
    from vblk.opening import FILTERS, FORMATS, PROTOCOLS

    return " ".join(sorted({*FORMATS, *PROTOCOLS, *FILTERS}))
