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
from newllm.exporting.onnx_step import NumpyState, OnnxStep
from newllm.exporting.step import LOGITS
from newllm.models.language_model import LanguageModel, State

NUM_TOKENS = 1000  # of each row
NUM_ROWS = 3  # more than in the example of the export, which would show a frozen batch
TOLERANCE = 1e-5
CRITERION = f"{TOLERANCE:.0e} of the largest magnitude in a row, or of 1 if that is larger"


@dataclass
class Parity:
    """Largest absolute differences of logits.

    Attributes:
        of_steps: where both read the same token with the same state.
        of_runs: where each carries its own state, which also shows how rounding adds up.
    """

    of_steps: float = 0.0
    of_runs: float = 0.0


@torch.inference_mode()
def check_parity(model: LanguageModel, step: OnnxStep, num_tokens: int = NUM_TOKENS) -> Parity:
    """Compare a step with its model over tokens that the model draws.

    At each token, both also read the state that the exported step has reached; logits and next
    states must agree. A comparison of two runs alone could not tell a wrong step from the rounding
    that a chaotic recurrence amplifies. With a table of positions, a new text begins at its end.

    Raises:
        ValueError: they differ by more than `CRITERION`.
    """
    generator = torch.Generator().manual_seed(0)
    longest = model.positions.max_length if model.positions else num_tokens
    parity = Parity()
    for number in range(num_tokens):
        if number % longest == 0:
            token_B = torch.full((NUM_ROWS,), BOS)
            state, onnx_state = model.initial_state(NUM_ROWS), step.initial_state(NUM_ROWS)
        same_BV, same_state = _step(model, token_B, _as_tensors(onnx_state))
        logits_BV, state = _step(model, token_B, state)
        found_BV, onnx_state = step(token_B.numpy(), onnx_state)
        parity.of_steps = max(parity.of_steps, _largest(found_BV - same_BV.numpy()))
        parity.of_runs = max(parity.of_runs, _largest(found_BV - logits_BV.numpy()))
        names = [LOGITS, *(tensor.next_name for tensor in step.tensors)]
        compared = [(found_BV, same_BV), *zip(onnx_state, same_state, strict=True)]
        for name, (found, expected) in zip(names, compared, strict=True):
            _check(name, number + 1, found, expected.numpy())
        token_B = torch.multinomial(logits_BV.softmax(-1), 1, generator=generator)[:, 0]
    return parity


def _step(model: LanguageModel, token_B: Tensor, state: State) -> tuple[Tensor, State]:
    logits_BTV, state = model(token_B[:, None], state)
    return logits_BTV[:, 0], state


def _as_tensors(state: NumpyState) -> State:
    return tuple(map(torch.from_numpy, state))


def _largest(difference: np.ndarray) -> float:
    """The largest absolute difference; infinite if one is no number."""
    largest = float(np.abs(difference).max(initial=0.0))
    return math.inf if math.isnan(largest) else largest


def _check(name: str, number: int, found: np.ndarray, expected: np.ndarray) -> None:
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        raise ValueError(f"{name} is {found.dtype} {found.shape}, not {expected.shape}")
    rows = len(found), -1 if found.size else 0
    found, expected = (part.reshape(rows).astype(np.float64) for part in (found, expected))
    scale_B = np.abs(expected).max(axis=1, initial=1.0)
    error = _largest((found - expected) / scale_B[:, None])
    if error > TOLERANCE:
        raise ValueError(
            f"{name} differs from the PyTorch model at token {number} by {error:.1e}, "
            f"more than {CRITERION}"
        )
