"""Hydra's sweeper `each`: a job for each combination of values; its exit code says how they ended.

Hydra's own sweeper drops what its jobs return. Here the exit code is 1 where one of them failed
(its value is no number) or diverged (its value is infinite), whatever launcher ran it and wherever.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from itertools import chain

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException

Plugins.instance()  # runs the modules of Hydra's own plugins again, so it must come first

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: E402


class Each(BasicSweeper):
    """Hydra's basic sweeper, with an exit code."""

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """All jobs, as Hydra wants them returned.

        Raises:
            SystemExit: with 1 after the last, where a job did not end well.
        """
        try:
            returns = self.run_all(arguments)
        except HydraException:
            raise
        except Exception as error:  # a job's process was killed, or a launcher's own fault
            if os.environ.get("HYDRA_FULL_ERROR"):
                raise
            first_line = (str(error).strip() or "no message").splitlines()[0]
            shows = "HYDRA_FULL_ERROR=1 shows where"
            print(f"{type(error).__name__}: {first_line} ({shows})", file=sys.stderr)
            sys.exit(1)
        values = [job.return_value for job in chain.from_iterable(returns)]
        if not all(value is None or math.isfinite(value) for value in values):
            sys.exit(1)
        return returns

    def run_all(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """The jobs in batches, one after the other."""
        returns: list[Sequence[JobReturn]] = super().sweep(arguments)
        return returns
