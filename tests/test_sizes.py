"""Widths that follow from what a model may cost."""

from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import Compose
from small_models import rnn_model, transformer

from newllm.config.budget import following
from newllm.config.build import ConfigFault, instantiate
from newllm.config.composed import composed_faults
from newllm.config.settling import settled
from newllm.config.study_file import sweeper_of, variants_of
from newllm.config.trials import draw_trials
from newllm.models.sizes import Budget, nearest_width, num_parameters
from newllm.runs.identity import config_hash
from newllm.training.experiment import build_experiment

FAIR = variants_of("fair")
TRIALS = draw_trials(**sweeper_of("fair")["trials"])


@pytest.mark.parametrize("target", [1, 9, 10, 13, 14, 100, 2500])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_nearest_width_is_the_nearest(target: int, step: int) -> None:
    if target < step**2 / 2:
        with pytest.raises(ValueError, match=r"budget\.x=\d+: even the narrowest"):
            nearest_width(lambda width: width**2, target, step, "budget.x")
        return
    nearest = nearest_width(lambda width: width**2, target, step, "budget.x")
    every = range(step, 200, step)
    assert nearest == min(every, key=lambda width: abs(width**2 - target))


def test_no_width_reaches_what_does_not_grow() -> None:
    with pytest.raises(ValueError, match=r"budget\.parameters=100: no width"):
        nearest_width(lambda width: 7, 100, 1, "budget.parameters")


def test_multiples_and_steps() -> None:
    build = partial(transformer, 256, num_layers=2, num_heads=4)
    sizes = Budget(200_000, {"embedding_dim": 1, "feedforward_dim": 4}, step=4).sizes(build)
    assert sizes["feedforward_dim"] == 4 * sizes["embedding_dim"]
    assert sizes["embedding_dim"] % 4 == 0
    assert sum(weight.numel() for weight in build(**sizes).parameters()) == pytest.approx(2e5, 0.04)


def test_the_state_is_decided_first() -> None:
    build = partial(rnn_model, 256)
    budget = Budget(
        200_000, {"embedding_dim": 1, "hidden_dim": 1}, state_bytes=512,
        state_widths={"hidden_dim": 1},
    )  # fmt: skip
    sizes = budget.sizes(build)
    model = build(**sizes)
    assert model.state_bytes(1) == 512
    assert sizes["hidden_dim"] == 32
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(2e5, 0.01)


def test_a_budget_that_no_size_follows_from() -> None:
    with pytest.raises(
        ValueError, match=r"parameters: set the sizes .* budget\.widths\.hidden_dim=1"
    ):
        Budget(200_000).sizes(partial(rnn_model, 256))
    with pytest.raises(
        ValueError, match=r"budget\.state_bytes: .* budget\.state_widths\.hidden_dim=1"
    ):
        Budget(200_000, {"hidden_dim": 1}, state_bytes=64).sizes(partial(rnn_model, 256))
    both = {"hidden_dim": 1}  # the state decides on it, and leaves nothing to the parameters
    with pytest.raises(ValueError, match=r"budget\.parameters: set the sizes"):
        Budget(200_000, both, 512, both).sizes(partial(rnn_model, 256))


def test_nothing_asked_nothing_decided() -> None:
    assert Budget(widths={"hidden_dim": 1}).sizes(partial(rnn_model, 256)) == {}


@pytest.mark.parametrize("trial", TRIALS[:3], ids=("1 layer", "4 layers", "2 layers"))
@pytest.mark.parametrize("variant", FAIR)
def test_fair_models_cost_the_same(compose_config: Compose, variant: str, trial: list[str]) -> None:
    config = compose_config(*FAIR[variant], *trial)
    build = partial(instantiate, config.model, vocabulary_size=256)
    budget = instantiate(config.budget)
    model = build(**budget.sizes(build))
    parameters = sum(weight.numel() for weight in model.parameters())
    assert parameters == pytest.approx(7e5 if variant.endswith("700k") else 2e5, rel=0.05)
    if variant.endswith("state"):
        assert model.state_bytes(1) == 512


def test_what_was_filled_in_leaves_it_the_same_run(compose_config: Compose, tmp_path: Path) -> None:
    config = compose_config(*FAIR["lstm_state"], *TRIALS[2])
    built = build_experiment(config, tmp_path)
    assert built.config.model.hidden_dim == 32
    assert built.config.model.num_layers == config.model.num_layers == 2
    assert config_hash(built.config) == config_hash(config)


def test_a_budget_for_sizes_that_a_model_lacks(compose_config: Compose, tmp_path: Path) -> None:
    config = compose_config(*FAIR["lstm_200k"], "model=transformer")
    with pytest.raises(ConfigFault, match="budget: the chosen model has no hidden_dim"):
        build_experiment(config, tmp_path)


def test_what_a_budget_decides_cannot_be_chosen(compose_config: Compose) -> None:
    overrides = [*FAIR["lstm_200k"], "model.hidden_dim=8", "model.num_layers=2"]
    fault = "model.hidden_dim=8: is determined by budget.parameters=200000; remove one of the two"
    assert composed_faults(compose_config(*overrides), overrides) == [fault]
    # What a variant sets for its budget may stand there without one.
    made = ("study=fair", *FAIR["lstm_200k"], "variant=lstm_200k")
    overrides = [*made, "model.hidden_dim=8", "budget.parameters=null"]
    assert composed_faults(compose_config(*overrides), overrides) == []


