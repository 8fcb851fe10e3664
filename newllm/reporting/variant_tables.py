"""Tables of variants, the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from newllm.reporting.answer import bounds, seeds_needed
from newllm.reporting.formatting import signed
from newllm.reporting.translation import Translate
from newllm.statistics.comparisons import Contest, Standing
from newllm.statistics.labels import differing
from newllm.statistics.variants import Variant

Table = tuple[list[str], list[list[str]]]  # headings and rows

COMPARISON = ("group", "seeds", "best val loss", "difference", "verdict", "seeds to decide")
COSTS = ("test loss", "gap closed", "parameters", "state (bytes)", "seconds")


def comparison(contest: Contest, _: Translate) -> Table:
    """What was compared and how it came out."""
    return _without_empty(COMPARISON, [_comparison_row(s, _) for s in contest.ordered])


def costs(contest: Contest) -> Table:
    """What it costs."""
    rows = [[s.variant.label, *_costs_row(s.variant)] for s in contest.ordered]
    return _without_empty(("group", *COSTS), rows)


def _comparison_row(standing: Standing, _: Translate) -> list[str]:
    """The cells of `COMPARISON`."""
    variant = standing.variant
    difference = signed(standing.difference) if standing.difference else ""
    return [
        variant.label,
        counted(variant, _),
        bounds(variant.loss),
        difference,
        _(standing.verdict),
        seeds_needed(standing, _),
    ]


def _without_empty(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table without the columns in which no cell says anything."""
    kept = [i for i in range(len(headings)) if any(row[i] not in ("", "-") for row in rows)]
    return [headings[i] for i in kept], [[row[i] for i in kept] for row in rows]


def counted(variant: Variant, _: Translate) -> str:
    """How many seeds, and how many runs have none of these figures: `4, 1 diverged`."""
    parts = [str(variant.loss.num_runs)] if variant.loss else []
    return ", ".join(
        [*parts, *(f"{number} {_(word)}" for word, number in variant.not_done.items())]
    )


def _costs_row(variant: Variant) -> list[str]:
    """The cells of `COSTS`."""
    closed, seconds = variant.mean("gap_closed"), variant.mean("seconds")
    return [
        bounds(variant.interval("test_loss")),
        "-" if closed is None else f"{100 * closed:.1f} %",
        *(_whole(variant.first(name)) for name in ("parameters", "state_bytes")),
        "-" if seconds is None else f"{seconds:,.0f}",
    ]


def _whole(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "-"


def chosen(variants: Sequence[Variant]) -> Mapping[str, str]:
    """By label, all choices in which these variants differ, where a label leaves some out."""
    keys = differing([variant.choices for variant in variants])
    found = {
        variant.label: " ".join(
            f"{key}={variant.choices[key]}".rstrip("=") for key in keys if key in variant.choices
        )
        for variant in variants
    }
    return found if any(_shows_less(label, text) for label, text in found.items()) else {}


def _shows_less(label: str, text: str) -> bool:
    return len(text.split()) > len(label.split())
