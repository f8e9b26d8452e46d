"""Findings: what is odd or wrong with an image that could still be opened.

Owns: the vocabulary of open, info and check. A finding is a statement about the
file; what stops an image from opening is an `ImageError` instead.
"""

import enum
from typing import NamedTuple


class Severity(enum.Enum):
    """How much a finding matters."""

    ERROR = "error"
    """A rule is broken so that data is lost, or would be by a writer who trusts it."""
    WARNING = "warning"
    """A rule is broken and nothing depends on it."""
    LEAK = "leak"
    """Space in the file is held by something that no disk offset reaches."""


class Finding(NamedTuple):
    """One statement about an image.

    `code` is the row of the table of bad inputs in docs/formats/vhdx.md;
    `offset` is the file offset of the bytes in question, where there is one.
    """

    code: str
    severity: Severity
    message: str
    offset: int | None = None

    def __str__(self) -> str:
        place = "" if self.offset is None else f" (file offset {self.offset:#x})"
        return f"{self.message}{place}"
