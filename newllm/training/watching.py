"""What a user watches during a run: progress, curves, samples, and the context itself.

Shapes: B batch, T time (tokens), C context.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from newllm.data.batching import Batch, EvaluationBatches
from newllm.data.module import CorpusDataModule
from newllm.data.tokenizer import EOS, PAD, UNK
from newllm.generate import sample_sentences
from newllm.models.language_model import LanguageModel, Trace
from newllm.reporting import figures
from newllm.reporting.drawing import never_fatal
from newllm.training.history import History, write_table
from newllm.training.loggers import boards, log_figure, log_text
from newllm.training.module import LanguageModule


def _history(trainer: Trainer) -> History:
    callbacks: list[Callback] = getattr(trainer, "callbacks")  # noqa: B009  (untyped in Lightning)
    return next(callback for callback in callbacks if isinstance(callback, History))


def _model(module: LightningModule) -> LanguageModel:
    model = module.model
    assert isinstance(model, LanguageModel)
    return model


def _data(trainer: Trainer) -> CorpusDataModule:
    data = getattr(trainer, "datamodule")  # noqa: B009  (untyped in Lightning)
    assert isinstance(data, CorpusDataModule)
    return data


def _due(trainer: Trainer, every_n_epochs: int) -> bool:
    """Whether an epoch's end is one to look at: the first, every n-th, the last one planned."""
    epoch = trainer.current_epoch + 1
    return epoch in (1, trainer.max_epochs) or epoch % every_n_epochs == 0


