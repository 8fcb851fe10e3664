"""Results in the terminal: variants side by side, and the evaluation of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from newllm.reporting.answer import answer
from newllm.reporting.formatting import in_bits_per_byte, number, percent
from newllm.reporting.tables import comparison, costs
from newllm.reporting.translation import translator
from newllm.statistics.comparisons import Contest
from newllm.statistics.text_score import TextScore

MOST_ROWS = 40  # groups; more of them are on the page alone
MOST_REASONS = 10
LEFT = (
    "group",
    "verdict",
    "seeds",
    "seeds to decide",
    "context",
    "nats per token",
    "bits per byte",
    "split",
)
REFERENCE_BITS = "references_bits_per_byte"
TENTHS = {  # of the rows of a task
    "accuracy": "accuracy in each tenth of the row",
    "drift": "drift in each tenth of the row: mean distance of a context to the centre of its "
    "state, divided by the mean distance between centres",
}


class _Console(Console):
    """A console that leaves a closed pipe to the command line."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console() -> Console:
    """The terminal; lines are not broken in a file or a pipe."""
    own = _Console(highlight=False, markup=False)
    if not own.is_terminal:
        own.width = 250
    return own


def print_contests(contests: Sequence[Contest], out: Console) -> None:
    """Both tables and the answer for each corpus."""
    _ = translator("en")
    for contest in contests:
        if len(contests) > 1:
            out.print(f"--- {contest.corpus}")
        if len(contest.standings) <= MOST_ROWS:
            out.print(_table(*comparison(contest, _)))
            out.print(_table(*costs(contest)))
        else:
            out.print(f"{len(contest.standings)} groups: see the page for the table")
        out.print(answer(contest, _))
        out.print()


