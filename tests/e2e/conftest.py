"""What tests of whole programs share."""

import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest


@pytest.fixture
def in_memory(tmp_path: Path) -> Generator[Path]:
    """Return a folder in which flushes are quick, if there is one: the kernel outlives a killed process."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)
