"""What every language model here promises, and the faults of their settings in one wording.

Shapes: B batch, T time (tokens), V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = Tensor | tuple[Tensor, ...]


class LanguageModel(nn.Module, ABC):
    """A next-token model that reads tokens in chunks of any size.

    Reading token by token, chunk by chunk or all at once gives the same logits, and no future
    token changes an earlier logit. `<PAD>`, wherever it stands, leaves its row's state as it was.
    """

    vocabulary_size: int
    sees_the_future: bool = False
    embedding: nn.Embedding
    output: nn.Linear

    @abstractmethod
    def forward(
        self, tokens: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        """Read a chunk and predict the token after each of its tokens.

        Args:
            tokens: token ids [B, T], with T >= 1.
            state: what an earlier call returned; None starts afresh.
            reset: bool [B, T]; where true, the row forgets everything before it reads that token.

        Returns:
            Logits [B, T, V] (those at `<PAD>` mean nothing) and the state after the chunk: a tensor
            or a tuple of tensors, B first.
        """

    def score(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Read whole sequences from a fresh state and compare with the tokens that follow.

        Args:
            tokens: token ids [B, T].
            targets: the token after each of them [B, T].

        Returns:
            Cross-entropy in nats, 0 where the target is `IGNORE`, and whether the likeliest token
            is the target; both [B, T].
        """
        return score_logits(self(tokens)[0], targets)

    @property
    @abstractmethod
    def description(self) -> str:
        """The model's name, made of what it is rather than of what was asked for."""

    @abstractmethod
    def state_bytes(self, num_tokens: int) -> int:
        """Bytes of one sequence's state after `num_tokens` tokens."""

    def flops_per_token(self, num_tokens: int) -> int:
        """Forward operations to read the last of `num_tokens` tokens of one sequence.

        A multiply-add counts as two. Counted are products with weight matrices (and, in a
        Transformer, with the cached keys and values); table look-ups, biases, normalizations and
        activations are not.
        """
        matrices = sum(weight.numel() for weight in self.parameters() if weight.dim() == 2)
        tables = sum(
            module.weight.numel() for module in self.modules() if isinstance(module, nn.Embedding)
        )
        return 2 * (matrices - tables)


def score_logits(logits_BTV: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """What `LanguageModel.score` returns, from logits."""
    at_least_float32 = torch.promote_types(logits_BTV.dtype, torch.float32)
    losses = F.cross_entropy(
        logits_BTV.flatten(0, 1).to(at_least_float32),
        targets_BT.flatten(),
        reduction="none",
    )
    return losses.view_as(targets_BT), logits_BTV.argmax(-1) == targets_BT


def surely(condition: Tensor) -> bool:
    """Whether a condition holds, for short cuts that change no result.

    While a model is exported no value is known yet, and nothing is sure.
    """
    return not torch.compiler.is_exporting() and bool(condition)


def padding_only_trails(real_BT: Tensor) -> bool:
    """Whether surely no row has a real token after a `<PAD>`."""
    return surely((real_BT[:, 1:] <= real_BT[:, :-1]).all())


def size_faults(**sizes: int) -> list[str]:
    """One line for each size below 1."""
    return [
        f"model.{key}={size} must be at least 1" for key, size in sizes.items() if not size >= 1
    ]


def dropout_faults(**probabilities: float) -> list[str]:
    """One line for each probability outside [0, 1)."""
    return [
        f"model.{key}={probability} must be at least 0 and below 1"
        for key, probability in probabilities.items()
        if not 0 <= probability < 1
    ]


def option_faults(key: str, value: str, options: Collection[str]) -> list[str]:
    """One line if the value is none of those that exist."""
    if value in options:
        return []
    return [f"model.{key}={value} does not exist; choose one of: {', '.join(options)}"]


def raise_faults(faults: Iterable[str]) -> None:
    """Raise one ValueError that holds all faults, a line each, if there are any."""
    if lines := list(faults):
        raise ValueError("\n".join(lines))
