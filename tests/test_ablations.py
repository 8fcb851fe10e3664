"""Ablations and dynamics of the context, against models and matrices with known answers."""

import json
import math
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import TINY_CONTEXT, Command
from encoded_sentences import encoded
from small_models import context_model
from torch import nn

from newllm.data.tokenizer import BOS, EOS
from newllm.models.cell import ContextCell
from newllm.models.gating import Additive, LSTMGating
from newllm.models.initialization import variance_preserving
from newllm.models.language_model import LanguageModel
from newllm.statistics.ablations import (
    ablate,
    dynamics,
    effective_rank,
    gradient_norms,
    jacobians,
)

SENTENCES = [[BOS, 4, 5, 6, 7, EOS], [BOS, 5, 5, EOS], [BOS, 7, 6, 5, 4, 6, EOS]]


def make_model(**settings: object) -> LanguageModel:
    torch.manual_seed(0)
    return context_model(
        9,
        5,
        context_dim=4,
        hidden_dim=6,
        num_layers=2,
        initialization=partial(variance_preserving, output_gain=1.0),
        **settings,
    ).eval()


def cell_of(model: LanguageModel) -> ContextCell:
    (layer,) = model.recurrent_layers
    assert isinstance(layer.cell, ContextCell)
    return layer.cell


def test_a_context_that_is_not_read_is_worth_nothing() -> None:
    model, split = make_model(), encoded(SENTENCES)
    with torch.no_grad():
        cell_of(model).input.weight[:, 5:] = 0  # what reads the context
    found = ablate(model, split)
    for loss in (found.zeroed, found.shuffled):
        assert loss == pytest.approx(found.loss, abs=1e-6)
    for frozen in found.frozen:
        assert frozen.loss == pytest.approx(frozen.loss_intact, abs=1e-6)


def test_losses_are_those_of_the_definition() -> None:
    """Each word alone is what a context of zero leaves; freezing after all tokens changes none."""
    model, split = make_model(), encoded(SENTENCES)
    found = ablate(model, split)
    losses = []
    for sentence in SENTENCES:
        for token, target in pairwise(sentence):
            logits = model(torch.tensor([[token]]))[0][0, 0]
            losses.append(-logits.log_softmax(-1)[target].item())
    assert found.zeroed == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert [frozen.after for frozen in found.frozen] == [1, 2, 4]
    # Of the only sentence with a sixth target, frozen after four tokens.
    (_, _, last) = found.frozen
    trace = model.trace(torch.tensor([SENTENCES[2][:4]]))
    probe = [model(torch.tensor([[token]]), trace.state)[0][0, 0] for token in SENTENCES[2][4:6]]
    short = model.trace(torch.tensor([SENTENCES[0][:4]]))
    probe.append(model(torch.tensor([[SENTENCES[0][4]]]), short.state)[0][0, 0])
    targets = [*SENTENCES[2][5:7], SENTENCES[0][5]]
    expected = [-x.log_softmax(-1)[target].item() for x, target in zip(probe, targets, strict=True)]
    assert last.loss == pytest.approx(sum(expected) / 3, abs=1e-5)


def test_jacobians_equal_finite_differences() -> None:
    model = make_model(gating=LSTMGating, normalization=nn.LayerNorm).double()
    tokens = torch.tensor([[2, 4, 5, 6], [2, 7, 8, 4]])
    for t, jacobian_BCC in enumerate(jacobians(model, tokens), start=1):
        (context_BC,) = model.trace(tokens[:, :t]).state
        for column in range(4):
            step = torch.zeros(2, 4, dtype=torch.double)
            step[:, column] = 1e-6
            states = ((context_BC + step,), (context_BC - step,))
            (above,), (below,) = (model.trace(tokens[:, t : t + 1], s).state for s in states)
            difference_BC = (above - below) / 2e-6
            torch.testing.assert_close(
                jacobian_BCC[:, :, column], difference_BC, atol=1e-7, rtol=1e-5
            )
    assert t == 3


def test_gradients_by_distance() -> None:
    model, split = make_model().double(), encoded([SENTENCES[2]])
    batch = split.batch(torch.tensor([0]))
    norms = gradient_norms(model, batch)
    assert len(norms) == 5  # contexts after 1 ... 5 tokens, before the last target
    (context_BC,) = model.trace(batch.tokens_BT[:, :1]).state
    context_BC = context_BC.detach().requires_grad_()
    logits = model.trace(batch.tokens_BT[:, 1:], (context_BC,)).logits_BTV
    loss = -logits[0, -1].log_softmax(-1)[EOS]
    (gradient,) = torch.autograd.grad(loss, context_BC)
    assert norms[-1] == pytest.approx(gradient.norm().item(), rel=1e-6)


def test_an_additive_context_that_never_changes_neither_forgets_nor_grows() -> None:
    model, split = make_model(gating=Additive), encoded(SENTENCES)
    with torch.no_grad():
        cell_of(model).gating.delta.weight.zero_()  # type: ignore[union-attr, operator]
    found = dynamics(model, split)
    assert found.singular_value == pytest.approx(1, abs=1e-5)
    assert found.lyapunov_exponent == pytest.approx(0, abs=1e-5)


def test_effective_rank() -> None:
    # k orthogonal directions of the same spread have rank k.
    directions = torch.cat((torch.eye(5)[:3], -torch.eye(5)[:3]))
    assert effective_rank(directions) == pytest.approx(3, abs=1e-6)
    assert effective_rank(torch.outer(torch.arange(4.0), torch.ones(5))) == pytest.approx(1)


def test_the_command(command: Command, tmp_path: Path) -> None:
    run, text = tmp_path / "run", tmp_path / "text.txt"
    text.write_text("a bird sings well\nthe child sleeps\nnobody sings at all today\n" * 20)
    done = command("newllm.train", "data=text", f"data.path={text}", "trainer=smoke",
                   *TINY_CONTEXT, "countermeasure=none", f"hydra.run.dir={run}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = command("newllm.evaluate", str(run))
    assert done.returncode == 0, done.stderr
    for words in ("trigram", "always zero", "frozen after 4 tokens", "Lyapunov"):
        assert words in done.stdout
    found = json.loads((run / "evaluation" / "evaluation.json").read_text())
    result = json.loads((run / "result.json").read_text())
    assert found["splits"]["test"]["loss"] == pytest.approx(result["test_loss"], abs=0.1)
    assert found["splits"]["validation"]["references"] == result["references"]
    assert math.isfinite(found["dynamics"]["lyapunov_exponent"])
    assert (run / "evaluation" / "ablations.png").stat().st_size > 0
    text.write_text("other words\n" * 60)
    done = command("newllm.evaluate", str(run))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "its data has changed" in done.stderr
    done = command("newllm.evaluate", str(tmp_path), fresh=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
