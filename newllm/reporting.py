"""The report as a document: Markdown with figures beside it, and the same as one HTML file."""

from __future__ import annotations

import base64
import html
import io
import math
import statistics
import tomllib
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import markdown
import matplotlib
from jinja2 import Template
from matplotlib import font_manager
from matplotlib.figure import Figure

from newllm.analysis import series_figures
from newllm.analysis.series import Run, Summary, derived, other_figures, published, summarize
from newllm.analysis.spikes import find_spikes, largest

LANGUAGES = ("en", "ja")
JAPANESE_FONTS = (
    *("Noto Sans CJK JP", "IPAexGothic", "IPAGothic", "TakaoGothic", "VL Gothic"),
    *("Hiragino Sans", "Yu Gothic", "MS Gothic"),
)
HEADLINE = (
    *("transformer_leaky", "transformer", "phase1_baseline", "phase2_layernorm_wide_long"),
    *("phase3_gating", "phase5_baseline_exp1", "phase5_final_exp1", "phase5_final_exp2"),
)
PAGE = Template(
    """<!doctype html>
<html lang="{{ lang }}"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto;
       padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; margin: 1rem 0; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: left; }
th { border-bottom: 2px solid #888; }
td { font-variant-numeric: tabular-nums; }
img { max-width: 100%; }
code { font-size: 12px; background: #f4f4f4; padding: 0 .2rem; }
details { margin: .8rem 0; border-top: 1px solid #ccc; padding-top: .5rem; overflow-x: auto; }
summary { cursor: pointer; font-weight: 600; }
@media print { details { break-inside: avoid-page; } body { margin: 0; } }
</style></head><body>
{{ body }}
<script>addEventListener("beforeprint", () =>
  document.querySelectorAll("details").forEach(details => details.open = true));</script>
</body></html>
"""
)

Translate = Callable[[str], str]


def translator(lang: str) -> Translate:
    """The words of a language, by the English ones."""
    if lang == "en":
        return lambda text: text
    words = tomllib.loads(files("newllm").joinpath(f"labels_{lang}.toml").read_text("utf-8"))
    return lambda text: words[text]


def japanese_fonts() -> list[str]:
    """Those of this machine that figures can be labelled with in Japanese."""
    found = {font.name for font in font_manager.fontManager.ttflist}
    return [font for font in JAPANESE_FONTS if font in found]


def quoted(text: object) -> str:
    """Text from elsewhere as a cell or a line that holds no markup."""
    return html.escape(" ".join(str(text).split())).replace("|", "&#124;")


class Document:
    """Markdown that grows, with its figures as files beside it."""

    def __init__(self, folder: Path, fonts: Sequence[str] = ("DejaVu Sans",)) -> None:
        self.folder, self.fonts = folder, list(fonts)
        self.parts: list[str] = []
        self.drawings: dict[str, str] = {}  # the file of a figure: its drawing, to be embedded

    def text(self, *paragraphs: str) -> None:
        self.parts += paragraphs

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; cells are Markdown, with foreign text `quoted`."""
        lines = [headings, ["---"] * len(headings), *rows]
        self.parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))

    def figure(self, name: str, figure: Figure, caption: str) -> None:
        drawing = io.BytesIO()
        # Without a date and random names in it, the same runs make the same page.
        with matplotlib.rc_context({"svg.hashsalt": "newllm", "font.family": self.fonts}):
            figure.savefig(self.folder / f"{name}.png", dpi=110)
            figure.savefig(drawing, format="svg", metadata={"Date": None})
        encoded = base64.b64encode(drawing.getvalue()).decode()
        self.drawings[f"{name}.png"] = f"data:image/svg+xml;base64,{encoded}"
        self.parts.append(f"![{caption}]({name}.png)")

    def fold(self, title: str) -> None:
        """Start a part that is folded away until somebody wants it."""
        self.parts.append(f'<details markdown="1"><summary>{title}</summary>')

    def unfold(self) -> None:
        self.parts.append("</details>")

    def write(self, title: str, lang: str) -> Path:
        """Write `report.md` and `index.html`; returns the latter's place."""
        content = "\n\n".join(self.parts) + "\n"
        plain = content.replace('<details markdown="1">', "<details>")
        (self.folder / "report.md").write_text(plain, encoding="utf-8")
        body = markdown.markdown(content, extensions=["tables", "md_in_html"])
        for file, drawing in self.drawings.items():
            body = body.replace(f'src="{file}"', f'src="{drawing}"')
        page = self.folder / "index.html"
        page.write_text(PAGE.render(title=title, body=body, lang=lang), encoding="utf-8")
        return page


