"""Runs with their tables, gathered from folders or packed into one small file."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from newllm.config.composing import conf_directory
from newllm.config.naming import choices, split
from newllm.data.reading import parse_json, printable, read_bytes, read_text
from newllm.runs.directory import read_result, telling
from newllm.runs.files import check_complete, check_result

Rows = list[dict[str, float]]

LOOKS = ("step", "val/loss", "unk", "eos", "other")
TABLES = {"epochs": "metrics.csv", "looks": "validation_steps.csv"}
NEEDED = {"epochs": ("epoch", "step"), "looks": LOOKS}  # columns that each row must have
PACKED = {
    "epochs": ("epoch", "step", "train/loss", "val/loss", "val/loss_batch_mean", "context/norm"),
    "looks": LOOKS,
}
LARGEST_TABLE = 1 << 27  # bytes; a million steps have some 80 million
LARGEST_PACKED, LARGEST_UNPACKED = 1 << 26, 1 << 27


@dataclass(frozen=True)
class Run:
    """A run with its metrics by epoch and its validation losses by step (`looks`)."""

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
        """Whether it was built, so that its result describes it."""
        return "parameters" in self.result

    @property
    def study(self) -> str | None:
        return self.result.get("study")

    @property
    def known_as(self) -> str | None:
        """The variant or the experiment that it was made from, possibly with other choices."""
        return self.result.get("variant") or self.result.get("experiment")

    @property
    def is_as_named(self) -> bool:
        """Whether it is its variant or experiment with no other choice than the seed."""
        return bool(self.known_as and "overrides" in self.result and not self.choices)

    @property
    def label(self) -> str:
        """The name for readers: its variant or experiment, else its name, else its place."""
        return str(self.known_as or self.result.get("name") or self.place)

    @property
    def choices(self) -> dict[str, str]:
        """What was chosen beside the experiment or the variant, and the seed."""
        chosen = choices(self.result.get("overrides") or ())
        return {k: v for k, v in chosen.items() if k not in ("experiment", "variant")}

    def chose(self, key: str) -> str | None:
        """The value of a key, set by the variant or beside it."""
        return dict(map(split, self.result.get("overrides") or ())).get(key)

    def was_watched(self, curve: str) -> bool:
        """Whether there are losses in which spikes could be found.

        Args:
            curve: `val_by_step` or `val_by_epoch`.
        """
        rows = self.looks if curve == "val_by_step" else self.epochs
        return self.result.get("spikes") is not None and bool(rows)

    def largest_spike(self, curve: str) -> dict[str, Any] | None:
        """The spike with the largest ratio in `val_by_step` or `val_by_epoch`, if any."""
        found = (self.result.get("spikes") or {}).get(curve) or []
        return max(found, key=lambda spike: spike["ratio"], default=None)


def read_run(path: Path) -> Run:
    """A run directory. Tables that it lacks are empty.

    Raises:
        ValueError: the folder holds no run, or a file of it is broken.
    """
    tables = {name: _read_table(path / file, NEEDED[name]) for name, file in TABLES.items()}
    result = read_result(path)
    with telling(path, "result.json is broken"):
        check_complete(result)
    return Run(str(path), result, **tables)


def _read_or_broken(path: Path) -> Run:
    """The same. A run that cannot be read has the status `broken` and the reason as its error."""
    try:
        return read_run(path)
    except ValueError as error:
        return Run(str(path), {"status": "broken", "error": str(error)})


def _read_table(path: Path, needed: Sequence[str]) -> Rows:
    if not os.path.lexists(path):
        return []
    with telling(path, "cannot be read"):
        text = read_text(path, LARGEST_TABLE)
        whole = text[: text.rfind("\n") + 1]  # without a row that is being written
        rows = [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(whole.splitlines())
        ]
        for number, row in enumerate(rows, start=1):
            for name in needed:
                if name not in row:
                    raise ValueError(f"{name} is missing in row {number}")
    return rows


def gather(paths: Iterable[Path]) -> list[Run]:
    """All runs in or below some folders and packed files, each once.

    Runs are the same if they are one seed of an unchanged experiment or variant, or have the same
    configuration. The first that is done counts. Folders that start with `_`, into which runs are
    moved aside, are left out.

    Raises:
        ValueError: a path holds no run.
    """
    runs: list[Run] = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: does not exist")
        found = _unpack(path) if path.is_file() else [*_below(path)]
        if not found:
            raise ValueError(f"{path}: contains no run; result.json is missing")
        runs += found
    unique: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: not run.is_done):
        unique.setdefault(_identity(run), run)
    return [run for run in runs if unique[_identity(run)] is run]


def committed(study: str) -> list[Run]:
    """The runs of a study in `docs/data` beside the package; none where it was installed alone."""
    file = conf_directory().parent / "docs" / "data" / f"{study}.json.gz"
    return _unpack(file) if file.is_file() else []


def _identity(run: Run) -> str:
    if run.is_as_named:
        return f"{run.study} {run.known_as} {run.result.get('seed')}"
    return run.result.get("config_hash") or run.place


def _below(path: Path) -> Iterable[Run]:
    for file in sorted(path.rglob("result.json"), key=_natural):
        inside = file.parent.relative_to(path).parts
        if not any(part.startswith("_") for part in inside):
            yield _read_or_broken(file.parent)


def _natural(file: Path) -> list[list[str | int]]:
    """A sort key by which `width=8` comes before `width=16`."""
    pieces = (re.split(r"([0-9]+)", part) for part in file.parts)
    return [[int(piece) if i % 2 else piece for i, piece in enumerate(part)] for part in pieces]


def pack(runs: Sequence[Run], path: Path) -> None:
    """Write what a report needs of some runs to one small file, `.json.gz`."""
    content = [
        {"place": run.place, "result": run.result}
        | {name: _columns(getattr(run, name), columns) for name, columns in PACKED.items()}
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
    with telling(path, "is not a file of packed runs"):
        with gzip.open(io.BytesIO(read_bytes(path, LARGEST_PACKED))) as file:
            raw = file.read(LARGEST_UNPACKED + 1)
        if len(raw) > LARGEST_UNPACKED:
            raise ValueError("it is too large when unpacked")
        return [_unpacked(entry) for entry in parse_json(raw)]


def _unpacked(entry: dict[str, Any]) -> Run:
    result = check_result(entry["result"])
    check_complete(result)
    tables = {name: _rows(entry[name], NEEDED[name]) for name in PACKED}
    return Run(printable(entry["place"]), result, **tables)


def _rows(columns: dict[str, list[float | None]], needed: Sequence[str]) -> Rows:
    """Rows of columns, in which null stands for a value that is missing or not finite."""
    return [
        dict.fromkeys(needed, math.nan)
        | {name: float(x) for name, x in zip(columns, row, strict=True) if x is not None}
        for row in zip(*columns.values(), strict=True)
    ]


def is_of(run: Run, name: str, study: str | None = None) -> bool:
    """Whether a run is an experiment, or a variant of a study, with no other choice."""
    return (run.study, run.known_as) == (study, name) and run.is_as_named
