"""Hydra's sweeper `search`: all trials, then the best of each experiment again.

The first stage is a sweep like any other, over experiments and the values of one key, such as
`trial`. Then the best value of it for each experiment (by validation loss, which is what a job
returns) is run again as the `then` entries say: with other seeds, on other data, on the test split.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from itertools import chain
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from omegaconf import MISSING

ConfigStore.instance().store(
    group="hydra/sweeper",
    name="search",
    node={
        "_target_": "hydra_plugins.newllm_search.Search",
        "max_batch_size": None,
        "params": {},
        "select": MISSING,
        "then": [],
    },
    provider="newllm",
)


class Search(BasicSweeper):
    """Trials first, then the best of them.

    Args:
        select: the key whose best value is looked for.
        then: overrides for the best, an entry for each purpose; its `only` is a pattern of the
            experiments that it is for.
        max_batch_size: as for Hydra's own sweeper.
        params: keys and values of the first stage, as in any sweep.
    """

    def __init__(
        self,
        select: str,
        then: Sequence[Mapping[str, str]],
        max_batch_size: int | None = None,
        params: dict[str, str] | None = None,
    ) -> None:
        super().__init__(max_batch_size, params)
        self._select, self._then = select, then

    def sweep(self, arguments: list[str]) -> Any:
        """All jobs of both stages, as Hydra wants them returned."""
        returns = super().sweep(arguments)
        assert self.config is not None
        assert self.launcher is not None
        if self.config.plan:
            print(f"then the best {self._select} of each experiment again", file=sys.stderr)
            return returns
        trials = list(chain.from_iterable(returns))
        if jobs := self._second_stage(trials):
            returns.append(self.launcher.launch(jobs, initial_job_idx=len(trials)))
        return returns

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Nothing: the launcher composes all jobs of a stage before it starts the first."""

    def _second_stage(self, trials: Sequence[JobReturn]) -> list[list[str]]:
        jobs = []
        for experiment, best in self._best(trials).items():
            for entry in self._then:
                chosen = dict(entry)
                if fnmatch(experiment, chosen.pop("only", "*")):
                    jobs += self._expand({**best, **chosen})
        return jobs

    def _best(self, trials: Sequence[JobReturn]) -> dict[str, dict[str, str]]:
        """The overrides of the best job of each experiment; none where all have failed."""
        best: dict[str, tuple[float, dict[str, str]]] = {}
        for trial in trials:
            assert trial.overrides is not None
            overrides = dict(line.split("=", 1) for line in trial.overrides)
            loss = float(trial.return_value)
            if loss < best.get(overrides["experiment"], (math.inf, {}))[0]:
                best[overrides["experiment"]] = loss, overrides
        return {experiment: overrides for experiment, (_loss, overrides) in best.items()}

    def _expand(self, overrides: Mapping[str, str]) -> list[list[str]]:
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        parsed = parser.parse_overrides([f"{key}={value}" for key, value in overrides.items()])
        return self.split_arguments(parsed, None)[0]
