"""The fuzzer's targets without the fuzzer: all seeds, what was found once, and bytes that hypothesis thinks of."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import CORPUS, SEED_MAX, TARGETS, Target, list_seeds

EXAMPLES = 150


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_findings(name: str) -> None:
    seeds = list_seeds(name)
    assert seeds, "each target has a corpus"
    for seed in seeds:
        data = seed.read_bytes()
        assert len(data) <= SEED_MAX
        TARGETS[name](data)


def test_each_corpus_has_a_target() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == TARGETS.keys()


@st.composite
def mutations(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Return a seed with a piece of it replaced."""
    seed = draw(st.sampled_from(seeds))
    at = draw(st.integers(0, len(seed)))
    return seed[:at] + draw(st.binary(max_size=12)) + seed[at + draw(st.integers(0, 12)) :]


@pytest.mark.parametrize(("name", "target"), TARGETS.items(), ids=list(TARGETS))
def test_any_bytes(name: str, target: Target) -> None:
    seeds = [seed.read_bytes() for seed in list_seeds(name)]

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(st.binary(max_size=120), mutations(seeds)))
    def run(data: bytes) -> None:
        target(data)

    run()
