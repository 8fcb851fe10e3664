"""Training on streams: does a state that is carried over make a model read further?"""

from __future__ import annotations

from collections.abc import Sequence

from newllm.reporting.document import Document, quoted
from newllm.reporting.models import NAMES
from newllm.reporting.page import Study
from newllm.reporting.translation import Translate
from newllm.runs.gathering import Run
from newllm.statistics.intervals import Interval
from newllm.studies.streams.figures import loss_by_distance
from newllm.studies.streams.results import (
    NAME,
    STATES,
    TIMES,
    Contestant,
    contestants,
    own_runs,
)

DEFINITION = (
    "Models with about the same number of parameters read the same documents in windows of "
    "{window} tokens, through which gradients go back. A window starts from the state after the "
    "window before it (kept), from the initial state, or from the state of another row (state "
    "passing). In evaluation, all read whole documents with one state. All learn at the same rate, "
    "which was not tuned, so that models are compared with themselves only. Losses are means over "
    "bins within half an octave of a distance to the start of a validation document, minus the "
    "loss of counts of three tokens on the same targets, in nats per token. Changes are paired by "
    "seed."
)
CAPTION = (
    "Loss minus that of counts of three tokens, by distance to the start of a document: means "
    "over seeds."
)


def streams(document: Document, runs: Sequence[Run], _: Translate, label: Translate) -> None:
    """Add the figure, and a table of losses at multiples of the training window."""
    found = contestants(runs)
    window = found[0].window
    document.text(_(DEFINITION).format(window=window))
    words = {key: label(name) for key, name in (NAMES | STATES).items()}
    words |= {
        "distance": label("tokens since the start of the document"),
        "excess": label("loss minus that of trigram counts (nats)"),
        "window": label("training window"),
    }
    document.figure("streams_distance", loss_by_distance(found, words), _(CAPTION))
    document.text(_(CAPTION))
    headings = [
        *(_(word) for word in ("model", "start of a window", "parameters", "bits per byte")),
        *(_("at {tokens} tokens").format(tokens=f"{times * window:,}") for times in TIMES),
        *(
            _("change from {first} to {last}").format(
                first=f"{window:,}", last=f"{times * window:,}"
            )
            for times in TIMES[1:]
        ),
    ]
    document.table(headings, [_row(one, _) for one in found])


def _row(one: Contestant, _: Translate) -> list[str]:
    return [
        _(NAMES[one.model]),
        _(STATES[one.state]),
        f"{one.runs[0].result['parameters']:,}",
        quoted(f"{one.bits.mean:.3f}"),
        *(f"{one.excess(times).mean:.3f}" for times in TIMES),
        *(_change(one.change(times)) for times in TIMES[1:]),
    ]


def _change(interval: Interval) -> str:
    spread = f" &plusmn; {interval.half_width:.3f}" if interval.num_runs > 1 else ""
    return f"{interval.mean:+.3f}{spread} (n={interval.num_runs})"


STUDY = Study(NAME, title="Training on streams", place=9, own=own_runs, part=streams)
