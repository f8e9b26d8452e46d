"""QMP clients that say anything: whatever the bytes, only typed errors, in bounded memory."""

import json
import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.qmp_requests import exercise

CORPUS = Path(__file__).parent / "corpus" / "qmp"
MEMORY_MAX = 32 << 20
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def seeds() -> list[bytes]:
    return [file.read_bytes() for file in sorted(CORPUS.iterdir())]


def test_the_corpus_is_there_and_small() -> None:
    assert seeds()
    assert sum(map(len, seeds())) < 64 << 10


@pytest.mark.parametrize("file", sorted(CORPUS.iterdir()), ids=lambda file: file.name)
def test_the_corpus_is_answered_with_typed_errors_only(file: Path) -> None:
    exercise(file.read_bytes())


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=300))
def test_any_bytes_are_answered_with_typed_errors_only(data: bytes) -> None:
    exercise(data)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["blockdev-add", "transaction", "block-export-add", "blockdev-create"]), JSON)
def test_any_arguments_are_answered_with_typed_errors_only(command: str, arguments: object) -> None:
    ends = exercise(json.dumps({"execute": command, "arguments": arguments}).encode())
    assert "accepted" not in ends


def test_damaged_requests_reach_every_end_in_bounded_memory() -> None:
    generator = random.Random(7)
    pool = seeds()
    ends: set[str] = set()
    tracemalloc.start()
    try:
        for _ in range(1000):
            data = bytearray(generator.choice(pool))
            for _ in range(generator.randrange(3)):
                data[generator.randrange(len(data))] = generator.randrange(256)
            ends |= exercise(bytes(data))
        assert tracemalloc.get_traced_memory()[1] < MEMORY_MAX
    finally:
        tracemalloc.stop()
    assert {"accepted", "GenericError", "CommandNotFound"} <= ends
