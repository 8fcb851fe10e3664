"""Pictures: any text in them, few and many values, and what becomes of a run without them."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.text import Text

from newllm.reporting import drawing, figures

STRANGE = ("<BOS>", r"$\R$", "$x$", "$", "東京", "🙂", "_b^2", "\\frac", "&lt;", "a" * 300)
DYNAMICS = {"gradient_norms": [1.0, 1e-3, 1e-6]}
LOSSES = {"loss": 2.0, "zeroed": 2.5, "shuffled": 2.3, "frozen": []}


@pytest.fixture
def few_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose other font has but one more letter."""
    own = drawing._letters_of("DejaVu Sans")
    letters = {"DejaVu Sans": own, "DejaVu Serif": frozenset(map(ord, "東"))}
    monkeypatch.setattr(drawing, "_letters_of", letters.__getitem__)
    monkeypatch.setattr(drawing, "font_families", lambda: list(letters))
    drawing._warn_of_missing_letters.cache_clear()
    yield
    drawing._warn_of_missing_letters.cache_clear()


def drawn(figure: drawing.Figure) -> list[str]:
    """Its texts, after all of them are drawn; any warning is an error."""
    figure.draw_without_rendering()
    texts: list[Text] = figure.findobj(Text)
    assert not any(text.get_parse_math() for text in texts)
    return [text.get_text() for text in texts]


def test_words_are_drawn_as_they_are() -> None:
    contexts_TC = np.random.default_rng(0).normal(size=(len(STRANGE), 4))
    texts = drawn(figures.context_over_time(contexts_TC, STRANGE, r"epoch $1 of \R"))
    assert {r"$\R$", "$x$", "東京", r"epoch $1 of \R"} <= set(texts)
    assert "a" * 23 + "…" in texts


@pytest.mark.usefixtures("few_fonts")
def test_letters_that_no_font_has_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert drawing.can_show("abc 東")
    assert not drawing.can_show("東京")
    drawn(figures.curves([{"epoch": 1, "val/loss": 2.0}], {}, "東"))
    assert capsys.readouterr().err == ""
    for _ in range(2):
        drawn(figures.curves([{"epoch": 1, "val/loss": 2.0}], {}, "東京 猫"))
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_fonts_with_more_letters_are_those_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = drawing.font_manager.fontManager
    monkeypatch.setattr(manager, "get_font_names", lambda: ["VL Gothic", "Mine", "IPAGothic"])
    drawing.font_families.cache_clear()
    assert drawing.font_families() == ["DejaVu Sans", "IPAGothic", "VL Gothic"]
    drawing.font_families.cache_clear()


def test_labels_that_matplotlib_makes_hold_no_formulas() -> None:
    texts = drawn(figures.ablations(LOSSES, DYNAMICS, "a run"))
    assert "0.001" in texts
    assert not [text for text in texts if "$" in text]


def test_one_epoch_stands_in_the_middle_of_its_axis() -> None:
    figure = figures.curves([{"epoch": 1, "train/loss": 5.0, "val/loss": 4.9}], {}, "a run")
    drawn(figure)
    for axes in figure.axes:
        assert list(axes.get_xticks()) == [1]
        assert axes.get_xlim() == (0.5, 1.5)


@pytest.mark.parametrize("losses", [(1e3, 1e4), (float("nan"), float("nan")), (2.0, float("inf"))])
def test_curves_of_a_run_that_diverges(losses: tuple[float, float]) -> None:
    rows = [{"epoch": i, "train/loss": loss} for i, loss in enumerate(losses, 1)]
    drawn(figures.curves(rows, {"bigram": 2.0, "oracle": 1.0}, "a run"))


@pytest.mark.parametrize(
    ("references", "labels"),
    [
        ({"unigram": 4.24, "bigram": 4.19, "trigram": 4.16}, {"unigram", "bigram", "trigram"}),
        ({"unigram": 8.0, "bigram": 4.02, "trigram": 4.0}, {"unigram", "bigram, trigram"}),
        ({"unigram": 4.3, "bigram": 4.2, "oracle": 4.1}, {"unigram", "bigram", "oracle"}),
    ],
)
def test_lines_have_labels_of_their_own_where_there_is_room(
    references: dict[str, float], labels: set[str]
) -> None:
    figure = figures.curves([{"epoch": 1, "val/loss": 4.5}], references, "a run")
    for axes in figure.axes:
        assert {text.get_text() for text in axes.texts} == labels
        # They stand beside the curves, each on its line.
        assert all(text.xy[0] == 1 and text.xyann[0] > 0 for text in axes.texts)
        heights = sorted(text.xy[1] for text in axes.texts)
        assert all(b - a > figures.CLOSE for a, b in pairwise(heights))


def test_a_long_title_takes_three_lines_at_most() -> None:
    for title in ("long " * 200, "x" * 900):
        figure = figures.curves([{"epoch": 1, "val/loss": 2.0}], {}, title)
        assert len(figure.get_suptitle().splitlines()) == 3


def test_the_title_says_corpus_and_seed() -> None:
    assert figures.run_title("lstm E8", {"corpus": "tiny30"}, 3) == "lstm E8, tiny30, seed 3"
    own = {"_target_": "a.TextSource", "path": "/texts/mine.txt"}
    assert figures.run_title("lstm E8", own, 3) == "lstm E8, mine.txt, seed 3"


def test_few_positions_are_drawn_one_by_one() -> None:
    losses = [3.0, 2.0, 2.5]
    figure = figures.positions(losses, losses, {"bigram": losses}, "a run")
    (axes, _) = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [losses, losses]
    assert axes.get_xlabel() == "position in the sentence (words)"
    drawn(figure)


def test_many_positions_are_drawn_as_weighted_means() -> None:
    losses = np.random.default_rng(0).normal(3, 1, 512)
    numbers = np.arange(512, 0, -1)
    title = "a run"
    figure = figures.positions(losses, None, {"bigram": losses}, title, list(numbers), "tokens")
    (axes,) = figure.axes
    means = np.array(axes.lines[-1].get_ydata())
    assert len(means) <= figures.MANY_POSITIONS
    assert means[:3] == pytest.approx(losses[:3])  # the first stay alone
    edges = figures._bins(512)
    weights = np.add.reduceat(numbers, edges[:-1])
    assert np.average(means, weights=weights) == pytest.approx(np.average(losses, weights=numbers))
    assert "tokens" in axes.get_xlabel()
    assert "$" not in "".join(drawn(figure))


def test_a_context_over_many_words_stays_a_picture() -> None:
    figure = figures.context_over_time(np.ones((600, 4)), ["word"] * 600)
    assert figure.get_figwidth() <= 22
    assert "word" not in drawn(figure)


def test_a_fault_in_drawing_is_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with drawing.never_fatal("curves.png"):
        raise RuntimeError("no ink\nat all")
    expected = "warning: curves.png not drawn (RuntimeError: no ink); the run continues\n"
    assert capsys.readouterr().err == expected
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(RuntimeError), drawing.never_fatal("curves.png"):
        raise RuntimeError("no ink")
