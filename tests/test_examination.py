"""The examination: which runs it averages, its comparisons, and the card."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Compose, strict_translator
from records import record
from torch import nn

from newllm.config.build import instantiate
from newllm.config.naming import run_folder
from newllm.config.settling import settled
from newllm.config.study_file import baselines_of, variants_of
from newllm.models.language_model import LanguageModel
from newllm.models.mingru import MinGRU
from newllm.models.sizes import num_parameters
from newllm.reporting.page import Page
from newllm.reporting.translation import LANGUAGES
from newllm.runs.gathering import Run, gather, pack
from newllm.studies import examination, found_studies
from newllm.studies.examination import write
from newllm.studies.examination.card import Card
from newllm.studies.examination.measured import LENGTHS, MODEL, PLAIN_LOOP, Measured, broken
from newllm.studies.examination.results import SIZES, TASKS, examined, own_runs

VARIANTS = variants_of("examination")
GATED = ["model=gated", "model.num_layers=2"]
LSTM, TRANSFORMER = baselines_of("examination").values()
MEASURED = Measured(
    300_000,
    [],
    {MODEL: 10.0, PLAIN_LOOP: 25.0, "LSTM": 20.0, "Transformer": 40.0},
    {MODEL: 1.0, PLAIN_LOOP: 2.5, "LSTM": 2.0, "Transformer": 4.0},
    {MODEL: 10_000.0, "LSTM": 2_000.0, "Transformer": 1_000.0},
    [384] * len(LENGTHS),
)


def make_run(task: str, model: Sequence[str], trial: str, seed: int, value: float) -> Run:
    """A run that reached a value; on tasks, at all lengths alike."""
    variant = f"full_{task}"
    made = record(variant, f"trial={trial}", *model, study="examination", seed=seed)
    rate = f"optimizer.lr={trial}"
    made["overrides"] = ["study=examination", *VARIANTS[variant], rate, *made["overrides"][1:]]
    metric = TASKS[task].metric
    lengths = (2, 32, 64) if task == "recall" else (64, 640, 2048)
    evaluation: dict[str, Any] = {"test": {"loss": value, "accuracy": value}}
    if metric.startswith("test_"):
        reached = {metric: value}
    else:
        reached = {}
        evaluation |= {f"length_{length}": {metric: value} for length in lengths}
    result = {
        "status": "done", **made, "best_val_loss": value, "evaluation": evaluation,
        "parameters": 300_000, "corpus": task, "state_bytes": 384, "best_epoch": 1,
        "name": "some model", "seconds": 60.0, "steps": 900, "threads": 1,
        "best_val_loss_batch_mean": None, "references": {}, "config_hash": f"{made}", **reached,
    }  # fmt: skip
    return Run(f"runs/{variant}/{model}/{trial}/{seed}", result)


def runs_of(model: Sequence[str], **values: float) -> Iterator[Run]:
    """Two trials of each task, and the better one with three other seeds, which differ a little."""
    for task, value in values.items():
        yield make_run(task, model, "t01", 1, value + 0.5)
        yield make_run(task, model, "t02", 1, value)
        for seed in (2, 3, 4):
            yield make_run(task, model, "t02", seed, value + 1e-4 * (seed - 3) * (value < 1))


RUNS = [
    *runs_of(GATED, language=1.65, text=2.0, parity=1.0, s3=0.4, recall=20.0),
    *runs_of(LSTM, language=1.80, text=2.0, parity=1.0, s3=0.7),
    *runs_of(TRANSFORMER, language=1.60, text=2.3, recall=512.0),
]


def the_card(measured: Measured | None = MEASURED) -> Card:
    gated, lstm, transformer = examined(RUNS)
    return Card(gated, {"lstm": lstm, "transformer": transformer}, measured)


def test_the_best_trial_of_each_model_is_averaged_over_other_seeds() -> None:
    gated, lstm, transformer = examined([*RUNS, make_run("s5", GATED, "t01", 1, 1.0)])
    assert [one.label for one in (gated, lstm, transformer)] == [
        "gated num_layers=2",
        "LSTM",
        "Transformer",
    ]
    assert [one.baseline for one in (gated, lstm, transformer)] == [None, "lstm", "transformer"]
    assert gated.values("language") == pytest.approx([1.65] * 3, abs=1e-3)
    assert gated.mean("s5") is None
    assert (gated.solved_length("parity"), gated.solved_length("s3")) == (2048, 0)
    assert own_runs(RUNS) == RUNS


def test_the_card_tells_how_the_model_compares() -> None:
    card = the_card()
    rows = {row.name.partition(",")[0]: row for row in card.rows}
    assert list(rows) == [
        *("language", "source code", "parity", "S3", "recall", "length generalisation"),
        *("contract of the layers", "training step", "generation", "state of a text"),
    ]
    assert rows["language"].verdict == "better than LSTM; worse than Transformer"
    assert rows["source code"].verdict == "as good as LSTM; better than Transformer"
    assert (
        rows["parity"].verdict
        == "solved to 2,048, 51.2 times the length of training; as good as LSTM"
    )
    assert rows["S3"].verdict.endswith("worse than LSTM")
    assert rows["recall"].verdict == "worse than Transformer"
    assert rows["length generalisation"].value == "51.2x, 0.0x"
    assert rows["training step"].others == {"LSTM": "20.0 ms", "Transformer": "40.0 ms"}
    first, second = card.sentences
    assert first == (
        "On language and text, gated num_layers=2 is better than the LSTM in 1 of 2 tasks "
        "(1 as good) and better than the Transformer in 1 of 2 tasks (1 worse)."
    )
    assert second == (
        "It tracks parity to 51.2 times the length of training, does not learn to track S3, "
        "recalls 20 of 512 bits and keeps a state of 384 bytes, whatever the length."
    )


def test_a_card_without_measurements_or_baselines(tmp_path: Path) -> None:
    (gated,) = examined([*runs_of(GATED, parity=1.0)])
    card = Card(gated, {}, None)
    assert card.sentences[0].startswith("There is nothing to compare gated")
    write(card, tmp_path / "card")
    page = (tmp_path / "card" / "index.html").read_text()
    assert "nothing to compare with" in page


def test_the_card_is_a_page_a_picture_and_a_record(tmp_path: Path) -> None:
    write(the_card(), tmp_path)
    page = (tmp_path / "index.html").read_text()
    for shown in ("1.650", "better than LSTM; worse than Transformer", "tokens/s", "384 bytes"):
        assert shown in page
    assert (tmp_path / "card.png").stat().st_size > 20_000
    found = json.loads((tmp_path / "card.json").read_text())
    assert found["model"] == {"model": "gated", "model.num_layers": "2"}
    assert found["measured"]["step_ms"]["LSTM"] == 20.0


@pytest.mark.usefixtures("every_word")
@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_report_shows_all_models(tmp_path: Path, lang: str) -> None:
    pack(RUNS, tmp_path / "examination.json.gz")
    runs = gather([tmp_path / "examination.json.gz"])
    page = Page(runs, found_studies(), lang=lang).compose().write(tmp_path).read_text()
    assert strict_translator(lang)("What models are worth") in page
    assert "gated num_layers=2" in page
    assert "512.0" in page
    assert f"{strict_translator(lang)('worse')} +0.150 ± 0.000" in page.replace("&plusmn;", "±")


@pytest.mark.parametrize("task", ["text", "s3", "recall"])
@pytest.mark.parametrize("model", [GATED, LSTM, TRANSFORMER], ids=lambda lines: str(lines[0]))
def test_models_have_equal_parameters(
    compose_config: Compose, task: str, model: Sequence[str]
) -> None:
    overrides = (*VARIANTS[f"full_{task}"], *model)
    config = settled(compose_config(*overrides), overrides)
    config.model.max_length = config.data.max_length or 64
    build = partial(instantiate, config.model, vocabulary_size=500)
    built = build(**instantiate(config.budget).sizes(build))
    assert num_parameters(built) == pytest.approx(config.budget.parameters, rel=0.08)


def test_a_card_takes_committed_runs_of_baselines_task_by_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a sweep that found only their runs on text to be out of date."""
    again = [*runs_of(LSTM, text=1.7), *runs_of(TRANSFORMER, text=1.9)]
    jobs = []
    for run in [*runs_of(GATED, language=1.65, text=2.0, recall=20.0), *again]:
        jobs.append(run.result["overrides"])
        folder = tmp_path / "runs" / run_folder(jobs[-1], run.result["seed"])
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(run.result))
    cards: list[Card] = []
    monkeypatch.setattr(examination, "committed", lambda study: RUNS)
    monkeypatch.setattr(examination, "write", lambda card, folder: cards.append(card))
    examination.finish(tmp_path / "runs", jobs)
    (card,) = cards
    found = {
        name: {task: interval.mean for task in TASKS if (interval := one.mean(task))}
        for name, one in {"gated": card.model, **card.baselines}.items()
    }
    assert found == {
        "gated": pytest.approx({"language": 1.65, "text": 2.0, "recall": 20.0}),
        "lstm": pytest.approx({"language": 1.8, "text": 1.7, "parity": 1.0, "s3": 0.7}),
        "transformer": pytest.approx({"language": 1.6, "text": 1.9, "recall": 512.0}),
    }


def test_both_sizes_have_the_same_tasks() -> None:
    full, quick = (
        [name.partition("_")[2] for name in VARIANTS if name.startswith(size)] for size in SIZES
    )
    assert set(full) == TASKS.keys()
    assert set(full) - set(quick) == {"s5"}


class Leaky(MinGRU):
    """A layer that sees later tokens of its chunk."""

    def forward(self, x_BTD, state=None, pad_BT=None, reset_BT=None):  # type: ignore[no-untyped-def]
        y_BTD, state = super().forward(x_BTD, state, pad_BT, reset_BT)
        return y_BTD + y_BTD.mean(1, keepdim=True), state


def test_broken_contracts_are_told() -> None:
    def model(layer: type[nn.Module]) -> LanguageModel:
        return LanguageModel(20, 6, [layer], hidden_dim=6, num_layers=1, feedforward_dim=6)  # type: ignore[list-item]

    assert broken(model(MinGRU)) == []
    (fault,) = broken(model(Leaky))
    assert fault.startswith("Leaky (mingru E6 H6 L1): steps give what the whole gives")
