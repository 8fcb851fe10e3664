"""What several tests share: composed configurations, and commands run as a user would."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from preloaded import Program

from newllm.config.build import ConfigFault
from newllm.config.command_line import composed
from newllm.config.composing import conf_directory
from newllm.reporting.translation import vocabulary

# Read when torch is imported, so not above. Each core has a process, each process one thread, and
# threads that wait sleep: more of them than cores slow each other down tenfold.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
# Read when Triton is imported. `make check-gpu` sets it to 0.
os.environ.setdefault("TRITON_INTERPRET", "1")

# A model so small that every command takes seconds.
TINY = ("embedding_dim=8", "context_dim=8", "hidden_dim=8", "num_layers=2")
TINY_CONTEXT = tuple(f"model.{size}" for size in TINY)

# Begun first, so that in the end no process is left alone with one of them.
LONGEST = (
    "compiled",
    "sweep",
    "ablations",
    "benchmark",
    "distribution",
    "search",
    "readme",
    "report",
)

COMPOSED: dict[tuple[str, ...], DictConfig] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cuda", help="of `make check-gpu`: cuda, or cpu to try it")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """Where the checks of `tests/gpu` run."""
    return str(request.config.getoption("--device"))


Compose = Callable[..., DictConfig]
SetThreads = Callable[[int], None]
Command = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests before the others."""
    names = [f"test_{name}.py" for name in LONGEST]
    items.sort(key=lambda item: item.path.name not in names)


@pytest.fixture
def compose_config() -> Iterator[Compose]:
    """Compose the configuration with some overrides, each once in a process."""

    def composed(*overrides: str) -> DictConfig:
        if overrides not in COMPOSED:
            COMPOSED[overrides] = compose("config", overrides=list(overrides))
        return copy.deepcopy(COMPOSED[overrides])

    with initialize_config_dir(str(conf_directory()), version_base="1.3"):
        yield composed


def faults_of(arguments: Sequence[str]) -> list[str]:
    """The faults of a command line, in the order in which they are shown."""
    try:
        with composed(arguments):
            return []
    except ConfigFault as error:
        return str(error).splitlines()


@pytest.fixture
def threads() -> Iterator[SetThreads]:
    """Set how many threads torch uses, for one test."""
    import torch  # which the process that only hands out tests does without

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def every_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page fails where a word has no translation, instead of saying it in English."""
    monkeypatch.setattr("newllm.reporting.page.translator", strict_translator)


def strict_translator(lang: str) -> Callable[[str], str]:
    """The words of a language; one that has no translation raises a KeyError."""
    return str if lang == "en" else vocabulary(lang).__getitem__


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run `python -m MODULE ARGUMENTS` in an empty folder of its own.

    `fresh` starts a new Python, which costs seconds: for what a forked one cannot show, and once
    for each module.
    """

    def run(
        module: str, *arguments: str, folder: Path = tmp_path, fresh: bool = False
    ) -> subprocess.CompletedProcess[str]:
        if not fresh:
            return Program(folder, module, *arguments).wait()
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )

    return run
