"""A mirror in a running daemon: started, watched, and completed by `vblk mirror --daemon`.

Owns: the questions that the daemon is asked.
"""

from typing import Any

from vblk.cli.console import Console
from vblk.cli.failure import SUCCESS, Failure, refuse
from vblk.cli.job_watch import Watch
from vblk.cli.mirror import Arguments


def run_there(arguments: Arguments, console: Console) -> int:
    """Have a daemon mirror one of its disks."""
    refuse(
        {
            "-o": arguments.options,
            "-B": arguments.backing,
            "-F": arguments.backing_format,
            "-f": arguments.format,
            "--image-opts": arguments.image_opts or arguments.target_image_opts,
            "--target-is-zero": arguments.target_is_zero,
            "--object": arguments.objects,
            "-t": arguments.target_cache != "unsafe",
            "-T": arguments.source_cache,
            "-U": arguments.force_share,
            "--strict": arguments.strict,
            "--parent": arguments.parent,
            "--parent-dir": arguments.parent_dirs,
            "--path-map": arguments.path_map,
            "--ignore-linkage": arguments.ignore_linkage,
            "--deny-implicit": arguments.deny_implicit,
        },
        "cannot be used with --daemon: the images are the daemon's",
    )
    source, target = arguments.two_operands()
    assert arguments.daemon is not None
    watch = Watch(arguments.daemon, arguments.job_id or "mirror")
    with watch.kept(console):
        _start(watch, arguments, source, target)
        with arguments.shown(console) as progress:
            watch.until("ready", progress)
            verified = watch.seen.get("verified-bytes")
            if progress is not None:
                progress.finish()
        if arguments.pivot:
            watch.connection.call("block-job-complete", device=watch.id)
            watch.until("null", None)
    arguments.tell_verified(console, verified)
    return SUCCESS


def _start(watch: Watch, arguments: Arguments, source: str, target: str) -> None:
    call = watch.connection.call
    nodes = {node["node-name"] for node in call("query-named-block-nodes", flat=True)}
    how: dict[str, Any] = {
        "job_id": watch.id,
        "device": source,
        "target": target,
        "sync": arguments.sync,
        "speed": arguments.rate or None,
        "granularity": arguments.granularity or None,
        "copy_mode": arguments.copy_mode,
        "converge": arguments.converge,
        "verify": arguments.verify or None,
        "resume": arguments.resume or None,
    }
    if target in nodes:
        if arguments.output_format is not None or arguments.skip_create:
            raise Failure(f"-O and -n are for images: '{target}' is a node of the daemon")
        call("blockdev-mirror", **how)
        return
    mode = "existing" if arguments.skip_create else None
    call("drive-mirror", **how, format=arguments.output_format, mode=mode)
