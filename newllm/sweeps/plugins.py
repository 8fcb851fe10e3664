"""Hydra's launcher and sweeper of this package, made known to Hydra."""

import sys
from types import ModuleType

from hydra.core.plugins import Plugins

from newllm.config.composing import PLUGIN_MODULE
from newllm.sweeps.each import Each
from newllm.sweeps.launcher import LocalLauncher


def register_plugins() -> None:
    """Let Hydra instantiate the launcher and the sweeper.

    It takes plugins from modules below `hydra_plugins` only, so they get a module there that exists
    in memory alone.
    """
    plugins = Plugins.instance()  # looks for the installed ones, so it comes first
    package, _, name = PLUGIN_MODULE.partition(".")
    module = sys.modules[PLUGIN_MODULE] = ModuleType(PLUGIN_MODULE)
    setattr(sys.modules.setdefault(package, ModuleType(package)), name, module)
    for plugin in (LocalLauncher, Each):
        plugin.__module__ = PLUGIN_MODULE
        setattr(module, plugin.__name__, plugin)
        plugins.register(plugin)
