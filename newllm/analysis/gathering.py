"""Runs with their tables: gathered from folders, and packed into one small file."""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from newllm.runs import read_result

Rows = list[dict[str, float]]

TABLES = {"epochs": "metrics.csv", "looks": "validation_steps.csv"}
# What a packed file keeps of each table.
COLUMNS = {
    "epochs": (
        *("epoch", "step", "train/loss", "val/loss", "val/loss_batch_mean", "context/norm"),
    ),
    "looks": ("step", "val/loss", "unk", "eos", "other"),
}


@dataclass(frozen=True)
class Run:
    """A run with its series: by epoch, and the looks at validation by step."""

    place: str
    result: dict[str, Any]
    epochs: Rows = field(default_factory=list)
    looks: Rows = field(default_factory=list)

    @property
    def status(self) -> str:
        return str(self.result["status"])

    @property
    def is_done(self) -> bool:
        return self.status == "done"

    @property
    def is_known(self) -> bool:
        """Whether it came so far as to say what it is."""
        return "parameters" in self.result

    @property
    def label(self) -> str:
        """What a reader knows it by: the experiment or what was resolved, else its place."""
        return str(self.result.get("experiment") or self.result.get("name") or self.place)

    @property
    def choices(self) -> dict[str, str]:
        """What was chosen beside the experiment and the seed, by the name of a sweep's folder.

        A name of the run's own is a choice too. Outside of sweeps the folder's is one.
        """
        words = Path(self.place).absolute().parent.name.split(",")
        pairs = [word.partition("=") for word in words if word != self.result.get("experiment")]
        return {key if equals else "name": value or key for key, equals, value in pairs}

    def was_watched(self, curve: str) -> bool:
        """Whether there are losses, `val_by_step` or `val_by_epoch`, for a spike to show in."""
        return bool(self.looks if curve == "val_by_step" else self.epochs)

    def largest_spike(self, curve: str) -> dict[str, Any] | None:
        """The spike of the largest ratio in `val_by_step` or `val_by_epoch`, if there is any."""
        found = (self.result.get("spikes") or {}).get(curve) or []
        return max(found, key=lambda spike: spike["ratio"], default=None)


def read_run(path: Path) -> Run:
    """A run directory; tables that it lacks are empty.

    Raises:
        ValueError: the folder holds no run.
    """
    tables = {name: _read_table(path / file) for name, file in TABLES.items()}
    return Run(str(path), read_result(path), **tables)


def _read_table(path: Path) -> Rows:
    if not path.is_file():
        return []
    with path.open(newline="") as table:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(table)
        ]


def gather(paths: Iterable[Path]) -> list[Run]:
    """All runs in or below some folders and packed files, those of a sweep once.

    Of one seed of an experiment as it stands, be it of another version, and of other runs with
    the same configuration (their seed is part of it), the first that is done counts. What was
    moved aside (in folders that start with `_`) is left out.

    Raises:
        ValueError: a path holds no run.
    """
    runs: list[Run] = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: does not exist")
        found = _unpack(path) if path.is_file() else [*_below(path)]
        if not found:
            raise ValueError(f"{path}: holds no run; lacks result.json")
        runs += found
    unique: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: not run.is_done):
        unique.setdefault(_identity(run), run)
    return [run for run in runs if unique[_identity(run)] is run]


def _identity(run: Run) -> str:
    if _is_of_series(run):
        return f"{run.result['experiment']} {run.result.get('seed')}"
    return run.result.get("config_hash") or run.place


def _is_of_series(run: Run) -> bool:
    experiment = run.result.get("experiment")
    return experiment is not None and is_of(run, experiment)


def _below(path: Path) -> Iterable[Run]:
    for file in sorted(path.rglob("result.json")):
        inside = file.parent.relative_to(path).parts
        if not any(part.startswith("_") for part in inside):
            try:
                yield read_run(file.parent)
            except ValueError as error:
                yield Run(str(file.parent), {"status": "broken", "error": str(error)})


def pack(runs: Sequence[Run], path: Path) -> None:
    """Write what a report needs of some runs into one small file, `.json.gz`."""
    content = [
        {"place": run.place, "result": run.result}
        | {name: _columns(getattr(run, name), columns) for name, columns in COLUMNS.items()}
        for run in runs
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a time in it, the same runs make the same file.
    with path.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as file:
        file.write(json.dumps(content, separators=(",", ":")).encode())


def _columns(rows: Rows, names: Sequence[str]) -> dict[str, list[float | None]]:
    def rounded(value: float | None) -> float | None:
        return None if value is None or not math.isfinite(value) else round(value, 4)

    return {name: [rounded(row.get(name)) for row in rows] for name in names}


def _unpack(path: Path) -> list[Run]:
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
        return [
            Run(
                entry["place"],
                entry["result"],
                **{name: _rows(entry[name]) for name in COLUMNS},
            )
            for entry in content
        ]
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise ValueError(f"{path}: no packed runs ({type(error).__name__})") from error


def _rows(columns: dict[str, list[float | None]]) -> Rows:
    return [
        {name: value for name, value in zip(columns, row, strict=True) if value is not None}
        for row in zip(*columns.values(), strict=True)
    ]


def is_of(run: Run, experiment: str) -> bool:
    """Whether a run is that experiment as it stands, with no other choice than the seed.

    Sweeps name the folder of a run by all choices, so that only their runs can be known to be.
    """
    return run.result.get("experiment") == experiment and not run.choices
