"""What a run says of itself: the banner before its first step and the table after its last."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from newllm.config.arguments import program
from newllm.data.source import TEST
from newllm.models.sizes import num_parameters
from newllm.statistics.references import gap_closed
from newllm.training.experiment import Experiment
from newllm.training.trainer import precision_warning


def print_banner(experiment: Experiment) -> None:
    """What is about to run, in a few lines."""
    model, config = experiment.model, experiment.config
    lines = {
        "run": experiment.name,
        "model": f"{model.description}: {num_parameters(model):,} parameters, {_state(experiment)}",
        "recipe": f"{config.recipe.name}: {experiment.preflight.num_steps:,} steps planned",
        "countermeasures": ", ".join(config.countermeasures) or "none",
        "data": experiment.source.summary(),
    }
    console = _console()
    for label, text in lines.items():
        console.print(f"[bold]{label:<16}[/]{text}")
    if left_out := config.get("left_out"):
        console.print(f"[bold]{'left out':<16}[/]", Text(_left_out(left_out)), sep="")
    slow = precision_warning(config.trainer.precision, experiment.trainer.strategy.root_device)
    for warning in [*experiment.preflight.warnings(), *([slow] if slow else [])]:
        console.print("[bold red]warning:[/]", Text(warning))


def _left_out(choices: Sequence[str]) -> str:
    """What an experiment's file says, and the model that was chosen beside it does not take."""
    return f"{', '.join(choices)} (set by the experiment, but not accepted by the chosen model)"


def _state(experiment: Experiment) -> str:
    """How much one sequence makes the model remember."""
    model, num_tokens = experiment.model, experiment.source.max_length
    one, full = model.state_bytes(1), model.state_bytes(num_tokens)
    growing = "" if one == full else f" after {num_tokens} tokens, growing with the length"
    return f"{full:,} bytes of state{growing}"


def print_result(result: Mapping[str, Any], experiment: Experiment, folder: Path) -> None:
    """The result beside its references, all on the validation split, and what to do next."""
    references = dict(experiment.references.means)
    best = result["best_val_loss"]
    losses = references | {f"this run (epoch {result['best_epoch']})": best}
    table = Table(box=None)
    for heading in ("validation", "loss (nats per token)", "perplexity", "gap closed"):
        table.add_column(heading, justify="left" if heading == "validation" else "right")
    for name, loss in sorted(losses.items(), key=lambda pair: -pair[1]):
        style = None if name in references else "bold"
        closed = gap_closed(loss, references)
        table.add_row(
            name.replace("_", " "),
            f"{loss:.4f}",
            f"{math.exp(min(loss, 700)):.2f}",
            "" if closed is None else f"{100 * closed:.1f} %",
            style=style,
        )
    console = _console()
    console.print(table)
    if (batch_mean := result["best_val_loss_batch_mean"]) is not None:
        console.print(f"by the definition of the series (val/loss_batch_mean): {batch_mean:.4f}")
    for name, metrics in (result["evaluation"] or {}).items():
        if name != TEST:
            figures = ", ".join(f"{metric} {value:.4f}" for metric, value in metrics.items())
            console.print(f"{name}, at the best epoch: {figures}")
    if result["test_loss"] is not None:
        oracle = result["test_oracle_loss"]
        beside = "" if oracle is None else f" (oracle {oracle:.4f})"
        console.print(f"test, at the best epoch: {result['test_loss']:.4f}{beside}")
    if result["val_kl"] is not None:
        console.print(f"KL divergence from the grammar: {result['val_kl']:.4f} nats per token")
    if result["sees_the_future"]:
        console.print(
            "[bold red]void:[/] the model saw the future; these are not language-model losses"
        )
    elif best > references.get("bigram", math.inf):
        console.print("[yellow]worse than bigram counts[/]; " + _next(experiment))
    console.print(f"took {result['seconds']:.0f} s; results: {folder}")
    if experiment.trainer.loggers:
        console.print(f"to see the curves: {program('python')} -m newllm.board {folder}")


def _next(experiment: Experiment) -> str:
    if experiment.config.recipe.name == "modern":
        return "try a larger model or more epochs, such as trainer.max_epochs=80"
    data = experiment.config.data
    if "corpus" not in data:
        return "try recipe=modern, or a larger model"
    path = f" data.path={data.path}" if "path" in data else ""
    corpus = "" if data.corpus == "quality500" else f" data={data.corpus}"
    return f"try: {program('python')} -m newllm.train experiment=modern{corpus}{path}"


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)
