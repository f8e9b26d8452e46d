"""The command `python -m bench`: run the benchmarks, print the ratios.

Owns: the choice of what runs, the table and the JSON. The exit status is 0 when
everything that could be measured gave right results; with `--strict` only when
every target was met too.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from bench import (
    committing,
    convert,
    looking,
    making,
    merging,
    mirroring,
    mirroring_busy,
    random_reads,
    random_writes,
    remote,
    serving,
)
from bench.images import file_system_of
from bench.measure import NotMeasured, Result, WrongResult
from bench.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[1]
Benchmark = Callable[[Settings], Iterator[Result]]
BENCHMARKS: dict[str, Benchmark] = {
    "convert": convert.sparse,
    "convert-full": convert.dense,
    "xfs": lambda settings: convert.with_reflink(settings, "xfs"),
    "btrfs": lambda settings: convert.with_reflink(settings, "btrfs"),
    "to-vhdx": making.sparse,
    "to-vhdx-full": making.dense,
    "to-vhdx-xfs": lambda settings: making.with_reflink(settings, "xfs"),
    "to-vhdx-btrfs": lambda settings: making.with_reflink(settings, "btrfs"),
    "compare": looking.comparing,
    "map": looking.mapping,
    "memory": looking.memory,
    "start": looking.starting,
    "reads": random_reads.reading,
    "merge": merging.merging,
    "mirror": mirroring.bulk,
    "mirror-xfs": lambda settings: mirroring.with_reflink(settings, "xfs"),
    "mirror-busy": mirroring_busy.busy,
    "commit": committing.offline,
    "commit-live": committing.live,
    "allocations": random_writes.allocating,
    "overwrites": random_writes.overwriting,
    "serving": serving.serving,
    "ssh": remote.ssh,
    "gluster": remote.gluster,
}


def parse_arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure vblk beside other programs."
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS), metavar="NAME"
    )
    parser.add_argument(
        "--data", type=int, default=1536, metavar="MIB", help="data in the disk (default: 1536)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (default: 5)")
    parser.add_argument("--tiny", action="store_true", help="a run of seconds, for correctness only")
    parser.add_argument(
        "--folder", type=Path, default=REPOSITORY / "build", help="where to work (default: build)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a target is missed")
    return parser.parse_args()


def surroundings(folder: Path) -> dict[str, str | int | None]:
    """Return what a reader must know to judge the numbers."""
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit or None,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "file_system": file_system_of(folder),
        "cache": "reading side cached",
        "queue_depth": 1,
    }


def row(result: Result) -> str:
    """Return one line of the table."""
    sign = ">=" if result.at_least else "<="
    value = f"{result.value:.2f} {result.unit}" if result.unit == "x" else f"{result.value:.0f} {result.unit}"
    target = f"{sign} {result.target:g} {result.unit}"
    spread = "{:.2f}-{:.2f}".format(*result.spread) if result.spread is not None else ""
    seconds = ", ".join(f"{name} {value:.3f} s" for name, value in result.seconds.items())
    verdict = "ok" if result.is_met else "MISSED"
    return f"{result.name:<44} {value:>10}  {target:>10}  {verdict:<6}  {spread:<14} {seconds}".rstrip()


def main() -> int:
    """Run what was asked for and return the exit status."""
    arguments = parse_arguments()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    problems: dict[str, str] = {}
    around = surroundings(arguments.folder)
    print("  ".join(f"{name}: {value}" for name, value in around.items()))
    print(f"{'median of the rounds':<44} {'ratio':>10}  {'target':>10}          {'spread':<14} median times")
    wrong = False
    for name in arguments.only:
        with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="bench-") as folder:
            place = Path(folder)
            settings = (
                Settings.tiny(place)
                if arguments.tiny
                else Settings.full(place, arguments.data, arguments.rounds)
            )
            try:
                for result in BENCHMARKS[name](settings):
                    results.append(result)
                    print(row(result), flush=True)
            except (NotMeasured, WrongResult) as error:
                wrong = wrong or isinstance(error, WrongResult)
                problems[name] = str(error)
                kind = "WRONG" if isinstance(error, WrongResult) else "not measured"
                print(f"{name}: {kind}: {error}", flush=True)
    if arguments.json is not None:
        rows = [{**asdict(result), "is_met": result.is_met} for result in results]
        report = {"surroundings": around, "results": rows, "problems": problems}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    missed = [result for result in results if not result.is_met]
    return 1 if wrong or (arguments.strict and missed) else 0


if __name__ == "__main__":
    sys.exit(main())
