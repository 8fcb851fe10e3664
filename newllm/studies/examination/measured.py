"""What is measured of a model itself: the contract of its layers, times, and the size of its state.

The model is that of the text, and the baselines have as many parameters. Times are taken side by
side, in turns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from newllm.benchmarks.decoders import build
from newllm.benchmarks.timing import side_by_side
from newllm.benchmarks.workloads import Trainee
from newllm.data.tokenizer import Tokenizer
from newllm.models.contract import check_cell, check_gradients, check_layer
from newllm.models.generation import launch
from newllm.models.language_model import LanguageModel
from newllm.models.quantization import Quantized
from newllm.models.recurrence.reference import Reference
from newllm.models.recurrent import Recurrent
from newllm.models.sampling import Continuation
from newllm.models.sizes import num_parameters
from newllm.runs.directory import load_run
from newllm.studies.examination.results import BASELINES

ROWS, TOKENS = 16, 64  # of a training batch
NUM_ROUNDS = 7
GENERATED = 100  # tokens
LENGTHS = (1, 2048, 131_072)  # tokens after which the state is measured
MODEL, PLAIN_LOOP = "model", "plain loop"
DECODERS = {"lstm": "LSTM", "transformer": "Transformer, KV cache"}  # as `build` names them


@dataclass(frozen=True)
class Measured:
    """The measurements of a model.

    Attributes:
        parameters: of the model.
        broken: what its layers break of their contract, a line each.
        step_ms: milliseconds of a training step of `ROWS` rows of `TOKENS` tokens, by name.
        step_ratios: how many times as long as the model each takes.
        tokens_per_second: of generating one text, by name.
        state_bytes: of one text, after `LENGTHS` tokens.
        sees_the_future: so that its losses are not those of a language model.
    """

    parameters: int
    broken: Sequence[str]
    step_ms: dict[str, float]
    step_ratios: dict[str, float]
    tokens_per_second: dict[str, float]
    state_bytes: Sequence[int]
    sees_the_future: bool = False

    @property
    def record(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def measure(folder: Path, trusted_packages: Sequence[str] = ()) -> Measured:
    """Measure the model of a run on text.

    Raises:
        ValueError: the run cannot be loaded.
    """
    run = load_run(folder, trusted_packages)
    parameters = num_parameters(run.model)
    others = {BASELINES[key]: build(name, parameters) for key, name in DECODERS.items()}
    steps = side_by_side(_steps(run.model, others), NUM_ROUNDS)
    own_seconds = steps[MODEL].seconds
    return Measured(
        parameters,
        broken(run.model),
        {name: 1000 * timing.seconds for name, timing in steps.items()},
        {name: timing.seconds / own_seconds for name, timing in steps.items()},
        _rates(run.model, others, run.tokenizer),
        [run.model.state_bytes(length) for length in LENGTHS],
        run.model.sees_the_future,
    )


def broken(model: LanguageModel) -> list[str]:
    """What the layers of a model break of their contract, a line each.

    A layer that rounds its state has other gradients than its finite differences, so it is not
    asked for these.
    """
    faults = []
    for layer in model.parts:
        checks: list[Callable[[], None]] = [partial(check_layer, layer)]
        if not any(isinstance(module, Quantized) for module in layer.modules()):
            checks.append(partial(check_gradients, layer))
        if isinstance(layer, Recurrent):
            checks.append(partial(check_cell, layer.cell))
        for check in checks:
            try:
                check()
            except Exception as error:  # of a user's own code
                faults.append(str(error).strip().partition("\n")[0] or type(error).__name__)
    return faults


def _steps(model: LanguageModel, others: dict[str, LanguageModel]) -> dict[str, Callable[[], None]]:
    """A training step of the model, of its plain loop if it has another one, and of the others."""
    models = {MODEL: copy.deepcopy(model)}
    if any(not isinstance(layer.recurrence, Reference) for layer in model.recurrent_layers):
        models[PLAIN_LOOP] = copy.deepcopy(model)
        for layer in models[PLAIN_LOOP].recurrent_layers:
            layer.recurrence = Reference()
    return {name: Trainee(each).step(ROWS, TOKENS) for name, each in (models | others).items()}


def _rates(
    model: LanguageModel, others: dict[str, LanguageModel], tokenizer: Tokenizer | None
) -> dict[str, float]:
    """Tokens per second of generating one text."""
    if tokenizer is None or model.sees_the_future:
        return {}
    launch.prepare()
    models = {MODEL: model, **others}
    actions = {
        name: partial(_generate, each.eval(), tokenizer)
        for name, each in models.items()
        if each.vocabulary_size == model.vocabulary_size
    }
    timings = side_by_side(actions, NUM_ROUNDS, 1)
    return {name: GENERATED / timing.seconds for name, timing in timings.items()}


@torch.inference_mode()
def _generate(model: LanguageModel, tokenizer: Tokenizer) -> None:
    for _ in islice(Continuation(model, tokenizer, is_endless=True), GENERATED):
        pass
