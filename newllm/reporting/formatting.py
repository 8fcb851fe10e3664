"""The text of means, intervals and differences in the report."""

from __future__ import annotations

import math

from newllm.statistics.intervals import Interval


def number(value: float | None) -> str:
    """Such as `1.6588`."""
    return "-" if value is None else f"{value:.4f}"


def percent(share: float | None) -> str:
    """Such as `64.7 %`."""
    return "-" if share is None else f"{100 * share:.1f} %"


def percent_at_least(share: float) -> str:
    """Such as `99.9` for 0.99997: without the sign, and rounded down, so that `100` means all."""
    percents = math.floor(1000 * share) / 10
    return f"{percents:.0f}" if percents == 100 else f"{percents:.1f}"


def whole(value: float | None) -> str:
    """Such as `4,052,968`."""
    return "-" if value is None else f"{value:,.0f}"


def plus_minus(interval: Interval | None) -> str:
    """Mean and half width, such as `5.6100 &plusmn; 0.1100`; the mean alone of a single run."""
    if interval is None:
        return "-"
    if not math.isfinite(interval.half_width):
        return f"{interval.mean:.4f}"
    return f"{interval.mean:.4f} &plusmn; {interval.half_width:.4f}"


def with_count(interval: Interval | None) -> str:
    """The same, with the number of runs."""
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
    """A difference, such as `-0.285 [-0.324, -0.245]`."""
    if interval is None:
        return "-"
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