def write_report(runs: Sequence[Run], folder: Path, lang: str = "en") -> Path:
    """Write the report of some runs into a folder; returns the place of its page."""
    folder.mkdir(parents=True, exist_ok=True)
    _ = label = translator(lang)
    fonts = ["DejaVu Sans"]
    if lang == "ja" and (japanese := japanese_fonts()):
        fonts = [*japanese, *fonts]
    elif lang == "ja":
        label = translator("en")  # figures have no letters for it
    summaries = summarize(runs)
    document = Document(folder, fonts)
    title = _("The series, reproduced")
    document.text(f"# {title}", *_verdict(summaries, _))
    overview = series_figures.overview(
        summaries,
        label("reported best loss"),
        label("reproduced, each seed and mean"),
        label("best validation loss (nats per token)"),
    )
    caption = _(
        "Every experiment in the order of the series, reported and reproduced. Losses on different "
        "corpora cannot be compared."
    )
    document.figure("overview", overview, caption)
    _headline_table(document, [s for s in summaries if s.name in HEADLINE], _)
    _all_experiments(document, summaries, _)
    _derived_table(document, summaries, _)
    _figures_table(document, _)
    _ratio_table(document, summaries, _)
    _spike_tables(document, summaries, _, label)
    document.fold(_("Curves of all runs"))
    document.text(_(DEFINITION_OF_CURVES))
    grid = series_figures.curve_grid(
        summaries,
        label("train"),
        label("validation"),
        label("epoch"),
        label("validation loss (nats per token)"),
    )
    document.figure("curves", grid, _("Curves of all runs"))
    document.unfold()
    _other_runs(document, runs, summaries, _)
    _origin(document, runs, _)
    return document.write(title, lang)


DEFINITION = (
    "Losses are best validation losses by the series' own definition (mean over batches of 16 "
    "sentences), in nats per token: mean and 95 % interval over seeds."
)


DEFINITION_OF_CURVES = (
    "Validation losses are means over batches of 16 sentences, as the series counted them; "
    "horizontal lines are the reported best, unigram and bigram counts, and the oracle."
)
DEFINITION_OF_SPIKES = (
    "By step and by epoch the validation loss is a mean over tokens. A spike rises and falls by "
    "at least a quarter; of each run the largest counts. Figures are medians, with the range over "
    "runs."
)


def _verdict(summaries: Sequence[Summary], _: Translate) -> list[str]:
    """Three sentences."""
    verdicts = [summary.verdict for summary in summaries]
    agree, differ = verdicts.count("agrees"), verdicts.count("differs")
    sentences = [
        _(
            "{agree} of the {compared} results that can be compared come out as reported, {differ} "
            "do not; the published Transformer baseline sees the future, so every comparison with "
            "it is void."
        ).format(agree=agree, compared=agree + differ, differ=differ)
    ]
    final = next(summary for summary in summaries if summary.name == "phase5_final_exp1")
    if final.loss:
        references = final.done[0].result["references"]
        mean = statistics.fmean(run.result["best_val_loss"] for run in final.done)
        relation = (
            "The final result (reported {reported}, reproduced {mean}) is worse than counting "
            "pairs of words on the same sentences ({bigram}); the grammar that made them scores "
            "{oracle}."
            if mean > references["bigram"]
            else "The final result (reported {reported}, reproduced {mean}) beats counting pairs "
            "of words on the same sentences ({bigram}); the grammar that made them scores {oracle}."
        )
        sentences.append(
            _(relation).format(
                reported=final.reported,
                mean=_interval(final),
                bigram=f"{references['bigram']:.3f}",
                oracle=f"{references['oracle']:.3f}",
            )
        )
    else:
        sentences.append(_("The final result has not been reproduced here."))
    small = [run for s in summaries for run in s.done if run.result["corpus"] == "tiny30"]
    onsets = [spike.onset for run in small if (spike := largest(_by_step(run)))]
    if small and onsets:
        sentences.append(
            _(
                "On 30 sentences {num_spiked} of {num_runs} runs have a spike in their validation "
                "loss by step; the largest of each begins at step {onset} in the median."
            ).format(
                num_spiked=len(onsets), num_runs=len(small), onset=f"{statistics.median(onsets):g}"
            )
        )
    else:
        sentences.append(_("No run on 30 sentences was found to look for spikes in."))
    return [" ".join(sentences)]


