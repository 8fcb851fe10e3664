"""How the report writes means, intervals and differences, all in nats."""

from __future__ import annotations

import math

from newllm.statistics.intervals import Interval


def number(value: float | None) -> str:
    """Four digits."""
    return "-" if value is None else f"{value:.4f}"


def percent(share: float | None) -> str:
    """A share, to a tenth of a percent."""
    return "-" if share is None else f"{100 * share:.1f} %"


def whole(value: float | None) -> str:
    """A number without decimals, with commas."""
    return "-" if value is None else f"{value:,.0f}"


def plus_minus(interval: Interval) -> str:
    """Mean and half width, such as `5.6100 &plusmn; 0.1100`; the mean alone of a single run."""
    if not math.isfinite(interval.half_width):
        return f"{interval.mean:.4f}"
    return f"{interval.mean:.4f} &plusmn; {interval.half_width:.4f}"


def with_count(interval: Interval | None) -> str:
    """The same and how many runs it is of."""
    return "-" if interval is None else f"{plus_minus(interval)} (n={interval.num_runs})"


def bounds(interval: Interval | None) -> str:
    """Such as `1.661 [1.612, 1.710]`; the mean alone of a single run."""
    if interval is None:
        return "-"
    mean = f"{interval.mean:.3f}"
    if not math.isfinite(interval.half_width):
        return mean
    return f"{mean} [{interval.low:.3f}, {interval.high:.3f}]"


def signed(interval: Interval | None) -> str:
    """A difference with the ends of its interval."""
    if interval is None:
        return "-"
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def as_known(value: float, low: float, high: float) -> tuple[str, str, str]:
    """A value and the ends of its interval, to as many digits as the interval leaves certain.

    The half width is shown to two digits, and where it exceeds the value each figure is: what comes
    after them is another on another machine.
    """
    half_width = (high - low) / 2
    figures = value, low, high
    if 0 < half_width < abs(value):
        digits = max(0, 1 - math.floor(math.log10(half_width)))
        written = [f"{figure:.{digits}f}" for figure in figures]
    else:
        written = [f"{float(f'{figure:.2g}'):g}" for figure in figures]
    return written[0], written[1], written[2]
