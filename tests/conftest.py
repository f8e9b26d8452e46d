"""What all tests start from, what several kinds share, and what some have to say at the end."""

import signal
import tempfile
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

import pytest

# Who runs the tests in the background, or by nohup, lets them ignore Ctrl-C or the end of the terminal,
# and with them every command they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def in_memory(tmp_path: Path) -> Generator[Path]:
    """Return a folder in which flushes are quick, if there is one: the kernel outlives a killed process."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Return what has a sentence printed at the end of the run, whichever process the test ran in."""
    return partial(record_property, "told")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests had to say."""
    for report in terminalreporter.getreports("passed"):
        for name, sentence in report.user_properties:
            if name == "told":
                terminalreporter.write_line(str(sentence))
