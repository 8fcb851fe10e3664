"""The command lines of all tools but `newllm.train`, which is Hydra's."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Arguments(argparse.ArgumentParser):
    """A parser that tells a fault in one line, exit code 1, as all of newllm does."""

    def error(self, message: str) -> NoReturn:
        """End the program."""
        self.exit(1, f"{message}; see --help\n")
