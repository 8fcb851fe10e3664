"""Command lines drawn at random: a line for each fault, and never another end."""

import random
from pathlib import Path

import pytest
from conftest import faults_of
from drawn_lines import draw_line

CHUNKS = 6
PER_CHUNK = 10

# What earlier drawings found: each of them ended in a traceback.
FOUND = [
    ["+data.order_seed=glob(nope*)"],
    ["hydra.mode=${oc.env:NOSUCH}"],
    ["callbacks.context._target_=\\${evil}"],
    ["optimizer._target_=${seed}"],
    ["model._target_=${nope}", "model.context_clip=null"],
    ["-m", "seed=range(3,1)"],
    ["-m", "hydra.sweeper.params=3"],
]


@pytest.mark.parametrize("words", FOUND, ids=" ".join)
def test_what_was_found_is_told_in_a_line(words: list[str]) -> None:
    assert faults_of(words)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_any_line_has_faults_of_one_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(chunk * PER_CHUNK, (chunk + 1) * PER_CHUNK):
        words = draw_line(random.Random(number))
        for fault in faults_of(words):
            assert len(fault.splitlines()) == 1, (words, fault)
        assert not any(tmp_path.iterdir()), words
