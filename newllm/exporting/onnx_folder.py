"""A run as a folder for onnxruntime: `model.onnx`, `model.json` and `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from newllm.data.tokenizer import BOS, EOS, PAD, UNK
from newllm.exporting.folder import described, write_json, write_tokenizer, written_folder
from newllm.exporting.int8 import mean_loss, quantize, validation_batches
from newllm.exporting.onnx_step import OnnxStep, write_step
from newllm.exporting.parity import NUM_ROWS, NUM_TOKENS, check_parity
from newllm.exporting.step import LOGITS, TOKEN, StateTensor, check_steps, state_tensors
from newllm.models.sampling import never_drawn
from newllm.runs.directory import LoadedRun, telling
from newllm.training.evaluation import load_source

FORMAT = 1  # of `model.json`; a change that breaks a client raises it
MODEL, DESCRIPTION, ROUNDED = "model.onnx", "model.json", "int8.onnx"


def export_onnx(
    run: LoadedRun, folder: Path, is_int8: bool, trusted_packages: Sequence[str] = ()
) -> Iterator[str]:
    """Write the step of a run's model, compare it with the model, and yield what was found.

    Args:
        run: the run.
        folder: to write; nothing may lie there.
        is_int8: whether to write the model with weights of 8 bits. The step is compared before.
        trusted_packages: further packages that the data of the run may come from.

    Raises:
        ValueError: the model cannot be exported, or the step differs from it. The folder is then
            not written.
    """
    source = load_source(run, trusted_packages) if is_int8 else None
    with written_folder(folder) as partial, telling(run.path, "cannot be exported"):
        model = partial / MODEL
        check_steps(run.model)
        tensors = state_tensors(run.model)
        write_step(run.model, tensors, model)
        step = OnnxStep(model, tensors)
        parity = check_parity(run.model, step)
        yield (
            f"parity over {NUM_ROWS} x {NUM_TOKENS:,} tokens: logits differ by at most "
            f"{parity.of_steps:.1e} in a step, {parity.relative:.1e} of the largest logit, and by "
            f"{parity.of_runs:.1e} with a state of their own"
        )
        if source is not None:
            split = validation_batches(source)
            loss, num_targets = mean_loss(step, split)
            before = _size(partial)
            quantize(model, partial / ROUNDED)
            for file in partial.glob(f"{MODEL}*"):  # past 2 GB there are two
                file.unlink()
            (partial / ROUNDED).rename(model)
            loss_int8, _ = mean_loss(OnnxStep(model, tensors), split)
            yield (
                f"int8: {before:,} to {_size(partial):,} bytes; validation loss {loss:.4f} to "
                f"{loss_int8:.4f} nats per token ({num_targets:,} targets)"
            )
        write_tokenizer(partial, run)
        write_json(partial / DESCRIPTION, _description(run, tensors, is_int8))


def _size(folder: Path) -> int:
    """Bytes of the model in a folder."""
    return sum(file.stat().st_size for file in folder.iterdir())


def _description(run: LoadedRun, tensors: Sequence[StateTensor], is_int8: bool) -> dict[str, Any]:
    """Everything that a client needs beside the model."""
    positions = run.model.positions
    content = {
        "format": FORMAT,
        **described(run, ["onnx", "onnxscript", "onnxruntime"]),
        "weights": "int8" if is_int8 else "float32",
        "token": TOKEN,
        "logits": LOGITS,
        "state": [{**asdict(tensor), "next_name": tensor.next_name} for tensor in tensors],
        "max_tokens": None if positions is None else positions.max_length,
    }
    if run.tokenizer is None:
        return content
    return content | {
        "special_tokens": {"pad": PAD, "unk": UNK, "bos": BOS, "eos": EOS},
        "never_drawn": never_drawn(run.model, run.tokenizer).nonzero()[:, 0].tolist(),
        "is_of_pairs": run.tokenizer.is_of_pairs,
        "keeps_white_space": run.tokenizer.is_exact,
    }
