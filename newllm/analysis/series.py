"""The published series beside its reproduction: what was reported, what came out, a verdict."""

from __future__ import annotations

import csv
import gzip
import json
import math
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from newllm.analysis.statistics import Interval, mean_interval, next_run_interval
from newllm.runs import read_result

Rows = list[dict[str, float]]

# Runs of the series that differ only in what cannot matter lie this far apart.
SPREAD_OF_ONE_RUN = 0.11
TABLES = {"epochs": "metrics.csv", "steps": "steps.csv", "looks": "validation_steps.csv"}
# What a packed file keeps of each table.
COLUMNS = {
    "epochs": ("epoch", "step", "train/loss", "val/loss", "val/loss_batch_mean"),
    "steps": ("step", "train/loss"),
    "looks": ("step", "val/loss", "unk", "eos", "other"),
}


@dataclass(frozen=True)
class Run:
    """A run with its series: by epoch, by step, and the looks at validation by step."""

    place: str
    result: dict[str, Any]
    epochs: Rows = field(default_factory=list)
    steps: Rows = field(default_factory=list)
    looks: Rows = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return bool(self.result["status"] == "done")


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
    """All runs in or below some folders and packed files, each once.

    Of runs with the same configuration (their seed is part of it) the first that is done counts.
    What was moved aside (in folders that start with `_`) is left out.

    Raises:
        ValueError: a path holds no run.
    """
    runs: list[Run] = []
    for path in paths:
        found = _unpack(path) if path.is_file() else [*_below(path)]
        if not found:
            raise ValueError(f"{path}: holds no run; lacks result.json")
        runs += found
    unique: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: not run.is_done):
        unique.setdefault(run.result.get("config_hash") or run.place, run)
    return [run for run in runs if unique.get(run.result.get("config_hash") or run.place) is run]


def _below(path: Path) -> Iterable[Run]:
    for file in sorted(path.rglob("result.json")):
        inside = file.parent.relative_to(path).parts
        if not any(part.startswith("_") for part in inside):
            yield read_run(file.parent)


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


@cache
def published() -> dict[str, Any]:
    """What the series reports; see `published.toml`."""
    return tomllib.loads(files("newllm.analysis").joinpath("published.toml").read_text())


@dataclass(frozen=True)
class Summary:
    """One experiment of the series: `reported` as it stands there, and the runs of that name."""

    name: str
    phase: int
    reported: float | None
    reported_epoch: int | None
    is_approximate: bool
    is_stand_in: bool
    is_void: bool
    runs: list[Run]

    @property
    def done(self) -> list[Run]:
        return [run for run in self.runs if run.is_done]

    @property
    def losses(self) -> list[float]:
        """Of each run, by the series' own definition."""
        return [run.result["best_val_loss_batch_mean"] for run in self.done]

    @property
    def loss(self) -> Interval | None:
        return mean_interval(self.losses) if self.done else None

    @property
    def mean_loss(self) -> float | None:
        return self.loss.mean if self.loss else None

    @property
    def best_epochs(self) -> list[int]:
        return sorted(run.result["best_epoch"] for run in self.done)

    @property
    def parameters(self) -> int | None:
        return self.runs[0].result["parameters"] if self.runs else None

    @property
    def verdict(self) -> str:
        """not run, not reported, not comparable, agrees or differs.

        The reported loss is of one run. It agrees if a further run of ours could as well have had
        it, with 95 % confidence, or if it is no farther from the mean than runs of the series that
        differ in nothing that matters are from one another.
        """
        if not self.done:
            return "not run"
        if self.reported is None:
            return "not reported"
        if self.is_stand_in:
            return "not comparable"
        further = next_run_interval(self.losses)
        width = further.half_width if math.isfinite(further.half_width) else 0.0
        return (
            "agrees"
            if abs(self.reported - further.mean) <= max(width, SPREAD_OF_ONE_RUN)
            else "differs"
        )


def summarize(runs: Sequence[Run]) -> list[Summary]:
    """All experiments of the series, in its order."""
    return [
        Summary(
            name=entry["name"],
            phase=entry["phase"],
            reported=entry.get("loss"),
            reported_epoch=entry.get("epoch"),
            is_approximate=entry.get("approximate", False),
            is_stand_in=entry.get("stand_in", False),
            is_void=entry.get("void", False),
            runs=[run for run in runs if _is_of(run, entry["name"])],
        )
        for entry in published()["experiment"]
    ]


def _is_of(run: Run, experiment: str) -> bool:
    """Whether a run is that experiment as it stands, with no other choice than the seed."""
    path = Path(run.place)
    as_it_stands = path.parent.name == experiment or not path.name.startswith("seed=")
    return run.result.get("experiment") == experiment and as_it_stands


@dataclass(frozen=True)
class Derived:
    """A percentage that the series prints: claimed, from its own losses, and from ours."""

    table: str
    name: str
    claimed: float
    from_reported: float | None
    reproduced: float | None

    @property
    def is_slip(self) -> bool:
        """Whether the claim does not follow from the losses that are printed beside it."""
        if self.from_reported is None:
            return False
        digits = 2 if round(self.claimed, 1) != self.claimed else 1
        return abs(self.claimed - self.from_reported) > 0.55 * 10**-digits


def derived(summaries: Sequence[Summary]) -> list[Derived]:
    """All percentages of the series."""
    by_name = {summary.name: summary for summary in summaries}
    rows = []
    for entry in published()["derived"]:
        base = by_name[entry["against"]]
        for name, claimed in entry["claimed"].items():
            own = by_name[name]
            rows.append(
                Derived(
                    entry["table"],
                    name,
                    claimed,
                    _percent(own.reported, base.reported),
                    _percent(own.mean_loss, base.mean_loss),
                )
            )
    return rows


def _percent(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else 100 * (value / base - 1)
