"""`python -m MODULE` forked from a process that has imported everything: no start takes seconds."""

import importlib
import itertools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing import util
from pathlib import Path
from typing import Any

NAMES = ("train", "evaluate", "generate", "export", "report", "benchmark")
ENTRIES = [f"newllm.{name}" for name in NAMES]
LATE = ["newllm.training.evaluation", "newllm.reporting.report"]  # what entries import in `main`

# One server for each process of the test suite.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([*ENTRIES, *LATE])
START = util.spawnv_passfds


class Program:
    """`python -m MODULE ARGUMENTS` in a folder and a session of its own, as `Popen` starts it.

    All programs share one hash seed and skip their imports. A test about either of these starts a
    new Python instead.
    """

    def __init__(self, folder: Path, module: str, *arguments: str) -> None:
        self._arguments = [sys.executable, "-m", module, *arguments]
        self._output = tempfile.TemporaryDirectory()
        self._process = CONTEXT.Process(
            target=_run, args=(folder, self._output.name, dict(os.environ), module, arguments)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._process.is_alive()

    def wait(self, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        """Waits for its end and returns its exit code and what it wrote.

        Raises:
            TimeoutExpired: it did not end within `timeout` seconds. It is killed.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            os.killpg(self.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(self._arguments, timeout or 0)
        with self._output as folder:
            stdout, stderr = (Path(folder, name).read_text() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(self._arguments, self._process.exitcode, stdout, stderr)


def _run(
    folder: Path, output: str, environment: dict[str, str], module: str, arguments: Sequence[str]
) -> None:
    """Makes the forked process look like one of the command line, and runs the module in it."""
    os.setsid()
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(output, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [module, *arguments]
    tests = str(Path(__file__).parent)
    sys.path[:] = [str(folder), *(path for path in sys.path if path != tests)]
    importlib.invalidate_caches()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)
    util.spawnv_passfds = _start
    sys.modules.pop(module, None)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _start(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
    """Gives a program's own fork server, such as a sweep's, the imports of the program.

    OpenMP would not survive this fork with more than one thread.
    """
    if "forkserver" not in args[-1]:
        return START(path, args, passfds)
    if pid := os.fork():
        return pid
    try:
        bounds = [2, *sorted(map(int, passfds)), os.sysconf("SC_OPEN_MAX")]
        for low, high in itertools.pairwise(bounds):
            os.closerange(low + 1, high)
        exec(args[-1], {})
    finally:
        os._exit(0)
