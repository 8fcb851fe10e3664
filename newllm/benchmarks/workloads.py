"""What the benchmark measures. Each measurement yields groups of rows that are timed in turns.

The first row of a group is the baseline of its ratios.

Shapes: B batch, T time (tokens).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from newllm.benchmarks.peak import can_measure, peak_bytes
from newllm.benchmarks.timing import Timing, side_by_side, write_timings
from newllm.data.batch import IGNORE, Batch, device_of
from newllm.data.sources.sentences import SentenceSource
from newllm.data.tokenizer import BOS, PAD, Tokenizer
from newllm.models.attention import Attention
from newllm.models.cell import ContextCell
from newllm.models.gating import LSTMGating
from newllm.models.generation import launch
from newllm.models.language_model import LanguageModel
from newllm.models.recurrence.fused import Fused
from newllm.models.recurrence.parallel import Parallel
from newllm.models.recurrence.reference import Recurrence, Reference
from newllm.models.recurrent import Recurrent
from newllm.models.sampling import Continuation
from newllm.models.sizes import num_parameters
from newllm.models.torch_rnn import LSTM
from newllm.training.clipping import clip_gradients

VOCABULARY = 1000
LONG_BATCH = 4
GENERATED = 200  # tokens of each row

Rows = Iterator[tuple[str, dict[str, Timing]]]


class OwnCell(ContextCell):
    """The same equations, in a class that the native code does not know."""


@dataclass(frozen=True)
class Size:
    """A gated context model; C=512 and E=256 as in the summary if H >= 256."""

    hidden_dim: int
    num_layers: int

    def __str__(self) -> str:
        return f"H{self.hidden_dim} L{self.num_layers}"

    def build(
        self,
        recurrence: Recurrence,
        recompute: bool = False,
        cell: type[ContextCell] = ContextCell,
        normalization: type[nn.Module] = nn.LayerNorm,
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
            normalization=normalization,
            recurrence=recurrence,
        )


MODERN, EXP1, EXP2 = Size(128, 3), Size(512, 9), Size(1024, 11)


@dataclass(frozen=True)
class Extent:
    """How much to measure; `main_size` is the model of an epoch and of long sequences."""

    num_rounds: int
    sizes: tuple[Size, ...]
    main_size: Size
    batch_sizes: tuple[int, ...]
    lengths: tuple[int, ...]
    long_lengths: tuple[int, ...]


FULL = Extent(9, (MODERN, EXP1, EXP2), EXP1, (4, 16, 64), (13, 31), (256, 1024, 4096, 8192))
QUICK = Extent(3, (MODERN,), MODERN, (16,), (13,), (256,))


class Trainee:
    """A model that takes training steps: loss, gradients, clipping, optimizer.

    Args:
        model: on the device where it is trained.
        fused_optimizer: whether the optimizer takes its step in one pass.
        precision: of products.
    """

    def __init__(
        self,
        model: LanguageModel,
        fused_optimizer: bool = True,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.model = model.train()
        self._autocast = partial(
            torch.autocast, device_of(model).type, precision, precision != torch.float32
        )
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=fused_optimizer)

    def train(self, batches: list[Batch]) -> None:
        """Take one step for each batch."""
        for batch in batches:
            with self._autocast():
                loss_BT, _, _ = self.model.score(
                    batch.tokens_BT, batch.targets_BT, padding_matters=False
                )
            self.take(loss_BT.sum() / batch.scored_BT.sum())

    def take(self, loss: Tensor) -> None:
        """Take the step of a loss."""
        self.optimizer.zero_grad()
        loss.backward()
        clip_gradients(self.optimizer, 1.0)
        self.optimizer.step()

    def step(self, batch_size: int, length: int) -> Callable[[], None]:
        """A step on random tokens without padding."""
        generator = torch.Generator().manual_seed(0)
        num_classes = min(VOCABULARY, self.model.vocabulary_size)
        tokens_BT = torch.randint(4, num_classes, (batch_size, length), generator=generator)
        batch = Batch(tokens_BT, tokens_BT.roll(-1, dims=1), torch.arange(batch_size))
        return partial(self.train, [batch.to(device_of(self.model))])


def measure_recurrences(extent: Extent) -> Rows:
    """A training step with the plain loop, native code, and the compiled step of an own cell."""
    for size in extent.sizes:
        trainees = {
            "reference": Trainee(size.build(Reference())),
            "fused": Trainee(size.build(Fused())),
            "fused, a cell of one's own": Trainee(size.build(Fused(), cell=OwnCell)),
        }
        for batch_size in extent.batch_sizes:
            for length in extent.lengths:
                steps = {name: each.step(batch_size, length) for name, each in trainees.items()}
                prefix = f"step {size} B{batch_size} T{length}"
                yield prefix, side_by_side(steps, extent.num_rounds)


def measure_epochs(extent: Extent) -> Rows:
    """An epoch of quality500, from the original's way to today's, one change at a time."""
    build = extent.main_size.build
    shuffled, bucketed = (_epoch(batching) for batching in ("shuffled", "bucketed"))
    padded = [_pad_to(batch, 32) for batch in shuffled]
    native = Trainee(build(Fused()))
    ladder = {
        "the original's way": partial(Trainee(build(Reference()), False).train, padded),
        "+ pad to the longest of the batch": partial(
            Trainee(build(Reference()), False).train, shuffled
        ),
        "+ fused optimizer": partial(Trainee(build(Reference())).train, shuffled),
        "+ native code (shuffled)": partial(native.train, shuffled),
        "+ bucketed batches": partial(native.train, bucketed),
    }
    num_rounds = max(2, extent.num_rounds // 3)  # a spread takes two
    yield f"epoch {extent.main_size}", side_by_side(ladder, num_rounds, num_warmup=1)


def _epoch(batching: str) -> list[Batch]:
    source = SentenceSource("quality500", order_seed=1, batching=batching)
    source.setup()
    return list(source.train)


def _pad_to(batch: Batch, length: int) -> Batch:
    """Pad every row to a fixed length, as the original did."""
    missing = (0, length - batch.tokens_BT.shape[1])
    return batch._replace(
        tokens_BT=F.pad(batch.tokens_BT, missing, value=PAD),
        targets_BT=F.pad(batch.targets_BT, missing, value=IGNORE),
    )


def measure_baselines(extent: Extent) -> Rows:
    """A training step of models with as many parameters as the published one."""
    if EXP1 not in extent.sizes:
        return
    model = partial(LanguageModel, VOCABULARY, 256, dropout=0.1)
    contestants: dict[str, LanguageModel] = {
        "context model": EXP1.build(Fused()),
        "transformer, 5 layers": model(
            [Attention], positions="learned", num_layers=5, num_heads=4, feedforward_dim=864
        ),
        "lstm, 1 layer": model([LSTM], hidden_dim=752, num_layers=1),
        "lstm, 9 layers": model([LSTM], hidden_dim=222, num_layers=9),
    }
    steps = {
        f"{name}, {num_parameters(model) / 1e6:.1f}M": Trainee(model).step(16, 31)
        for name, model in contestants.items()
    }
    yield "baselines B16 T31", side_by_side(steps, extent.num_rounds)


def measure_roofline(extent: Extent) -> Rows:
    """A training step and the time that its operations take as large matrix products.

    A step counts three times the forward operations: forward, gradients of activations, gradients
    of weights. The ratio is the share of the roofline that is reached.
    """
    length, edge = max(extent.lengths), 2048
    product = partial(torch.mm, torch.randn(edge, edge), torch.randn(edge, edge))
    for size in extent.sizes:
        for batch_size in extent.batch_sizes[-2:]:
            model = size.build(Fused())
            operations = 3 * model.flops_per_token(length) * batch_size * length
            scale = operations / (2 * edge**3)
            step = Trainee(model).step(batch_size, length)
            found = side_by_side({"product": product, "step": step}, extent.num_rounds)
            ideal, reached = found["product"], found["step"]
            yield (
                f"roofline {size} B{batch_size} T{length}",
                {
                    "at the big-product rate": Timing(scale * ideal.seconds, 1.0, ideal.spread),
                    "step": Timing(reached.seconds, scale * reached.ratio, reached.spread),
                },
            )


def measure_recompute(extent: Extent) -> Rows:
    """Long sequences, with all activations kept or with a state for each block of steps."""
    size = extent.main_size
    trainees = {
        name: Trainee(size.build(Fused(), recompute))
        for name, recompute in {"kept": False, "recomputed": True}.items()
    }
    for length in extent.long_lengths:
        steps = {name: trainee.step(LONG_BATCH, length) for name, trainee in trainees.items()}
        num_rounds = 2 if length > 5000 else 3 if length > 1000 else extent.num_rounds
        prefix = f"{size} B{LONG_BATCH} T{length}"
        yield f"long {prefix}", side_by_side(steps, num_rounds, num_warmup=1)
        if can_measure():
            yield f"memory {prefix}", _memory(size, length)


def measure_parallel(extent: Extent) -> Rows:
    """One long row, token by token and all tokens at once, by a cell that forgets.

    As initialized, its gates halve the context at each token. LayerNorm would undo that.
    """
    size = extent.main_size
    build = partial(size.build, normalization=nn.Identity)
    recurrences: dict[str, Recurrence] = {
        "reference": Reference(),
        "fused": Fused(),
        "parallel": Parallel(),
        "parallel, 8 iterations": Parallel(8),
    }
    trainees = {name: Trainee(build(each)) for name, each in recurrences.items()}
    for length in extent.long_lengths[:3]:
        steps = {name: trainee.step(1, length) for name, trainee in trainees.items()}
        yield f"parallel {size} B1 T{length}", side_by_side(steps, 3, num_warmup=1)


def measure_generation(extent: Extent) -> Rows:
    """Tokens drawn by a loop that calls the model for each, and in native code.

    For one row, reading its weights as often as the tokens need them is the least time.
    """
    words = [f"word{number}" for number in range(VOCABULARY)]
    tokenizer = Tokenizer.train(words, vocabulary_size=VOCABULARY)
    launch.prepare()
    for size in extent.sizes:
        model = size.build(Fused()).eval()
        for batch_size in (1, *extent.batch_sizes):
            continuation = Continuation(model, tokenizer, num_rows=batch_size, is_endless=True)
            actions: dict[str, Callable[[], object]] = {
                "token by token": partial(_generate, model, batch_size),
                "native code": partial(_take, continuation, GENERATED),
            }
            if batch_size == 1:
                read = num_parameters(model) - model.embedding.weight.numel()
                weights = torch.randn(read).expand(GENERATED, -1)
                actions["reading the weights"] = weights.sum
            prefix = f"generation {size} B{batch_size}, {GENERATED} tokens"
            yield prefix, side_by_side(actions, extent.num_rounds)


@torch.inference_mode()
def _generate(model: LanguageModel, batch_size: int) -> None:
    """Draw tokens from all logits by calling the model for each."""
    token_B, state = torch.full((batch_size,), BOS), None
    for _ in range(GENERATED):
        logits_B1V, state = model(token_B[:, None], state)
        token_B = logits_B1V[:, -1].softmax(-1).multinomial(1)[:, 0]


def _take(continuation: Continuation, num_tokens: int) -> None:
    for _ in islice(continuation, num_tokens):
        pass


def _memory(size: Size, length: int) -> dict[str, Timing]:
    rows: dict[str, Timing] = {}
    for name, recompute in {"kept": False, "recomputed": True}.items():
        # A process of its own, whose allocator holds no memory of earlier measurements.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            threads = torch.get_num_threads()
            seconds, megabytes = pool.submit(_peak, size, recompute, length, threads).result()
        baseline = rows["kept"].megabytes if rows else megabytes
        assert baseline is not None
        rows[name] = Timing(seconds, baseline / max(megabytes, 1e-3), 0.0, megabytes)
    return rows


def _peak(size: Size, recompute: bool, length: int, threads: int) -> tuple[float, float]:
    """Seconds of one step, and its peak memory in megabytes."""
    torch.set_num_threads(threads)
    trainee = Trainee(size.build(Fused(), recompute))
    trainee.step(LONG_BATCH, 8)()  # creates the gradients and the optimizer's state
    step = trainee.step(LONG_BATCH, length)
    started = time.perf_counter()
    megabytes = peak_bytes(step) / 1e6
    return time.perf_counter() - started, megabytes


MEASUREMENTS = (
    measure_recurrences,
    measure_epochs,
    measure_baselines,
    measure_roofline,
    measure_recompute,
    measure_parallel,
    measure_generation,
)


def measure(extent: Extent, thread_counts: list[int] | None, file: Path) -> dict[str, Timing]:
    """Take all measurements; print and write each group of rows as it is measured.

    Args:
        extent: how much to measure.
        thread_counts: numbers of threads to measure at; None means one, and all.
        file: where to write the rows.
    """
    rows: dict[str, Timing] = {}
    for count in thread_counts or sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(count)
        for measurement in MEASUREMENTS:
            for prefix, timings in measurement(extent):
                for name, timing in timings.items():
                    row = f"{prefix}: {name} ({count} thread{'s' * (count > 1)})"
                    rows[row] = timing
                    print(f"{row}: {timing}", flush=True)
                write_timings(file, rows)
    return rows