def _by_step(run: Run) -> list[Any]:
    return find_spikes([row["step"] for row in run.looks], [row["val/loss"] for row in run.looks])


def _by_epoch(run: Run) -> list[Any]:
    rows = [row for row in run.epochs if "val/loss" in row]
    return find_spikes([row["epoch"] for row in rows], [row["val/loss"] for row in rows])


def _interval(summary: Summary) -> str:
    loss = summary.loss
    if loss is None:
        return "-"
    if not math.isfinite(loss.half_width):
        return f"{loss.mean:.4f}"
    return f"{loss.mean:.4f} &plusmn; {loss.half_width:.4f}"


def _reported(summary: Summary) -> str:
    if summary.reported is None:
        return "-"
    return f"~{summary.reported:g}" if summary.is_approximate else f"{summary.reported:.4f}"


def _verdict_word(summary: Summary, _: Translate) -> str:
    word = _(summary.verdict)
    return f"{word}; {_('void: sees the future')}" if summary.is_void else word


def _headline_table(document: Document, chosen: Sequence[Summary], _: Translate) -> None:
    headings = [_(word) for word in ("experiment", "reported", "reproduced", "runs", "verdict")]
    document.table(
        headings,
        [
            [s.name, _reported(s), _interval(s), str(len(s.done)), _verdict_word(s, _)]
            for s in chosen
        ],
    )
    document.text(_(DEFINITION))


def _all_experiments(document: Document, summaries: Sequence[Summary], _: Translate) -> None:
    document.fold(_("All experiments"))
    document.text(_(DEFINITION))
    words = ("experiment", "parameters", "equal", "reported", "reproduced", "runs", "best epoch",
             "reported epoch", "spikes by step", "spikes by epoch", "verdict",
             "command")  # fmt: skip
    document.table([_(word) for word in words], [_row(summary, _) for summary in summaries])
    document.unfold()


def _row(summary: Summary, _: Translate) -> list[str]:
    parameters = summary.parameters
    epochs = summary.best_epochs
    middle = f"{statistics.median(epochs):g} ({epochs[0]}-{epochs[-1]})" if epochs else "-"
    not_done = len(summary.runs) - len(summary.done)
    return [
        summary.name,
        "-" if parameters is None else f"{parameters:,}",
        _equal(parameters, summary.reported_parameters, _),
        _reported(summary),
        _interval(summary),
        f"{len(summary.done)}" + (f", {not_done} {_('not done')}" if not_done else ""),
        middle,
        str(summary.reported_epoch or "-"),
        _spiked(summary, _by_step),
        _spiked(summary, _by_epoch),
        _verdict_word(summary, _),
        f"`python -m newllm.train -m experiment={summary.name} seed=1,2,3`",
    ]


def _equal(ours: int | None, reported: int | None, _: Translate) -> str:
    return "-" if ours is None or reported is None else _("yes" if ours == reported else "no")


def _spiked(summary: Summary, find: Callable[[Run], list[Any]]) -> str:
    """In how many runs, and how high at most, such as `3/5 (2.1x)`."""
    if not summary.done:
        return "-"
    found = [spike for run in summary.done if (spike := largest(find(run)))]
    highest = f" ({max(spike.ratio for spike in found):.1f}x)" if found else ""
    return f"{len(found)}/{len(summary.done)}{highest}"


