"""What the benchmark measures: each function yields groups of rows, timed side by side.

The first row of a group is the baseline of its ratios.

Shapes: B batch, T time (tokens), H hidden, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from newllm.benchmarks.memory import can_measure, peak_bytes
from newllm.benchmarks.timing import Timing, side_by_side
from newllm.data.batch import IGNORE, Batch
from newllm.data.sources.sentences import SentenceSource
from newllm.data.tokenizer import PAD
from newllm.models.attention import Attention
from newllm.models.cell import ContextCell
from newllm.models.gating import LSTMGating
from newllm.models.language_model import LanguageModel
from newllm.models.recurrence.fused import Fused
from newllm.models.recurrence.reference import Recurrence, Reference
from newllm.models.recurrent import Recurrent
from newllm.models.sizes import num_parameters
from newllm.models.torch_rnn import LSTM
from newllm.training.clipping import clip_gradients

VOCABULARY = 1000
GRADIENT_CLIP = 1.0


class OwnCell(ContextCell):
    """The same equations, in a class that the machine code does not know."""


@dataclass(frozen=True)
class Size:
    """A gated context model with LayerNorm, the summary's E=256 but for the smallest."""

    hidden_dim: int
    num_layers: int

    @property
    def name(self) -> str:
        return f"H{self.hidden_dim} L{self.num_layers}"

    def build(
        self,
        recurrence: Recurrence,
        recompute: bool = False,
        cell: type[ContextCell] = ContextCell,
    ) -> LanguageModel:
        torch.manual_seed(0)
        small = self.hidden_dim < 256
        return LanguageModel(
            VOCABULARY,
            self.hidden_dim if small else 256,
            [partial(Recurrent, cell=cell)],
            recompute=recompute,
            dropout=0.1,
            context_dim=self.hidden_dim if small else 512,
            hidden_dim=self.hidden_dim,
            num_layers=self.num_layers,
            gating=LSTMGating,
            normalization=nn.LayerNorm,
            recurrence=recurrence,
        )


MODERN, EXP1, EXP2 = Size(128, 3), Size(512, 9), Size(1024, 11)


@dataclass(frozen=True)
class Extent:
    """How much to measure."""

    num_rounds: int
    sizes: tuple[Size, ...]
    batch_sizes: tuple[int, ...]
    lengths: tuple[int, ...]
    long_lengths: tuple[int, ...]


FULL = Extent(9, (MODERN, EXP1, EXP2), (4, 16, 64), (13, 31), (256, 1024, 4096, 8192))
QUICK = Extent(3, (MODERN,), (16,), (13,), (256,))


class Trainee:
    """A model that takes training steps on one batch: loss, gradients, clipping, optimizer."""

    def __init__(self, model: LanguageModel, fused_optimizer: bool = True) -> None:
        self.model = model.train()
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=fused_optimizer)

    def step(self, tokens_BT: Tensor, targets_BT: Tensor) -> None:
        loss_BT, _, _ = self.model.score(tokens_BT, targets_BT)
        loss = loss_BT.sum() / (targets_BT != IGNORE).sum()
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


def measure_recurrences(extent: Extent) -> Iterator[tuple[str, dict[str, Timing]]]:
    """(a) A whole training step, fused against the plain loop; so is a cell of one's own."""
    for size in extent.sizes:
        trainees = {
            "reference": Trainee(size.build(Reference())),
            "fused": Trainee(size.build(Fused())),
            "fused, a cell of one's own": Trainee(size.build(Fused(), cell=OwnCell)),
        }
        for batch_size in extent.batch_sizes:
            for length in extent.lengths:
                steps = {
                    name: step_of(trainee, batch_size, length) for name, trainee in trainees.items()
                }
                prefix = f"step {size.name} B{batch_size} T{length}"
                yield prefix, side_by_side(steps, extent.num_rounds)


def measure_epochs(extent: Extent) -> Iterator[tuple[str, dict[str, Timing]]]:
    """(b) An epoch of quality500, and what each change to the original's way brings."""
    size = extent.sizes[-1] if EXP1 not in extent.sizes else EXP1
    shuffled, bucketed = (epoch_batches(batching) for batching in ("shuffled", "bucketed"))
    padded = [pad_to(batch, 32) for batch in shuffled]
    plain = Trainee(size.build(Reference()), fused_optimizer=False)
    plain_fast_optimizer = Trainee(size.build(Reference()))
    native = Trainee(size.build(Fused()))
    ladder = {
        "the original's way": partial(plain.epoch, padded),
        "+ pad to the longest of the batch": partial(plain.epoch, shuffled),
        "+ fused optimizer": partial(plain_fast_optimizer.epoch, shuffled),
        "+ machine code (shuffled)": partial(native.epoch, shuffled),
        "+ bucketed batches": partial(native.epoch, bucketed),
    }
    num_rounds = extent.num_rounds // 3
    yield f"epoch {size.name}", side_by_side(ladder, num_rounds, num_warmup=1)


