"""Capacity: the floor against all small contexts, and the report's part of it.

Shape suffixes: S states, K symbols, N states after a symbol, C contexts.
"""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import strict_translator
from records import record

from newllm.config.study_file import variants_of
from newllm.data.sources.hidden_markov import drawn_machine
from newllm.data.sources.processes import Machine
from newllm.reporting.page import Page
from newllm.reporting.translation import LANGUAGES
from newllm.runs.gathering import Run, gather, pack
from newllm.studies import found_studies
from newllm.studies.capacity.floor import floor, smallest_context
from newllm.studies.capacity.results import (
    MEMORIES,
    NO_CONTEXT,
    SOURCES,
    TWO_HEADS,
    capacities,
    made_for,
    own_runs,
)


def best_loss(machine: Machine, next_CK: np.ndarray) -> float:
    """H(next symbol | symbol, context) if the context follows a table, by the joint chain."""
    num_contexts, joint_SKN = len(next_CK), machine.joint_SKN
    # Of a symbol that was read, the state after it and the context before it.
    p_KNC = np.full((*joint_SKN.shape[1:], num_contexts), 1 / joint_SKN[0].size / num_contexts)
    mean_KNC = np.zeros_like(p_KNC)
    for _ in range(2000):
        after_NC = np.zeros(p_KNC.shape[1:])
        for symbol, context in np.ndindex(joint_SKN.shape[1], num_contexts):
            after_NC[:, next_CK[context, symbol]] += p_KNC[symbol, :, context]
        p_KNC = np.einsum("sc,skn->knc", after_NC, joint_SKN)
        mean_KNC += p_KNC / 2000
    p_CKX = np.einsum("knc,nxm->ckx", mean_KNC, joint_SKN)
    p_CK = p_CKX.sum(-1, keepdims=True)
    ratio = np.divide(p_CKX, p_CK, out=np.ones_like(p_CKX), where=p_CKX > 0)
    return float(-(p_CKX * np.log(ratio)).sum())


EVEN = np.array([[[0.5, 0.0], [0.0, 0.5]], [[0.0, 0.0], [1.0, 0.0]]])


@pytest.mark.parametrize("joint_SKN", [EVEN, drawn_machine(4, 2, 0.2, True, 2)])
def test_no_context_of_a_bit_is_below_the_floor(joint_SKN: np.ndarray) -> None:
    machine = Machine(joint_SKN)
    losses, entropy_rate = machine.windows
    tables = itertools.product(range(2), repeat=4)
    found = [best_loss(machine, np.array(table).reshape(2, 2)) for table in tables]
    lowest = floor(1, losses, entropy_rate)
    assert max(found) == pytest.approx(losses[0], abs=1e-3)  # of a context that says nothing
    assert lowest - 1e-3 < min(found) < losses[0] - 0.1


def test_without_bits_the_floor_is_the_window_of_one_symbol() -> None:
    losses, entropy_rate = Machine(drawn_machine(4, 3, 0.1, False, 1)).windows
    assert floor(0, losses, entropy_rate) == losses[0]
    assert floor(math.inf, losses, entropy_rate) == entropy_rate


@pytest.mark.parametrize("bits", [0.1, 0.5, 1, 2, 3])
def test_the_smallest_context_is_the_inverse_of_the_floor(bits: float) -> None:
    losses, entropy_rate = (2.0, 1.9, 1.0, 0.5, 0.45), 0.44
    assert smallest_context(floor(bits, losses, entropy_rate), losses) == pytest.approx(bits)
    information = sum(loss - entropy_rate for loss in losses) / math.log(2)
    assert smallest_context(entropy_rate, losses) == pytest.approx(information)
    assert floor(information + 1e-9, losses, entropy_rate) == entropy_rate


H = {"window_1": 2.0, "window_2": 1.0, "entropy_rate": 1.0}
ORACLE = 1.02


