"""Mean and band over seeds for TensorBoard: a run for each experiment, beside those of a sweep."""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from newllm.analysis.gathering import Run
from newllm.analysis.statistics import mean_interval


def write_bands(runs: Sequence[Run], top: Path) -> int:
    """Write `top/_summary/<name>` for every name with several finished runs; returns how many.

    Each holds the mean validation loss by step and its 95 % interval, as far as all runs go.
    """
    by_name: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        place = Path(run.place)
        if run.is_done and run.epochs and place.name.startswith("seed="):
            by_name[place.parent.name].append(run)
    folder = top / "_summary"
    several = {name: group for name, group in by_name.items() if len(group) > 1}
    for name, group in several.items():
        shutil.rmtree(folder / name, ignore_errors=True)  # made of the runs and nothing else
        with SummaryWriter(str(folder / name)) as writer:
            for rows in zip(*(run.epochs for run in group), strict=False):
                losses = [row.get("val/loss", math.nan) for row in rows]
                if not all(map(math.isfinite, losses)):
                    break
                interval = mean_interval(losses)
                for tag, loss in (
                    ("mean", interval.mean),
                    ("low", interval.low),
                    ("high", interval.high),
                ):
                    writer.add_scalar(f"val/loss/{tag}", loss, int(rows[0]["step"]))
    return len(several)
