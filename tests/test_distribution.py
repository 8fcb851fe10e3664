"""The wheel: it carries the configuration and the corpora, and trains from an empty folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import torch

from newllm.models.recurrence.native import launch

ROOT = Path(__file__).parents[1]


def test_the_wheel_trains_from_an_empty_folder(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    package = {str(path.relative_to(ROOT)) for path in ROOT.glob("newllm/**/*.*")}
    package = {path for path in package if "__pycache__" not in path}
    conf = {f"newllm/{path.relative_to(ROOT)}" for path in ROOT.glob("conf/**/*.yaml")}
    assert {"newllm/data/sources/quality.toml", "newllm/conf/config.yaml"} <= package | conf
    assert package | conf <= set(names)
    assert not any(name.startswith(("tests/", "outputs/", "data/")) for name in names)
    # The native code of the checkout serves a wheel with the same sources. Numba looks for it
    # beside them, and compares their digest and the time of `launch.py`.
    native = Path("newllm/models/recurrence/native")
    launch.prepare(("forward", "backward"), torch.float32)
    if (ROOT / native / "__pycache__").is_dir():
        shutil.copytree(ROOT / native / "__pycache__", site / native / "__pycache__")
    shutil.copystat(ROOT / native / "launch.py", site / native / "launch.py")
    # The extracted wheel comes before the checkout that this environment has installed.
    done = subprocess.run(
        [
            sys.executable, "-m", "newllm.train", "data=tiny30", "trainer=smoke",
            "hydra.run.dir=run", "model.hidden_dim=8", "model.num_layers=2",
        ],
        cwd=empty,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (empty / "run" / "result.json").is_file()
    assert (empty / "data" / "tiny30.train.txt").is_file()
