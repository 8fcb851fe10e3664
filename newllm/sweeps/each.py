"""Hydra's sweeper `each`: a job for each combination of values and each variant of a study.

The exit code is 1 if a job failed (its value is nan) or diverged (its value is infinite).

`newllm.config.study_file` describes variants, baselines, trials and second stage. With trials, the
second stage runs the best one of each variant and model by validation loss, which is the value of a
job. A variant with a failed trial has no second stage until the same command has repeated that
trial. Baselines whose results are committed are not run.
"""

from __future__ import annotations

import difflib
import itertools
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from newllm.config.build import ConfigFault
from newllm.config.loading import loading
from newllm.config.naming import STUDY, TRIAL, VARIANT, is_of_a_model, run_name, split
from newllm.config.overrides import Composer
from newllm.config.study_file import ONLY, joined, matching, parted, value_lines
from newllm.config.trials import draw_trials

MORE_SEEDS = "set several for the second stage (hydra.sweeper.then)"
OTHER_SEED = "choose another one for the trials, or for hydra.sweeper.then"
Settings = Mapping[str, Sequence[str]]  # by key an override for each of its values


@dataclass(frozen=True)
class _Entry:
    """A variant, or a trial of it: the overrides that make it, and what is chosen beside them."""

    variant: str
    lines: tuple[str, ...]
    settings: Settings

    @property
    def contest(self) -> frozenset[str]:
        """What its trials share: the variant, and what is chosen beside it."""
        return frozenset([self.variant, *itertools.chain(*self.settings.values())])

    @property
    def jobs(self) -> list[list[str]]:
        """The overrides of a job for each combination of the values that were chosen."""
        return [[*self.lines, *lines] for lines in itertools.product(*self.settings.values())]


