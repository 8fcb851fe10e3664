"""Runs in TensorBoard: short names, and bands over seeds."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from newllm.config.naming import folder_name
from newllm.runs.directory import read_result
from newllm.runs.gathering import Run
from newllm.statistics.intervals import mean_interval
from newllm.statistics.labels import numbered
from newllm.statistics.variants import folder_of, variants

FOLDER = "_summary"
PINNED = ("val/loss", "train/loss")  # the charts at the top of the page
# With more runs the tabs Text, Images and Custom Scalars stay empty until some are selected.
MANY = 40


def write_bands(runs: Sequence[Run], top: Path) -> list[str]:
    """Write the mean validation loss by step with its 95 % interval for variants of several runs.

    Each has a folder below `top/_summary`, with the name of the folder of its runs. A curve ends
    with the shortest run.

    Args:
        runs: all runs of their variants.
        top: the folder of all sweeps.

    Returns:
        A line that names the place of the bands, or the reason why there are none; or nothing.
    """
    found = [(folder_of(variant.runs[0]), variant.curve("step")) for variant in variants(runs)]
    found = [(name, rows) for name, rows in found if any(len(losses) > 1 for _, losses in rows)]
    try:
        if (top / FOLDER).is_symlink():
            raise OSError(f"{top / FOLDER} is a link")
        for name, (_, rows) in zip(numbered(name for name, _ in found), found, strict=True):
            place = top / FOLDER / name
            if place.exists():
                shutil.rmtree(place)
            with SummaryWriter(str(place)) as writer:
                for step, losses in rows:
                    if not all(map(math.isfinite, losses)):
                        break
                    band = mean_interval(losses)
                    writer.add_scalar("val/loss/mean", band.mean, int(step))
                    writer.add_scalar("val/loss/low", band.low, int(step))
                    writer.add_scalar("val/loss/high", band.high, int(step))
    except OSError as error:
        return [f"no bands over seeds for TensorBoard: {error}"]
    if not found:
        return []
    return [f"bands over seeds for TensorBoard ({len(found)}, tab Custom Scalars): {top / FOLDER}"]


def runs_with_events(paths: Iterable[Path]) -> list[Path]:
    """The folders in or below some paths that TensorBoard can show.

    Raises:
        ValueError: a path holds no such folder.
    """
    folders: list[Path] = []
    for path in paths:
        if not (found := sorted({file.parent for file in path.rglob("events.out.tfevents.*")})):
            raise ValueError(
                f"{path}: has no TensorBoard events; use logger=tensorboard to write them"
            )
        folders += found
    return list(dict.fromkeys(folders))


def short_names(folders: Sequence[Path]) -> dict[Path, str]:
    """A short name for each run: the label of its variant, as in the report, and its own folder.

    Such as `gated lr=0.1/seed=2`. The mean over seeds of these runs is `_mean/gated lr=0.1`.
    """
    runs = []
    for folder in folders:
        try:
            runs.append(Run(str(folder), read_result(folder)))
        except ValueError:  # a mean over seeds has no result
            continue
    labels: dict[Path, str] = {}
    means: dict[str, str] = {}  # by the folder of a variant
    for variant in variants(runs):
        for run in variant.runs:
            labels[Path(run.place)] = folder_name(variant.label)
            means.setdefault(folder_of(run), folder_name(variant.label))
    names = [
        f"_mean/{means.get(folder.name, folder.name)}"
        if folder.parent.name == FOLDER
        else f"{labels.get(folder, folder_name(folder.parent.name))}/{folder.name}"
        for folder in folders
    ]
    return dict(zip(folders, numbered(names), strict=True))


def link(names: Mapping[Path, str], top: Path) -> None:
    """Make a link below `top` to each run."""
    for folder, name in names.items():
        place = top / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(folder.resolve(), target_is_directory=True)


def address(port: int) -> str:
    """The URL of TensorBoard with the losses pinned to the top."""
    cards = [{"plugin": "scalars", "tag": tag} for tag in PINNED]
    pins = urllib.parse.quote(json.dumps(cards, separators=(",", ":")), safe="")
    return f"http://localhost:{port}/?pinnedCards={pins}#timeseries"


def serve(paths: Iterable[Path], top: Path, port: int) -> int:
    """Run TensorBoard on links in `top` until it ends; returns its exit code."""
    names = short_names(runs_with_events(paths))
    link(names, top)
    print(f"{len(names)} runs, losses first: {address(port)}", flush=True)
    if len(names) > MANY:
        print(
            f"more than {MANY} runs: the tabs Text, Images and Custom Scalars stay empty until "
            "you select runs; TOGGLE ALL RUNS below their list selects all",
            flush=True,
        )
    command = ("tensorboard.main", "--logdir", str(top), "--port", str(port))
    process = subprocess.Popen([sys.executable, "-m", *command])
    try:
        return process.wait()
    except KeyboardInterrupt:
        return process.wait()
    finally:
        process.terminate()
