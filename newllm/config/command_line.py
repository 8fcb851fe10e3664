"""A command line: what it composes, or all of its faults at once (Hydra stops at the first)."""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
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

from newllm.config.arguments import RUN
from newllm.config.build import ConfigFault
from newllm.config.composing import conf_directory
from newllm.config.overrides import Composer, Composition, hydras_reason, is_hydras
from newllm.config.settling import settled
from newllm.config.study_file import are_overrides, joined, matching
from newllm.config.sweeper import sweeper_faults
from newllm.config.trust import TRUSTED
from newllm.config.values import shown

# Help, completion, or the configuration instead of a run.
HYDRA_QUESTIONS = (
    *("-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info", "--version"),
    *("-sc", "--shell-completion"),
)
LOCAL = "local"  # the launcher of this package
LONGEST_NAME = 255  # bytes that file systems give a file or folder


def asks_hydra(arguments: Sequence[str]) -> bool:
    """Whether the command line is a question that Hydra answers by itself, not a run."""
    return any(word.partition("=")[0] in HYDRA_QUESTIONS for word in arguments)


def check_shown(arguments: Sequence[str]) -> None:
    """Check the overrides of a configuration that is only shown (`--cfg`).

    Raises:
        ConfigFault: with a line for each override that cannot be set.
    """
    flags, _ = _parse_flags(arguments, shows=True)
    if flags.cfg:
        with _initialised(flags.config_dir) as loader:
            composer = Composer(loader, flags.config_name)
            overrides, faults = composer.parse(flags.overrides)
            if faults := [*faults, *composer.compose(overrides).own_faults]:
                raise ConfigFault(faults)


def resumed_run(arguments: Sequence[str]) -> tuple[Path, list[str]] | None:
    """The folder and the trusted packages of `run=FOLDER`; None for any other command line.

    Raises:
        ConfigFault: the folder is missing, or something else was chosen beside it.
    """
    chosen = dict(word.partition("=")[::2] for word in arguments)
    if not any(word.startswith(f"{RUN}=") for word in arguments):
        return None
    others = [word for word in arguments if word.partition("=")[0] not in (RUN, TRUSTED)]
    if others:
        reason = "run=FOLDER uses the configuration of that run"
        raise ConfigFault([f"{others[0]}: {reason}; remove it, or start a new run with it"])
    if not chosen[RUN]:
        raise ConfigFault([f"{RUN}=: must be the folder of a run that was interrupted"])
    if not (Path(chosen[RUN]) / "result.json").is_file():
        raise ConfigFault([f"{chosen[RUN]}: is not a run directory; result.json is missing"])
    packages = chosen.get(TRUSTED, "[]")
    if not (packages.startswith("[") and packages.endswith("]")):
        raise ConfigFault([f"{TRUSTED}={packages}: must be a list, such as [my_package]"])
    return Path(chosen[RUN]), [name.strip() for name in packages[1:-1].split(",") if name]


@contextlib.contextmanager
def composed(arguments: Sequence[str]) -> Iterator[DictConfig]:
    """Compose a command line, with Hydra's own part; Hydra is initialised meanwhile.

    A sweep (`seed=1,2`) is composed with the first of all values.

    Raises:
        ConfigFault: with a line for each fault.
    """
    flags, faults = _parse_flags(arguments)
    with _initialised(flags.config_dir) as loader:
        composer = Composer(loader, flags.config_name)
        # As Hydra does, so that each of a sweep's jobs is composed with it, too.
        mode = ["hydra.mode=MULTIRUN"] if flags.multirun else []
        overrides, unread = composer.parse([*flags.overrides, *mode])
        faults += unread
        try:
            found = _composed_with_a_variant(composer, overrides)
            faults += found.own_faults
            in_sweep = _selected(found.config, "hydra.mode") == RunMode.MULTIRUN
            place = "hydra.sweep.dir" if in_sweep else "hydra.run.dir"
            faults += _folder_faults(place, _selected(found.config, place))
            launcher = found.config.hydra.runtime.choices["hydra/launcher"]
            faults += _misplaced(overrides, launcher if in_sweep else None)
            faults += sweeper_faults(found.config, composer)
            faults += found.faults(is_faulty=bool(faults))
        except ConfigFault as error:
            faults += str(error).splitlines()
        if faults:
            raise ConfigFault(list(dict.fromkeys(faults)))
        config = settled(found.config, found.overrides)
        config.hydra.mode = RunMode.MULTIRUN if in_sweep else RunMode.RUN
        if in_sweep:  # the sweeper goes through all values
            own = [str(item.input_line) for item in overrides if not is_hydras(item)]
            config.hydra.overrides.task = own
        yield config


