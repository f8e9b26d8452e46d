"""The main job before the reader's eyes: a disk with files in it, into a VHDX and out again, whole and fast.

Owns: the story that `make demo` tells. Every command is printed as a reader
would type it, then run. Everything happens in one folder, removed at the end.
"""

import argparse
import hashlib
import os
import random
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.measure import medians, program, take_turns  # noqa: E402
from vblk.units import MIB  # noqa: E402

LETTER = "Dear reader,\n\nthese words went into a virtual disk and came out again, unharmed.\n"
NOISE_MIB = 1024
MAP_LINES = 12
ROUNDS = 3
PARALLEL = "qemu-img -W -m 16"


class Story:
    """Prints headings and commands, and runs the commands in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chapter = 0
        self.bold, self.dim, self.plain = (
            ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("",) * 3
        )

    def heading(self, text: str) -> None:
        """Open a chapter."""
        self.chapter += 1
        print(f"\n{self.bold}{self.chapter}. {text}{self.plain}", flush=True)

    def say(self, text: str) -> None:
        """Print a sentence."""
        print(text, flush=True)

    def show(self, command: str) -> None:
        """Print a command as a reader would type it."""
        print(f"{self.dim}${self.plain} {command}", flush=True)

    def run(self, command: str) -> None:
        """Print a command and run it, its output going where ours goes."""
        self.show(command)
        subprocess.run(shlex.split(command), cwd=self.folder, check=True)

    def output_of(self, command: str) -> bytes:
        """Print a command, run it and return its output."""
        self.show(command)
        return subprocess.run(
            shlex.split(command), cwd=self.folder, check=True, stdout=subprocess.PIPE
        ).stdout


def make_disk(story: Story) -> str:
    """Make an ext4 disk of real files; return the digest of the greatest."""
    files = story.folder / "files"
    (files / "letters").mkdir(parents=True)
    (files / "letters" / "reader.txt").write_text(LETTER)
    generator, digest = random.Random(2026), hashlib.sha256()
    with (files / "film.bin").open("wb") as film:
        for _ in range(NOISE_MIB):
            piece = generator.randbytes(MIB)
            digest.update(piece)
            film.write(piece)
    story.run("truncate -s 2G disk.raw")
    story.run("mkfs.ext4 -q -d files disk.raw")
    shutil.rmtree(files)
    return digest.hexdigest()


def make_vhdx(story: Story) -> None:
    """Put the disk into a VHDX, and a child on top of it."""
    story.run("vblk convert -p -f raw -O vhdx disk.raw disk.vhdx")
    story.run("vblk check disk.vhdx")
    if shutil.which("qemu-img") is not None:
        story.say("QEMU reads the same disk in it:")
        story.run("qemu-img compare -f raw -F vhdx disk.raw disk.vhdx")
    story.say("A differencing disk keeps what is written from now on, and the first one stays as it is:")
    story.run("vblk create -f vhdx -b disk.vhdx child.vhdx")
    story.run('vblk io -f vhdx -c "write -P 7 64M 1M" child.vhdx')


def look(story: Story) -> None:
    """Show what vblk says about the VHDX."""
    story.heading("Look into it")
    story.run("vblk info disk.vhdx")
    story.say("")
    lines = story.output_of("vblk map disk.vhdx").decode().splitlines()
    print("\n".join(lines[:MAP_LINES]))
    if len(lines) > MAP_LINES:
        print(f"... and {len(lines) - MAP_LINES} more lines")
    story.say("")
    story.run("vblk chain child.vhdx")
    (story.folder / "child.vhdx").unlink()


def verify(story: Story, film_digest: str) -> bool:
    """Look for the files within the restored disk, without mounting it."""
    story.heading("Are the files still in it?")
    letter = story.output_of("debugfs -R 'cat /letters/reader.txt' restored.raw").decode()
    print(letter, end="")
    story.run("debugfs -R 'dump /film.bin film.bin' restored.raw")
    with (story.folder / "film.bin").open("rb") as film:
        is_same = hashlib.file_digest(film, "sha256").hexdigest() == film_digest
    (story.folder / "film.bin").unlink()
    good = is_same and letter == LETTER
    story.say(
        f"The letter and the SHA-256 of the film of {NOISE_MIB} MiB are "
        + ("what went in." if good else "NOT what went in.")
    )
    return good


def race(story: Story) -> None:
    """Let vblk and qemu-img convert in turn, out of and into a VHDX, and say who was faster."""
    story.heading("What is faster than what?")
    if shutil.which("qemu-img") is None:
        story.say("qemu-img is not installed: there is nothing to compare with.")
        return
    os.chdir(story.folder)
    story.say(f"{ROUNDS} rounds in turn, the source in the page cache, medians:")
    for source, form, source_form in (("disk.vhdx", "raw", "vhdx"), ("disk.raw", "vhdx", "raw")):
        convert = ("convert", "-f", source_form, "-O", form)
        run_race(
            story,
            {
                "vblk": ("vblk", *convert, source, "race"),
                "qemu-img": ("qemu-img", *convert, source, "race"),
                PARALLEL: ("qemu-img", *convert, "-W", "-m", "16", source, "race"),
            },
        )
    story.say("`make bench` measures more, on larger disks.")


def run_race(story: Story, commands: dict[str, tuple[str, ...]]) -> None:
    """Take the time of commands that make the file `race`."""
    for words in commands.values():
        story.show(" ".join(words))

    def clear() -> None:
        Path("race").unlink(missing_ok=True)
        os.sync()

    sides = {name: program(*words) for name, words in commands.items()}
    times = medians(take_turns(sides, ROUNDS, clear))
    clear()
    for name, seconds in times.items():
        story.say(f"  {name:<18} {seconds:6.2f} s   {sentence(seconds / times['vblk'], name)}".rstrip())


def sentence(ratio: float, name: str) -> str:
    """Say how vblk did against another program."""
    if name == "vblk":
        return ""
    return f"vblk was {ratio:.1f} times as fast" if ratio >= 1 else f"vblk took {1 / ratio:.1f} times as long"


def tell(story: Story) -> bool:
    """Tell the whole story; return whether everything was right."""
    story.heading("A disk with files in it")
    film_digest = make_disk(story)
    story.heading("The disk goes into a VHDX")
    make_vhdx(story)
    look(story)
    story.heading("Out of the VHDX again")
    story.run("vblk convert -p -f vhdx -O raw disk.vhdx restored.raw")
    story.heading("Is it the same disk?")
    story.run("vblk compare -f raw -F raw disk.raw restored.raw")
    story.run("vblk compare -f vhdx -F raw disk.vhdx restored.raw")
    good = verify(story, film_digest)
    (story.folder / "restored.raw").unlink()
    race(story)
    return good


def main() -> int:
    """Run the demonstration; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "demo", help="where to work")
    parser.add_argument("--keep", action="store_true", help="leave the images there")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ["PATH"] = os.pathsep.join(
        (str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin:/sbin")
    )
    try:
        return 0 if tell(Story(folder)) else 1
    except subprocess.CalledProcessError as error:
        print(f"This command failed with {error.returncode}: {shlex.join(error.cmd)}", file=sys.stderr)
        return 1
    finally:
        os.chdir(ROOT)
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
