"""A commit in a running daemon, of layers of a disk in use: `vblk commit --live`.

Owns: the questions that the daemon is asked.
"""

from vblk.cli.commit import Arguments
from vblk.cli.console import Console
from vblk.cli.failure import SUCCESS, refuse
from vblk.cli.job_watch import Watch
from vblk.cli.progress_view import shown_progress


def run_live(arguments: Arguments, console: Console) -> int:
    """Have a daemon commit layers of one of its disks, and lead the disk's users to the base."""
    refuse(
        {
            "-d": arguments.drop,
            "--force": arguments.force,
            "-f": arguments.format,
            "--image-opts": arguments.image_opts,
            "--object": arguments.objects,
            "-t": arguments.target_cache != "writeback",
            "-U": arguments.force_share,
            "--strict": arguments.strict,
            "--parent": arguments.parent,
            "--parent-dir": arguments.parent_dirs,
            "--path-map": arguments.path_map,
            "--ignore-linkage": arguments.ignore_linkage,
            "--deny-implicit": arguments.deny_implicit,
        },
        "cannot be used with --live: the images are the daemon's",
    )
    assert arguments.live is not None
    node = arguments.one_operand()
    watch = Watch(arguments.live, arguments.job_id or "commit")
    with watch.kept(console):
        watch.connection.call(
            "block-commit",
            job_id=watch.id,
            device=node,
            top_node=arguments.top,
            base_node=arguments.base,
            speed=arguments.rate,
            verify=arguments.verify or None,
            delete=arguments.delete or None,
            resume=arguments.resume or None,
        )
        with shown_progress(
            console,
            wanted=arguments.progress,
            form=arguments.progress_format,
            quiet=arguments.quiet,
            what="commit",
        ) as progress:
            if watch.until("ready", progress):  # the active layer: its users write to it
                watch.connection.call("block-job-complete", device=watch.id)
                watch.until("null", progress)
            if progress is not None:
                progress.finish()
    if not arguments.quiet:
        console.print("Image committed, and verified." if arguments.verify else "Image committed.")
    return SUCCESS