def _derived_table(document: Document, summaries: Sequence[Summary], _: Translate) -> None:
    document.fold(_("Percentages of the summary, recomputed"))
    words = ("comparison", "experiment", "claimed", "from its own losses", "from ours", "slip")
    document.table(
        [_(word) for word in words],
        [
            [
                row.table,
                row.name,
                f"{row.claimed:+g} %",
                _percent(row.from_reported),
                _percent(row.reproduced),
                _("yes") if row.is_slip else "",
            ]
            for row in derived(summaries)
        ],
    )
    document.unfold()


def _figures_table(document: Document, _: Translate) -> None:
    document.fold(_("Other figures of the summary, recomputed"))
    document.table(
        [_(word) for word in ("figure", "claimed", "computed", "slip")],
        [
            [row.what, f"{row.claimed:g}", f"{row.computed:,.2f}", _("yes") if row.is_slip else ""]
            for row in other_figures()
        ],
    )
    document.unfold()


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f} %"


def _ratio_table(document: Document, summaries: Sequence[Summary], _: Translate) -> None:
    document.fold(_("Parameters per training sentence"))
    by_name = {summary.name: summary for summary in summaries}
    rows = []
    for entry in published()["ratio"]:
        parameters = by_name[entry["name"]].parameters
        ours = None if parameters is None else parameters / _train_sentences(entry["name"])
        is_slip = ours is not None and abs(ours - entry["claimed"]) > 1
        rows.append(
            [
                entry["name"],
                f"{entry['claimed']:,}",
                "-" if ours is None else f"{ours:,.0f}",
                _("yes") if is_slip else "",
            ]
        )
    words = ("experiment", "claimed", "by division", "slip")
    document.table([_(word) for word in words], rows)
    document.unfold()


def _train_sentences(experiment: str) -> int:
    if "augmentation" in experiment:
        return 99
    return 400 if "final" in experiment else 24


def _spike_tables(
    document: Document, summaries: Sequence[Summary], _: Translate, label: Translate
) -> None:
    document.fold(_("Spikes: the four traits"))
    document.text(_(DEFINITION_OF_SPIKES))
    document.table(
        [_(word) for word in ("trait", "what the runs show")],
        [[_(trait), shown] for trait, shown in _traits(summaries)],
    )
    words = ("experiment", "runs with a spike", "onset (step)", "peak over level",
             "steps to recovery", "share of <UNK> in the rise", "onset (epoch)")  # fmt: skip
    rows = []
    for summary in summaries:
        if not summary.done:
            continue
        found = [_largest_row(run, "val_by_step") for run in summary.done]
        steps = [spike for spike in found if spike]
        epochs = [s for run in summary.done if (s := _largest_row(run, "val_by_epoch"))]
        rows.append(
            [
                summary.name,
                f"{len(steps)}/{len(found)}",
                _median_and_range([spike["onset"] for spike in steps]),
                _median_and_range([spike["ratio"] for spike in steps]),
                _median_and_range([s["duration"] for s in steps if s["duration"] is not None]),
                _median_and_range([100 * spike["unk"] for spike in steps], " %"),
                _median_and_range([spike["onset"] for spike in epochs]),
            ]
        )
    document.table([_(word).replace("<UNK>", "&lt;UNK&gt;") for word in words], rows)
    document.text(f"**{_('The published spikes beside ours')}**")
    by_name = {summary.name: summary for summary in summaries}
    document.table(
        [_(word) for word in ("experiment", "reported", "reproduced")],
        [
            [
                entry["name"],
                f"{entry['height']:g} ({entry['epoch']})",
                _peaks(by_name[entry["name"]]),
            ]
            for entry in published()["peak"]
        ],
    )
    kinds = {
        "unk": label("<UNK> targets"),
        "eos": label("<EOS> targets"),
        "other": label("other targets"),
    }
    loss = label("validation loss (nats per token)")
    figure = series_figures.spikes(summaries, loss, label("epoch"), label("step"), kinds)
    document.figure("spikes", figure, _("The published spikes beside ours"))
    document.unfold()


