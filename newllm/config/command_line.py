"""A command line: what it composes, or all of its faults at once (Hydra stops at the first)."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from newllm.config.build import ConfigFault
from newllm.config.composing import conf_directory
from newllm.config.folders import folder_faults
from newllm.config.leftovers import without_leftovers
from newllm.config.overrides import Composer, Composition, faults_together, hydras_reason, is_hydras
from newllm.config.sweeper import sweeper_faults
from newllm.config.values import shown

# Help, completion, or the configuration instead of a run.
HYDRA_QUESTIONS = (
    *("-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info", "--version"),
    *("-sc", "--shell-completion"),
)


def asks_hydra(arguments: Sequence[str]) -> bool:
    """Whether the command line is a question that Hydra answers by itself, not a run."""
    return any(word.partition("=")[0] in HYDRA_QUESTIONS for word in arguments)


@contextlib.contextmanager
def composed(arguments: Sequence[str]) -> Iterator[DictConfig]:
    """What a command line composes, with Hydra's own part; Hydra is initialised meanwhile.

    A sweep (`seed=1,2`) is composed with the first of all values.

    Raises:
        ConfigFault: with a line for each fault.
    """
    flags, faults = _parse_flags(arguments)
    with _initialised(flags.config_dir) as loader:
        composer = Composer(loader, flags.config_name)
        # As Hydra does, so that each of a sweep's jobs is composed with it, too.
        mode = ["hydra.mode=MULTIRUN"] if flags.multirun else []
        overrides, unparsed = composer.parse([*flags.overrides, *mode])
        faults += unparsed
        try:
            found = composer.compose(overrides)
            faults += found.faults
            in_sweep = _selected(found.config, "hydra.mode") == RunMode.MULTIRUN
            faults += [] if in_sweep else _only_in_sweeps(overrides)
            place = "hydra.sweep.dir" if in_sweep else "hydra.run.dir"
            faults += _place_faults(found.config, place)
            faults += sweeper_faults(found.config, composer)
            faults += faults_together(found, is_faulty=bool(faults))
        except ConfigFault as error:
            faults += str(error).splitlines()
        if faults:
            raise ConfigFault(list(dict.fromkeys(faults)))
        yield _ready(found, overrides, in_sweep)


def _parse_flags(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Those of Hydra's flags that leave the configuration what it is, and faults of the others."""
    parser = argparse.ArgumentParser(exit_on_error=False, add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-name", "-cn", default="config")
    try:
        flags, unknown = parser.parse_known_intermixed_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigFault([str(error)]) from error
    known = "-m, --config-dir, --config-name, --help and --cfg"
    wrong = [word for word in unknown if word.startswith("-")]
    faults = [f"{word}: unknown flag; known flags: {known}" for word in wrong]
    flags.overrides += [word for word in unknown if word not in wrong]
    if flags.config_dir and not Path(flags.config_dir).is_dir():
        raise ConfigFault([*faults, f"--config-dir {flags.config_dir}: no such folder"])
    return flags, faults


@contextlib.contextmanager
def _initialised(own_folder: str | None) -> Iterator[ConfigLoader]:
    """Initialise Hydra; it looks for a file in the user's folder first, then in the package's."""
    with initialize_config_dir(str(conf_directory()), job_name="train", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        if own_folder:
            folder = Path(own_folder).resolve()
            if shadowed := list(_shadowed(folder)):
                raise ConfigFault(shadowed)
            # Hydra wants its source of schemas to stay the last one.
            loader.get_search_path().prepend("command line", f"file://{folder}", "schema")
            loader.repository.initialize_sources(loader.get_search_path())  # type: ignore[attr-defined]
        yield loader


def _shadowed(folder: Path) -> Iterator[str]:
    """Options of a user's own that Hydra would pass over for those of the package."""
    for file in sorted(folder.rglob("*.yaml")):
        name = file.relative_to(folder)
        if (conf_directory() / name).is_file():
            yield f"--config-dir {folder}: newllm already has {name}; rename yours"


def _place_faults(config: DictConfig, key: str) -> Iterator[str]:
    folder = _selected(config, key)
    if not isinstance(folder, str) or not folder:
        yield f"{key}={shown(folder)}: must be a folder"
    else:
        yield from folder_faults(key, folder)


def _only_in_sweeps(overrides: Sequence[Override]) -> Iterator[str]:
    for item in overrides:
        if item.is_sweep_override():
            yield f"{item.input_line}: several values need a sweep; add -m"
        elif item.key_or_group in ("jobs", "only", "overwrite"):
            yield f"{item.input_line}: is used by sweeps only; add -m or remove it"


def _selected(config: DictConfig, key: str) -> Any:
    """A value of Hydra's own.

    Raises:
        ConfigFault: it refers to nothing.
    """
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException as error:
        raise ConfigFault([f"{key}: {hydras_reason(error)}"]) from error


def _ready(found: Composition, overrides: Sequence[Override], in_sweep: bool) -> DictConfig:
    """The configuration as Hydra hands it on to a job, or to a sweeper."""
    config = without_leftovers(found.config, found.overrides)
    config.hydra.mode = RunMode.MULTIRUN if in_sweep else RunMode.RUN
    if in_sweep:  # with all values
        own = [str(item.input_line) for item in overrides if not is_hydras(item)]
        config.hydra.overrides.task = own
    return config
