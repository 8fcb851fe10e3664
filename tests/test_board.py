"""TensorBoard's names of runs, and the address that shows the losses first."""

import json
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

import pytest

from newllm.board import address, link, runs_with_events, short_names


def make(top: Path, place: str, overrides: Sequence[str] | None) -> Path:
    """A run as far as a board looks at it."""
    folder = top / place
    folder.mkdir(parents=True)
    (folder / "events.out.tfevents.1.host").touch()
    if overrides is not None:
        result = {"status": "done", "name": "gated", "overrides": list(overrides)}
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_names_hold_only_what_differs_and_most_of_it_first(tmp_path: Path) -> None:
    shared = ("data=tiny30", "model.context_dim=16", "logger=tensorboard")
    folders = {}
    for lr in ("0.1", "0.2", "0.3"):
        for model in ("gated", "lstm"):
            for seed in (1, 2):
                chosen = (*shared, f"model={model}", f"optimizer.lr={lr}", f"seed={seed}")
                place = f"data=tiny30,model={model},lr={lr}/seed={seed}"
                folders[f"lr={lr},model={model}/seed={seed}"] = make(tmp_path, place, chosen)
    assert short_names(folders.values()) == {folder: name for name, folder in folders.items()}


def test_the_mean_over_seeds_is_called_like_its_runs(tmp_path: Path) -> None:
    runs = [make(tmp_path, f"model={m}/seed=1", [f"model={m}"]) for m in ("gru", "lstm")]
    mean = make(tmp_path, "_summary/model=gru", None)
    assert short_names([mean, *runs]) == {
        runs[0]: "model=gru/seed=1", runs[1]: "model=lstm/seed=1", mean: "_mean/model=gru",
    }  # fmt: skip


def test_names_are_different_even_where_nothing_differs(tmp_path: Path) -> None:
    runs = [make(tmp_path, f"{day}/12-00", ["seed=1"]) for day in (1, 2)]
    assert list(short_names(runs).values()) == ["gated/12-00", "gated/12-00+"]
    keys = [make(tmp_path, f"{i}/x", [f"model.dropout={i}", f"fnn.dropout={i}"]) for i in (3, 4)]
    assert short_names(keys)[keys[0]] == "model.dropout=3,fnn.dropout=3/x"


def test_links_lead_to_the_runs(tmp_path: Path) -> None:
    run = make(tmp_path, "outputs/model=gru/seed=1", ["model=gru"])
    link(short_names([run]), tmp_path / "board")
    assert runs_with_events([tmp_path / "outputs"]) == [run]
    assert (tmp_path / "board" / "gated" / "seed=1").resolve() == run


def test_a_folder_without_events_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no TensorBoard events"):
        runs_with_events([tmp_path])


def test_the_losses_are_pinned() -> None:
    query = urllib.parse.parse_qs(urllib.parse.urlparse(address(6006)).query)
    assert [card["tag"] for card in json.loads(query["pinnedCards"][0])] == [
        "val/loss", "train/loss",
    ]  # fmt: skip