def make_run(variant: str, bits: int, loss: float, seed: int = 1, **choices: str) -> Run:
    beside = [f"{key}={value}" for key, value in choices.items()]
    made = record(
        variant, *beside, f"model.context_dim={max(1, bits)}", study="capacity", seed=seed
    )
    name = " ".join(made["overrides"])
    result = {
        "status": "done", **made, "best_val_loss": loss, "best_epoch": 3, "epochs": 3,
        "test_loss": loss + 0.003, "oracle_loss": ORACLE, "test_oracle_loss": ORACLE + 0.003,
        "entropy_floor": ORACLE, "references": {"guess": 2.5, **H}, "state_bits": bits,
        "parameters": 5000, "corpus": "delayed_copy", "state_bytes": 4, "name": "quantized",
        "threads": 1, "config_hash": name,
    }  # fmt: skip
    return Run(f"runs/{name}", result)


RUNS = [
    *(make_run(f"copy_1{NO_CONTEXT}", 0, 2.0 + 0.01 * seed, seed) for seed in (1, 2)),
    *(make_run("copy_1", 1, loss, seed) for seed, loss in enumerate((1.30, 1.34), 1)),
    *(make_run("copy_1", 2, loss, seed) for seed, loss in enumerate((1.03, 1.05), 1)),
    make_run("even", 2, 1.9),
    make_run("matrix_even", 4, 1.05),
    make_run(f"matrix_even{TWO_HEADS}", 2, 1.9),
]


def test_losses_are_compared_on_the_same_rows() -> None:
    copy, even = capacities(RUNS)
    assert (copy.source, even.source) == ("copy_1", "even")
    assert copy.losses == {
        0: pytest.approx([2.01, 2.02]), 1: pytest.approx([1.30, 1.34]),
        2: pytest.approx([1.03, 1.05]),
    }  # fmt: skip
    assert copy.predicted == pytest.approx(1 / math.log(2))
    assert copy.near_oracle == pytest.approx(1.02 + 0.05 * 0.98)
    assert copy.needed == pytest.approx((2.0 - copy.near_oracle) / math.log(2))
    assert copy.measured == 2
    assert even.measured is None
    assert copy.below_floor == []
    assert copy.floor(1) == pytest.approx(2 - math.log(2))
    assert copy.floor(9) == ORACLE
    (matrix,) = capacities(RUNS, MEMORIES)
    assert (matrix.source, matrix.memory, matrix.measured) == ("even", "matrix", 4)
    assert matrix.losses.keys() == {2, 4}


def test_a_loss_below_the_floor_is_told() -> None:
    (copy,) = capacities([make_run("copy_1", 1, 1.2, seed) for seed in (1, 2)])
    assert copy.below_floor == [1]


def test_other_runs_are_none_of_it() -> None:
    changed = make_run("copy_1", 2, 0.5, **{"model.hidden_dim": "9"})
    assert own_runs([changed, *RUNS]) == RUNS


def test_every_source_has_its_variants() -> None:
    plain = {*SOURCES, *(f"{name}{NO_CONTEXT}" for name in SOURCES)}
    assert {*variants_of("capacity")} >= plain
    others = {made_for(make_run(name, 1, 1.0)) for name in {*variants_of("capacity")} - plain}
    assert others == {*itertools.product(("copy_3", "even", "drawn2"), MEMORIES)}


@pytest.mark.usefixtures("every_word")
@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_report_shows_it(tmp_path: Path, lang: str) -> None:
    pack(RUNS, tmp_path / "capacity.json.gz")
    runs = gather([tmp_path / "capacity.json.gz"])
    page = Page(runs, found_studies(), lang=lang).compose().write(tmp_path).read_text()
    _ = strict_translator(lang)
    assert _("How few bits a context may have") in page
    assert _(SOURCES["even"]) in page
    assert f"{2 * math.log(2):.2f}" in page  # measured / predicted
    assert (tmp_path / "capacity.png").stat().st_size > 10_000
