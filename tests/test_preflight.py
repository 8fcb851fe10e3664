"""What is looked at before the first step."""

from pathlib import Path

import pytest
import torch
from conftest import TINY_CONTEXT, Command, Compose
from small_models import context_layer, context_model

from newllm.config.build import ConfigFault, instantiate
from newllm.data.sources.sentences import SentenceSource
from newllm.data.sources.text import TextSource
from newllm.models.language_model import LanguageModel
from newllm.training.preflight import check, find_leak

TOKENS = torch.randint(4, 90, (3, 9), generator=torch.Generator().manual_seed(1))
SMALL = {
    "transformer": ("model.embedding_dim=16", "model.num_heads=2", "model.num_layers=1"),
    "lstm": ("model.embedding_dim=8", "model.hidden_dim=8"),
    "context": TINY_CONTEXT,
}


class Peeking(LanguageModel):
    """A fault of a user's own: it adds something of the next token."""

    def forward(self, tokens, state=None, reset=None):  # type: ignore[no-untyped-def]
        logits, state = super().forward(tokens, state, reset)
        following = torch.roll(self.embedding(tokens).mean(-1), -1, dims=1)
        return logits + following[..., None], state


def data(tmp_path: Path, corpus: str = "tiny30") -> SentenceSource:
    module = SentenceSource(corpus, order_seed=1, directory=str(tmp_path))
    module.setup()
    return module


def peeking() -> Peeking:
    """With the original's small weights, whose logits hardly differ from zero."""
    return Peeking(91, 8, [context_layer], context_dim=8, hidden_dim=8, num_layers=1)


@pytest.mark.parametrize("model", ["transformer", "lstm", "context"])
def test_causal_models_have_no_leak(compose_config: Compose, model: str) -> None:
    config = compose_config("data=tiny30", "countermeasure=none", f"model={model}", *SMALL[model])
    assert find_leak(instantiate(config.model).train(), TOKENS) is None


def test_a_leak_is_found_and_refused(tmp_path: Path) -> None:
    model = peeking().train()
    assert find_leak(model, TOKENS) is not None
    assert model.training
    assert model.embedding.weight.dtype == torch.float32
    with pytest.raises(ConfigFault, match="sees the future: tokens from position"):
        check(model, data(tmp_path), 1000)


def test_the_leaky_preset_trains_and_says_so(tmp_path: Path) -> None:
    model = peeking()
    model.sees_the_future = True
    found = check(model, data(tmp_path), 1000)
    assert not found.causal
    assert any("sees the future" in warning for warning in found.warnings())


def test_findings_of_the_published_corpus(tmp_path: Path) -> None:
    model = context_model(1000)
    found = check(model, data(tmp_path), 100)
    assert found.unknown_share == pytest.approx(16 / 35)
    assert (found.overlap_share, found.num_too_long, found.num_classes) == (0, 0, 1000)
    assert found.num_unused_classes == 1000 - 91  # the vocabulary holds the four specials
    warnings = "\n".join(found.warnings())
    for words in ("46% of the validation targets", "909 of 1,000 output classes", "only 100"):
        assert words in warnings
    assert "train as well" not in warnings
    assert found.as_result()["warnings"] == warnings.splitlines()


def test_overlap_is_told(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one two three\n" * 20 + "four five six seven eight nine\n" * 20)
    module = TextSource(str(text), order_seed=1, max_length=4, too_long="truncate")
    module.setup()
    model = context_model(module.tokenizer.size)
    warnings = "\n".join(check(model, module, 1000).warnings())
    assert "100% of the validation sentences are also in train" in warnings
    assert "20 sentences were too long" in warnings


def test_a_run_with_a_leak_leaves_nothing_behind(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from newllm.models.language_model import LanguageModel\n\n\n"
        "class Peeking(LanguageModel):\n"
        "    def forward(self, tokens, state=None, reset=None):\n"
        "        logits, state = super().forward(tokens, state, reset)\n"
        "        following = torch.roll(self.embedding(tokens).sum(-1), -1, 1)\n"
        "        return logits + following[..., None], state\n"
    )
    done = command(
        "newllm.train", "data=tiny30", "countermeasure=none", "model._target_=mine.Peeking",
        "trusted_packages=[mine]", *TINY_CONTEXT,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    assert "sees the future" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob("result.json"))
