"""What follows from the choices together: sizes that the model lacks, and those of a budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from newllm.config.budget import following
from newllm.config.naming import split
from newllm.config.origins import leaves, raw
from newllm.config.study_file import joined, parted

# Sizes of a model, and the names of sizes that follow from a budget.
SIZE_PREFIXES = ("model.", "budget.widths.", "budget.state_widths.")


def settled(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration without leftovers, and with the widths that a budget decides on.

    Args:
        config: as composed.
        overrides: what was explicitly chosen on the command line.
    """
    return _with_widths(_settled(config, overrides), overrides)


def _with_widths(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Without `budget.widths`, a budget of parameters keeps the proportions of the model's widths.

    Widths that were explicitly chosen, or that follow from another budget, stay as they are.
    """
    budget = config.budget
    if budget.get("parameters") is None or following(budget.widths or {}):
        return config
    fixed = {split(line)[0] for line in overrides} | {
        f"model.{name}" for name in following(budget.get("state_widths") or {})
    }
    widths = {
        str(name): value
        for name in config.model
        if str(name).endswith("_dim") and f"model.{name}" not in fixed
        if isinstance(value := OmegaConf.select(config, f"model.{name}"), int) and value > 0
    }
    config = config.copy()
    with open_dict(config):
        config.budget.widths = {
            name: value / max(widths.values()) for name, value in widths.items()
        }
    return config


def _settled(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration without sizes that come from a file and that its model does not take.

    `experiment=modern model=lstm` leaves `context_dim` out and notes it in `left_out`. A scale is
    for any model, so what it leaves out is not noted. Choices of the command line stay, since they
    are faults. Hydra must be initialised.

    Args:
        config: as composed.
        overrides: what was explicitly chosen on the command line.
    """
    chosen = dict(map(split, overrides))
    if "scale" in config:
        config = config.copy()
        with open_dict(config):
            for name in config.budget.widths.keys() - config.model.keys():
                if f"budget.widths.{name}" not in chosen:
                    del config.budget.widths[name]
    if not chose_another_model(overrides):
        return config
    known = {key.rpartition(".")[2] for key in keys_of(f"model/{chosen['model']}")}
    config = config.copy()
    for key in dict.fromkeys(keys_of(f"experiment/{chosen['experiment']}")):
        parent, _, leaf = key.rpartition(".")
        holder = OmegaConf.select(config, parent)
        of_a_model = f"{parent}." in SIZE_PREFIXES and isinstance(holder, DictConfig)
        if of_a_model and leaf not in known and leaf in holder and key not in chosen:
            with open_dict(config):
                config.left_out.append(f"{key}={holder[leaf]}")
                del holder[leaf]
    return config


def chose_another_model(overrides: Sequence[str]) -> bool:
    """Whether a model was chosen beside an experiment, which has one of its own."""
    return {"experiment", "model"} <= {split(line)[0] for line in overrides}


def read_file(path: str) -> dict[str, Any]:
    """The content of a file, by its group and name; empty if there is none."""
    content = _load(path)
    return raw(content) if isinstance(content, DictConfig) else {}


def _load(path: str) -> Any:
    for source in GlobalHydra.instance().config_loader().get_sources():
        if source.available() and source.is_config(path):
            return source.load_config(path).config
    return None


def read_variants(study: str) -> dict[str, list[str]]:
    """The overrides of each variant of a study; empty if its file is not found."""
    sources = GlobalHydra.instance().config_loader().get_sources()
    return _read_variants(study, tuple(source.full_path() for source in sources))


@cache
def _read_variants(study: str, places: tuple[str, ...]) -> dict[str, list[str]]:
    content = _load(f"sweep/{study}")
    node = OmegaConf.select(content, "hydra.sweeper.variants") if content else None
    variants = node if isinstance(node, DictConfig) else {}
    return {str(name): parted(list(joined(lines)))[0] for name, lines in variants.items()}


def keys_of(path: str) -> Iterator[str]:
    """The keys that a file and its defaults set."""
    content = read_file(path)
    for default in content.pop("defaults", None) or ():
        if isinstance(default, str) and default != "_self_":
            yield from keys_of(f"{path.rpartition('/')[0]}/{default}")
    yield from (name for name, _ in leaves(content))
