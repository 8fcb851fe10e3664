"""How fast is it, and against what: `python -m newllm.benchmark [--quick] [--compare OLD.json]`.

Everything is timed side by side in one process, in turns: the fused recurrence against the plain
loop, an epoch against the original's way, the context model against a Transformer and LSTMs of
equal size, a step against the machine's own matrix rate, and long sequences with and without
recomputation. Writes `benchmark.json` (a flat map), `benchmark.md` and `benchmark.png`.

Shapes: B batch, T time (tokens), H hidden, V vocabulary.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import newllm
from newllm.analysis import figures
from newllm.analysis.timing import Timing, changes, read_timings, side_by_side, write_timings
from newllm.clipping import clip_gradients
from newllm.data.batching import Batch
from newllm.data.module import CorpusDataModule
from newllm.data.tokenizer import PAD
from newllm.models.context import ContextModel
from newllm.models.fused import Fused
from newllm.models.gating import LSTMGating
from newllm.models.language_model import LanguageModel
from newllm.models.lstm import LSTMModel
from newllm.models.recurrence import Recurrence, Reference
from newllm.models.transformer import Transformer

VOCABULARY = 1000
GRADIENT_CLIP = 1.0


@dataclass(frozen=True)
class Size:
    """A gated context model with LayerNorm, the summary's E=256 but for the smallest."""

    hidden_dim: int
    num_layers: int

    @property
    def name(self) -> str:
        return f"H{self.hidden_dim} L{self.num_layers}"

    def build(self, recurrence: Recurrence) -> ContextModel:
        torch.manual_seed(0)
        small = self.hidden_dim < 256
        return ContextModel(
            VOCABULARY,
            embedding_dim=self.hidden_dim if small else 256,
            context_dim=self.hidden_dim if small else 512,
            hidden_dim=self.hidden_dim,
            num_layers=self.num_layers,
            gating=LSTMGating,
            normalization=nn.LayerNorm,
            recurrence=recurrence,
        )


MODERN, EXP1, EXP2 = Size(128, 3), Size(512, 9), Size(1024, 11)


@dataclass(frozen=True)
class Plan:
    """How much to measure."""

    num_rounds: int
    sizes: tuple[Size, ...]
    batch_sizes: tuple[int, ...]
    lengths: tuple[int, ...]
    long_lengths: tuple[int, ...]


FULL = Plan(9, (MODERN, EXP1, EXP2), (16, 64), (13, 31), (256, 1024, 4096, 8192))
QUICK = Plan(3, (MODERN,), (16,), (13,), (256,))


class Trainee:
    """A model that takes training steps on one batch: loss, gradients, clipping, optimizer."""

    def __init__(self, model: LanguageModel, fused_optimizer: bool = True) -> None:
        self.model = model.train()
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=fused_optimizer)

    def step(self, tokens_BT: Tensor, targets_BT: Tensor) -> None:
        logits_BTV, _ = self.model(tokens_BT)
        loss = F.cross_entropy(
            logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=PAD
        )
        self.optimizer.zero_grad()
        loss.backward()
        clip_gradients(self.optimizer, GRADIENT_CLIP)
        self.optimizer.step()

    def epoch(self, batches: list[Batch]) -> None:
        for batch in batches:
            self.step(batch.tokens_BT, batch.targets_BT)


