"""The tables of a run, which grow while it lasts."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_CONTEXT, Compose

from newllm.runs.gathering import read_run
from newllm.training.experiment import build_experiment
from newllm.training.steps import Table

FIRST, SECOND = {"epoch": 1, "step": 2}, {"epoch": 2, "step": 4}


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def appended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that are appended to, in order."""
    found: list[str] = []
    open_file = Path.open

    def opened(path: Path, mode: str = "r", **arguments: Any) -> Any:
        if mode == "a":
            found.append(path.name)
        return open_file(path, mode, **arguments)

    monkeypatch.setattr(Path, "open", opened)
    return found


def test_a_table_is_written_anew_where_it_must_be(tmp_path: Path, appended: list[str]) -> None:
    path = tmp_path / "table.csv"
    path.write_text("of,an\nearlier,process\n")
    table, rows = Table(path), [FIRST]
    table.append([FIRST], lambda: rows)
    assert read(path) == [{"epoch": "1", "step": "2"}]
    assert not appended
    rows.append(SECOND)
    table.append([SECOND], lambda: rows)
    assert len(appended) == 1
    rows.append(SECOND | {"loss": 3})  # another column
    table.append(rows[2:], lambda: rows)
    assert len(appended) == 1
    assert [row["loss"] for row in read(path)] == ["", "", "3"]
    rows[2] = rows[2] | {"loss": 4}
    table.append(rows[2:], lambda: rows, changes_others=True)
    rows.append(FIRST)  # without that column
    table.append([FIRST], lambda: rows)
    assert len(appended) == 2
    assert [row["loss"] for row in read(path)] == ["", "", "4", ""]


def test_a_row_that_was_cut_off_is_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.csv"
    table, rows = Table(path), [FIRST]
    table.append(rows, lambda: rows)
    with monkeypatch.context() as patch:
        patch.setattr("newllm.training.steps._csv", lambda *_, **__: _cut_off(path))
        with pytest.raises(OSError, match="disk"):
            table.append([SECOND], lambda: rows)
    result = {"status": "failed", "seed": 1}
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert read_run(tmp_path).epochs == [FIRST]
    rows.append(SECOND)
    table.append([SECOND], lambda: rows)
    assert read_run(tmp_path).epochs == rows


def _cut_off(path: Path) -> str:
    path.write_text(path.read_text() + "2,")
    raise OSError("no space left on this disk")


def test_a_run_appends_to_its_tables(
    compose_config: Compose, tmp_path: Path, appended: list[str]
) -> None:
    chosen = "data=tiny30", "countermeasure=none", "logger=none", "callbacks=none", *TINY_CONTEXT
    validated = "+trainer.val_check_interval=1", "trainer.max_epochs=5"
    experiment = build_experiment(compose_config(*chosen, *validated), tmp_path)
    experiment.trainer.fit(experiment.module, datamodule=experiment.data)
    rows = [
        {name: float(value) for name, value in row.items() if value}
        for row in read(tmp_path / "metrics.csv")
    ]
    assert rows == [dict(row) for row in experiment.history.epochs]
    assert len(rows) == 10
    assert appended.count("metrics.csv") == 8  # all but the first row, and that of the first epoch