def _peaks(summary: Summary) -> str:
    """Of each run the highest peak by epoch and its epoch, such as `8.1 (17), 7.9 (16)`."""
    found = [spike for run in summary.done if (spike := _largest_row(run, "val_by_epoch"))]
    return ", ".join(f"{spike['height']:.3g} ({spike['peak']:g})" for spike in found) or "-"


def _traits(summaries: Sequence[Summary]) -> list[tuple[str, str]]:
    """What the runs on 30 sentences say of the four traits that the summary gives its spikes."""
    runs = [run for s in summaries for run in s.done if run.result["corpus"] == "tiny30"]
    steps = [spike for run in runs if (spike := _largest_row(run, "val_by_step"))]
    epochs = [spike for run in runs if (spike := _largest_row(run, "val_by_epoch"))]
    wide = [run for run in runs if run.result["parameters"] > 10e6]
    narrow = [run for run in runs if run.result["parameters"] < 10e6]

    def rises(chosen: Sequence[Run]) -> list[float]:
        return [s["ratio"] for run in chosen if (s := _largest_row(run, "val_by_step"))]

    healed = sum(spike["recovery"] is not None for spike in steps)
    return [
        (
            "always in the same epochs",
            f"epoch {_median_and_range([spike['onset'] for spike in epochs])}, "
            f"step {_median_and_range([spike['onset'] for spike in steps])}",
        ),
        (
            "two to nine times in one epoch",
            f"epoch: x{_median_and_range([spike['steepest'] for spike in epochs])}; "
            f"step: x{_median_and_range([spike['steepest'] for spike in steps])}",
        ),
        ("heals by itself", f"{healed}/{len(steps)}"),
        (
            "worse for larger models",
            f"&lt;10M: {len(rises(narrow))}/{len(narrow)}, x{_median_and_range(rises(narrow))}; "
            f"&gt;10M: {len(rises(wide))}/{len(wide)}, x{_median_and_range(rises(wide))}",
        ),
    ]


def _largest_row(run: Run, series: str) -> dict[str, Any] | None:
    found = (run.result.get("spikes") or {}).get(series) or []
    return max(found, key=lambda spike: spike["ratio"], default=None)


def _median_and_range(values: Sequence[float], unit: str = "") -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):.3g}{unit} ({min(values):.3g}-{max(values):.3g})"


def _other_runs(
    document: Document, runs: Sequence[Run], summaries: Sequence[Summary], _: Translate
) -> None:
    of_series = {id(run) for summary in summaries for run in summary.runs}
    ended_badly = [run for run in runs if not run.is_done]
    others = [run for run in runs if run.is_done and id(run) not in of_series]
    for title, chosen in (
        (_("Failed and unfinished runs"), ended_badly),
        (_("Other runs"), others),
    ):
        if chosen:
            document.fold(f"{title} ({len(chosen)})")
            words = ("run", "seed", "status", "best val loss", "reason")
            document.table([_(word) for word in words], [_run_row(run) for run in chosen])
            document.unfold()


def _run_row(run: Run) -> list[str]:
    result = run.result
    loss = result.get("best_val_loss")
    return [
        quoted(result.get("experiment") or result.get("name") or run.place),
        quoted(result.get("seed", "-")),
        quoted(result["status"]),
        "-" if loss is None else f"{loss:.4f}",
        quoted(result.get("error") or ""),
    ]


def _origin(document: Document, runs: Sequence[Run], _: Translate) -> None:
    document.fold(_("How this page was made"))
    revisions = sorted({quoted(run.result.get("git_revision"))[:12] for run in runs})
    seconds = sum(run.result.get("seconds") or 0.0 for run in runs)
    threads = sorted({quoted(run.result["threads"]) for run in runs if run.is_known})
    document.text(
        "`python -m newllm.train sweep=all` and `python -m newllm.report`",
        f"{len(runs)} runs, {seconds / 60:.0f} minutes of processes with {', '.join(threads)} "
        f"thread(s), revision {', '.join(revisions)}.",
    )
    document.unfold()
