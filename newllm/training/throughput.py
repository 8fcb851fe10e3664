"""How many tokens a run reads per second, and which share of the processor's rate that is.

Shapes: B batch, T time (tokens).
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from newllm.data.tokenizer import PAD
from newllm.training.module import LanguageModule
from newllm.training.turns import own_seconds

INTERVAL = 50  # steps between two values
# Dense TFLOP/s by name of the device: in half precision, tf32 and float32 (data sheets of NVIDIA).
PEAKS = {
    "H200 NVL": (835.0, 418.0, 60.0),
    "H200": (989.0, 494.0, 67.0),
    "H100 PCIe": (756.0, 378.0, 51.0),
    "H100 NVL": (835.0, 418.0, 60.0),
    "H100": (989.0, 494.0, 67.0),
    "A100": (312.0, 156.0, 19.5),
}


class Throughput(Callback):
    """Logs `speed/tokens_per_second` and `speed/mfu`, every 50 steps and at the end of an epoch.

    Tokens are those read in training, without padding; every process is taken to read as many as
    the first. Validations do not count, except for those of `StepValidation`. Runs that are trained
    together (`seeds_at_once`) count their own time and a share of what is computed for all.

    The model FLOPs utilization is the share of the peak rate that the products with weight matrices
    and those of attention take, with a backward pass that costs twice the forward pass (Chowdhery
    et al. 2022, arXiv 2204.02311). Recomputed operations do not count.

    Args:
        peak_tflops: of the device in the precision of the run; None means by its name, for the
            GPUs that are known. Where it is unknown, there is no `speed/mfu`.

    Attributes:
        tokens_per_second: of the last steps; None before it is known.
        mfu: likewise.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        self.peak_tflops = peak_tflops
        self.tokens_per_second: float | None = None
        self.mfu: float | None = None
        self._seconds, self._started = 0.0, 0.0
        self._num_steps = 0
        # Of the steps that are timed; counted on the device, so that no step waits.
        self._sums = torch.zeros(2, dtype=torch.double)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self.peak_tflops is None:
            precise = trainer.precision in ("32-true", "64-true")
            self.peak_tflops = peak_tflops(trainer.strategy.root_device, precise)
        self._restart(module)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, LanguageModule)
        num_tokens = (batch.tokens_BT != PAD).sum()
        # A token reads those before it in its row, half of the row on average.
        flops = 3 * module.model.flops_per_token(max(1, batch.tokens_BT.shape[1] // 2))
        self._sums = self._sums + torch.stack([num_tokens, num_tokens * flops])
        self._num_steps += 1
        if self._num_steps == INTERVAL:
            self._log(trainer, module)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._seconds += own_seconds() - self._started

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._started = own_seconds()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._num_steps:
            self._log(trainer, module)

    def _log(self, trainer: Trainer, module: LightningModule) -> None:
        num_tokens, flops = self._sums.tolist()  # waits for the device, so the time comes after it
        seconds = self._seconds + own_seconds() - self._started
        self.tokens_per_second = trainer.world_size * num_tokens / seconds
        found = {"speed/tokens_per_second": self.tokens_per_second}
        if self.peak_tflops is not None:
            found["speed/mfu"] = self.mfu = flops / seconds / (1e12 * self.peak_tflops)
        for logger in trainer.loggers:
            logger.log_metrics(found, step=trainer.global_step)
        self._restart(module)

    def _restart(self, module: LightningModule) -> None:
        self._sums = torch.zeros(2, dtype=torch.double, device=module.device)
        self._seconds, self._num_steps = 0.0, 0
        self._started = own_seconds()

    @property
    def line(self) -> str:
        """What is known, in words; empty before that."""
        if self.tokens_per_second is None:
            return ""
        share = "" if self.mfu is None else f", {100 * self.mfu:.0f} % of peak"
        return f"{self.tokens_per_second:,.0f} tokens/s{share}"


def peak_tflops(device: torch.device, is_precise: bool) -> float | None:
    """The data sheet's rate of a device in TFLOP/s; None if it is not known.

    Args:
        device: of the run.
        is_precise: whether it computes in 32 bits rather than 16.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    rates = next((rates for part, rates in PEAKS.items() if part in name), None)
    if rates is None:
        return None
    half, tf32, full = rates
    if not is_precise:
        return half
    return full if torch.get_float32_matmul_precision() == "highest" else tf32
