"""Requests that the kernel never writes: whatever the bytes, a request or a typed error."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fuse_requests import SAMPLES, exercise, request

CORPUS = Path(__file__).parent / "corpus" / "fuse"


@pytest.mark.parametrize("file", sorted(CORPUS.iterdir()), ids=lambda file: file.name)
def test_the_corpus_is_read_or_refused(file: Path) -> None:
    exercise(file.read_bytes())


@settings(deadline=None)
@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_any_part_of_a_record_is_read_or_refused(name: str, data: st.DataObject) -> None:
    sample = SAMPLES[name]
    record = bytearray(sample[40 : data.draw(st.integers(40, len(sample)))])
    for at in data.draw(st.lists(st.integers(0, max(0, len(record) - 1)), max_size=4)) if record else ():
        record[at] = data.draw(st.integers(0, 255))
    exercise(request(int.from_bytes(sample[4:8], "little"), bytes(record)))


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    exercise(data)
