"""Whether an exported step computes what the model computes.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from newllm.data.tokenizer import BOS
from newllm.exporting.onnx_step import OnnxStep
from newllm.exporting.step import LOGITS
from newllm.models.language_model import LanguageModel, State

NUM_TOKENS = 1000  # of each row
NUM_ROWS = 3  # more than in the example of the export, which would show a frozen batch
TOLERANCE = 1e-5
CRITERION = f"{TOLERANCE:.0e} of the largest magnitude in a row, or of 1 if that is larger"


@dataclass
class Parity:
    """Largest differences of logits.

    Attributes:
        of_steps: absolute, where both read the same token with the same state.
        relative: the same, by the measure of `CRITERION`.
        of_runs: absolute, where each carries its own state, so that rounding adds up.
    """

    of_steps: float = 0.0
    relative: float = 0.0
    of_runs: float = 0.0


@torch.inference_mode()
def check_parity(model: LanguageModel, step: OnnxStep, num_tokens: int = NUM_TOKENS) -> Parity:
    """Compare a step with its model over tokens that the model draws.

    At each token, both also read the state that the exported step has reached; logits and next
    states must agree. A comparison of two runs alone could not tell a wrong step from the rounding
    that a chaotic recurrence amplifies. A new text begins where a table of positions ends, and
    where the model itself has no finite numbers any more.

    Raises:
        ValueError: they differ by more than `CRITERION`, or the model has no finite numbers.
    """
    generator = torch.Generator().manual_seed(0)
    longest = model.positions.max_length if model.positions else num_tokens
    parity, position, num_compared = Parity(), 0, 0
    for number in range(1, num_tokens + 1):
        if position == 0:
            token_B = torch.full((NUM_ROWS,), BOS)
            state = model.initial_state(NUM_ROWS)
            onnx_state = step.initial_state(NUM_ROWS)
        same = _step(model, token_B, tuple(map(torch.from_numpy, onnx_state)))
        logits_BV, *after = _step(model, token_B, state)
        state = tuple(after)
        found_BV, onnx_state = step(token_B.numpy(), onnx_state)
        position = (position + 1) % longest
        if not all(bool(part.isfinite().all()) for part in (*same, logits_BV, *state)):
            position = 0
            continue
        num_compared += 1
        names = [LOGITS, *(tensor.next_name for tensor in step.tensors)]
        for name, found, expected in zip(names, (found_BV, *onnx_state), same, strict=True):
            error = _relative_error(found, expected.numpy())
            if error > TOLERANCE:
                raise ValueError(
                    f"{name} differs from the PyTorch model at token {number} by {error:.1e}, more "
                    f"than {CRITERION}"
                )
            if name == LOGITS:
                parity.relative = max(parity.relative, error)
        parity.of_steps = max(parity.of_steps, _largest(found_BV - same[0].numpy()))
        parity.of_runs = max(parity.of_runs, _largest(found_BV - logits_BV.numpy()))
        token_B = torch.multinomial(logits_BV.softmax(-1), 1, generator=generator)[:, 0]
    if num_compared == 0:
        raise ValueError(
            "its logits or states are not finite at any token: its weights are too large"
        )
    return parity


def _step(model: LanguageModel, token_B: Tensor, state: State) -> tuple[Tensor, ...]:
    """The logits [B, V] after a token, and the next state."""
    logits_BTV, after = model(token_B[:, None], state)
    return logits_BTV[:, 0], *after


def _relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference by the measure of `CRITERION`; infinite for another shape or type."""
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return math.inf
    if found.size == 0:
        return 0.0
    found, expected = (part.reshape(len(part), -1).astype(float) for part in (found, expected))
    scale_B1 = np.abs(expected).max(axis=1, keepdims=True).clip(min=1.0)
    return _largest((found - expected) / scale_B1)


def _largest(difference: np.ndarray) -> float:
    """The largest absolute difference; infinite if one is no number."""
    largest = float(np.abs(difference).max())
    return math.inf if math.isnan(largest) else largest
