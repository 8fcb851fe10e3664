"""TensorBoard's names of runs, and the address that shows the losses first."""

import json
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

import pytest

from newllm.config.naming import run_folder
from newllm.reporting.tensorboard import (
    FOLDER,
    address,
    link,
    runs_with_events,
    short_names,
    write_bands,
)
from newllm.runs.gathering import gather


def make(top: Path, place: str, overrides: Sequence[str]) -> Path:
    """A run as far as a board and a mean over seeds look at it."""
    folder = top / place
    folder.mkdir(parents=True)
    (folder / "events.out.tfevents.1.host").touch()
    result = {
        "status": "done", "name": "gated", "overrides": list(overrides), "parameters": 1, "seed": 1,
        "corpus": "tiny30", "references": {}, "threads": 1, "best_val_loss": 1.5,
        "best_val_loss_batch_mean": 1.5, "best_epoch": 1, "config_hash": place,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "metrics.csv").write_text("epoch,step,val/loss\n1,2,1.5\n")
    return folder


def sweep(top: Path, *variants: Sequence[str], seeds: Sequence[int] = (1, 2)) -> dict[str, Path]:
    """The runs of some variants where a sweep leaves them, by their paths below `top`."""
    paths = [(run_folder(v, seed), [*v, f"seed={seed}"]) for v in variants for seed in seeds]
    return {path: make(top, path, chosen) for path, chosen in paths}


def test_names_hold_only_what_differs(tmp_path: Path) -> None:
    shared = ("data=tiny30", "model.context_dim=16", "logger=tensorboard")
    expected = {}
    for lr in ("0.1", "0.2", "0.3"):
        for model in ("gated", "lstm"):
            runs = sweep(tmp_path, [*shared, f"model={model}", f"optimizer.lr={lr}"])
            expected |= {run: f"{model} lr={lr}/{run.name}" for run in runs.values()}
    assert short_names(expected) == expected


@pytest.mark.parametrize("others", [0, 1])
def test_the_mean_over_seeds_is_called_like_its_runs(tmp_path: Path, others: int) -> None:
    """Whatever lay beside when it was written, and lies there now."""
    top = tmp_path / "runs"
    sweep(top, ["data=tiny30", "model=gru"], ["data=tiny30", "model=lstm"])
    (line,) = write_bands(gather([top]), top)
    assert "TensorBoard (2, tab" in line
    if others:
        sweep(top, ["data=tiny30", "model=gru", "optimizer.lr=0.1"], seeds=[3])
    names = short_names(runs_with_events([tmp_path]))
    runs = {names[folder].rpartition("/")[0] for folder in names if folder.name == "seed=1"}
    means = [name for folder, name in names.items() if folder.parent.name == FOLDER]
    assert sorted(means) == [f"_mean/{name}" for name in sorted(runs)]
    assert len(names) == 2 * 2 + 2 + others


def test_names_are_different_even_where_nothing_differs(tmp_path: Path) -> None:
    runs = [make(tmp_path, f"{day}/12-00", ["seed=1"]) for day in (1, 2)]
    assert list(short_names(runs).values()) == ["default/12-00", "default/12-00 (2)"]
    keys = [make(tmp_path, f"{i}/x", [f"model.dropout={i}", f"fnn.dropout={i}"]) for i in (3, 4)]
    assert short_names(keys)[keys[0]] == "model.dropout=3 fnn.dropout=3/x"


@pytest.mark.parametrize("name", ["..", "../..", "\u6f22" * 90, "a/b"])
def test_links_lead_to_the_runs_and_lie_in_their_folder(tmp_path: Path, name: str) -> None:
    runs = [
        make(tmp_path, f"outputs/{i}/seed=1", chosen)
        for i, chosen in enumerate(([f"name={name}"], ["model=gru"]))
    ]
    assert runs_with_events([tmp_path / "outputs"]) == runs
    board = tmp_path / "board" / "links"
    link(short_names(runs), board)
    links = list(board.glob("*/*"))
    assert sorted(place.resolve() for place in links) == runs
    assert [place.name for place in tmp_path.joinpath("board").iterdir()] == ["links"]


def test_a_folder_without_events_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no TensorBoard events"):
        runs_with_events([tmp_path])


def test_the_losses_are_pinned() -> None:
    query = urllib.parse.parse_qs(urllib.parse.urlparse(address(6006)).query)
    assert [card["tag"] for card in json.loads(query["pinnedCards"][0])] == [
        "val/loss", "train/loss",
    ]  # fmt: skip
