"""What a run prints: the banner before its first step and the results after its last."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from newllm.config.arguments import program
from newllm.data.source import TEST
from newllm.models.sizes import num_parameters
from newllm.reporting.formatting import in_bits_per_byte, percent
from newllm.statistics.references import gap_closed
from newllm.training.experiment import Experiment
from newllm.training.metrics import perplexity


def print_banner(experiment: Experiment) -> None:
    """Print what is about to run."""
    model, config, source = experiment.model, experiment.config, experiment.source
    empty, full = model.state_bytes(1), model.state_bytes(source.max_length)
    growing = "" if empty == full else f" after {source.max_length} tokens, and growing"
    bits = model.state_bits(source.max_length)
    size = f"{full:,} bytes" if bits == 8 * full else f"{bits:g} bits"
    state = f"{size} of state{growing}"
    budget = config.get("max_tokens")
    tokens = "" if budget is None else f", about {budget:,.0f} tokens"
    lines = {
        "run": experiment.name,
        "model": f"{model.description}: {num_parameters(model):,} parameters, {state}",
        "recipe": f"{config.recipe.name}: {experiment.preflight.num_steps:,} steps planned{tokens}",
        "countermeasures": ", ".join(config.countermeasures) or "none",
        "data": source.summary(),
    }
    if left_out := config.get("left_out"):
        reason = "set by the experiment, but not accepted by the chosen model"
        lines["left out"] = f"{', '.join(left_out)} ({reason})"
    console = Console(highlight=False, soft_wrap=True)
    for label, text in lines.items():
        console.print(f"[bold]{label:<16}[/]", Text(text), sep="")
    warnings, trainer = list(experiment.preflight.warnings()), experiment.trainer
    if trainer.precision == "bf16-mixed" and trainer.strategy.root_device.type == "cpu":
        warnings.append(
            "trainer.precision=bf16-mixed is up to ten times slower than 32-true on a CPU, where "
            "the recurrence's native code is for float32 and float64"
        )
    for warning in warnings:
        console.print("[bold red]warning:[/]", Text(warning))


def print_result(result: Mapping[str, Any], experiment: Experiment, folder: Path) -> None:
    """Print the results with their references, and what to do next."""
    references = dict(experiment.references.means)
    best = result["best_val_loss"]
    this_run = f"this run (epoch {result['best_epoch']})"
    table = Table(box=None)
    headings = ["validation", "loss (nats per token)", "perplexity", "gap closed"]
    if experiment.references.num_bytes:
        headings[-1] = "bits per byte"  # a text has no oracle
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "validation" else "right")
    losses = references | {this_run: best}
    for name in sorted(losses, key=losses.__getitem__, reverse=True):
        closed = gap_closed(losses[name], references)
        bits = experiment.references.bits_per_byte(losses[name])
        last = f"{bits:.4f}" if bits is not None else "" if closed is None else percent(closed)
        table.add_row(
            name.replace("_", " "),
            f"{losses[name]:.4f}",
            f"{perplexity(losses[name]):.2f}",
            last,
            style="bold" if name == this_run else None,
        )
    console = Console(highlight=False, soft_wrap=True)
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
    for name, found in (result.get("bits_per_byte") or {}).items():
        num, unit = found["num_sequences"], experiment.source.unit
        over = f" (95 % interval over {num:,} {unit})" if num > 1 else ""
        console.print(f"{name}, at the best epoch: {in_bits_per_byte(found)} bits per byte{over}")
    if result["val_kl"] is not None:
        console.print(
            "expected excess over the grammar, whatever words were drawn (KL): "
            f"{result['val_kl']:.4f} nats per token"
        )
    if result["sees_the_future"]:
        console.print("[bold red]void:[/] it saw the future; these are not language-model losses")
    elif best > references.get("bigram", math.inf):
        advice = "experiment=modern" if "corpus" in experiment.config.data else "recipe=modern"
        if experiment.config.recipe.name == "modern":
            advice = "a larger model or more epochs"
        console.print(f"[yellow]worse than bigram counts[/]; try {advice}")
    console.print(f"took {result['seconds']:.0f} s; the run is in {folder}")
    if experiment.trainer.loggers:
        console.print(f"to view its curves: {program('python')} -m newllm.board {folder}")
