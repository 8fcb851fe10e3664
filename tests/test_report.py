"""The report: from runs to a page, in both languages, with what is missing and what failed."""

import importlib
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from matplotlib.figure import Figure as MatplotlibFigure
from records import record
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from newllm import report, studies
from newllm.config.arguments import ends_with_its_reader
from newllm.config.composing import conf_directory
from newllm.config.naming import run_name
from newllm.reporting import page as page_module
from newllm.reporting.document import Document
from newllm.reporting.page import Page, Study
from newllm.reporting.tensorboard import write_bands
from newllm.reporting.translation import LANGUAGES, translator, vocabulary
from newllm.reporting.variant_figures import MOST_CURVES, curves, styles
from newllm.runs.gathering import Run, gather, pack
from newllm.statistics.comparisons import contests
from newllm.statistics.intervals import mean_interval
from newllm.studies import found_studies
from newllm.studies.claims.verdicts import NOT_RUN, judge
from newllm.studies.scaling import as_known
from newllm.studies.series import figures as series_figures
from newllm.studies.series.results import (
    derived,
    next_run_interval,
    other_figures,
    published,
    summarize,
)

DOCS = Path(__file__).parents[1] / "docs"


def make_run(top: Path, name: str, seed: int, study: str | None = None, **fields: Any) -> Path:
    """A run directory as training leaves it, with a spike in its validation loss by step."""
    folder = top / f"{study or ''}{name}" / f"seed={seed}"
    folder.mkdir(parents=True)
    loss = 5.6 + 0.02 * seed
    result = {
        "status": "done", "name": "gated", **record(name, study=study, seed=seed),
        "corpus": "quality500" if "final" in name else "tiny30", "parameters": 3_009_768,
        "best_val_loss": loss, "best_val_loss_batch_mean": loss, "best_epoch": 20 + seed,
        "references": {"unigram": 4.2, "bigram": 4.1, "oracle": 1.51}, "seconds": 60.0,
        "threads": 1, "error": None, "git_revision": "0123456789abcdef", "oracle_loss": None,
        "test_loss": None, "val_accuracy": 0.17, "sees_the_future": False,
        "config_hash": f"{study}{name}{seed}", "data_sha256": "x",
    }  # fmt: skip
    result |= fields
    losses = [6.9, 5.0, 5.0, 9.0, 5.0, 4.9]
    spike = {"onset": 3, "peak": 3, "recovery": 4, "ratio": 1.8, "duration": 1, "unk": 0.7}
    spike["steepest"] = 1.8
    result["spikes"] = {"val_by_step": [spike], "val_by_epoch": [], "train_by_step": []}
    (folder / "result.json").write_text(json.dumps(result))
    rows = [f"{epoch},{epoch * 2},{value},{value},{value}" for epoch, value in enumerate(losses, 1)]
    header = "epoch,step,train/loss,val/loss,val/loss_batch_mean"
    (folder / "metrics.csv").write_text("\n".join([header, *rows]) + "\n")
    looks = [f"{step},{value},{value / 2},0,{value / 2}" for step, value in enumerate(losses)]
    (folder / "validation_steps.csv").write_text(
        "\n".join(["step,val/loss,unk,eos,other", *looks]) + "\n"
    )
    return folder


def page_of(runs: Path, **options: Any) -> Page:
    return Page(gather([runs]), found_studies(), **options)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Some of the series, a failed run, a run of nothing in the series, one that was moved."""
    top = tmp_path / "runs"
    for seed in (1, 2, 3):
        make_run(top, "phase1_baseline", seed)
    make_run(top, "phase5_final_exp1", 1, best_val_loss_batch_mean=3.0)
    make_run(top, "phase2_layernorm", 1, status="failed", error="killed by SIGKILL",
             best_val_loss=None, best_val_loss_batch_mean=None)  # fmt: skip
    make_run(top, "modern", 1)
    make_run(top / "_replaced", "phase3_gating", 1)
    return top


@pytest.fixture
def words_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages with pictures of nothing: drawing takes nearly all of a page's time."""
    monkeypatch.setattr(MatplotlibFigure, "savefig", lambda *_, **__: None)