def epoch_batches(batching: str) -> list[Batch]:
    """The first epoch of quality500 in the original's batches of 16."""
    source = SentenceSource("quality500", order_seed=1, batching=batching)
    source.setup()
    return list(source.train)


def pad_to(batch: Batch, length: int) -> Batch:
    """Pad every row to a fixed length, as the original did."""
    missing = (0, length - batch.tokens_BT.shape[1])
    return Batch(
        F.pad(batch.tokens_BT, missing, value=PAD),
        F.pad(batch.targets_BT, missing, value=IGNORE),
        batch.sentence_B,
    )


def measure_baselines(extent: Extent) -> Iterator[tuple[str, dict[str, Timing]]]:
    """(c) Against a causal Transformer and LSTMs of as many parameters."""
    if EXP1 not in extent.sizes:
        return
    context = EXP1.build(Fused())
    model = partial(LanguageModel, VOCABULARY, 256, dropout=0.1)
    contestants: dict[str, LanguageModel] = {
        "context model": context,
        "transformer, 5 layers": model(
            [Attention], positions="learned", num_layers=5, num_heads=4, feedforward_dim=864
        ),
        "lstm, 1 layer": model([LSTM], hidden_dim=752, num_layers=1),
        "lstm, 9 layers": model([LSTM], hidden_dim=222, num_layers=9),
    }
    steps = {
        f"{name}, {num_parameters(model) / 1e6:.1f}M": step_of(Trainee(model), 16, 31)
        for name, model in contestants.items()
    }
    yield "baselines B16 T31", side_by_side(steps, extent.num_rounds)


def measure_roofline(extent: Extent) -> Iterator[tuple[str, dict[str, Timing]]]:
    """(d) A step against the time that its operations take as big matrix products.

    A training step counts three times the forward operations: one pass forward, one for the
    gradients of activations, one for those of weights. The ratio is the share of the roofline.
    """
    for size in extent.sizes:
        for batch_size in extent.batch_sizes[-2:]:
            model = size.build(Fused())
            length = max(extent.lengths)
            operations = 3 * model.flops_per_token(length) * batch_size * length
            # A square product with half as many multiply-adds as the step.
            edge = 2048
            left, right = torch.randn(edge, edge), torch.randn(edge, edge)
            timings = side_by_side(
                {"big product": partial(torch.mm, left, right),
                 "step": step_of(Trainee(model), batch_size, length)},
                extent.num_rounds,
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


LONG_BATCH = 4
SHORT = 8  # tokens of a step that makes gradients and the optimizer's state before a measurement


def measure_recompute(extent: Extent) -> Iterator[tuple[str, dict[str, Timing]]]:
    """Long sequences, with all activations kept or a context for each block of steps."""
    size = EXP1 if EXP1 in extent.sizes else extent.sizes[-1]
    kept = Trainee(size.build(Fused()))
    recomputed = Trainee(size.build(Fused(), recompute=True))
    for length in extent.long_lengths:
        steps = {
            "kept": step_of(kept, LONG_BATCH, length),
            "recomputed": step_of(recomputed, LONG_BATCH, length),
        }
        num_rounds = 2 if length > 5000 else 3 if length > 1000 else extent.num_rounds
        prefix = f"{size.name} B{LONG_BATCH} T{length}"
        yield f"long {prefix}", side_by_side(steps, num_rounds, num_warmup=1)
        if can_measure():
            yield f"memory {prefix}", measure_memory(size, length)


def measure_memory(size: Size, length: int) -> dict[str, Timing]:
    """What a step takes at its peak beyond the model, its gradients and its optimizer."""
    rows: dict[str, Timing] = {}
    for name, recompute in {"kept": False, "recomputed": True}.items():
        # A process of its own, since the peak of one never falls.
        context = get_context("forkserver")
        context.set_forkserver_preload(["newllm.benchmarks.workloads"])
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            threads = torch.get_num_threads()
            seconds, megabytes = pool.submit(peak, size, recompute, length, threads).result()
        first = next(iter(rows.values())).megabytes if rows else megabytes
        assert first is not None
        rows[name] = Timing(seconds, first / max(megabytes, 1e-3), 0.0, megabytes)
    return rows


def peak(size: Size, recompute: bool, length: int, threads: int) -> tuple[float, float]:
    """Seconds of one step, and by how many megabytes it raises this process's memory at most."""
    torch.set_num_threads(threads)
    trainee = Trainee(size.build(Fused(), recompute))
    step_of(trainee, LONG_BATCH, SHORT)()
    step = step_of(trainee, LONG_BATCH, length)
    started = time.perf_counter()
    megabytes = peak_bytes(step) / 1e6
    return time.perf_counter() - started, megabytes


MEASUREMENTS = (
    measure_recurrences,
    measure_epochs,
    measure_baselines,
    measure_roofline,
    measure_recompute,
)