def test_budgets_make_different_runs(compose_config: Compose) -> None:
    hashes = {
        config_hash(compose_config(*FAIR["lstm_200k"], *overrides))
        for overrides in ((), ("budget.parameters=300000",), ("budget.step=8",), ("test=false",))
    }
    assert len(hashes) == 4


def test_a_budget_that_is_missed_is_told(compose_config: Compose, tmp_path: Path) -> None:
    gates = {
        number: build_experiment(
            compose_config(*FAIR["gru_200k"], f"budget.parameters={number}"), tmp_path
        ).preflight
        for number in (100_000, 200_000)
    }
    assert gates[200_000].missed_budget == ()
    (line,) = gates[100_000].missed_budget
    assert line.startswith("budget.parameters=100000: the closest model has 96,856 (-3.1%)")
    assert line in list(gates[100_000].warnings())


def test_widths_can_be_named_and_dropped(compose_config: Compose) -> None:
    build = partial(rnn_model, 256)
    config = compose_config("budget.parameters=200000", "budget.widths={hidden_dim:2}")
    assert set(instantiate(config.budget).sizes(build)) == {"hidden_dim"}
    config = compose_config(*FAIR["lstm_200k"], "budget.widths.embedding_dim=null")
    assert set(instantiate(config.budget).sizes(build)) == {"hidden_dim"}


@pytest.mark.parametrize(
    ("overrides", "widths"),
    [
        (("model=gated",), {"embedding_dim": 0.5, "context_dim": 1, "hidden_dim": 1}),
        (("model=transformer",), {"embedding_dim": 0.25, "feedforward_dim": 1}),
        (("model=delta",), {"embedding_dim": 0.5, "context_dim": 0.25, "hidden_dim": 1}),
        (("model=gated", "model.embedding_dim=32"), {"context_dim": 1, "hidden_dim": 1}),
        (
            ("budget.state_bytes=512", "budget.state_widths.context_dim=1"),
            {"embedding_dim": 0.5, "hidden_dim": 1},
        ),
        (("model=gated", "budget.widths.hidden_dim=3"), {"hidden_dim": 3}),
    ],
)
def test_a_budget_without_widths_keeps_the_proportions_of_the_model(
    compose_config: Compose, overrides: tuple[str, ...], widths: dict[str, float]
) -> None:
    overrides = (*overrides, "budget.parameters=200000", "budget.step=4", "countermeasure=none")
    assert composed_faults(compose_config(*overrides), overrides) == []
    config = settled(compose_config(*overrides), overrides)
    assert following(config.budget.widths) == widths
    config.model.vocabulary_size = 256
    sizes = instantiate(config.budget).sizes(partial(instantiate, config.model, ()))
    widest = max(widths, key=lambda name: widths[name])
    for name, each in widths.items():
        assert sizes[name] == pytest.approx(each * sizes[widest] / widths[widest], abs=2)
        assert sizes[name] % 4 == 0


def test_a_width_that_follows_from_a_budget_cannot_be_chosen(compose_config: Compose) -> None:
    overrides = ("budget.parameters=200000", "model.hidden_dim=64", "budget.widths.hidden_dim=1")
    (fault,) = composed_faults(compose_config(*overrides), overrides)
    assert fault.startswith("model.hidden_dim=64: is determined by budget.parameters=200000")


@pytest.mark.parametrize("model", ["gated", "context", "transformer", "lstm", "gru", "mingru"])
@pytest.mark.parametrize(
    ("scale", "parameters"), [("10m", 10e6), ("30m", 30e6), ("100m", 100e6), ("300m", 300e6)]
)
def test_a_scale_sets_the_widths_of_any_model(
    compose_config: Compose, model: str, scale: str, parameters: float
) -> None:
    overrides = (f"model={model}", f"scale={scale}", "countermeasure=none")
    config = settled(compose_config(*overrides), overrides)
    assert composed_faults(compose_config(*overrides), overrides) == []
    assert config.recipe.name == "scaled"
    config.model.vocabulary_size = 1000
    build = partial(instantiate, config.model, ())
    sizes = instantiate(config.budget).sizes(build)
    with torch.device("meta"):
        built = build(**sizes)
    assert num_parameters(built) == pytest.approx(parameters, rel=0.15)
    if model == "transformer":
        assert sizes["feedforward_dim"] == 4 * sizes["embedding_dim"]
        assert built.layers[0].num_heads == sizes["embedding_dim"] // 64


def test_what_is_chosen_beside_a_scale_wins(compose_config: Compose) -> None:
    overrides = ("scale=10m", "recipe=modern", "budget.parameters=1000000", "experiment=modern")
    config = settled(compose_config(*overrides), overrides)
    assert (config.recipe.name, config.budget.parameters) == ("modern", 1_000_000)
    assert config.model.num_layers == 3
    unknown = ("scale=10m", "budget.widths.feedforward_dim=2")
    config = settled(compose_config(*unknown), unknown)
    assert config.budget.widths.feedforward_dim == 2  # a fault that is told
