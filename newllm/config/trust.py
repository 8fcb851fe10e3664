"""What a configuration may have built: classes of known kinds, and the package's own list.

A run directory from a stranger must execute nothing. So a target is looked up without importing
anything for it, and must be a class whose constructor only constructs, or be on the list. No
package is trusted with all of its functions: torch alone has some that load code, start processes
and remove files.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

TRUSTED = "trusted_packages"
PACKAGES = ("newllm", "torch", "torchmetrics", "lightning")


class Kind(NamedTuple):
    """Classes that derive from `module.name` and are defined in the module `home` or below it."""

    module: str
    name: str
    home: str

    def base(self) -> type:
        """The base class, imported when it is asked for."""
        base: type = getattr(importlib.import_module(self.module), self.name)
        return base


# Modules of torch.nn with layers whose outputs are no larger than their inputs or weights. Others,
# such as padding, could fill the memory.
BOUNDED = ("activation", "batchnorm", "dropout", "instancenorm", "linear", "normalization")
MODEL_KINDS = (  # of a stranger's model
    Kind("torch.nn", "Module", "newllm.models"),
    *(Kind("torch.nn", "Module", f"torch.nn.modules.{module}") for module in BOUNDED),
)
KINDS = (
    *MODEL_KINDS,
    Kind("torch.nn", "Module", "torch.nn.modules"),
    Kind("torch.optim", "Optimizer", "torch.optim"),
    Kind("torch.optim.lr_scheduler", "LRScheduler", "torch.optim"),
    Kind("lightning.pytorch", "Trainer", "lightning.pytorch.trainer"),
    Kind("lightning.pytorch", "Callback", "lightning.pytorch.callbacks"),
    Kind("lightning.pytorch", "Callback", "newllm.training"),
    Kind("newllm.data.source", "Source", "newllm.data"),
    Kind("lightning.pytorch.loggers", "Logger", "lightning.pytorch.loggers"),
    Kind("torchmetrics", "Metric", "torchmetrics"),
)
OWN = (  # classes and functions of newllm that are of none of these kinds
    "newllm.data.sources.sentences.SentenceSource",
    "newllm.data.sources.standard_library.LibrarySource",
    "newllm.data.sources.text.TextSource",
    "newllm.models.sizes.Budget",
    "newllm.models.recurrence.fused.Fused",
    "newllm.models.recurrence.parallel.Parallel",
    "newllm.models.recurrence.persistent.Persistent",
    "newllm.models.initialization.normal",
    "newllm.models.initialization.variance_preserving",
    "newllm.models.recurrence.reference.Reference",
    "newllm.training.module.Schedule",
)
OWN_MODULES = ("newllm.models", "newllm.data", "newllm.training")
TOLD = (
    "layers, optimizers, schedules, callbacks, loggers and metrics of newllm, torch, torchmetrics "
    "and lightning"
)
MODEL_TOLD = f"layers of newllm, and of torch.nn those in {', '.join(BOUNDED)}"
DATA_KINDS = tuple(  # of a stranger's data
    Kind("newllm.data.tasks.task", "Task", home)
    for home in ("newllm.data.tasks", "newllm.data.sources")
)
DATA_TOLD = "texts and tasks of newllm; --trust newllm also reads a dataset of the Hub"


@dataclass(frozen=True)
class Trust:
    """The targets that may be built.

    Attributes:
        packages: of the user's own, trusted with everything that they define.
        kinds: of classes, beside the package's own list.
        told: these kinds, for messages.
        remedy: how a user adds a package, for messages.
    """

    packages: tuple[str, ...] = ()
    kinds: tuple[Kind, ...] = KINDS
    told: str = TOLD
    remedy: str = f"{TRUSTED}=[PACKAGE]"

    @classmethod
    def in_stranger(cls, packages: Sequence[str] = ()) -> Trust:
        """For a model that somebody else may have described."""
        return cls(tuple(packages), MODEL_KINDS, MODEL_TOLD, "--trust PACKAGE")

    @classmethod
    def in_strangers_data(cls, packages: Sequence[str] = ()) -> Trust:
        """For data that somebody else may have described."""
        return cls(tuple(packages), DATA_KINDS, DATA_TOLD, "--trust PACKAGE")

    def target(self, path: Any) -> Any:
        """The class or function of a dotted name.

        Raises:
            ValueError: it is not trusted, or does not exist.
        """
        if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")):
            raise ValueError("is not the dotted name of a class or function")
        module, _, name = path.rpartition(".")
        is_foreign = _is_below(module, self.packages)
        if not is_foreign and not _is_below(path, PACKAGES):
            known = ", ".join((*PACKAGES, *self.packages))
            raise ValueError(f"does not come from {known}; if you trust it: {self.remedy}")
        for kind in self.kinds:
            kind.base()  # loads the modules that targets are taken from
        # Classes are not searched, since their methods may do anything.
        holder = _imported(module) if is_foreign else _own_or_loaded(module)
        target = vars(holder).get(name)
        if not callable(target):
            raise ValueError("no such class or function")
        home = str(getattr(target, "__module__", None))
        # A package also holds what it imports: `my_package.subprocess` is not its own.
        may = _is_below(home, self.packages) if is_foreign else self._may_be_built(target, home)
        if not may:
            raise ValueError(f"is not allowed ({self.told})")
        return target

    def _may_be_built(self, target: Any, home: str) -> bool:
        if f"{home}.{getattr(target, '__qualname__', '')}" in OWN:
            return True
        # The real bases count: a class may claim to be an instance of another.
        bases = type.mro(target) if isinstance(target, type) else []
        return any(_is_below(home, [kind.home]) and kind.base() in bases for kind in self.kinds)


def _is_below(path: str, homes: Sequence[str]) -> bool:
    return any(path == home or path.startswith(f"{home}.") for home in homes)


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # a module of the user's own may raise anything
        reason = str(error).partition("\n")[0]
        raise ValueError(f"cannot be imported; {type(error).__name__}: {reason}") from error


def _own_or_loaded(module: str) -> Any:
    """A module of newllm, or one that is loaded already: an import runs code."""
    if _is_below(module, OWN_MODULES):
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(module)
    if module not in sys.modules:
        raise ValueError("no such class or function")
    return sys.modules[module]
