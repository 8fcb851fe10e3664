"""Sweeps as a user starts them: done once, interrupted, killed, and with jobs that fail."""

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_CONTEXT, Command, Compose
from omegaconf import OmegaConf
from preloaded import Program
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from newllm.config.composing import conf_directory
from newllm.config.naming import run_folder, run_name
from newllm.reporting.page import Study
from newllm.reporting.tensorboard import FOLDER, write_bands
from newllm.runs.directory import RunConflict, has_ended, move_aside
from newllm.runs.gathering import gather
from newllm.runs.writing import write_text
from newllm.statistics.comparisons import contests
from newllm.sweeps.jobs import Job, Outcome
from newllm.sweeps.sweep import _tell

TINY = ("data=tiny30", "countermeasure=none", "logger=none", "callbacks=none", *TINY_CONTEXT)
SWEEP = ("newllm.train", "-m", *TINY)


def results(top: Path) -> dict[str, dict[str, Any]]:
    """The results below a folder, by the names of their folders."""
    return {
        str(file.parent.relative_to(top)): json.loads(file.read_text())
        for file in sorted(top.rglob("result.json"))
    }


def test_what_is_done_is_not_done_again(command: Command, tmp_path: Path) -> None:
    arguments = (*SWEEP, "model.hidden_dim=8,9", "seed=1,2", "trainer.max_epochs=2")
    first = command(*arguments)
    assert first.returncode == 0, first.stderr
    runs = tmp_path / "outputs" / "runs"
    found = results(runs)
    assert len(found) == 4
    assert {result["status"] for result in found.values()} == {"done"}
    assert sorted(name.rpartition("/")[2] for name in found) == ["seed=1"] * 2 + ["seed=2"] * 2
    assert "4 of 4 done" in first.stderr
    assert first.stdout.count(" done ") == 4
    # What came out over seeds, by what differs, and where to look.
    assert "hidden_dim=8 seed=1" in first.stdout
    assert "lowest mean" in first.stdout
    (page,) = (line for line in first.stdout.splitlines() if "newllm.report" in line)
    *_, place, option, baseline = shlex.split(page)
    assert (place, option) == ("outputs/runs", "--baseline")
    assert contests(gather([runs]), baseline)[0].baseline.label == "hidden_dim=8"
    times = {file: file.stat().st_mtime_ns for file in runs.glob("*/*/*")}
    second = command(*arguments)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("done before") == 4
    assert {file: file.stat().st_mtime_ns for file in runs.glob("*/*/*")} == times


