"""What a fixed state is worth on real text, beside attention and a compressor."""

from __future__ import annotations

from collections.abc import Sequence

from newllm.reporting.document import Document, quoted
from newllm.reporting.models import NAMES
from newllm.reporting.page import Study
from newllm.reporting.translation import Translate
from newllm.runs.gathering import Run
from newllm.studies.text.figures import bits_by_time
from newllm.studies.text.results import (
    NAME,
    PARTS,
    Contestant,
    contestants,
    own_runs,
    references,
)

DEFINITION = (
    "Models with the same number of parameters read the same text with the same tokenizer. At "
    "equal tokens, all make the same number of steps; at equal time, the others make as many steps "
    "as take about the time of the context model. Each is trained with the same "
    "learning rates; the one with the lowest validation loss is trained again with other seeds, "
    "and tested. Bits per byte are means over these seeds with their 95 % interval; the interval "
    "over documents is that of one run. Times depend on the processor and on other work."
)
REFERENCES = (
    "On the same test documents, xz needs {xz} bits per byte, and counts of three tokens {trigram}."
)
CAPTION = "Bits per byte on the test documents by training time: each run, the means joined."


def text(document: Document, runs: Sequence[Run], _: Translate, label: Translate) -> None:
    """Add the table of all models and the figure."""
    found = contestants(runs)
    document.text(_(DEFINITION))
    compared = references(found)
    if compared.keys() >= {"xz", "trigram"}:
        sentence = _(REFERENCES)
        document.text(
            sentence.format(xz=f"{compared['xz']:.3f}", trigram=f"{compared['trigram']:.3f}")
        )
    words = {key: label(name) for key, name in (NAMES | PARTS).items()}
    words |= {"minutes": label("minutes"), "bits": label("bits per byte"), "xz": "xz"}
    document.figure("text_bits", bits_by_time(found, words), _(CAPTION))
    document.text(_(CAPTION))
    headings = ["trained for", "model", "chosen", "parameters", "learning rate", "state (numbers)",
                "steps", "minutes", "bits per byte", "over documents"]  # fmt: skip
    document.table([_(word) for word in headings], [_row(one, _) for one in found])


def _row(one: Contestant, _: Translate) -> list[str]:
    result, bits = one.runs[0].result, one.bits
    spread = f" &plusmn; {bits.half_width:.3f}" if bits.num_runs > 1 else ""
    return [
        _(PARTS[one.part]),
        _(NAMES[one.model]),
        quoted(result["name"]),
        f"{result['parameters']:,}",
        quoted(one.runs[0].chose("optimizer.lr") or "-"),
        f"{result['state_bytes'] // 4:,}",
        f"{result['steps']:,}",
        f"{one.minutes.mean:.1f}",
        f"{bits.mean:.3f}{spread} (n={bits.num_runs})",
        f"&plusmn; {one.documents_half_width:.3f}",
    ]


STUDY = Study(NAME, title="Real text", place=8, own=own_runs, part=text)
