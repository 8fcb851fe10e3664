"""What an evaluation found, as tables and lines for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from newllm.reporting.formatting import number, percent


def print_evaluation(found: Mapping[str, Any], sees_the_future: bool, console: Console) -> None:
    """All of it, as `newllm.training.evaluation` returns it."""
    if sees_the_future:
        void = "void: the model saw the future; these are not language-model losses"
        console.print(void, style="bold red")
    if "metrics" in found:
        console.print(_metrics_table(found["metrics"]))
        return
    console.print(_split_table(found["splits"]))
    kl = found["splits"]["validation"]["kl"]
    if kl is not None:
        console.print(f"KL divergence from the grammar (validation): {kl:.4f} nats per token")
    if "ablations" in found:
        console.print()
        console.print(_ablation_table(found["ablations"]))
        console.print()
        console.print("\n".join(_dynamics_lines(found["dynamics"])))


def _metrics_table(metrics: Mapping[str, Mapping[str, float]]) -> Table:
    """The metrics of each split."""
    names = list(dict.fromkeys(name for row in metrics.values() for name in row))
    table = Table("split", *names, box=None)
    for split, row in metrics.items():
        table.add_row(split, *(number(row.get(name)) for name in names))
    return table


def _split_table(splits: Mapping[str, Any]) -> Table:
    """The loss of each split beside its references."""
    table = Table(box=None)
    names = list(dict.fromkeys(name for row in splits.values() for name in row["references"]))
    table.add_column("nats per token")
    for split in splits:
        table.add_column(split, justify="right")
    for name in names:
        losses = (row["references"].get(name) for row in splits.values())
        table.add_row(name.replace("_", " "), *(number(loss) for loss in losses))
    table.add_row("this model", *(number(row["loss"]) for row in splits.values()), style="bold")
    table.add_row("gap closed", *(percent(row["gap_closed"]) for row in splits.values()))
    return table


def _ablation_table(ablations: Mapping[str, Any]) -> Table:
    """What the context is worth."""
    intact = ablations["loss"]
    table = Table(box=None)
    for heading in ("context", "loss", "worse by"):
        table.add_column(heading, justify="left" if heading == "context" else "right")
    table.add_row("as it is", number(intact), "")
    rows = {"always zero": "zeroed", "of another sentence": "shuffled"}
    for name, key in rows.items():
        if ablations[key] is None:
            continue
        table.add_row(name, number(ablations[key]), number(ablations[key] - intact))
    for frozen in ablations["frozen"]:
        name = f"frozen after {frozen['after']} tokens (loss of later tokens)"
        worse = frozen["loss"] - frozen["loss_intact"]
        table.add_row(name, number(frozen["loss"]), number(worse))
    return table


def _dynamics_lines(found: Mapping[str, Any]) -> list[str]:
    """What the context does over time, in words."""
    low, high = found["singular_value_range"]
    norms = found["gradient_norms"]
    reach = f", {len(norms) - 1} tokens before: {norms[-1]:.5f}" if len(norms) > 1 else ""
    return [
        f"effective rank of the contexts: {found['effective_rank']:.1f} of {found['context_dim']}",
        f"largest singular value of d context_t / d context_(t-1): {found['singular_value']:.3f} "
        f"({low:.3f} to {high:.3f})",
        f"largest Lyapunov exponent, over a sentence: {found['lyapunov_exponent']:+.3f} nats per "
        "token",
        f"norm of d loss / d context, one step before: {norms[0]:.4f}{reach}",
    ]
