"""Every target with the corpus, and with a few changes of it; `make fuzz` looks further."""

from __future__ import annotations

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.support.examples import examples

from .every import EVERY
from .target import CORPUS, Target

CORPUS_MAX = 300 << 10

CHANGES = st.lists(
    st.tuples(st.integers(0, 1 << 12), st.integers(0, 8), st.binary(max_size=8)), max_size=6
)


def changed(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """Replace `size` bytes at each place by others; a place is meant modulo the length."""
    for place, size, piece in changes:
        at = place % (len(data) + 1)
        data = data[:at] + piece + data[at + size :]
    return data


@pytest.fixture(params=EVERY)
def target(request: pytest.FixtureRequest) -> Target:
    return EVERY[request.param]


def test_recorded_inputs_and_mended_crashes(target: Target) -> None:
    assert target.corpus
    for file in target.corpus:
        target(file.read_bytes())


def test_changed_inputs(target: Target) -> None:
    seeds = [b"", *(file.read_bytes() for file in target.corpus)]

    @settings(max_examples=examples(40), phases=(Phase.generate, Phase.shrink), database=None)
    @given(seed=st.sampled_from(seeds), changes=CHANGES)
    def run(seed: bytes, changes: list[tuple[int, int, bytes]]) -> None:
        target(changed(seed, changes))

    run()


def test_the_corpus_is_small() -> None:
    files = [file for file in CORPUS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < CORPUS_MAX
    assert {file.parent.name for file in files} == set(EVERY)
