"""Clients that say anything: whatever the bytes, only typed errors, in bounded memory."""

import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.nbd_requests import exercise

CORPUS = Path(__file__).parent / "corpus" / "nbd_server"
MEMORY_MAX = 100 << 20
"""Three payloads of the greatest length."""


def test_the_corpus_is_there_and_small() -> None:
    files = list(CORPUS.iterdir())
    assert files
    assert sum(file.stat().st_size for file in files) < 64 << 10


@pytest.mark.parametrize("file", sorted(CORPUS.iterdir()), ids=lambda file: file.name)
def test_the_corpus_is_answered_with_typed_errors_only(file: Path) -> None:
    exercise(file.read_bytes())


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(min_size=8, max_size=300))
def test_any_client_is_answered_with_typed_errors_only(data: bytes) -> None:
    exercise(data)


def test_clients_reach_every_depth_in_bounded_memory() -> None:
    generator = random.Random(5)
    tracemalloc.start()
    try:
        ends = {exercise(generator.randbytes(generator.randrange(1, 120))) for _ in range(400)}
        assert tracemalloc.get_traced_memory()[1] < MEMORY_MAX
    finally:
        tracemalloc.stop()
    assert {"transmission", "handshake", "ended", "served", "left", "PeerError"} <= ends