def test_intervals() -> None:
    assert mean_interval([1.0, 2.0, 3.0]).mean == 2
    # Student's t for two degrees of freedom is 4.303.
    assert mean_interval([1.0, 2.0, 3.0]).half_width == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert next_run_interval([1.0, 2.0, 3.0]).half_width == pytest.approx(
        4.3027 * (4 / 3) ** 0.5, rel=1e-4
    )
    assert mean_interval([2.0]).half_width == float("inf")
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


def test_runs_are_gathered_once(runs: Path) -> None:
    make_run(runs / "copies", "phase1_baseline", 1)
    found = gather([runs])
    assert len(found) == 6
    known = [(run.result["experiment"], run.result["seed"]) for run in found]
    assert known.count(("phase1_baseline", 1)) == 1
    assert not any("_replaced" in run.place for run in found)
    for width in (16, 8):  # numbers count as such: the smaller one comes first
        make_run(runs, f"width={width}", 1)
    places = [Path(run.place).parent.name for run in gather([runs])]
    assert places[-2:] == ["width=8", "width=16"]
    with pytest.raises(ValueError, match="does not exist"):
        gather([runs / "nowhere"])
    (runs / "empty").mkdir()
    with pytest.raises(ValueError, match=r"result\.json is missing"):
        gather([runs / "empty"])


def test_verdicts(runs: Path) -> None:
    by_name = {summary.name: summary for summary in summarize(gather([runs]))}
    assert len(by_name) == 27
    assert by_name["phase1_baseline"].verdict == "agrees"  # 5.6358 against 5.62, 5.64, 5.66
    assert by_name["phase1_baseline"].best_epochs == [21, 22, 23]
    assert by_name["phase5_final_exp1"].verdict == "agrees"  # 3.0637 against 3.0, one run
    assert by_name["phase2_layernorm"].verdict == "not run"
    assert by_name["phase3_gating"].verdict == "not run"


def test_a_far_result_differs(tmp_path: Path) -> None:
    for seed, loss in ((1, 5.0), (2, 5.01), (3, 5.02)):
        make_run(tmp_path, "phase1_baseline", seed, best_val_loss_batch_mean=loss)
    (summary,) = [s for s in summarize(gather([tmp_path])) if s.name == "phase1_baseline"]
    assert summary.verdict == "differs"


def test_slips_of_the_summary_are_named() -> None:
    rows = derived(summarize([]))
    slips = {(row.name, row.claimed) for row in rows if row.is_slip}
    assert ("phase5_data_augmentation_exp2", 8.4) in slips  # 5.8 / 5.3557 is +8.3 %
    assert ("phase5_final_exp1", -44.8) not in slips
    slips_of_figures = {row.claimed for row in other_figures() if row.is_slip}
    assert slips_of_figures == {257.55, 40404, 142424, 9}
    assert len(rows) == sum(len(entry["claimed"]) for entry in published()["derived"])


@pytest.mark.usefixtures("every_word")
@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_page_in_each_language(runs: Path, tmp_path: Path, lang: str) -> None:
    page = page_of(runs, lang=lang).compose().write(tmp_path / "report").read_text()
    assert page.count("data:image/svg+xml;base64,") == 3
    assert 'src="http' not in page
    assert "<table>" in page
    assert f'<html lang="{lang}">' in page
    assert ("再現" in page) == (lang == "ja")
    assert "killed by SIGKILL" in page
    plain = (tmp_path / "report" / "report.md").read_text()
    assert "overview.png" in plain
    assert (tmp_path / "report" / "overview.png").stat().st_size > 0
    # The first screen's table has at most eight rows.
    first_table = plain.partition("<details>")[0]
    assert sum(line.startswith("| ") for line in first_table.splitlines()) <= 8 + 2


@pytest.mark.usefixtures("words_alone")
def test_packed_runs_make_the_same_page(runs: Path, tmp_path: Path) -> None:
    pack(gather([runs]), tmp_path / "series.json.gz")
    pages = [
        page_of(source).compose().write_markdown(tmp_path / name / "page.md").read_text()
        for name, source in (("a", runs), ("b", tmp_path / "series.json.gz"))
    ]
    assert pages[0] == pages[1]
    (tmp_path / "bad.json.gz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a file of packed runs"):
        gather([tmp_path / "bad.json.gz"])


