"""What a user looks at during a run: curves, samples, and the context itself.

Shapes: B batch, T time (tokens), C context.
"""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from newllm.data.batch import device_of
from newllm.data.source import VALIDATION, Source
from newllm.data.sources.sentences import SentenceSource
from newllm.data.tokenizer import PAD
from newllm.models.language_model import LanguageModel, Trace
from newllm.models.sampling import sample_sentences
from newllm.reporting import figures
from newllm.reporting.drawing import never_fatal
from newllm.training.clock import Every, data_of, history_of
from newllm.training.loggers import boards, log_figure, log_text
from newllm.training.module import LanguageModule


def _model(module: LightningModule) -> LanguageModel:
    assert isinstance(module, LanguageModule)
    return module.model


class Curves(Callback):
    """`curves.png`: loss and perplexity by epoch, beside the references of the same split.

    `references` (name and validation loss) and `title` are filled in before the run starts.
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
    """Sentences that the model makes up, as text in TensorBoard.

    Args:
        num_sentences: each time.
        every_n_epochs: how often.
        every_n_steps: how often, in the place of epochs.
    """

    MAX_TOKENS = 100  # of a sentence

    def __init__(
        self, num_sentences: int = 8, every_n_epochs: int = 5, every_n_steps: int | None = None
    ) -> None:
        self.num_sentences = num_sentences
        self.every = Every(every_n_epochs, every_n_steps)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        model, source = _model(module), data_of(trainer).source
        if model.sees_the_future or source.tokenizer is None:
            return  # the future is not there yet when one writes
        if not boards(trainer.loggers) or not self.every.is_due(trainer):
            return
        max_tokens = min(source.max_length, self.MAX_TOKENS)
        sentences = sample_sentences(
            model, source.tokenizer, self.num_sentences, max_tokens=max_tokens
        )
        log_text(trainer.loggers, "samples", sentences, trainer.global_step)


class ContextInspector(Callback):
    """The context of the first recurrent layer: its size by epoch, a picture over time, its gates.

    Logs `context/norm` (Euclidean, mean over tokens) and `context/std` (over elements) on the
    first validation sentences, and draws the longest of these. A model without such a layer has no
    context.

    Args:
        every_n_epochs: how often it draws.
        every_n_steps: how often it draws, in the place of epochs.
    """

    NUM_SENTENCES, MAX_TOKENS = 64, 512  # and of each sentence the first tokens

    def __init__(self, every_n_epochs: int = 5, every_n_steps: int | None = None) -> None:
        self.title = ""  # filled in before the run starts
        self.every = Every(every_n_epochs, every_n_steps)
        self._seen: tuple[Tensor, Trace] | None = None

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        model = _model(module)
        if not model.recurrent_layers:
            return
        tokens_BT = self._first_rows(data_of(trainer).source).to(device_of(model))
        with trainer.precision_plugin.forward_context():
            trace = model.trace(tokens_BT)
        contexts_NC = trace.contexts_BTC[tokens_BT != PAD]
        module.log("context/norm", contexts_NC.norm(dim=-1).mean())
        module.log("context/std", contexts_NC.std(dim=-1).mean())
        self._seen = tokens_BT, trace

    def _first_rows(self, source: Source) -> Tensor:
        """Tokens of the first validation sentences [B, T]."""
        if isinstance(source, SentenceSource):
            split = source.split(VALIDATION)
            batch = split.batch(torch.arange(min(len(split), self.NUM_SENTENCES)))
        else:
            batch = source.evaluation[VALIDATION].batch(0, 0)
        return batch.tokens_BT[: self.NUM_SENTENCES, : self.MAX_TOKENS]

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
            self._draw(trainer, tokens_BT, trace)

    def _draw(self, trainer: Trainer, tokens_BT: Tensor, trace: Trace) -> None:
        length_B = (tokens_BT != PAD).sum(1)
        row, length = int(length_B.argmax()), int(length_B.max())
        tokenizer, tokens = data_of(trainer).source.tokenizer, tokens_BT[row, :length].tolist()
        words = [*map(str, tokens)]
        if tokenizer is not None:
            words = ["<BOS>", *(tokenizer.decode([token]) for token in tokens[1:])]
        contexts_TC = trace.contexts_BTC[row, :length].float().numpy(force=True)
        what = f"context during a validation sentence, epoch {trainer.current_epoch + 1}"
        title = f"{what}: {self.title}" if self.title else what
        figure = figures.context_over_time(contexts_TC, words, title)
        log_figure(trainer.loggers, "context_over_time", figure, trainer.global_step)