def random_tokens(batch_size: int, length: int) -> Tensor:
    """Token ids [B, T] without padding."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(4, VOCABULARY, (batch_size, length), generator=generator)


def step_of(trainee: Trainee, batch_size: int, length: int) -> Callable[[], None]:
    tokens_BT = random_tokens(batch_size, length)
    return partial(trainee.step, tokens_BT, tokens_BT.roll(-1, dims=1))


def measure_recurrences(plan: Plan) -> Iterator[tuple[str, dict[str, Timing]]]:
    """(a) A whole training step, fused against the plain loop."""
    for size in plan.sizes:
        trainees = {
            "reference": Trainee(size.build(Reference())),
            "fused": Trainee(size.build(Fused())),
        }
        for batch_size in plan.batch_sizes:
            for length in plan.lengths:
                steps = {
                    name: step_of(trainee, batch_size, length) for name, trainee in trainees.items()
                }
                prefix = f"step {size.name} B{batch_size} T{length}"
                yield prefix, side_by_side(steps, plan.num_rounds)


def measure_epochs(plan: Plan) -> Iterator[tuple[str, dict[str, Timing]]]:
    """(b) An epoch of quality500, and what each change to the original's way brings."""
    size = plan.sizes[-1] if EXP1 not in plan.sizes else EXP1
    shuffled, bucketed = (epoch_batches(batching) for batching in ("shuffled", "bucketed"))
    padded = [pad_to(batch, 32) for batch in shuffled]
    plain = Trainee(size.build(Reference()), fused_optimizer=False)
    plain_fast_optimizer = Trainee(size.build(Reference()))
    fused = Trainee(size.build(Fused()))
    ladder = {
        "the original's way": partial(plain.epoch, padded),
        "+ pad to the longest of the batch": partial(plain.epoch, shuffled),
        "+ fused optimizer": partial(plain_fast_optimizer.epoch, shuffled),
        "+ fused recurrence (shuffled)": partial(fused.epoch, shuffled),
        "+ bucketed batches": partial(fused.epoch, bucketed),
    }
    num_rounds = max(3, plan.num_rounds // 3)
    yield f"epoch {size.name}", side_by_side(ladder, num_rounds, num_warmup=1)


def epoch_batches(batching: str) -> list[Batch]:
    """The first epoch of quality500 in the original's batches of 16."""
    data = CorpusDataModule("quality500", order_seed=1, batching=batching)
    data.setup()
    return list(data.train_dataloader())


def pad_to(batch: Batch, length: int) -> Batch:
    """Pad every row to a fixed length, as the original did."""
    missing = (0, length - batch.tokens_BT.shape[1])
    tokens_BT, targets_BT = (
        F.pad(ids, missing, value=PAD) for ids in (batch.tokens_BT, batch.targets_BT)
    )
    return Batch(tokens_BT, targets_BT, batch.sentence_B)


def measure_baselines(plan: Plan) -> Iterator[tuple[str, dict[str, Timing]]]:
    """(c) Against a causal Transformer and LSTMs of as many parameters."""
    if EXP1 not in plan.sizes:
        return
    context = EXP1.build(Fused())
    contestants: dict[str, LanguageModel] = {
        "context model": context,
        "transformer, 5 layers": Transformer(VOCABULARY, num_layers=5, feedforward_dim=864),
        "lstm, 1 layer": LSTMModel(VOCABULARY, 256, 752, 1),
        "lstm, 9 layers": LSTMModel(VOCABULARY, 256, 222, 9),
    }
    steps = {
        f"{name}, {parameters(model) / 1e6:.1f}M": step_of(Trainee(model), 16, 31)
        for name, model in contestants.items()
    }
    yield "baselines B16 T31", side_by_side(steps, plan.num_rounds)


def measure_roofline(plan: Plan) -> Iterator[tuple[str, dict[str, Timing]]]:
    """(d) A step against the time that its operations take as big matrix products.

    A training step counts three times the forward operations: one pass forward, one for the
    gradients of activations, one for those of weights. The ratio is the share of the roofline.
    """
    for size in plan.sizes:
        for batch_size in plan.batch_sizes:
            model = size.build(Fused())
            length = max(plan.lengths)
            operations = 3 * model.flops_per_token(length) * batch_size * length
            # A square product with half as many multiply-adds as the step.
            edge = 2048
            left, right = torch.randn(edge, edge), torch.randn(edge, edge)
            timings = side_by_side(
                {"big product": partial(torch.mm, left, right),
                 "step": step_of(Trainee(model), batch_size, length)},
                plan.num_rounds,
            )  # fmt: skip
            scale = operations / (2 * edge**3)
            share = timings["step"].ratio * scale
            ideal = timings["big product"].seconds * scale
            yield (
                f"roofline {size.name} B{batch_size} T{length}",
                {
                    "at the big-product rate": Timing(ideal, 1.0, timings["big product"].spread),
                    "step": Timing(timings["step"].seconds, share, timings["step"].spread),
                },
            )


def measure_precision(plan: Plan) -> Iterator[tuple[str, dict[str, Timing]]]:
    """A step in bfloat16 (autocast) against float32."""
    for size in plan.sizes:
        trainee = Trainee(size.build(Fused()))
        step = step_of(trainee, 16, max(plan.lengths))

        def bf16(step: Callable[[], None] = step) -> None:
            with torch.autocast("cpu", torch.bfloat16):
                step()

        contestants = {"float32": step, "bfloat16": bf16}
        yield f"precision {size.name} B16", side_by_side(contestants, plan.num_rounds)


def measure_recompute(plan: Plan) -> Iterator[tuple[str, dict[str, Timing]]]:
    """Long sequences, with all activations kept or with contexts only."""
    size = EXP1 if EXP1 in plan.sizes else plan.sizes[-1]
    kept = Trainee(size.build(Fused()))
    recomputed = Trainee(size.build(Fused(recompute=True)))
    for length in plan.long_lengths:
        steps = {"kept": step_of(kept, 4, length), "recomputed": step_of(recomputed, 4, length)}
        num_rounds = 2 if length > 1000 else plan.num_rounds
        yield f"long {size.name} B4 T{length}", side_by_side(steps, num_rounds, num_warmup=1)


MEASUREMENTS = (
    measure_recurrences,
    measure_epochs,
    measure_baselines,
    measure_roofline,
    measure_precision,
    measure_recompute,
)


def parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine() -> str:
    """What this was measured on, in one line."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    return (
        f"{processor}, {torch.get_num_threads()} threads at most, Python "
        f"{platform.python_version()}, torch {torch.__version__}, newllm {newllm.__version__}"
    )


def run(plan: Plan, thread_counts: list[int], console: Console) -> dict[str, Timing]:
    """All measurements at each number of threads; prints rows as they come."""
    rows: dict[str, Timing] = {}
    for count in thread_counts:
        with threads(count):
            for measure in MEASUREMENTS:
                for prefix, timings in measure(plan):
                    for name, timing in timings.items():
                        row = f"{prefix}: {name} ({count} thread{'s' * (count > 1)})"
                        rows[row] = timing
                        console.print(f"{row}: {format_timing(timing)}")
    return rows


def format_timing(timing: Timing) -> str:
    """Milliseconds, ratio and spread for a person."""
    spread = f"+-{100 * timing.spread:.0f} %"
    return f"{1000 * timing.seconds:.2f} ms {spread}, {timing.ratio:.2f}x"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m newllm.benchmark", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute instead of a quarter hour")
    parser.add_argument("--threads", default=None, help="such as 1,2 (default: 1 and all)")
    parser.add_argument("--compare", type=Path, help="an older benchmark.json to set beside")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark"), help="folder")
    options = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    try:
        counts = thread_counts(options.threads)
        old = read_timings(options.compare) if options.compare else {}
    except ValueError as error:
        sys.exit(str(error))
    console.print(machine())
    rows = run(QUICK if options.quick else FULL, counts, console)
    options.output.mkdir(parents=True, exist_ok=True)
    write_timings(options.output / "benchmark.json", rows)
    figures.speed(rows).savefig(options.output / "benchmark.png", dpi=120)
    (options.output / "benchmark.md").write_text(markdown(rows))
    if old:
        console.print(change_table(old, rows))
    console.print(f"written to {options.output}")


def thread_counts(text: str | None) -> list[int]:
    """The numbers of threads to measure at."""
    if text is None:
        return sorted({1, torch.get_num_threads()})
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise ValueError(f"--threads {text}: must be whole numbers above 0, such as 1,2")
    return counts


def markdown(rows: dict[str, Timing]) -> str:
    """The rows as a document."""
    lines = [f"Measured on {machine()}.", "", "| row | ms | spread | ratio |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {1000 * row.seconds:.2f} | {100 * row.spread:.0f} % | {row.ratio:.2f} |"
        for name, row in rows.items()
    ]
    lines += ["", "On a GPU: not measured.", ""]
    return "\n".join(lines)


def change_table(old: dict[str, Timing], new: dict[str, Timing]) -> Table:
    """What changed since an older benchmark."""
    table = Table("row", "times faster", title="since the older benchmark", box=None)
    for name, ratio in changes(old, new):
        table.add_row(name, f"{ratio:.2f}")
    return table


if __name__ == "__main__":
    main()