def test_the_command(command: Command, runs: Path, tmp_path: Path) -> None:
    done = command("newllm.report", str(runs), "--lang", "ja", "--pack", "series.json.gz")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs" / "report" / "index.html").is_file()
    bands = EventAccumulator(str(runs / "_summary" / "phase1_baseline")).Reload()
    means = [event.value for event in bands.Scalars("val/loss/mean")]
    assert means == pytest.approx([6.9, 5.0, 5.0, 9.0, 5.0, 4.9])
    assert [path.name for path in (runs / "_summary").iterdir()] == ["phase1_baseline"]
    assert "page: outputs/report/index.html" in done.stdout
    done = command("newllm.report", str(runs), "--markdown", "page.txt")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    done = command("newllm.report", fresh=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


@pytest.mark.parametrize("entry", ["board", "evaluate", "generate", "report"])
def test_arguments_are_read_before_anything_large_is_imported(entry: str) -> None:
    large = {"torch", "numpy", "scipy", "matplotlib", "lightning", "tensorboard"}
    code = f"import sys, newllm.{entry}; print({large} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_wrong_file_endings_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["report", "--figure", "a.txt", "--markdown", "b.html", "--pack", "c.gz"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as end:
        report.main()
    assert str(end.value.code).splitlines() == [
        "--figure a.txt: must end in .png or .svg or .pdf",
        "--markdown b.html: must end in .md",
        "--pack c.gz: must end in .json.gz",
    ]


def test_runs_of_nothing_in_the_series_get_a_page_of_their_own(
    command: Command, tmp_path: Path
) -> None:
    make_run(tmp_path / "runs", "mine", 1, gap_closed=0.9)
    make_run(tmp_path / "runs", "yours", 2, status="failed", error="no disk | left")
    other = {"unigram": 4.5, "bigram": 3.25}
    make_run(tmp_path / "runs", "theirs", 1, data_sha256="another", references=other)
    done = command("newllm.report", "runs")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "outputs" / "report" / "index.html").read_text()
    assert "Runs side by side" in page
    assert "sweep=series" not in page
    assert "not run" not in page
    for words in ("mine", "90.0 %", "no disk &#124; left", "data:image/svg+xml;base64,", "3.2500"):
        assert words in page


def own(top: Path, chosen: str, losses: list[float | None]) -> None:
    """Seeds 1, 2, ... of what somebody chose."""
    for seed, loss in enumerate(losses, 1):
        make_run(
            top, run_name(["experiment=mine", *chosen.split()]), seed, variant_hash=chosen,
            overrides=["experiment=mine", *chosen.split(), f"seed={seed}"],
            best_val_loss=loss, status="done" if loss else "diverged",
            error=None if loss else "val/loss is nan", state_bytes=512, gap_closed=0.9,
        )  # fmt: skip


@pytest.fixture
def own_runs(tmp_path: Path) -> Path:
    """Three models with three seeds, one of which diverged."""
    top = tmp_path / "own"
    own(top, "model=lstm model.width=9", [1.70, 1.72, 1.69])
    own(top, "model=better model.width=9", [1.50, 1.53, 1.49])
    own(top, "model=<b>&|worse model.width=9", [1.90, 1.93, None])
    return top


@pytest.mark.usefixtures("every_word")
@pytest.mark.parametrize("lang", LANGUAGES)
def test_is_mine_better(own_runs: Path, tmp_path: Path, lang: str) -> None:
    folder = tmp_path / "page"
    page = page_of(own_runs, lang=lang, baseline="lstm").compose().write(folder).read_text()
    first_screen = page.partition("<details")[0].replace("&nbsp;", " ")
    assert ("better has the lowest mean: 1.507" in first_screen) == (lang == "en")
    for words in ("-0.197", "512", "90.0 %", "&lt;b&gt;&amp;&#124;worse"):
        assert words in first_screen, words
    assert first_screen.count("<table>") == 2
    assert first_screen.count("data:image/svg+xml") == 1  # the curves come after the rules
    assert page.count("data:image/svg+xml") == 2
    diverged = {"en": "2, 1 diverged", "ja": "2, 1 発散"}[lang]
    assert diverged in first_screen
    assert "val/loss is nan" in page
    assert "<b>&" not in page
    # What all share is in no label.
    assert "width=9" not in first_screen


