"""The benchmarks run at their smallest size; their times are not looked at."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

from tests.support.source_tree import REPOSITORY

RESULTS_WITHOUT_MOUNTING = 21


def run_tiny(folder: Path) -> dict[str, Any]:
    """Run all benchmarks at their smallest and return the report."""
    report = folder / "report.json"
    command = [sys.executable, "-m", "bench", "--tiny", "--folder", str(folder), "--json", str(report)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    return cast("dict[str, Any]", json.loads(report.read_text()))


def test_every_benchmark_gives_right_results(tmp_path: Path) -> None:
    report = run_tiny(tmp_path)
    assert [text for text in report["problems"].values() if "mount" not in text] == []
    assert len(report["results"]) >= RESULTS_WITHOUT_MOUNTING
