"""Mean and band over seeds for TensorBoard: a run for each variant, beside those of a sweep."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from newllm.runs.gathering import Run
from newllm.statistics.intervals import mean_interval
from newllm.statistics.labels import numbered
from newllm.statistics.variants import Variant, folder_of, variants

FOLDER = "_summary"


def write_bands(runs: Sequence[Run], top: Path, keep: bool = False) -> int:
    """Write a folder below `top/_summary` for each variant with several finished runs.

    It has the name of the folder of these runs, which does not depend on other runs, and holds the
    mean validation loss by step with its 95 % interval, up to the end of the shortest run.

    Args:
        runs: all runs of their variants.
        top: the folder of all sweeps.
        keep: leave the bands of other variants; else they are removed.

    Returns:
        How many were written.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = top / FOLDER
    if folder.is_symlink():
        raise OSError(f"{folder} is a link")
    found = variants(runs)
    for place in [folder / _name(v) for v in found] if keep else folder.glob("*"):
        _remove(place)
    several = [v for v in found if any(len(losses) > 1 for _, losses in v.curve("step"))]
    for variant, name in zip(several, numbered(map(_name, several)), strict=True):
        _write(variant, folder / name)
    return len(several)


def _name(variant: Variant) -> str:
    return folder_of(variant.runs[0])


def _write(variant: Variant, place: Path) -> None:
    _remove(place)
    with SummaryWriter(str(place)) as writer:
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


def bands_told(runs: Sequence[Run], top: Path, keep: bool = False) -> list[str]:
    """Write the bands; returns a line that says where they are, or why they are not."""
    try:
        number = write_bands(runs, top, keep)
    except OSError as error:
        return [f"bands over seeds were not written for TensorBoard: {error}"]
    if not number:
        return []
    return [f"bands over seeds for TensorBoard ({number}, tab Custom Scalars): {top / FOLDER}"]


def _remove(folder: Path) -> None:
    """Remove what was written here before, but no other file."""
    if folder.is_symlink():
        return
    for file in folder.glob("events.out.tfevents.*"):
        file.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()
