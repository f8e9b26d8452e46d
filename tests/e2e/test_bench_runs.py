"""The benchmarks run at their smallest size; their times are not looked at."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from bench.__main__ import BENCHMARKS
from tests.support.source_tree import REPOSITORY

OUT_OF_VHDX = ("convert", "convert-full", "xfs", "btrfs")
INTO_VHDX = ("to-vhdx", "to-vhdx-full", "to-vhdx-xfs", "to-vhdx-btrfs")
CHAINS = ("merge",)
SERVING = ("serving",)
REMOTE = ("ssh", "gluster")
JOBS = ("mirror", "mirror-xfs", "mirror-busy", "commit", "commit-live")
OTHERS = tuple(
    name for name in BENCHMARKS if name not in OUT_OF_VHDX + INTO_VHDX + CHAINS + SERVING + JOBS + REMOTE
)


def run_tiny(folder: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Run benchmarks at their smallest and return the report."""
    report = folder / "report.json"
    command = [sys.executable, "-m", "bench", "--tiny", "--folder", str(folder), "--json", str(report)]
    done = subprocess.run(
        [*command, "--only", *names],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return cast("dict[str, Any]", json.loads(report.read_text()))


@pytest.mark.parametrize(
    ("names", "results_without_mounting"),
    [(OUT_OF_VHDX, 6), (INTO_VHDX, 6), (CHAINS, 2), (OTHERS, 5), (SERVING, 19), (JOBS, 14), (REMOTE, 5)],
    ids=["out-of-vhdx", "into-vhdx", "chains", "others", "serving", "jobs", "remote"],
)
def test_every_benchmark_gives_right_results(
    tmp_path: Path, names: tuple[str, ...], results_without_mounting: int
) -> None:
    report = run_tiny(tmp_path, names)
    assert [text for text in report["problems"].values() if "mount" not in text] == []
    assert len(report["results"]) >= results_without_mounting
