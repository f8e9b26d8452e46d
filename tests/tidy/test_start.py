"""What a start imports: a command line that only looks at an image must start at once."""

import subprocess
import sys

HEAVY = {
    "atheris",
    "email",
    "http",
    "hypothesis",
    "multiprocessing",
    "numpy",
    "pydoc",
    "pytest",
    "rich",
    "sqlite3",
    "unittest",
    "urllib.request",
    "uvloop",
    "xml",
}


def modules_after(statement: str) -> set[str]:
    """Return the names in `sys.modules` of a fresh interpreter after a statement."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_the_library_imports_nothing_heavy() -> None:
    assert sorted(modules_after("import vblk") & HEAVY) == []


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    assert sorted(modules_after("import vblk.cli.main") & HEAVY) == []