def test_a_baseline_makes_a_page_of_any_runs(runs: Path, tmp_path: Path) -> None:
    page = page_of(runs, baseline="phase1_baseline").compose().write(tmp_path / "page").read_text()
    assert "Runs side by side" in page
    with pytest.raises(ValueError, match="--baseline nobody: no such group"):
        page_of(runs, baseline="nobody").compose().write(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_terminal_says_what_the_page_says(
    own_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["report", "own", "--baseline", "lstm", "--figure", "a/b.png"])
    judged: list[int] = []
    monkeypatch.setattr(
        page_module, "contests", lambda runs, name: judged.append(len(runs)) or contests(runs, name)
    )
    report.main()
    assert len(judged) == 1  # once for page, figure and terminal, since it takes long
    out = capsys.readouterr().out
    assert (tmp_path / "a" / "b.png").stat().st_size > 0
    page = (tmp_path / "outputs" / "report" / "index.html").read_text()
    answer = next(line for line in out.splitlines() if "the lowest mean" in line)
    assert answer.partition(" On the same")[0].strip()[:150] in page
    assert "<b>&|worse, seed 3: diverged; val/loss is nan" in out
    assert "bands over seeds for TensorBoard (3, tab Custom Scalars): own/_summary" in out
    usual = [line.rstrip() for line in out.splitlines() if line.startswith((" lstm", " better"))]
    assert len(usual) == 4
    assert max(map(len, usual)) <= 100
    monkeypatch.setattr("sys.argv", ["report", "own", "--baseline", "gru"])
    with pytest.raises(SystemExit, match="--baseline gru: no such group; there are"):
        report.main()


def test_nobody_reads_on(own_runs: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """As in `newllm.report | head`: the page is written, and nothing is said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["report", "own"])
    for main in (report.main, ends_with_its_reader(lambda: print("x" * 100_000))):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "w") as closed:
            monkeypatch.setattr("sys.stdout", closed)
            with pytest.raises(SystemExit):
                main()
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
    assert (tmp_path / "outputs" / "report" / "index.html").is_file()


def test_bands_leave_those_of_other_variants_and_runs(own_runs: Path) -> None:
    (line,) = write_bands(gather([own_runs]), own_runs)
    assert line == f"bands over seeds for TensorBoard (3, tab Custom Scalars): {own_runs}/_summary"
    bands = own_runs / "_summary"
    folders = {run.name for run in own_runs.iterdir()} - {bands.name}
    some = [run for run in gather([own_runs]) if "better" in run.place]
    write_bands(some, own_runs)
    assert {path.name for path in bands.iterdir()} == folders
    assert all(len(list(folder.glob("events.*"))) == 1 for folder in bands.iterdir())


@pytest.mark.parametrize("linked", ["_summary", "_summary/better"])
def test_bands_are_not_written_through_a_link(own_runs: Path, tmp_path: Path, linked: str) -> None:
    some = [run for run in gather([own_runs]) if "better" in run.place]
    (tmp_path / "elsewhere").mkdir()
    place = own_runs / linked.replace("better", Path(some[0].place).parent.name)
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(tmp_path / "elsewhere")
    (line,) = write_bands(some, own_runs)
    assert line.startswith("no bands over seeds for TensorBoard: ")
    assert not [*(tmp_path / "elsewhere").iterdir()]


def test_no_two_curves_look_alike_and_each_is_in_the_legend(tmp_path: Path) -> None:
    for number in range(12):
        own(tmp_path, f"model.width={number}", [1.7 + 0.01 * number, 1.71 + 0.01 * number])
    found = contests(gather([tmp_path]), "width=11")
    (contest,) = found
    drawn = [standing.variant.label for standing in contest.foremost(MOST_CURVES)]
    assert drawn == ["width=11", *(f"width={number}" for number in range(7))]
    assert len(set(styles(contest.foremost(MOST_CURVES)).values())) == MOST_CURVES
    page = page_of(tmp_path, baseline="width=11").compose().write(tmp_path / "page").read_text()
    assert "Not shown: width=7; width=8; width=9; width=10" in page
    axes = curves(found).axes[0]
    assert len(axes.lines) >= MOST_CURVES
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == drawn


@pytest.mark.usefixtures("words_alone")
@pytest.mark.parametrize("has_font", [True, False])
def test_figures_speak_the_page_s_language_or_the_page_says_why_not(
    has_font: bool, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "can_show", lambda text: text.isascii() or has_font)
    titles: list[str] = []
    overview = series_figures.overview
    monkeypatch.setattr(
        series_figures, "overview", lambda *words: titles.append(words[1]) or overview(*words)
    )
    pages = [
        page_of(runs, lang=lang).compose().write_markdown(tmp_path / f"{lang}.md")
        for lang in LANGUAGES
    ]
    english, japanese = (page.read_text("utf-8") for page in pages)
    assert titles == ["reported best loss", "報告された最良損失" if has_font else titles[0]]
    assert ("英語のまま" in japanese) != has_font
    assert page_module.NO_FONT not in english


def test_every_kind_of_line_has_a_legend(runs: Path) -> None:
    summaries = summarize(gather([runs]))
    words = defaultdict(lambda: "a word")
    grid = series_figures.curve_grid(summaries, words)
    (legend,) = grid.legends
    known = {(line.get_color(), line.get_linestyle()) for line in legend.get_lines()}
    found = {(line.get_color(), line.get_linestyle()) for axes in grid.axes for line in axes.lines}
    assert found == known
    spikes = series_figures.spikes(summaries, words, {"unk": "unknown", "other": "others"})
    above = spikes.axes[0]
    known_colours = {line.get_color() for line in above.get_legend().get_lines()}
    assert {line.get_color() for line in above.lines} == known_colours


@pytest.mark.usefixtures("words_alone")
def test_a_run_that_nobody_watched_is_not_free_of_spikes(runs: Path, tmp_path: Path) -> None:
    for seed in (2, 3):
        (runs / "phase1_baseline" / f"seed={seed}" / "validation_steps.csv").unlink()
        result = json.loads((runs / "phase1_baseline" / f"seed={seed}" / "result.json").read_text())
        result["spikes"]["val_by_step"] = []
        (runs / "phase1_baseline" / f"seed={seed}" / "result.json").write_text(json.dumps(result))
    page = page_of(runs).compose().write(tmp_path / "page").read_text()
    assert "1 of 1 runs have a spike" in page
    assert "1/1 (1.8x)" in page
    assert "1/3" not in page


@pytest.mark.usefixtures("words_alone")
def test_runs_of_a_study_stand_in_no_other_list(runs: Path, tmp_path: Path) -> None:
    """But those of a claim without a verdict do."""
    for seed in (2, 3):
        make_run(runs, "isolated_layer", seed, "claims")
        make_run(runs, "phase2_layernorm", seed)
    make_run(runs, "isolated_gating", 1, "claims")
    make_run(runs, "add_dropout", 1, "ladder")
    make_run(runs, "mine", 1)
    judged = {j.claim.first for j in judge(gather([runs])) if j.verdict != NOT_RUN}
    assert "isolated_layer" in judged
    page = page_of(runs).compose().write(tmp_path / "page").read_text()
    others = page.partition("Other runs (3)")[2].partition("</table>")[0]
    assert re.findall(r"<td>(modern|mine|isolated_\w+|add_\w+)</td>", others) == [
        "isolated_gating", "mine", "modern"
    ]  # fmt: skip


def test_every_study_is_found_with_a_sweep_of_its_name() -> None:
    names = [study.name for study in found_studies()]
    expected = "series claims ladder fair scaling state_tracking capacity recall text streams "
    assert names == [*expected.split(), "examination"]
    assert {file.stem for file in (conf_directory() / "sweep").iterdir()} == set(names)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "newllm.studies.mine: has no STUDY"),
        ('STUDY = Study("yours", *rest)', "newllm.studies.mine: STUDY.name is yours; it must be"),
        ('STUDY = Study("mine", *rest)', "newllm.studies.mine: .*/sweep/mine.yaml does not exist"),
    ],
)
def test_a_module_that_is_no_study_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, fault: str
) -> None:
    header = "from newllm.reporting.page import Study\nrest = 'title', 9, list, print\n"
    (tmp_path / "mine.py").write_text(header + content)
    monkeypatch.setattr("newllm.studies.__path__", [*studies.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    try:
        with pytest.raises(ValueError, match=fault):
            found_studies()
    finally:
        sys.modules.pop("newllm.studies.mine", None)


@pytest.fixture(scope="module")
def committed_runs() -> list[Run]:
    return gather(sorted((DOCS / "data").glob("*.json.gz")))


@pytest.mark.usefixtures("words_alone")
@pytest.mark.parametrize("lang", set(LANGUAGES) - {"en"})
@pytest.mark.parametrize("study", found_studies(), ids=lambda study: study.name)
def test_every_word_of_a_study_is_in_each_language(
    study: Study, lang: str, committed_runs: list[Run], tmp_path: Path
) -> None:
    said = {study.title}

    def listen(text: str) -> str:
        said.add(text)
        return text

    assert study.own(committed_runs)
    study.part(Document("", "en"), committed_runs, listen, listen)
    assert said - vocabulary(lang).keys() == set()


def test_a_word_without_a_translation_stays_english() -> None:
    assert translator("ja")("said by nobody") == "said by nobody"


@pytest.mark.usefixtures("words_alone")
def test_rungs_alone_make_a_page(tmp_path: Path) -> None:
    """Of their study, with all that its sweep runs, and which says what it leaves out."""
    make_run(tmp_path / "runs", "add_dropout", 1, "ladder")
    make_run(tmp_path / "runs", "modern", 1)
    changed = record("add_size", "trainer.max_epochs=1", study="ladder")["overrides"]
    make_run(tmp_path / "runs", "add_size", 1, "ladder", overrides=changed)
    page = page_of(tmp_path / "runs").compose().write(tmp_path / "page").read_text()
    assert "best epoch" not in page.partition("<details")[0]
    assert "5.620" in page.partition("more dropout")[2].partition("</tr>")[0]
    assert "<h1>From the original to the modern recipe, one change at a time</h1>" in page
    assert "more dropout" in page.partition("<details")[0]
    line = "1 run(s) of sweep=ladder are not in its section because their variant was changed: "
    assert f"{line}trainer.max_epochs=1." in page
    make_run(tmp_path / "runs", "mine", 1)
    page = page_of(tmp_path / "runs").compose().write(tmp_path / "page").read_text()
    assert "<h1>Runs side by side</h1>" in page
    assert "more dropout" not in page.partition("<summary>From the original")[0]
    assert line in page


def test_the_committed_page_is_what_the_committed_data_say(
    committed_runs: list[Run], tmp_path: Path
) -> None:
    page = Page(committed_runs, found_studies()).compose().write_markdown(tmp_path / "results.md")
    assert (tmp_path / "results" / "overview.png").stat().st_size > 0
    _assert_alike(page.read_text(), (DOCS / "results.md").read_text())


NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?")


def _assert_alike(found: str, expected: str) -> None:
    """The same words, and numbers that differ by 2 % or two units of their last digit at most.

    Sums, quantiles and fits come out otherwise in their last digits on another processor.
    """
    for line, committed in zip(found.splitlines(), expected.splitlines(), strict=True):
        assert NUMBER.sub("#", line) == NUMBER.sub("#", committed)
        for number, wanted in zip(NUMBER.findall(line), NUMBER.findall(committed), strict=True):
            value, goal = (float(text.replace(",", "")) for text in (number, wanted))
            unit = 10.0 ** -len(wanted.partition(".")[2]) if "." in wanted else 0.0
            assert value == pytest.approx(goal, rel=0.02, abs=2 * unit), (line, committed)


@pytest.mark.parametrize(
    ("figures", "written"),
    [
        ((0.2361, 0.2234, 0.2492), ("0.236", "0.223", "0.249")),
        ((360.2, 289.9, 438.1), ("360", "290", "438")),
        ((2.07, 1.294, 7.703), ("2.1", "1.3", "7.7")),
        ((1.22, 0.3751, 100.0), ("1.2", "0.38", "100")),
        ((1.0, 1.0, 1.0), ("1", "1", "1")),
    ],
)
def test_a_figure_has_the_digits_that_its_interval_leaves(
    figures: tuple[float, float, float], written: tuple[str, str, str]
) -> None:
    assert as_known(*figures) == written
