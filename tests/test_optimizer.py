"""Learning rates by width."""

from functools import partial

import pytest
import torch
from small_models import context_model
from torch import nn

from newllm.data.sources.sentences import SentenceSource
from newllm.models.cell import ContextCell
from newllm.models.gating import LSTMGating
from newllm.models.initialization import variance_preserving
from newllm.models.language_model import LanguageModel
from newllm.models.recurrent import Recurrent
from newllm.training.clipping import clip_gradients
from newllm.training.module import Schedule
from newllm.training.optimizer import OptimizerFactory

LR, DECAY = 0.01, 0.1
adamw = partial(torch.optim.AdamW, lr=LR, weight_decay=DECAY)


def rates(model: nn.Module, base_fan_in: int | None) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter, by name."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    return {
        names[id(weight)]: (group["lr"], group["weight_decay"])
        for group in OptimizerFactory(adamw, base_fan_in)(model).param_groups
        for weight in group["params"]
    }


def test_all_learn_alike_without_a_base() -> None:
    model = context_model(9)
    assert set(rates(model, None).values()) == {(LR, DECAY)}
    assert len(OptimizerFactory(adamw)(model).param_groups) == 1


def test_a_matrix_learns_in_inverse_proportion_to_its_inputs() -> None:
    model = context_model(9)
    found = rates(model, 3)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, weight in model.named_parameters():
        is_matrix = weight.dim() == 2 and name != "embedding.weight"
        factor = 3 / weight.shape[1] if is_matrix else 1
        assert found[name] == pytest.approx((LR * factor, DECAY / factor)), name


def test_a_schedule_scales_all_rates() -> None:
    model = context_model(9)
    optimizer = OptimizerFactory(adamw, 3)(model)
    full = [group["lr"] for group in optimizer.param_groups]
    scheduler = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=LR, pct_start=0.5)
    built = Schedule("step", scheduler).build(optimizer, 100)
    highest = [0.0] * len(full)
    for _ in range(99):
        optimizer.step()
        built.step()
        highest = [max(*pair) for pair in zip(highest, built.get_last_lr(), strict=True)]
    assert highest == pytest.approx(full, rel=1e-3)
    assert full[0] == LR


def test_rates_of_a_schedule_by_epoch() -> None:
    optimizer = OptimizerFactory(adamw, 3)(context_model(9))
    full = [group["lr"] for group in optimizer.param_groups]
    cycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=LR, total_steps=10)
    Schedule("epoch", cycle).build(optimizer, 100)
    assert [group["max_lr"] for group in optimizer.param_groups] == pytest.approx(full)
    cosine = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=10, eta_min=1e-4)
    with pytest.raises(ValueError, match="eta_min must be 0, since rates differ by width"):
        Schedule("epoch", cosine).build(optimizer, 100)


def test_the_scale_of_the_logits_falls_with_the_width() -> None:
    def logit_std(width: int) -> float:
        model = nn.Sequential()
        model.add_module("output", nn.Linear(width, 4000))
        variance_preserving(model, output_gain=0.1, base_fan_in=64)
        return float(model(torch.ones(1, width)).detach().std())

    torch.manual_seed(0)
    assert logit_std(64) == pytest.approx(0.1, rel=0.05)
    assert logit_std(1024) == pytest.approx(0.1 / 4, rel=0.05)


def test_no_base_below_one() -> None:
    with pytest.raises(ValueError, match=r"recipe.base_fan_in=0: must be at least 1"):
        OptimizerFactory(adamw, 0)


@pytest.mark.long
def test_the_best_rate_of_width_128_is_that_of_width_512() -> None:
    """By how much the best rate of width 128 misses the lowest loss of width 512, in nats."""
    rates = [2.0**power for power in range(-11, -5)]

    def miss(base_fan_in: int | None) -> float:
        narrow, wide = (
            [final_loss(width, lr, base_fan_in) for lr in rates] for width in (128, 512)
        )
        return wide[narrow.index(min(narrow))] - min(wide)

    assert miss(128) < 0.01 < miss(None)


def final_loss(width: int, lr: float, base_fan_in: int | None, num_steps: int = 150) -> float:
    """The mean loss over the last fifth of a short training on `quality12500`."""
    source = SentenceSource("quality12500", order_seed=1)
    source.setup()
    torch.manual_seed(0)
    sizes = {"context_dim": width, "hidden_dim": width, "num_layers": 3}
    parts = {"fnn": "residual", "gating": LSTMGating, "normalization": nn.LayerNorm}
    layer = partial(Recurrent, cell=ContextCell)
    model = LanguageModel(source.vocabulary_size, width, [layer], **sizes, **parts)
    variance_preserving(model, base_fan_in=base_fan_in)
    optimizer = OptimizerFactory(partial(torch.optim.AdamW, lr=lr, betas=(0.9, 0.98)), base_fan_in)(
        model
    )
    schedule = Schedule("step", partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=lr))
    scheduler = schedule.build(optimizer, num_steps)
    losses = []
    for number in range(num_steps):
        batch = source.train.batch(0, number)
        loss_BT, _, _ = model.train().score(batch.tokens_BT, batch.targets_BT)
        loss = loss_BT.sum() / batch.scored_BT.sum()
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(optimizer, 1.0)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    last = losses[-num_steps // 5 :]
    return sum(last) / len(last)
