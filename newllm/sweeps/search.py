"""Hydra's sweeper `search`: all trials, then the best of each experiment again.

The first stage is a sweep like any other, over experiments and their trials. Then the best job of
each experiment (by validation loss, which is what a job returns) is run again as the `then` entries
say: with other seeds, on other data, on the test split. Where a trial failed, which might have been
the best, its experiment waits until the same command has done it.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from itertools import chain

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from omegaconf import open_dict

from newllm.sweeps.each import Each


class Search(Each):
    """Trials first, then the best of them.

    Args:
        then: overrides for the best, an entry for each purpose; its `only` is a pattern of the
            experiments that it is for.
        max_batch_size: as for Hydra's own sweeper.
        params: keys and values of the first stage, as in any sweep.
    """

    def __init__(
        self,
        then: Sequence[Mapping[str, str]],
        max_batch_size: int | None = None,
        params: dict[str, str] | None = None,
    ) -> None:
        super().__init__(max_batch_size, params)
        self._then = then

    def run_all(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """The jobs of both stages."""
        returns = super().run_all(arguments)
        assert self.config is not None
        assert self.launcher is not None
        if self.config.plan:
            print("then the best job of each experiment again", file=sys.stderr)
            return returns
        trials = list(chain.from_iterable(returns))
        best = self._best(trials).values()
        if jobs := [job for one in best for jobs in self._again(one) for job in jobs]:
            returns.append(self.launcher.launch(jobs, initial_job_idx=len(trials)))
        return returns

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Find the faults of the second stage before the first one starts.

        Those of the first are found by the launcher, which composes all its jobs anyway.
        """
        from newllm.config.composed import composed_faults

        assert self.config is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        some_job: dict[str, dict[str, str]] = {}
        for job in batch:
            overrides = dict(line.split("=", 1) for line in job)
            if "experiment" not in overrides:
                raise HydraException("a search is one over experiments: add experiment=NAME,...")
            some_job.setdefault(overrides["experiment"], overrides)
        faults: dict[str, None] = {}
        for overrides in some_job.values():
            for jobs in self._again(overrides):
                config = loader.load_sweep_config(self.config, jobs[0])
                with open_dict(config):
                    del config["hydra"]
                faults |= dict.fromkeys(composed_faults(config, jobs[0]))
        if faults:
            print("\n".join(f"hydra.sweeper.then: {fault}" for fault in faults), file=sys.stderr)
            sys.exit(1)

    def _again(self, overrides: Mapping[str, str]) -> Iterator[list[list[str]]]:
        """The jobs of each entry for a job of the first stage."""
        for entry in self._then:
            chosen = dict(entry)
            if fnmatch(overrides["experiment"], chosen.pop("only", "*")):
                yield self._expand({**overrides, **chosen})

    def _best(self, trials: Sequence[JobReturn]) -> dict[str, dict[str, str]]:
        """The overrides of each experiment's best job; none where one failed or all diverged."""
        best: dict[str, tuple[float, dict[str, str]]] = {}
        failed: Counter[str] = Counter()
        for trial in trials:
            assert trial.overrides is not None
            overrides = dict(line.split("=", 1) for line in trial.overrides)
            experiment, loss = overrides["experiment"], float(trial.return_value)
            failed[experiment] += math.isnan(loss)
            if loss < best.get(experiment, (math.inf, {}))[0]:
                best[experiment] = loss, overrides
        for experiment, number in (+failed).items():
            best.pop(experiment, None)
            print(
                f"{experiment}: {number} of its trials failed, so there is no best one yet; "
                "mend that and give the same command again",
                file=sys.stderr,
            )
        return {experiment: overrides for experiment, (_loss, overrides) in best.items()}

    def _expand(self, overrides: Mapping[str, str]) -> list[list[str]]:
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        parsed = parser.parse_overrides([f"{key}={value}" for key, value in overrides.items()])
        return self.split_arguments(parsed, None)[0]
