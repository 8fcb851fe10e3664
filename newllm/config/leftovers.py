"""What an experiment's file says for its own model, where another one was chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hydra.core.default_element import ConfigDefault
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from newllm.config.build import arguments_of
from newllm.config.naming import split
from newllm.config.origins import leaves

# Sizes of a model, and the names of sizes that follow from a budget.
OF_A_MODEL = ("model.", "budget.widths.", "budget.state_widths.")


def without_leftovers(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration without what an experiment's file sets and the chosen model does not take.

    `experiment=modern model=lstm` takes the sizes that both know, and leaves `context_dim` out.
    What was chosen on the command line itself stays, to be told as a fault. `left_out` says what
    is gone. Needs Hydra to be initialised, since it looks into the experiment's own file.

    Args:
        config: as composed.
        overrides: what was explicitly chosen on the command line.
    """
    chosen = dict(map(split, overrides))
    known = arguments_of(config.get("model"), config.get("trusted_packages") or ())
    if known is None or not chose_another_model(overrides):
        return config
    config = config.copy()
    for key in dict.fromkeys(_keys_of(f"experiment/{chosen['experiment']}")):
        parent, _, leaf = key.rpartition(".")
        holder = OmegaConf.select(config, parent)
        of_a_model = f"{parent}." in OF_A_MODEL and isinstance(holder, DictConfig)
        if of_a_model and leaf not in known and leaf in holder and key not in chosen:
            with open_dict(config):
                config.left_out.append(f"{key}={holder[leaf]}")
                del holder[leaf]
    return config


def chose_another_model(overrides: Sequence[str]) -> bool:
    """Whether a model was chosen beside an experiment, which has one of its own."""
    return {"experiment", "model"} <= {split(line)[0] for line in overrides}


def _keys_of(path: str) -> Iterator[str]:
    """The keys that a file of the configuration sets, and those that it is built on."""
    repository = GlobalHydra.instance().config_loader().repository  # type: ignore[attr-defined]
    file = repository.load_config(path)
    if file is None:
        return
    for default in file.defaults_list or []:
        if isinstance(default, ConfigDefault) and default.path not in (None, "_self_"):
            yield from _keys_of(f"{path.rpartition('/')[0]}/{default.path}")
    for name, _ in leaves(OmegaConf.to_container(file.config, resolve=False)):
        if name.partition(".")[0] != "defaults":
            yield name
