"""The sources of Hydra: the folder of configuration files, and nodes that need no file.

Importing this module registers the nodes; `newllm.sweeps.plugins` registers the classes.
"""

from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import setup_globals
from omegaconf import OmegaConf

# Hydra instantiates plugins from below `hydra_plugins` only.
PLUGIN_MODULE = "hydra_plugins.newllm"

PARTS_OF_A_SWEEP = ("params", "variants", "trials", "then", "baselines")
SWEEPER: dict[str, Any] = {part: {} for part in PARTS_OF_A_SWEEP}
NODES: dict[str, dict[str, Any]] = {
    "hydra/launcher": {"local": {"_target_": f"{PLUGIN_MODULE}.LocalLauncher"}},
    "hydra/sweeper": {"each": {"_target_": f"{PLUGIN_MODULE}.Each", **SWEEPER}},
    # The option `none` of a group.
    **{name: {"none": {}} for name in ("experiment", "scale", "sweep", "countermeasure")},
    **{name: {"none": {}} for name in ("logger", "callbacks")},
}
IN_THE_ROOT = ("experiment", "scale", "sweep", "countermeasure")  # the package of these groups

# In YAML, `${larger:A,B}`; and those of Hydra, which a process of a sweep does not have otherwise.
OmegaConf.register_new_resolver("larger", max, replace=True)
setup_globals()

for group, nodes in NODES.items():
    for name, node in nodes.items():
        ConfigStore.instance().store(
            group=group,
            name=name,
            node=node,
            package="_global_" if group in IN_THE_ROOT else None,
            provider="newllm",
        )


def conf_directory() -> Path:
    """The folder of configuration files: beside the code in a wheel, above it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    candidates = (package / "conf", package.parent / "conf")
    return next(path for path in candidates if (path / "config.yaml").is_file())