def test_jobs_that_diverge_fail_or_are_refused_do_not_end_the_others(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "bad.txt").write_text("one two\n" * 40)
    done = command(
        "newllm.train", "-m", "data=text", "data.path=bad.txt", "countermeasure=none",
        "logger=none", "callbacks=none", *TINY_CONTEXT, "trainer.max_epochs=2",
        "recipe.gradient_clip=[]", "optimizer.lr=1e-4,1e30", "data.max_length=1,8",
        "normalization=none",
    )  # fmt: skip
    assert done.returncode == 1
    found = results(tmp_path / "outputs" / "runs")
    statuses = sorted(result["status"] for result in found.values())
    assert statuses == ["diverged", "done", "failed", "failed"], found
    for result in found.values():
        if result["status"] != "done":
            assert result["error"]
            assert result["error"].partition(" (")[0][:60] in done.stdout
    assert "max_length=1" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_job_that_fails_again_says_why_it_does_now(command: Command, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("one two\n" * 40)
    arguments = ("-m", "data=text", "data.path=bad.txt", "data.max_length=1", *TINY_CONTEXT)
    reasons = []
    for _ in range(2):
        assert command("newllm.train", *arguments).returncode == 1
        (result,) = results(tmp_path / "outputs" / "runs").values()
        reasons.append(result["error"])
        (tmp_path / "bad.txt").unlink(missing_ok=True)
    assert "max_length=1" in reasons[0]
    assert "bad.txt" in reasons[1]
    assert "max_length" not in reasons[1]


def wait_for(condition: Any, seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


LONG = ("seed=1,2", "trainer.max_epochs=100", "jobs=2")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    loaded = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    found: dict[str, torch.Tensor] = loaded["model"]
    return found


def test_interrupted_or_killed_the_same_command_goes_on_to_the_same_weights(
    command: Command, tmp_path: Path
) -> None:
    folders = {}
    for how in ("whole", "interrupted", "killed"):
        place = tmp_path / how
        place.mkdir()
        folders[how] = place / "outputs" / "runs" / _name() / "seed=1"
    # Without what forked processes share, which must not decide the weights.
    assert command(*SWEEP, *LONG, folder=tmp_path / "whole", fresh=True).returncode == 0
    for how, sent in (("interrupted", signal.SIGINT), ("killed", signal.SIGKILL)):
        sweep = Program(tmp_path / how, *SWEEP, *LONG)
        wait_for(lambda folder=folders[how]: _is_midway(folder))
        if sent == signal.SIGINT:
            os.kill(sweep.pid, sent)
            done = sweep.wait(60)
            assert done.returncode == 130, done.stderr
            assert "again to continue" in done.stderr
            assert (folders[how] / "checkpoints" / "last.ckpt").is_file()
        else:
            os.killpg(sweep.pid, sent)
            sweep.wait(60)
        wait_for(lambda folder=folders[how]: _is_free(folder))
        assert results(tmp_path / how / "outputs" / "runs")[f"{_name()}/seed=1"]["status"] == (
            "running"
        )
        assert command(*SWEEP, *LONG, folder=tmp_path / how).returncode == 0
        result = json.loads((folders[how] / "result.json").read_text())
        assert (result["status"], result["epochs"]) == ("done", 100)
        expected, found = weights(folders["whole"]), weights(folders[how])
        assert all(torch.equal(found[name], expected[name]) for name in expected), how
        assert not (folders[how] / "checkpoints" / "last.ckpt").exists()
        for table in ("metrics.csv", "steps.csv"):
            whole, again = ((folders[x] / table).read_text() for x in ("whole", how))
            assert again == whole, (how, table)


@pytest.mark.long
@pytest.mark.parametrize("point", ["starting", "midway", "one done"])
@pytest.mark.parametrize("target", ["interrupt", "kill the sweep", "kill a job"])
def test_a_sweep_survives_at_any_point(
    command: Command, tmp_path: Path, target: str, point: str
) -> None:
    """Stopped anyhow at any point, the same command does the rest, and nothing twice."""
    jobs = ("seed=1,2,3", "trainer.max_epochs=300", "jobs=2")
    runs = tmp_path / "outputs" / "runs"
    name = run_name([*TINY, *jobs])
    sweep = Program(tmp_path, *SWEEP, *jobs)
    log = runs / name / "seed=1" / "log.txt"
    wait_for(lambda: log.is_file() and (point == "starting" or "steps planned" in log.read_text()))
    if point == "midway":
        wait_for(lambda: _is_midway(log.parent))
    if point == "one done":
        wait_for(lambda: any(r["status"] == "done" for r in results(runs).values()))
    if target == "kill a job":
        log = log if point != "one done" else _unfinished(runs) / "log.txt"
        os.kill(_process_of(log), signal.SIGKILL)
    elif target == "interrupt":
        os.kill(sweep.pid, signal.SIGINT)
    else:
        os.killpg(sweep.pid, signal.SIGKILL)
    code = {"interrupt": 130, "kill a job": 1}.get(target, -signal.SIGKILL)
    assert sweep.wait(240).returncode == code
    done = {place for place, result in results(runs).items() if result["status"] == "done"}
    assert bool(done) == (point == "one done" or target == "kill a job")
    before = {file: file.stat().st_mtime_ns for place in done for file in (runs / place).iterdir()}
    wait_for(lambda: all(_is_free(lock.parent) for lock in runs.rglob(".lock")))
    again = command(*SWEEP, *jobs)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("done before") == len(done)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    whole = tmp_path / "whole"
    whole.mkdir()
    assert command(*SWEEP, *jobs, folder=whole).returncode == 0
    for place in results(runs):
        found, expected = weights(runs / place), weights(whole / "outputs" / "runs" / place)
        assert all(torch.equal(found[key], expected[key]) for key in expected), place


def _unfinished(runs: Path) -> Path:
    return next(runs / place for place, r in results(runs).items() if r["status"] == "running")


def _name() -> str:
    return run_name([*TINY, *LONG])


def _is_midway(folder: Path) -> bool:
    metrics = folder / "metrics.csv"
    return metrics.is_file() and len(metrics.read_text().splitlines()) > 10


def _is_free(folder: Path) -> bool:
    with (folder / ".lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_job_that_is_killed_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    sweep = Program(tmp_path, *SWEEP, *LONG)
    log = tmp_path / "outputs" / "runs" / _name() / "seed=1" / "log.txt"
    wait_for(lambda: log.is_file() and "steps planned" in log.read_text())
    os.kill(_process_of(log), signal.SIGKILL)
    done = sweep.wait(240)
    assert done.returncode == 1, done.stderr
    found = results(tmp_path / "outputs" / "runs")
    assert found[f"{_name()}/seed=1"]["status"] == "failed"
    assert "SIGKILL" in found[f"{_name()}/seed=1"]["error"]
    assert "killed by SIGKILL" in done.stdout
    assert found[f"{_name()}/seed=2"]["status"] == "done"


def _process_of(folder: Path) -> int:
    """The process that writes to a log, or to that of a folder."""
    log = folder / "log.txt" if folder.is_dir() else folder
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                opened = {fd.resolve() for fd in (entry / "fd").iterdir()}
                if log.resolve() in opened:
                    return int(entry.name)
            except OSError:
                continue
    raise AssertionError(f"nobody writes to {log}")


GROUP = ("seed=1,2,3", "trainer.max_epochs=30", "recurrence=reference", "jobs=1")


def test_seeds_at_once_are_interrupted_killed_and_resumed(command: Command, tmp_path: Path) -> None:
    """As single runs are, to the same weights, each with its own log and status."""
    whole, together = (tmp_path / name for name in ("whole", "together"))
    for place in (whole, together):
        place.mkdir()
    assert command(*SWEEP, *GROUP, folder=whole).returncode == 0
    runs = together / "outputs" / "runs"
    name = run_name([*TINY, *GROUP])
    arguments = (*SWEEP, *GROUP, "seeds_at_once=3")
    sweep = Program(together, *arguments)
    wait_for(lambda: _is_midway(runs / name / "seed=2"))
    os.kill(sweep.pid, signal.SIGINT)
    done = sweep.wait(60)
    assert done.returncode == 130, done.stderr
    assert all((runs / name / f"seed={n}/checkpoints/last.ckpt").is_file() for n in (1, 2, 3))
    sweep = Program(together, *arguments)
    log = runs / name / "seed=3" / "log.txt"
    wait_for(lambda: log.read_text().count("steps planned") == 2)
    os.kill(_process_of(runs / name / "seed=1"), signal.SIGKILL)
    done = sweep.wait(60)
    assert done.returncode == 1
    found = results(runs)
    assert [result["status"] for result in found.values()] == ["failed"] * 3
    assert all("SIGKILL" in result["error"] for result in found.values())
    assert command(*arguments, folder=together).returncode == 0
    for place, result in results(runs).items():
        assert (result["status"], result["epochs"]) == ("done", 30)
        found_weights, expected = weights(runs / place), weights(whole / "outputs/runs" / place)
        for key in expected:
            torch.testing.assert_close(found_weights[key], expected[key], rtol=1e-2, atol=1e-4)
        lines = (runs / place / "log.txt").read_text().splitlines()
        assert sum("steps planned" in line for line in lines) == 3
        (end,) = (line for line in lines if "the run is in" in line)
        assert end.endswith(place)


def test_a_changed_run_is_refused_with_the_difference(command: Command, tmp_path: Path) -> None:
    arguments = (*SWEEP, "seed=1", "trainer.max_epochs=1")
    assert command(*arguments).returncode == 0
    runs = tmp_path / "outputs" / "runs"
    (folder,) = (file.parent for file in runs.rglob("result.json"))
    config = (folder / "config.yaml").read_text()
    write_text(folder / "config.yaml", config.replace("lr: 0.0001", "lr: 0.5"))
    result = json.loads((folder / "result.json").read_text())
    write_text(folder / "result.json", json.dumps(result | {"config_hash": "other"}))
    done = command(*arguments)
    assert done.returncode == 1
    assert "optimizer.lr was 0.5, is 0.0001" in done.stderr
    assert "name=NEW" in done.stderr
    assert "overwrite=true" in done.stderr
    assert json.loads((folder / "result.json").read_text())["config_hash"] == "other"
    done = command(*arguments, "overwrite=true")
    assert done.returncode == 0, done.stderr
    (aside,) = (runs / "_replaced").rglob("result.json")
    assert json.loads(aside.read_text())["config_hash"] == "other"
    assert json.loads((folder / "result.json").read_text())["status"] == "done"


def test_an_interval_is_no_list_of_values(command: Command, tmp_path: Path) -> None:
    done = command("newllm.train", "-m", "data=tiny30", "optimizer.lr=interval(0,1)")
    assert done.returncode == 1
    assert done.stderr == "optimizer.lr=interval(0,1): has no values to sweep over; list them\n"


def test_faults_of_any_job_are_told_before_the_first_starts(
    command: Command, tmp_path: Path
) -> None:
    done = command("newllm.train", "-m", "experiment=lstm,phase1_baseline", "gating=lstm", "seed=1")
    assert done.returncode == 1
    assert done.stderr == "gating=lstm: is not used with the other choices; remove it\n"
    assert not (tmp_path / "outputs" / "runs").exists() or not results(tmp_path / "outputs")


def done_job(top: Path, model: str, seed: int) -> Job:
    """A job with the result of a run that is done."""
    overrides = (f"model={model}", f"seed={seed}")
    config = OmegaConf.create({"seed": seed, "logger": {"tensorboard": {}}})
    job = Job(config, overrides, top / run_folder(overrides, seed))
    job.folder.mkdir(parents=True)
    loss = 1.5 + 0.1 * seed
    result = {
        "status": "done", "name": model, "overrides": list(overrides), "variant_hash": model,
        "parameters": 1, "seed": seed, "corpus": "tiny30", "references": {}, "threads": 1,
        "best_val_loss": loss, "best_val_loss_batch_mean": loss, "best_epoch": 1,
        "config_hash": f"{model}{seed}", "data_sha256": "x",
    }  # fmt: skip
    (job.folder / "result.json").write_text(json.dumps(result))
    (job.folder / "metrics.csv").write_text(f"epoch,step,val/loss\n1,2,{loss}\n")
    return job


def test_a_sweep_tells_of_its_own_variants_with_all_their_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And leaves what belongs to others, which may be at work there."""
    for seed in (1, 2):
        for model in ("gru", "lstm"):
            done_job(tmp_path, model, seed)
    assert write_bands(gather([tmp_path]), tmp_path)
    bands = tmp_path / FOLDER
    others = {file: file.read_bytes() for file in bands.glob("model=gru/*")}
    (tmp_path / "model=gru" / "seed=1" / "result.json").write_text("{")
    job = done_job(tmp_path, "lstm", 3)
    # In the same folder, but another variant, as the trials of a search are.
    other = json.loads((done_job(tmp_path, "lstm", 4).folder / "result.json").read_text())
    other["variant_hash"] = "without test"
    (job.folder.with_name("seed=4") / "result.json").write_text(json.dumps(other))
    _tell([job], {job: Outcome("done", 1.8, 1.0, "")}, tmp_path, "none")
    out = capsys.readouterr().out
    assert "gru" not in out
    assert "1.700 [1.452, 1.948] (n=3)" in out
    assert "bands over seeds for TensorBoard (1, tab" in out
    assert {file: file.read_bytes() for file in bands.glob("model=gru/*")} == others
    means = EventAccumulator(str(bands / "model=lstm")).Reload().Scalars("val/loss/mean")
    assert [event.value for event in means] == pytest.approx([1.7])


def test_the_page_of_a_study_has_no_baseline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which would leave out the part of the study, if these runs have one."""
    jobs = [done_job(tmp_path, model, 1) for model in ("gru", "lstm")]
    outcomes = {job: Outcome("done", 1.8, 1.0, "") for job in jobs}
    baseline = " --baseline model=gru"
    for study, own, option in (("none", list, baseline), ("mine", list, ""),
                               ("mine", lambda _: [], baseline)):  # fmt: skip
        mine = Study("mine", title="", place=0, own=own, part=lambda *_: None)
        monkeypatch.setattr("newllm.sweeps.sweep.found_studies", lambda found=mine: [found])
        _tell(jobs, outcomes, tmp_path, study)
        assert capsys.readouterr().out.endswith(f"-m newllm.report {tmp_path}{option}\n")


def test_standing(compose_config: Compose, tmp_path: Path) -> None:
    config = compose_config(*TINY)
    assert not has_ended(tmp_path / "nothing", config)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "result.json").write_text("{")
    with pytest.raises(RunConflict, match=r"result\.json is broken"):
        has_ended(tmp_path / "broken", config)
    aside = move_aside(tmp_path / "broken", tmp_path)
    assert (aside / "result.json").read_text() == "{"
    assert not (tmp_path / "broken").exists()


def test_a_process_of_a_sweep_can_resolve_every_configuration() -> None:
    texts = [path.read_text() for path in conf_directory().rglob("*.yaml")]
    names = {name for text in texts for name in re.findall(r"\$\{([a-z_.]+):", text)}
    assert {"larger", "python_version"} <= names
    program = (
        "import newllm.training.run; from omegaconf import OmegaConf; "
        f"print([name for name in {sorted(names)} if not OmegaConf.has_resolver(name)])"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