def _composed_with_a_variant(composer: Composer, overrides: list[Override]) -> Composition:
    """The overrides; on top of the first variant of their sweep, if they fit that better.

    The variants of a study may be on other data, with other keys. Each job is checked later.
    """
    found = composer.compose(overrides)
    variants = _selected(found.config, "hydra.sweeper.variants") if found.own_faults else None
    plain: Any = OmegaConf.to_container(variants) if isinstance(variants, DictConfig) else {}
    for name in matching(list(plain), str(found.config.get("only") or "*"))[:1]:
        if are_overrides(plain[name]):
            of_variant, _ = composer.parse(list(joined(plain[name])))
            with_variant = composer.compose([*of_variant, *overrides])
            if len(with_variant.own_faults) <= len(found.own_faults):
                return with_variant
    return found


def _parse_flags(
    arguments: Sequence[str], shows: bool = False
) -> tuple[argparse.Namespace, list[str]]:
    """The flags of Hydra that a run, or `--cfg`, may have, and the faults of the others."""
    parser = argparse.ArgumentParser(exit_on_error=False, add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-name", "-cn", default="config")
    if shows:
        parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
        parser.add_argument("--package", "-p")
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
    """Initialise Hydra with the package's configuration files, and a folder of the user's."""
    with initialize_config_dir(str(conf_directory()), job_name="train", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        if own_folder:
            folder = Path(own_folder).resolve()
            names = [file.relative_to(folder) for file in sorted(folder.rglob("*.yaml"))]
            if shadowed := [name for name in names if (conf_directory() / name).is_file()]:
                remedy = "already; give yours another name"
                told = [f"--config-dir {folder}: newllm has {name} {remedy}" for name in shadowed]
                raise ConfigFault(told)
            # Hydra wants its source of schemas to stay the last one.
            loader.get_search_path().prepend("command line", f"file://{folder}", "schema")
            loader.repository.initialize_sources(loader.get_search_path())  # type: ignore[attr-defined]
        yield loader


def _selected(config: DictConfig, key: str) -> Any:
    """A value of Hydra's own part.

    Raises:
        ConfigFault: it cannot be resolved.
    """
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException as error:
        raise ConfigFault([f"{key}: {hydras_reason(error)}"]) from error


def _misplaced(overrides: Sequence[Override], launcher: str | None) -> Iterator[str]:
    """What a single run or the launcher of a sweep does not read; `launcher` is None for a run."""
    for item in overrides:
        key, line = item.key_or_group, item.input_line
        if launcher is None and item.is_sweep_override() and key != "sweep":
            yield f"{line}: several values need a sweep; add -m"
        elif launcher is None and key in ("jobs", "seeds_at_once", "only", "overwrite"):
            yield f"{line}: is used by sweeps only; add -m or remove it"
        elif launcher not in (None, LOCAL) and key in ("jobs", "seeds_at_once"):
            yield f"{line}: is used by hydra/launcher={LOCAL} only; remove it"


def _folder_faults(key: str, folder: Any) -> Iterator[str]:
    """A line if no folder can be made at a path; nothing is left there."""
    if not isinstance(folder, str) or not folder:
        yield f"{key}={shown(folder)}: must be a folder"
        return
    path = Path(folder)
    told = folder if len(folder) <= 60 else f"{folder[:57]}..."
    try:
        if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
            yield f"{key}={told}: a name of more than {LONGEST_NAME} bytes; choose a shorter one"
        elif any(part.exists() and not part.is_dir() for part in (path, *path.parents)):
            yield f"{key}={told}: is a file, not a folder"
        else:
            nearest = next(part for part in (path, *path.parents) if part.is_dir())
            with tempfile.TemporaryDirectory(dir=nearest):
                pass  # the rights alone would not tell of a disk that is read only
    except (OSError, ValueError) as error:  # such as a path with a null byte
        reason = getattr(error, "strerror", None) or str(error)
        yield f"{key}={told}: cannot be written ({reason}); choose another folder"
