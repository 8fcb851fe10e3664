"""Command lines of all tools: one-line faults, exit codes."""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

RUN = "run"  # run=FOLDER goes on with the run in a folder
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended
READER_GONE = 141  # and for one that a closed pipe ended


class Arguments(argparse.ArgumentParser):
    """A parser that ends with one line and exit code 1 on a fault."""

    def error(self, message: str) -> NoReturn:
        """End the program."""
        self.exit(1, f"{message}; see --help\n")

    def add_runs(self, default: str, kinds: str) -> None:
        """Take any number of paths as `runs`."""
        help = f"{kinds} ({default})"
        self.add_argument("runs", nargs="*", type=Path, default=[Path(default)], help=help)


def ends_with_its_reader(main: Callable[[], None]) -> Callable[[], None]:
    """A tool that ends silently when its output is closed, as in `newllm.report | head`.

    On Ctrl-C, it ends its line. SIGPIPE stays ignored, since it would also end a sweep when one of
    its processes is gone.
    """

    @functools.wraps(main)
    def guarded() -> None:
        try:
            main()
            sys.stdout.flush()
        except BrokenPipeError:
            # Python flushes at its end, which would fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(READER_GONE)
        except KeyboardInterrupt:
            print(file=sys.stderr)
            sys.exit(INTERRUPTED)

    return guarded


def program(name: str) -> str:
    """The shortest command for a program that is installed beside this Python."""
    own, here = Path(sys.executable).with_name(name), Path.cwd()
    if own.is_relative_to(here):
        return str(own.relative_to(here))
    found = shutil.which(name)
    return name if found and Path(found) == own else str(own)
