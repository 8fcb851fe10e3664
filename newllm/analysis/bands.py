"""Mean and band over seeds for TensorBoard: a run for each variant, beside those of a sweep."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from newllm.analysis.gathering import Run
from newllm.analysis.statistics import mean_interval
from newllm.analysis.variants import variants

FOLDER = "_summary"
LONGEST = 200  # bytes of a folder's name


def write_bands(runs: Sequence[Run], top: Path) -> int:
    """Write `top/_summary/<label>` for every variant with several finished runs; returns how many.

    Each holds the mean validation loss by step and its 95 % interval, as far as all runs go. Bands
    that were written before are removed, since labels depend on what lies beside.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = top / FOLDER
    if folder.is_symlink():
        raise OSError(f"{folder} is a link")
    several = [v for v in variants(runs) if any(len(losses) > 1 for _, losses in v.curve("step"))]
    _remove(folder)
    for variant in several:
        with SummaryWriter(str(folder / _folder_name(variant.label))) as writer:
            for step, losses in variant.curve("step"):
                if not all(map(math.isfinite, losses)):
                    break
                interval = mean_interval(losses)
                for tag, loss in (
                    ("mean", interval.mean),
                    ("low", interval.low),
                    ("high", interval.high),
                ):
                    writer.add_scalar(f"val/loss/{tag}", loss, int(step))
    return len(several)


def bands_told(runs: Sequence[Run], top: Path) -> list[str]:
    """Write them and say in a line where they are, or why they could not be written."""
    try:
        number = write_bands(runs, top)
    except OSError as error:
        return [f"no bands over seeds for TensorBoard: {error}"]
    if not number:
        return []
    return [f"bands over seeds for TensorBoard ({number}, tab Custom Scalars): {top / FOLDER}"]


def _folder_name(label: str) -> str:
    """A label as the name of a folder, which TensorBoard shows."""
    name = label.replace("/", ".").replace("\0", "").lstrip(".")
    return name.encode()[:LONGEST].decode(errors="ignore") or "runs"


def _remove(folder: Path) -> None:
    """What was written here before, and nothing else that somebody may have put there."""
    for file in folder.glob("*/events.out.tfevents.*"):
        if not file.parent.is_symlink():
            file.unlink()
            with contextlib.suppress(OSError):
                file.parent.rmdir()
