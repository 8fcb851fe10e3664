"""Variants side by side in the terminal: `newllm.report`, and the end of a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import table as rich_table
from rich.console import Console

from newllm.reporting.answer import answer
from newllm.reporting.tables import Table, chosen, comparison, costs
from newllm.reporting.translation import translator
from newllm.statistics.comparisons import Contest

MOST_ROWS = 40  # groups; more of them are for the page
MOST_REASONS = 10
LEFT = ("group", "verdict", "seeds", "seeds to decide")


def console() -> Console:
    """A file or a pipe has no edge to break lines at."""
    own = Console(highlight=False, markup=False)
    if not own.is_terminal:
        own.width = 250
    return own


def print_contests(contests: Sequence[Contest], out: Console) -> None:
    """What was compared, what it costs, and the answer in words, for each corpus."""
    _ = translator("en")
    for contest in contests:
        if len(contests) > 1:
            out.print(f"--- {contest.corpus}")
        if len(contest.standings) <= MOST_ROWS:
            out.print(_table(comparison(contest, _)))
            out.print(_table(costs(contest)))
            for label, text in chosen(contest.variants).items():
                out.print(f"{label}: {text}")
        else:
            out.print(f"{len(contest.standings)} groups: see the page for the table")
        out.print(answer(contest, _))
        out.print()


def _table(table: Table) -> rich_table.Table:
    headings, rows = table
    shown = rich_table.Table(box=None)
    for heading in headings:
        shown.add_column(heading, justify="left" if heading in LEFT else "right", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    return shown


def reasons(contests: Sequence[Contest]) -> Iterator[str]:
    """A line for all runs of a group that ended badly for the same reason."""
    found: dict[tuple[str, str], list[str]] = {}
    variants = [variant for contest in contests for variant in contest.variants]
    for variant in variants:
        for run in variant.runs:
            if not run.is_done:
                error = str(run.result.get("error") or "no reason was recorded")
                why = f"{run.status}; {error.partition(chr(10))[0]}"
                found.setdefault((variant.label, why), []).append(str(run.result.get("seed", "-")))
    for (label, why), seeds in list(found.items())[:MOST_REASONS]:
        yield f"{label}, {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(seeds)}: {why}"
    if len(found) > MOST_REASONS:
        yield f"and {len(found) - MOST_REASONS} more groups with runs that are not done"
