"""A run as a folder of plain weights: `model.safetensors`, `config.json` and `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import OmegaConf
from safetensors.torch import load_file, save

from newllm.config.trust import Trust
from newllm.data.tokenizer import Tokenizer
from newllm.exporting.folder import (
    TOKENIZER,
    described,
    write_json,
    write_tokenizer,
    written_folder,
)
from newllm.models.language_model import LanguageModel
from newllm.runs.directory import LoadedRun, telling
from newllm.runs.files import read_config
from newllm.runs.loading import load_model

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def export_safetensors(run: LoadedRun, folder: Path) -> Iterator[str]:
    """Write the weights of a run and what is needed to load them, and yield what was written.

    Args:
        run: the run.
        folder: to write; nothing may lie there.

    Raises:
        ValueError: the folder cannot be written.
    """
    with written_folder(folder) as partial:
        # Copies, because the format refuses tensors that share memory.
        weights = {name: weight.clone() for name, weight in run.model.state_dict().items()}
        (partial / WEIGHTS).write_bytes(save(weights, metadata={"format": "pt"}))
        model = OmegaConf.to_container(run.config.model, resolve=True)
        write_json(partial / CONFIG, {**described(run, ["safetensors"]), "model": model})
        write_tokenizer(partial, run)
        yield f"{len(weights)} tensors, {(partial / WEIGHTS).stat().st_size:,} bytes"


def load(
    folder: str | Path, trusted_packages: Sequence[str] = ()
) -> tuple[LanguageModel, Tokenizer | None]:
    """The model of such a folder in evaluation mode, and its tokenizer, if it has one.

    As with a run directory, nothing in the folder is executed.

    Args:
        folder: as `export_safetensors` wrote it.
        trusted_packages: other packages that parts of the model may come from.

    Raises:
        ValueError: a file is missing or broken. One line.
    """
    folder = Path(folder)
    with telling(folder, f"{CONFIG} cannot be read"):
        config = read_config(folder / CONFIG)  # JSON is YAML
    with telling(folder, f"{WEIGHTS} cannot be loaded"):
        weights, largest = load_file(folder / WEIGHTS), (folder / WEIGHTS).stat().st_size
    with telling(folder, f"{CONFIG} cannot be loaded"):
        trust = Trust.in_stranger(trusted_packages)
        model = load_model(config.model, weights, trust, largest, WEIGHTS)
    if config.get("tokenizer") is None:
        return model, None
    with telling(folder, f"{TOKENIZER} cannot be loaded"):
        return model, Tokenizer.load(folder / TOKENIZER)
