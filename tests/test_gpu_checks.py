"""The checks of `make check-gpu`, tried on a CPU: that they run, and what does not take a GPU."""

from pathlib import Path

import pytest
from conftest import Compose
from gpu import checks
from gpu.checks import (  # noqa: F401  (collected here)
    test_callbacks_and_files,
    test_evaluation_and_generation,
    test_recurrences_agree,
)


@pytest.fixture
def device() -> str:
    """Where the checks run."""
    return "cpu"


@pytest.mark.parametrize(("group", "option"), [("model", "gated"), ("recurrence", "parallel")])
def test_an_option_trains(
    compose_config: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    group: str,
    option: str,
) -> None:
    checks.test_every_option_trains(compose_config, tmp_path, monkeypatch, device, group, option)


def test_one_of_each_other_check(
    compose_config: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    folders = [tmp_path / name for name in ("precision", "resumed", "waiting", "seeds")]
    for folder in folders:
        folder.mkdir()
    checks.test_models_train_in_every_precision(
        compose_config, folders[0], device, "lstm", "bf16-mixed"
    )
    checks.test_resumed_equals_uninterrupted(compose_config, folders[1], device, "lstm")
    checks.test_seeds_at_once(compose_config, folders[3], capsys, device, "mingru")
    checks.test_a_step_waits_for_nothing(folders[2], device, "context, recomputed", False)