class Each(Sweeper):
    """All combinations of values.

    Args:
        params: keys and values, which the command line may replace.
        variants: the overrides of each; without any the sweep is one of the values alone.
        trials: arguments of `draw_trials`, whose trials each variant gets, if there are any.
        then: values for a second stage by its name, and in `only` for which variants they are.
        baselines: overrides instead of `model` and its settings, with which each variant is also
            run.
    """

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(
        self,
        params: Mapping[str, Any] | None = None,
        variants: Mapping[str, Any] | None = None,
        trials: Mapping[str, Any] | None = None,
        then: Mapping[str, Mapping[str, Any]] | None = None,
        baselines: Mapping[str, Any] | None = None,
    ) -> None:
        self._params, self._variants, self._then = params or {}, variants or {}, then or {}
        self._baselines = baselines or {}
        self._trials: list[list[str]] = []
        if trials:
            self._trials = draw_trials(**OmegaConf.to_container(trials))  # type: ignore[arg-type]

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self._parser = OverridesParser.create(config_loader=hydra_context.config_loader)

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """All jobs, as Hydra wants them returned.

        Raises:
            SystemExit: with 1 after the last, where a job did not end well.
        """
        try:
            returns = self.run_all(arguments)
            self._finish([job.overrides or [] for jobs in returns for job in jobs])
            values = [job.return_value for job in itertools.chain.from_iterable(returns)]
        except HydraException:
            raise
        except Exception as error:  # a job's process was killed, or a launcher's own fault
            if os.environ.get("HYDRA_FULL_ERROR"):
                raise
            first_line = (str(error).strip() or "no message").splitlines()[0]
            shows = "set HYDRA_FULL_ERROR=1 for a traceback"
            print(f"{type(error).__name__}: {first_line} ({shows})", file=sys.stderr)
            sys.exit(1)
        if not all(value is None or math.isfinite(value) for value in values):
            sys.exit(1)
        return returns

    def run_all(self, arguments: Sequence[str]) -> list[Sequence[JobReturn]]:
        """The jobs of both stages; without trials they are one."""
        given = dict(self._settings(arguments))
        names = self._chosen(given.pop(ONLY, None))
        first = [entry for name in names for entry in self._entries(name, given)]
        first += self._baseline_entries(names, given, {entry.contest for entry in first})
        if not self._trials:
            return [self._launch([*first, *self._again(first)], 0)]
        self._check_second_stage(first)
        trials = self._launch(first, 0)
        if self.config.plan:
            print("then the best trial of each variant is run again", file=sys.stderr)
            return [trials]
        best = [*self._again(_best(first, trials))]
        return [trials, self._launch(best, len(trials))] if best else [trials]

    def _settings(self, lines: Iterable[str]) -> Settings:
        """The values of each key; the last line of a key counts."""
        found: dict[str, list[str]] = {}
        for item in self._parser.parse_overrides(list(lines)):
            key = item.get_key_element()
            if not item.is_sweep_override():
                found[key] = [str(item.input_line)]
            elif item.is_discrete_sweep():
                found[key] = [f"{key}={value}" for value in item.sweep_string_iterator()]
            else:
                raise HydraException(f"{item.input_line}: has no values to sweep over; list them")
        return found

    def _chosen(self, only: Sequence[str] | None) -> list[str]:
        """The variants to be run, by the command line or the file of the sweep.

        Raises:
            SystemExit: a pattern matches none.
        """
        names = [*self._variants]
        lines = only or ([f"{ONLY}={self.config.only}"] if self.config.only else [])
        patterns = [line.partition("=")[2].strip("'\"") for line in lines]
        for pattern in ",".join(patterns).split(",") if patterns else ():
            if not matching(names, pattern):
                there = f"variants: {', '.join(names) or 'none (a sweep of values only)'}"
                if close := difflib.get_close_matches(pattern, names, n=1):
                    there = f"did you mean {close[0]}?"
                print(f"only={pattern}: matches no variant; {there}", file=sys.stderr)
                sys.exit(1)
        return matching(names, ",".join(patterns)) if patterns else names or [""]

    def _entries(self, name: str, given: Settings) -> Iterator[_Entry]:
        """A variant, or each of its trials."""
        made_of, beside = parted(list(joined(self._variants[name])) if name else [])
        set_by_it = {item.get_key_element() for item in self._parser.parse_overrides(made_of)}
        params = self._settings(value_lines(self._params))
        params = {key: values for key, values in params.items() if key not in set_by_it}
        settings = {**params, **self._settings(beside), **given}
        if made_of:
            study = self.config.hydra.runtime.choices["sweep"]
            made_of = [f"{STUDY}={study}", *made_of, f"{VARIANT}={name}"]
        elif name:
            made_of = [f"experiment={name}"]
        if not self._trials:
            yield _Entry(name, tuple(made_of), settings)
            return
        # Each combination has a best trial of its own, which all of its seeds share.
        keys = [key for key in settings if key != "seed"]
        for combination in itertools.product(*map(settings.__getitem__, keys)):
            own = {**settings, **{key: [line] for key, line in zip(keys, combination, strict=True)}}
            for number, trial in enumerate(self._trials, 1):
                yield _Entry(name, (*made_of, *trial, f"{TRIAL}=t{number:02}"), own)

    def _baseline_entries(
        self, names: Sequence[str], given: Settings, known: set[frozenset[str]]
    ) -> Iterator[_Entry]:
        """Each variant with each baseline, unless it is known or its result is committed."""
        if not self._baselines:
            return
        with loading():
            from newllm.runs.gathering import committed
            from newllm.runs.identity import config_hash
        composer = Composer(self.hydra_context.config_loader, self.config.hydra.job.config_name)
        study = self.config.hydra.runtime.choices["sweep"]
        done = {run.result["config_hash"] for run in committed(study) if run.is_done}
        others = {key: each for key, each in given.items() if not is_of_a_model(key)}
        for name, lines in itertools.product(names, self._baselines.values()):
            entries = [*self._entries(name, {**others, **self._settings(joined(lines))})]
            if entries[0].contest in known:
                continue
            jobs = [job for entry in entries for job in entry.jobs]
            try:
                are_done = all(config_hash(self._composed(composer, job)) in done for job in jobs)
            except ConfigFault:  # the launcher tells it, with those of all jobs
                are_done = False
            if not are_done:
                yield from entries

    def _composed(self, composer: Composer, job: Sequence[str]) -> DictConfig:
        return composer.job([*self.config.hydra.overrides.hydra, *job])

    def _again(self, entries: Iterable[_Entry]) -> Iterator[_Entry]:
        """Each as the second stage has it."""
        for entry in entries:
            for chosen in self._then.values():
                if matching([entry.variant], chosen.get(ONLY, "*")):
                    more = self._settings(value_lines(chosen))
                    if {**entry.settings, **more} != entry.settings:  # else it is done already
                        yield replace(entry, settings={**entry.settings, **more})

    def _launch(self, entries: Sequence[_Entry], number: int) -> Sequence[JobReturn]:
        jobs = [job for entry in entries for job in entry.jobs]
        returns: Sequence[JobReturn] = self.launcher.launch(jobs, initial_job_idx=number)
        return returns

    def _finish(self, jobs: Sequence[Sequence[str]]) -> None:
        """What the study does when its jobs have ended."""
        study = self.config.hydra.runtime.choices["sweep"]
        if study == "none" or self.config.plan:
            return
        with loading():
            from newllm.studies import found_studies
        for found in found_studies():
            if found.name == study and found.finish:
                found.finish(Path(self.config.hydra.sweep.dir), jobs)

    def _check_second_stage(self, first: Sequence[_Entry]) -> None:
        """Find its faults before the first one starts, whose own the launcher finds.

        Raises:
            SystemExit: there are some.
        """
        composer = Composer(self.hydra_context.config_loader, self.config.hydra.job.config_name)
        some_trial = {entry.contest: entry for entry in first}
        found = (self._later_faults(entry, composer) for entry in some_trial.values())
        if faults := dict.fromkeys(itertools.chain.from_iterable(found)):
            print("\n".join(faults), file=sys.stderr)
            sys.exit(1)

    def _later_faults(self, entry: _Entry, composer: Composer) -> Iterator[str]:
        """What would keep the best trial from being run again."""
        seeds = [line.partition("=")[2] for line in entry.settings.get("seed", ())]
        if len(seeds) > 1:
            yield f"seed={','.join(seeds)}: trials have one seed; {MORE_SEEDS}"
            return
        (trial,) = entry.jobs
        try:
            self._composed(composer, trial)
        except ConfigFault:
            return  # the launcher tells it
        for again in self._again([entry]):
            try:
                self._composed(composer, again.jobs[0])
            except ConfigFault as error:
                yield from (f"hydra.sweeper.then: {line}" for line in str(error).splitlines())
            if any(_folder(job) == _folder(trial) and {*job} != {*trial} for job in again.jobs):
                yield f"seed={','.join(seeds)}: is a seed of the second stage; {OTHER_SEED}"


def _folder(job: Sequence[str]) -> str:
    """The folder of a job, below that of all sweeps."""
    return f"{run_name(job)}/{dict(map(split, job)).get('seed')}"


def _best(entries: Sequence[_Entry], trials: Sequence[JobReturn]) -> list[_Entry]:
    """The best trial of each variant and combination; none where one failed or all diverged."""
    ran = [entry for entry in entries for _ in entry.jobs]
    best: dict[frozenset[str], tuple[float, _Entry]] = {}
    failed: Counter[tuple[str, frozenset[str]]] = Counter()
    for entry, trial in zip(ran, trials, strict=True):
        loss = float(trial.return_value)
        failed[entry.variant, entry.contest] += math.isnan(loss)
        if loss < best.get(entry.contest, (math.inf, entry))[0]:
            best[entry.contest] = loss, entry
    for (variant, contest), number in (+failed).items():
        best.pop(contest, None)
        print(
            f"{variant}: {number} of its trials failed, so there is no best trial yet; fix the "
            "cause and run the same command again",
            file=sys.stderr,
        )
    return [entry for _loss, entry in best.values()]
