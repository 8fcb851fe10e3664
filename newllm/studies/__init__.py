"""The studies: their runs, the analysis of these, and a part of the report for each.

A study is `conf/sweep/NAME.yaml` and the module or package `NAME` in here, which has a `STUDY` of
that name. The Japanese for its words is in `newllm/reporting/labels_ja.toml`.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from newllm.config.composing import conf_directory
from newllm.reporting.page import Study


def found_studies() -> list[Study]:
    """All studies, in the order in which a page shows them.

    Raises:
        ValueError: with a line for each module that is no study.
    """
    studies, faults = [], []
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        name = module.name.rpartition(".")[2]
        study = getattr(import_module(module.name), "STUDY", None)
        if not isinstance(study, Study):
            faults.append(f"{module.name}: has no STUDY; define one or move the module elsewhere")
        elif study.name != name:
            faults.append(f"{module.name}: STUDY.name is {study.name}; it must be {name}")
        elif not (file := conf_directory() / "sweep" / f"{name}.yaml").is_file():
            faults.append(f"{module.name}: {file} does not exist; it holds the variants")
        else:
            studies.append(study)
    if faults:
        raise ValueError("\n".join(faults))
    return sorted(studies, key=lambda study: study.place)
