"""A training step on an accelerator waits for nothing.

The device `meta` holds no values, so a step that reads one there fails.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_models import context_model, mingru_model, rnn_model, transformer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from newllm.data.batch import IGNORE, Batch, device_of
from newllm.data.tokenizer import PAD
from newllm.models import language_model
from newllm.models.language_model import LanguageModel
from newllm.models.layer import padding_only_trails, surely
from newllm.models.recurrence import reference
from newllm.models.recurrence.parallel import Parallel
from newllm.models.recurrence.reference import MASK_BLOCK, DropoutMasks, Reference
from newllm.models.recurrent import Recurrent
from newllm.models.torch_rnn import GRU, Elman
from newllm.training.clipping import GradientClip
from newllm.training.history import History
from newllm.training.module import LanguageModule
from newllm.training.optimizer import OptimizerFactory
from newllm.training.throughput import Throughput

BLOCK = 4  # steps that are recomputed together here
NUM_TOKENS = BLOCK + 3

MODELS: dict[str, Callable[[], LanguageModel]] = {
    "context": lambda: context_model(20, dropout=0.1),
    "context, recomputed": lambda: context_model(20, dropout=0.1, recompute=True),
    "context, parallel": lambda: context_model(20, recurrence=Parallel(num_iterations=2)),
    "transformer": lambda: transformer(20, dropout=0.1, max_length=NUM_TOKENS),
    "transformer, rotary": lambda: transformer(20, positions="rotary"),
    "transformer_leaky": lambda: transformer(20, positions="none", leaky=True),
    "lstm": lambda: rnn_model(20),
    "gru": lambda: rnn_model(20, GRU),
    "elman": lambda: rnn_model(20, Elman),
    "mingru": lambda: mingru_model(20),
}


class NoCopies(TorchDispatchMode):
    """Fails where something is copied from the host to the device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            source = args[-1] if func.overloadpacket is torch.ops.aten.copy_ else args[0]
            assert not (source.is_cpu and result.is_meta), "copied from the host"
        return result


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (language_model, reference):
        monkeypatch.setattr(module, "MASK_BLOCK", BLOCK)


@pytest.fixture
def generators_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device `meta` has no generator."""
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator())


def batches(reset: bool) -> Batch:
    tokens_BT = torch.randint(4, 20, (3, NUM_TOKENS))
    tokens_BT[1, 2:] = PAD
    targets_BT = tokens_BT.masked_fill(tokens_BT == PAD, IGNORE)
    batch = Batch(tokens_BT, targets_BT, torch.arange(3))
    return batch._replace(reset_BT=tokens_BT == 5) if reset else batch


class StepByStep:
    """Takes steps as a run does, of two accumulated batches, with the callbacks that count."""

    def __init__(self, model: LanguageModel, folder: Path) -> None:
        is_fused = device_of(model).type != "meta"  # which no fused optimizer knows
        optimizer = OptimizerFactory(partial(torch.optim.AdamW, fused=is_fused))
        self.module = LanguageModule(model.train(), optimizer, None, GradientClip([[0, 1.0]]), 8)
        self.module.to(device_of(model))
        self.trainer: Any = SimpleNamespace(
            accumulate_grad_batches=2, current_epoch=0, global_step=0, world_size=1, loggers=[]
        )
        self.module._trainer = self.trainer
        self.history, self.throughput = History(folder), Throughput()
        self.throughput._restart(self.module)
        self.optimizer = self.module.make_optimizer(model)

    def take_steps(self, batch: Batch, num_steps: int) -> None:
        """Take steps on one batch."""
        for number in range(2 * num_steps):
            outputs = self.module.training_step(batch, number)
            (outputs["loss"] / 2).backward()
            if number % 2:
                self.module.configure_gradient_clipping(self.optimizer)
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.trainer.global_step += 1
            for callback in (self.history, self.throughput):
                callback.on_train_batch_end(self.trainer, self.module, outputs, batch, number)


# Attention on a stream forgets what no row sees any more, which only values tell.
STREAMS = [name for name in MODELS if "transformer" not in name]


@pytest.mark.usefixtures("generators_anywhere", "short_blocks")
@pytest.mark.parametrize(
    ("name", "reset"), [*((name, False) for name in MODELS), *((name, True) for name in STREAMS)]
)
def test_a_training_step_reads_no_value(tmp_path: Path, name: str, reset: bool) -> None:
    batch = batches(reset).to("meta")
    trainer = StepByStep(MODELS[name]().to("meta"), tmp_path)
    with NoCopies():
        trainer.take_steps(batch, 2)
    assert len(trainer.history._steps.pending) == 2


def test_what_is_worth_waiting_for_is_read_on_no_meta_device() -> None:
    for worth_waiting in (False, True):
        assert surely(torch.tensor(True), worth_waiting)
        assert not surely(torch.tensor(False), worth_waiting)
        assert not surely(torch.tensor(True, device="meta"), worth_waiting)
        assert not padding_only_trails(torch.ones(2, 3, dtype=torch.bool).to("meta"), worth_waiting)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("name", [name for name in MODELS if "leaky" not in name])
def test_padding_that_does_not_matter_may_be_read(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As an accelerator does it: the losses and gradients of the other tokens stay."""
    model = MODELS[name]().double().eval()
    for layer in model.recurrent_layers:
        layer.recurrence = Reference()  # native code for float64 would be compiled for this alone
    batch = batches(reset=False)
    results = []
    for reads_padding in (False, True):
        if reads_padding:
            monkeypatch.setattr(LanguageModel, "_padding", lambda *_: None)
        loss_BT, correct_BT, _ = model.score(
            batch.tokens_BT, batch.targets_BT, padding_matters=False
        )
        model.zero_grad()
        loss_BT.sum().backward()
        grads = [weight.grad for weight in model.parameters()]
        results.append([loss_BT.detach(), correct_BT[batch.scored_BT], *grads])
    torch.testing.assert_close(*results)


@pytest.mark.usefixtures("generators_anywhere")
def test_masks_of_a_device_are_drawn_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that passes for another device: shares, and the same masks for the same block."""
    layer = context_model(20, dropout=0.3).train().layers[0]
    assert isinstance(layer, Recurrent)
    masks = DropoutMasks.draw(layer.cell, torch.zeros(64, MASK_BLOCK + 9, 6))
    assert masks is not None
    device: Any = SimpleNamespace(type="other")
    randint = torch.randint
    monkeypatch.setattr(torch, "randint", lambda *sizes, device, **more: randint(*sizes, **more))
    object.__setattr__(masks, "device", device)
    draws = masks.draws(MASK_BLOCK)
    assert torch.equal(draws, masks.draws(MASK_BLOCK))
    assert not torch.equal(draws[:, :9], masks.starting_at(MASK_BLOCK).draws(9))
    dropped: Tensor = (draws < masks.dropped).double()
    assert float(dropped.mean()) == pytest.approx(0.3, abs=0.01)
    assert abs(int(draws.min()) + 2**15) < 100 > abs(int(draws.max()) - 2**15)


def test_learned_positions_still_end() -> None:
    model = transformer(20, max_length=4)
    tokens_BT = torch.full((1, 4), 5)
    _, state = model(tokens_BT)
    for more in (lambda: model(torch.full((1, 5), 5)), lambda: model(tokens_BT, state)):
        with pytest.raises(ValueError, match=r"model.max_length=4: is too short"):
            more()
