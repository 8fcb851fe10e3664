"""The step of a model as an ONNX file, and the same step run by onnxruntime.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch.export import Dim

from newllm.data.reading import one_line
from newllm.exporting.step import (
    BATCH,
    LOGITS,
    TOKEN,
    TOKENS,
    StateTensor,
    Step,
    check_steps,
    example_inputs,
)
from newllm.models.language_model import LanguageModel

NumpyState = list[np.ndarray]


def write_step(model: LanguageModel, tensors: Sequence[StateTensor], file: Path) -> None:
    """Write the step of a model; batch and the growing dimensions of the state stay free.

    Args:
        model: in evaluation mode.
        tensors: of its state.
        file: for the ONNX model. Past 2 GB, the weights lie in a second file beside it.

    Raises:
        ValueError: torch cannot export the model.
    """
    check_steps(model)
    sizes = {BATCH: Dim(BATCH), TOKENS: Dim(TOKENS)}
    of_state = tuple(
        {axis: sizes[size] for axis, size in enumerate(tensor.shape) if isinstance(size, str)}
        for tensor in tensors
    )
    try:
        with _quiet():
            program = torch.onnx.export(
                Step(model).eval(),
                example_inputs(model),
                dynamo=True,
                dynamic_shapes=({0: sizes[BATCH]}, of_state),
                input_names=[TOKEN, *(tensor.name for tensor in tensors)],
                output_names=[LOGITS, *(tensor.next_name for tensor in tensors)],
                verbose=False,
            )
    except Exception as error:  # a layer of the user's own may fail in any way
        reason = one_line(error.__cause__ or error)
        raise ValueError(f"torch cannot trace its step: {reason}") from error
    assert program is not None
    program.save(file)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of its own parts during an export."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class OnnxStep:
    """An exported step, run by onnxruntime on the CPU.

    Args:
        file: the ONNX model.
        tensors: of its state.
    """

    def __init__(self, file: Path, tensors: Sequence[StateTensor]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        self._session = onnxruntime.InferenceSession(
            file, options, providers=["CPUExecutionProvider"]
        )
        self.tensors = tensors

    def initial_state(self, batch_size: int) -> NumpyState:
        """The state before the first token."""
        return [
            np.full(tensor.initial_shape(batch_size), tensor.initial, tensor.dtype)
            for tensor in self.tensors
        ]

    def __call__(self, token_B: np.ndarray, state: NumpyState) -> tuple[np.ndarray, NumpyState]:
        """Read one token of each row: logits [B, V] and the next state."""
        named = zip((tensor.name for tensor in self.tensors), state, strict=True)
        logits_BV, *state = self._session.run(None, {TOKEN: token_B, **dict(named)})
        return logits_BV, state
