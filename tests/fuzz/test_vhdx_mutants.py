"""Mutated VHDX images: whatever the bytes, only typed errors, in bounded time and memory."""

import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.direct import DirectDisk
from tests.support.mutants import SEEDS, Choices, Mutant, exercise

CORPUS = Path(__file__).parent / "corpus" / "vhdx"

MEMORY_MAX = 48 << 20


def test_every_seed_opens_before_it_is_mutated() -> None:
    for index in range(len(SEEDS)):
        DirectDisk(Mutant(Choices(bytes([index]))).file())


def test_the_corpus_is_there_and_small() -> None:
    files = list(CORPUS.iterdir())
    assert files
    assert sum(file.stat().st_size for file in files) < 64 << 10


@pytest.mark.parametrize("file", sorted(CORPUS.iterdir()), ids=lambda file: file.name)
def test_the_corpus_is_read_with_typed_errors_only(file: Path) -> None:
    exercise(file.read_bytes())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(min_size=8, max_size=200))
def test_any_mutant_is_read_with_typed_errors_only(data: bytes) -> None:
    exercise(data)


def test_mutants_reach_every_depth() -> None:
    generator = random.Random(20)
    ends = {exercise(generator.randbytes(40)) for _ in range(150)}
    assert {"opened", "CorruptImage"} <= ends


def test_mutants_cost_bounded_memory() -> None:
    generator = random.Random(4)
    exercise(generator.randbytes(60))
    tracemalloc.start()
    try:
        for _ in range(40):
            exercise(generator.randbytes(60))
        assert tracemalloc.get_traced_memory()[1] < MEMORY_MAX
    finally:
        tracemalloc.stop()
