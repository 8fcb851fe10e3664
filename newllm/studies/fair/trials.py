"""The search that every model of the fair comparison gets: the same trials, drawn once.

`python -m newllm.studies.fair.trials` writes them to `conf/trial`, and `sweep=fair` runs them.
Trials are independent draws, so that any of them could have come first: what a search of fewer
trials would have found follows exactly (Dodge et al. 2019, "Show Your Work").
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from newllm.config.composing import conf_directory

NUM_TRIALS, SEED = 16, 2026
# Ranges are uniform, or uniform in the logarithm; layers are one of a few.
LAYERS = (1, 2, 4)
LOGARITHMIC = {"optimizer.lr": (5e-4, 8e-3), "optimizer.weight_decay": (1e-2, 1.0)}
UNIFORM = {
    "recipe.dropout": (0.0, 0.4),
    "recipe.embedding_dropout": (0.0, 0.7),
    "recipe.output_dropout": (0.0, 0.7),
}


def draw_trials(number: int = NUM_TRIALS, seed: int = SEED) -> list[dict[str, Any]]:
    """Values by their keys, numbers to three digits."""
    generator = random.Random(seed)
    trials = []
    for _ in range(number):
        trial: dict[str, Any] = {"model.num_layers": generator.choice(LAYERS)}
        for key, (low, high) in LOGARITHMIC.items():
            trial[key] = math.exp(generator.uniform(math.log(low), math.log(high)))
        for key, (low, high) in UNIFORM.items():
            trial[key] = generator.uniform(low, high)
        trials.append(
            {k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in trial.items()}
        )
    return trials


def trial_file(trial: dict[str, Any]) -> str:
    """A trial as an option of the group `trial`."""
    content = OmegaConf.create()
    for key, value in trial.items():
        OmegaConf.update(content, key, value)
    header = "# @package _global_\n# Drawn by newllm.studies.fair.trials.\n"
    return header + OmegaConf.to_yaml(content)


def expected_best(losses: Sequence[float]) -> list[float]:
    """The mean of the best loss of 1, 2, ... of these trials, drawn without replacement."""
    ordered, n = sorted(losses), len(losses)
    return [
        sum(
            loss * math.comb(n - rank - 1, number - 1) / math.comb(n, number)
            for rank, loss in enumerate(ordered[: n - number + 1])  # the others are never best
        )
        for number in range(1, n + 1)
    ]


def main() -> None:
    """Write all trials."""
    for number, trial in enumerate(draw_trials(), start=1):
        (conf_directory() / "trial" / f"t{number:02}.yaml").write_text(trial_file(trial))


if __name__ == "__main__":
    main()
