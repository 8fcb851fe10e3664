"""Callbacks to watch a run: its curves, samples, and the context.

Shape suffixes: B batch, T time (tokens), C context, N tokens of all rows.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from newllm.data.batch import device_of
from newllm.data.source import VALIDATION, Source
from newllm.data.streaming import EVALUATION_WINDOW
from newllm.data.tokenizer import PAD
from newllm.models.language_model import Trace
from newllm.models.sampling import sample_sentences
from newllm.reporting import figures
from newllm.reporting.drawing import never_fatal
from newllm.training.clock import Every
from newllm.training.history import history_of
from newllm.training.loggers import boards, log_figure
from newllm.training.module import LanguageModule, data_of

MAX_SAMPLED_TOKENS = 100  # of a sentence
NUM_TRACED_ROWS, MAX_TRACED_TOKENS = 64, 512  # the first tokens of the first rows


class Curves(Callback):
    """`curves.png`: loss and perplexity by epoch, with the references of the validation split.

    Attributes:
        references: losses by name; filled in before the run starts.
        title: of the figure; filled in before the run starts.
    """

    def __init__(self) -> None:
        self.references: dict[str, float] = {}
        self.title = ""

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        with never_fatal("curves.png"):
            figure = figures.curves(history_of(trainer).epochs, self.references, self.title)
            figure.write_png(Path(trainer.default_root_dir) / "curves.png")
            log_figure(trainer.loggers, "curves", figure, trainer.global_step)

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        if history_of(trainer).epochs:
            self.on_train_end(trainer, module)


class SampleSentences(Callback):
    """Sentences sampled from the model, as text in TensorBoard.

    Args:
        num_sentences: each time.
        every_n_epochs: interval in epochs.
        every_n_steps: interval in steps, which replaces `every_n_epochs`.
    """

    def __init__(
        self, num_sentences: int = 8, every_n_epochs: int = 5, every_n_steps: int | None = None
    ) -> None:
        self.num_sentences = num_sentences
        self.every = Every(every_n_epochs, every_n_steps)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, LanguageModule)
        source = data_of(trainer).source
        if module.model.sees_the_future or source.tokenizer is None:
            return  # such a model cannot sample
        writers = boards(trainer.loggers)
        if not writers or not self.every.is_due(trainer):
            return
        max_tokens = min(source.max_length, MAX_SAMPLED_TOKENS)
        sentences = sample_sentences(
            module.model, source.tokenizer, self.num_sentences, max_tokens=max_tokens
        )
        preformatted = indent("\n".join(sentences), "    ")
        for writer in writers:
            writer.add_text("samples", preformatted, trainer.global_step)


class ContextInspector(Callback):
    """The context of the first recurrent layer: its size, its gates, and a figure over time.

    Logs `context/norm` (Euclidean, mean over tokens) and `context/std` (over elements, if there are
    several) on the first validation rows at every validation, and draws the longest of these rows.
    Models without a recurrent layer have no context.

    Args:
        every_n_epochs: interval of the figure in epochs.
        every_n_steps: interval of the figure in steps, which replaces `every_n_epochs`.
    """

    def __init__(self, every_n_epochs: int = 5, every_n_steps: int | None = None) -> None:
        self.every = Every(every_n_epochs, every_n_steps)
        self._seen: tuple[Tensor, Trace] | None = None

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, LanguageModule)
        model = module.model
        if not model.recurrent_layers:
            return
        tokens_BT = _first_rows(data_of(trainer).source).to(device_of(model))
        with trainer.precision_plugin.forward_context():
            trace = model.trace(tokens_BT)
        contexts_NC = trace.contexts_BTC[tokens_BT != PAD]
        module.log("context/norm", contexts_NC.norm(dim=-1).mean())
        if contexts_NC.shape[-1] > 1:
            module.log("context/std", contexts_NC.std(dim=-1).mean())
        self._seen = tokens_BT, trace

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        writers = boards(trainer.loggers)
        if self._seen is None or not writers or not self.every.is_due(trainer):
            return
        tokens_BT, trace = self._seen
        with never_fatal("the picture of the context"):
            for name, gate_BTC in trace.gates.items():
                for writer in writers:
                    gates = gate_BTC[tokens_BT != PAD]
                    writer.add_histogram(f"view/gates_{name}", gates, trainer.global_step)
            _draw(trainer, tokens_BT, trace)


def _first_rows(source: Source) -> Tensor:
    """Tokens of the first validation rows [B, T]."""
    if (split := source.encoded(VALIDATION)) is not None:
        rows = split.cut(EVALUATION_WINDOW)
        batch = rows.batch(torch.arange(min(len(rows), NUM_TRACED_ROWS)))
    else:
        batch = source.evaluation[VALIDATION].batch(0, 0)
    return batch.tokens_BT[:NUM_TRACED_ROWS, :MAX_TRACED_TOKENS]


def _draw(trainer: Trainer, tokens_BT: Tensor, trace: Trace) -> None:
    """The context over the longest row."""
    length_B = (tokens_BT != PAD).sum(1)
    row, length = int(length_B.argmax()), int(length_B.max())
    tokenizer, tokens = data_of(trainer).source.tokenizer, tokens_BT[row, :length].tolist()
    words = [*map(str, tokens)]
    if tokenizer is not None:
        words = ["<BOS>", *(tokenizer.decode([token]) for token in tokens[1:])]
    contexts_TC = trace.contexts_BTC[row, :length].float().numpy(force=True)
    title = f"context over a validation sentence, epoch {trainer.current_epoch + 1}"
    figure = figures.context_over_time(contexts_TC, words, title)
    log_figure(trainer.loggers, "context_over_time", figure, trainer.global_step)