class ProgressLine(Callback):
    """One bar for the whole run; where the output is no terminal, a line every tenth of the way."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._started = time.monotonic()

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._started = time.monotonic()
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                TextColumn("{task.percentage:3.0f} %"),
                TextColumn("{task.fields[losses]}"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self._console,
                refresh_per_second=4,
            )
            assert isinstance(module, LanguageModule)
            total = module.num_steps
            self._task = self._progress.add_task("", total=total, epoch=1, losses="")
            self._progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._progress:
            epoch = f"{trainer.current_epoch + 1}/{trainer.max_epochs}"
            self._progress.update(self._task, completed=trainer.global_step, epoch=epoch)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        metrics = trainer.callback_metrics
        losses = f"train {metrics['train/loss']:.3f}  val {metrics.get('val/loss', math.nan):.3f}"
        if self._progress:
            self._progress.update(self._task, losses=losses)
        elif _due(trainer, max(1, (trainer.max_epochs or 10) // 10)):
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            seconds = time.monotonic() - self._started
            self._console.print(f"{epoch}  {losses}  {seconds:.0f} s", highlight=False)

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None


class StepValidation(Callback):
    """`validation_steps.csv`: the validation loss by step, where epochs would hide what happens.

    `unk`, `eos` and `other` are what the targets of that kind contribute; they add up to the loss.
    A small validation split is scored after every step. Of a larger one the first sentences are,
    always the same ones, after every few of the first steps, and less often in a short run, so
    that all of it takes at most a tenth of the training's time. Early stopping and the best epoch
    know nothing of it.

    Args:
        small: targets of a split that is scored after every step.
        most: targets of a larger one that are scored, rounded up to whole sentences.
        every_n_steps: how often, at most.
        num_steps: how long.
    """

    KINDS = ("unk", "eos", "other")
    SHARE = 0.1  # of the training's time
    # A training step also goes backward, which takes about twice as long as forward.
    COST_OF_TRAINING = 3
    MAX_LOGITS = 1 << 19  # of a batch: beside a training step, no memory that one would notice

    def __init__(
        self, small: int = 500, most: int = 2000, every_n_steps: int = 5, num_steps: int = 200
    ) -> None:
        self.small, self.most = small, most
        self.every_n_steps, self.num_steps = every_n_steps, num_steps
        self.rows: list[dict[str, float]] = []
        self._batches: list[Batch] = []
        self._interval, self._last_step = 1, math.inf

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, LanguageModule)
        self.plan(_data(trainer), module.num_steps)

    def plan(self, data: CorpusDataModule, num_steps: int) -> StepValidation:
        """Choose what is scored, and how often in a run of so many steps."""
        split = data.split("validation")
        if split.num_targets <= self.small:
            self._batches = list(EvaluationBatches(split))
            return self
        num_sentences = int((split.num_positions_N.cumsum(0) < self.most).sum()) + 1
        small = max(1, self.MAX_LOGITS // split.num_ids)
        self._batches = list(
            EvaluationBatches(split, max_positions=small, num_sentences=num_sentences)
        )
        num_targets = int(split.num_positions_N[:num_sentences].sum())
        of_a_step = data.split("train").num_targets / data.steps_per_epoch
        self._interval = self.interval(num_targets, of_a_step, num_steps)
        self._last_step = self.num_steps
        return self

    def num_batches(self, num_steps: int) -> int:
        """Batches that are scored in a run of so many steps."""
        return len(self._batches) * (int(min(num_steps, self._last_step)) // self._interval + 1)

    def interval(self, num_targets: int, num_trained: float, num_steps: int) -> int:
        """Steps from one scoring to the next, so that all of them take their share of the time.

        Args:
            num_targets: that are scored each time.
            num_trained: targets of a training step.
            num_steps: of the whole run.
        """
        affordable = self.SHARE * self.COST_OF_TRAINING * num_trained * num_steps / num_targets
        num_watched = min(self.num_steps, num_steps)
        return max(self.every_n_steps, math.ceil(num_watched / max(affordable, 1)))

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Before the next step rather than after the last one, so that a run which goes on from a
        # checkpoint neither misses one nor has one twice.
        self._score(trainer, module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._score(trainer, module)
        self._write(trainer)

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        write_table(Path(trainer.default_root_dir) / "validation_steps.csv", self.rows)

    def _score(self, trainer: Trainer, module: LightningModule) -> None:
        step = trainer.global_step
        is_first = not self.rows or self.rows[-1]["step"] < step  # of batches with this step
        if not is_first or step > self._last_step or step % self._interval:
            return
        model = _model(module)
        model.eval()
        sums = dict.fromkeys(self.KINDS, 0.0)
        num_targets = 0
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for batch in self._batches:
                loss_BT, _, _ = model.score(batch.tokens_BT, batch.targets_BT)
                is_unk_BT, is_eos_BT = batch.targets_BT == UNK, batch.targets_BT == EOS
                masks = (is_unk_BT, is_eos_BT, ~(is_unk_BT | is_eos_BT))
                for kind, mask_BT in zip(self.KINDS, masks, strict=True):
                    sums[kind] += float((loss_BT * mask_BT).sum())
                num_targets += int((batch.targets_BT != PAD).sum())
        model.train()
        shares = {kind: total / num_targets for kind, total in sums.items()}
        loss = sum(shares.values())
        self.rows.append({"step": step, "val/loss": loss, **shares})
        for logger in trainer.loggers:
            logger.log_metrics({"val/loss_by_step": loss}, step=step)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = list(state["rows"])


class Curves(Callback):
    """`curves.png`: loss and perplexity by epoch, beside the references of the same split.

    `references` (name and validation loss) and `title` are filled in before the run starts.
    """

    def __init__(self) -> None:
        self.references: dict[str, float] = {}
        self.title = ""

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        with never_fatal("curves.png"):
            figure = figures.curves(_history(trainer).epochs, self.references, self.title)
            figure.write_png(Path(trainer.default_root_dir) / "curves.png")
            log_figure(trainer.loggers, "curves", figure, trainer.global_step)

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        if _history(trainer).epochs:
            self.on_train_end(trainer, module)


class SampleSentences(Callback):
    """Sentences that the model makes up, as text in TensorBoard."""

    MAX_TOKENS = 100  # of a sentence

    def __init__(self, num_sentences: int = 8, every_n_epochs: int = 5) -> None:
        self.num_sentences = num_sentences
        self.every_n_epochs = every_n_epochs

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        model = _model(module)
        if not boards(trainer.loggers) or not _due(trainer, self.every_n_epochs):
            return
        if model.sees_the_future:
            return  # The future is not there yet when one writes.
        data = _data(trainer)
        max_tokens = min(data.max_length, self.MAX_TOKENS)
        sentences = sample_sentences(
            model, data.tokenizer, self.num_sentences, max_tokens=max_tokens
        )
        log_text(trainer.loggers, "samples", sentences, trainer.global_step)


class ContextInspector(Callback):
    """The context of the first recurrent layer: its size by epoch, a picture over time, its gates.

    Logs `context/norm` (Euclidean, mean over tokens) and `context/std` (over elements) on the
    first validation sentences, and draws the longest of these. A model without such a layer has no
    context.
    """

    NUM_SENTENCES, MAX_TOKENS = 64, 512  # and of each sentence the first tokens

    def __init__(self, every_n_epochs: int = 5) -> None:
        self.title = ""  # filled in before the run starts
        self.every_n_epochs = every_n_epochs
        self._seen: tuple[Tensor, Trace] | None = None

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        model = _model(module)
        if not model.recurrent_layers:
            return
        validation = _data(trainer).split("validation")
        batch = validation.batch(torch.arange(min(len(validation), self.NUM_SENTENCES)))
        tokens_BT = batch.tokens_BT[:, : self.MAX_TOKENS]
        with trainer.precision_plugin.forward_context():
            trace = model.trace(tokens_BT)
        contexts_NC = trace.contexts_BTC[tokens_BT != PAD]
        module.log("context/norm", contexts_NC.norm(dim=-1).mean())
        module.log("context/std", contexts_NC.std(dim=-1).mean())
        self._seen = tokens_BT, trace

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        writers = boards(trainer.loggers)
        if self._seen is None or not writers or not _due(trainer, self.every_n_epochs):
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
        tokenizer = _data(trainer).tokenizer
        words = ["<BOS>", *(tokenizer.decode([i]) for i in tokens_BT[row, 1:length].tolist())]
        contexts_TC = trace.contexts_BTC[row, :length].float().numpy(force=True)
        what = f"context over a validation sentence, epoch {trainer.current_epoch + 1}"
        title = f"{what}: {self.title}" if self.title else what
        figure = figures.context_over_time(contexts_TC, words, title)
        log_figure(trainer.loggers, "context_over_time", figure, trainer.global_step)
