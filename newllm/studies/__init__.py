"""The studies: which runs belong to each, what follows from them, its part of the report.

A study is `conf/sweep/NAME.yaml` and the module or package `NAME` in here, which has a `STUDY`.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from newllm.reporting.page import Study


def found_studies() -> list[Study]:
    """All of them, in the order in which a page shows them."""
    names = [module.name for module in pkgutil.iter_modules(__path__, f"{__name__}.")]
    return sorted((import_module(name).STUDY for name in names), key=lambda study: study.place)