def _table(headings: Iterable[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(box=None)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in LEFT else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def reasons(contests: Sequence[Contest]) -> Iterator[str]:
    """A line for all runs of a group that failed for the same reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for variant in (variant for contest in contests for variant in contest.variants):
        for run in variant.runs:
            if not run.is_done:
                error = str(run.result.get("error") or "no reason was recorded")
                why = f"{run.status}; {error.partition(chr(10))[0]}"
                found.setdefault((variant.label, why), []).append(str(run.result.get("seed", "-")))
    for (label, why), seeds in list(found.items())[:MOST_REASONS]:
        yield f"{label}, {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(seeds)}: {why}"
    if len(found) > MOST_REASONS:
        yield f"and {len(found) - MOST_REASONS} more groups with runs that are not done"


def print_evaluation(found: Mapping[str, Any], sees_the_future: bool, out: Console) -> None:
    """All results of `newllm.training.evaluation`."""
    if sees_the_future:
        void = "void: it saw the future; these are not language-model losses"
        out.print(void, style="bold red")
    if "metrics" in found:
        names = dict.fromkeys(name for row in found["metrics"].values() for name in row)
        rows = [
            [split, *(number(row.get(name)) for name in names)]
            for split, row in found["metrics"].items()
        ]
        out.print(_table(["split", *names], rows))
        if "tenths" in found:
            _print_tenths(found["tenths"], out)
        return
    out.print(_losses_table(found["splits"]))
    if REFERENCE_BITS in found["splits"]["validation"]:
        out.print()
        out.print(_bits_table(found["splits"]))
    kl = found["splits"]["validation"]["kl"]
    if kl is not None:
        out.print(f"expected excess over the grammar (KL, validation): {kl:.4f} nats per token")
    if "ablations" in found:
        out.print()
        out.print(_ablation_table(found["ablations"]))
        out.print()
        out.print("\n".join(_dynamics_lines(found["dynamics"])))


def print_score(score: TextScore, out: Console) -> None:
    """The loss on a text, by the distance of its targets to the start."""
    rows = [
        [f"{2**octave:,} to {2 ** (octave + 1) - 1:,}", f"{size:,}", number(loss / size)]
        for octave, (loss, size) in enumerate(zip(score.losses, score.numbers, strict=True))
    ]
    out.print(_table(["positions", "tokens", "nats per token"], rows))
    line = f"{score.num_tokens:,} tokens: {number(score.loss)} nats per token"
    if score.bits_per_byte is not None:
        line += f", {number(score.bits_per_byte)} bits per byte"
    if score.num_unknown:
        line += f"; {score.num_unknown / score.num_tokens:.1%} of them are <UNK>"
    out.print(line)


def _print_tenths(found: Mapping[str, Any], out: Console) -> None:
    """The accuracy on a task and the drift of the contexts, by position."""
    for key, title in TENTHS.items():
        rows = [
            [name, *(number(value) for value in split[key])]
            for name, split in found.items()
            if split[key]
        ]
        if rows:
            out.print(f"\n{title}")
            out.print(_table(["split", *map(str, range(1, len(rows[0])))], rows))


def _losses_table(splits: Mapping[str, Any]) -> Table:
    """The loss of each split beside its references."""
    names = dict.fromkeys(name for row in splits.values() for name in row["references"])
    references = [
        [name.replace("_", " "), *(number(row["references"].get(name)) for row in splits.values())]
        for name in names
    ]
    table = _table(["nats per token", *splits], references)
    table.add_row("this model", *(number(row["loss"]) for row in splits.values()), style="bold")
    if any(row["gap_closed"] is not None for row in splits.values()):
        table.add_row("gap closed", *(percent(row["gap_closed"]) for row in splits.values()))
    return table


def _bits_table(splits: Mapping[str, Any]) -> Table:
    """The bits per byte of each split, with its interval over sequences, beside its references."""
    names = dict.fromkeys(name for row in splits.values() for name in row[REFERENCE_BITS])
    references = [
        [
            name.replace("_", " "),
            *(number(row[REFERENCE_BITS].get(name)) for row in splits.values()),
        ]
        for name in names
    ]
    table = _table(["bits per byte", *splits], references)
    bits = [in_bits_per_byte(row["bits_per_byte"]) for row in splits.values()]
    table.add_row("this model", *bits, style="bold")
    return table


def _ablation_table(ablations: Mapping[str, Any]) -> Table:
    """Losses with the context replaced."""
    intact = ablations["loss"]
    losses = [
        ("always zero", ablations["zeroed"], intact),
        ("of another sentence", ablations["shuffled"], intact),
        *(
            (f"frozen after {f['after']} tokens (loss from there on)", f["loss"], f["loss_intact"])
            for f in ablations["frozen"]
        ),
    ]
    rows = [
        [name, number(loss), number(loss - base)] for name, loss, base in losses if loss is not None
    ]
    return _table(["context", "loss", "worse by"], [["as it is", number(intact), ""], *rows])


def _dynamics_lines(found: Mapping[str, Any]) -> list[str]:
    low, high = found["singular_value_range"]
    norms = found["gradient_norms"]
    reach = f", {len(norms) - 1} tokens before: {norms[-1]:.5f}" if len(norms) > 1 else ""
    return [
        f"effective rank of the contexts: {found['effective_rank']:.1f} of {found['context_dim']}",
        f"largest singular value of d context_t / d context_(t-1): {found['singular_value']:.3f} "
        f"({low:.3f} to {high:.3f})",
        f"largest Lyapunov exponent, over a sentence: {found['lyapunov_exponent']:+.3f} nats per "
        "token",
        *_iteration_lines(found["iteration_errors"], found["lyapunov_exponent"]),
        f"gradient of a loss by the context just before it: {norms[0]:.4f}{reach}",
    ]


def _iteration_lines(errors: Sequence[float], exponent: float) -> Iterator[str]:
    """The error of `recurrence=parallel` after some iterations, if there are any."""
    if numbers := [number for number in (1, 2, 4, 8, 12) if number <= len(errors)]:
        measured = ", ".join(f"{errors[number - 1]:.2g}" for number in numbers)
        predicted = ", ".join(f"{math.exp(exponent * number):.2g}" for number in numbers)
        yield (
            f"error of all contexts computed at once after {', '.join(map(str, numbers))} "
            f"iterations: {measured} times the first; by this exponent {predicted}"
        )
