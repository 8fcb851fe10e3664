"""The distribution that tokens are drawn from, and the draws.

Shapes: B rows, K tokens of a block, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from newllm.config.faults import raise_faults


@dataclass(frozen=True)
class Sampling:
    """The distribution that tokens are drawn from. What limits it acts in the order given here.

    Tokens of equal probability are kept or left out together.

    Attributes:
        repetition_penalty: by which the logits of tokens that were read or drawn are divided, or
            multiplied if they are negative (Keskar et al. 2019, arXiv 1909.05858).
        temperature: by which logits are divided; 0 always takes the likeliest token.
        top_k: only the `top_k` likeliest tokens; None means all.
        top_p: only the likeliest tokens that together reach this probability (Holtzman et al.
            2020, arXiv 1904.09751).
        min_p: only tokens with at least this share of the probability of the likeliest one (Nguyen
            et al. 2024, arXiv 2407.01082).

    Raises:
        ValueError: an attribute is out of range; one line for each.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        wanted = {
            "temperature": (0 <= self.temperature < math.inf, "must be finite, and at least 0"),
            "top_k": (self.top_k is None or self.top_k >= 1, "must be at least 1"),
            "top_p": (0 < self.top_p <= 1, "must be above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "must be from 0 to 1"),
            "repetition_penalty": (
                0 < self.repetition_penalty < math.inf,
                "must be finite, and above 0",
            ),
        }
        wrong = {name: told for name, (is_right, told) in wanted.items() if not is_right}
        raise_faults([f"{name}={getattr(self, name)}: {told}" for name, told in wrong.items()])

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken, as it is at a temperature too small."""
        return self.temperature < torch.finfo(torch.float32).tiny

    def probabilities(self, logits_BV: Tensor, seen_BV: Tensor) -> Tensor:
        """The probabilities [B, V] of logits; `seen_BV` is true for tokens that occurred."""
        if self.repetition_penalty != 1:
            penalty, largest = self.repetition_penalty, torch.finfo(logits_BV.dtype).max
            lowered_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
            lowered_BV = lowered_BV.clamp(-largest, largest)  # or all might become infinite
            logits_BV = torch.where(seen_BV & logits_BV.isfinite(), lowered_BV, logits_BV)
        if self.is_greedy:
            likeliest_B = logits_BV.argmax(-1, keepdim=True)
            return torch.zeros_like(logits_BV).scatter_(-1, likeliest_B, 1.0)
        logits_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / self.temperature
        if self.top_k is not None and self.top_k < logits_BV.shape[-1]:
            lowest_B1 = logits_BV.topk(self.top_k).values[:, -1:]
            logits_BV = logits_BV.masked_fill(logits_BV < lowest_B1, -torch.inf)
        probability_BV = logits_BV.softmax(-1)
        if self.top_p < 1:
            sorted_BV = probability_BV.sort(descending=True).values
            before_BV = sorted_BV.cumsum(-1, dtype=torch.float64) - sorted_BV
            least_B1 = sorted_BV.masked_fill(before_BV >= self.top_p, 1).amin(-1, keepdim=True)
            probability_BV = probability_BV * (probability_BV >= least_B1)
        if self.min_p > 0:
            least_B1 = self.min_p * probability_BV.amax(-1, keepdim=True)
            probability_BV = probability_BV * (probability_BV >= least_B1)
        return probability_BV / probability_BV.sum(-1, keepdim=True)


def draw(probability_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The tokens [B] at which the cumulative probability exceeds numbers of [0, 1).

    No token of probability 0 is drawn.
    """
    cumulative_BV = probability_BV.cumsum(-1, dtype=torch.float64)
    return (cumulative_BV <= uniform_B[:, None] * cumulative_BV[:, -1:]).sum(-1)


class Uniforms:
    """Random numbers of [0, 1), one for each token and row, which may be looked at beforehand.

    Args:
        num_rows: B.
        seed: of the numbers.
    """

    def __init__(self, num_rows: int, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._ahead_KB = torch.empty(0, num_rows, dtype=torch.float64)

    def ahead(self, num_tokens: int) -> Tensor:
        """Those of the next tokens, [K, B], which stay the next ones."""
        missing = num_tokens - len(self._ahead_KB)
        if missing > 0:
            size = missing, self._ahead_KB.shape[1]
            new_KB = torch.rand(size, dtype=torch.float64, generator=self._generator)
            self._ahead_KB = torch.cat([self._ahead_KB, new_KB])
        return self._ahead_KB[:num_tokens]

    def use(self, num_tokens: int) -> Tensor:
        """Those of the next tokens, [K, B], which are then used up."""
        used_KB = self.ahead(num_tokens)
        self._ahead_KB = self._ahead_KB[num_tokens:]
        return used_KB
