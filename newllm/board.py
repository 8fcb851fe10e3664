"""TensorBoard on any runs, under names that say what they differ in.

`python -m newllm.board [RUN ...]` starts it. TensorBoard shows a run under its path and cuts long
ones, so it reads a folder of links with short names. A run that starts later is shown by a new
start.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path

from newllm.config.arguments import Arguments
from newllm.config.naming import folder_name
from newllm.reporting.bands import FOLDER
from newllm.runs.directory import read_result
from newllm.runs.gathering import Run
from newllm.statistics.labels import numbered
from newllm.statistics.variants import folder_of, variants

PINNED = ("val/loss", "train/loss")  # the charts at the top of the page
# With more runs the tabs Text, Images and Custom Scalars stay empty until some are selected.
MANY = 40


def runs_with_events(paths: Iterable[Path]) -> list[Path]:
    """The folders in or below some paths that TensorBoard can show.

    Raises:
        ValueError: a path holds none.
    """
    folders: list[Path] = []
    for path in paths:
        if not (found := sorted({file.parent for file in path.rglob("events.out.tfevents.*")})):
            raise ValueError(
                f"{path}: has no TensorBoard events; use logger=tensorboard to write them"
            )
        folders += found
    return list(dict.fromkeys(folders))


def short_names(folders: Iterable[Path]) -> dict[Path, str]:
    """A short name for each run: its variant's label, as in the report, and its own folder.

    Such as `gated lr=0.1/seed=2`. The mean over seeds of these runs is `_mean/gated lr=0.1`.
    """
    folders = list(folders)
    runs = [run for folder in folders if (run := _run(folder))]
    names: dict[Path, str] = {}
    means: dict[str, str] = {}  # by the folder of a variant
    for variant in variants(runs):
        label = folder_name(variant.label)
        for run in variant.runs:
            means.setdefault(folder_of(run), label)
            names[Path(run.place)] = f"{label}/{Path(run.place).name}"
    for folder in folders:
        if folder.parent.name == FOLDER:
            names[folder] = f"_mean/{means.get(folder.name, folder.name)}"
        else:
            names.setdefault(folder, f"{folder_name(folder.parent.name)}/{folder.name}")
    return dict(zip(names, numbered(names.values()), strict=True))


def _run(folder: Path) -> Run | None:
    """A run without its tables; None where the folder holds no result, such as a mean's."""
    try:
        return Run(str(folder), read_result(folder))
    except ValueError:
        return None


def link(names: Mapping[Path, str], top: Path) -> None:
    """Make a link below `top` to each run."""
    for folder, name in names.items():
        place = top / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(folder.resolve(), target_is_directory=True)


def address(port: int) -> str:
    """The URL of TensorBoard with the losses pinned to the top."""
    cards = [{"plugin": "scalars", "tag": tag} for tag in PINNED]
    pins = urllib.parse.quote(json.dumps(cards, separators=(",", ":")), safe="")
    return f"http://localhost:{port}/?pinnedCards={pins}#timeseries"


def serve(paths: Iterable[Path], top: Path, port: int) -> int:
    """Run TensorBoard on links in `top` until it ends; returns its exit code."""
    names = short_names(runs_with_events(paths))
    link(names, top)
    print(f"{len(names)} runs, losses first: {address(port)}", flush=True)
    if len(names) > MANY:
        print(
            f"more than {MANY} runs: the tabs Text, Images and Custom Scalars stay empty until "
            "you select runs; TOGGLE ALL RUNS below their list selects all",
            flush=True,
        )
    command = ("tensorboard.main", "--logdir", str(top), "--port", str(port))
    process = subprocess.Popen([sys.executable, "-m", *command])
    try:
        return process.wait()
    except KeyboardInterrupt:
        return process.wait()
    finally:
        process.terminate()


def main() -> None:
    """The command line."""
    parser = Arguments(
        prog="python -m newllm.board",
        description="Show runs in TensorBoard under names that state their differences.",
    )
    parser.add_runs("outputs", "run directories, or folders that contain some")
    parser.add_argument("--port", type=int, default=6006, help="port of the server (6006)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # not without tidying up
    with tempfile.TemporaryDirectory(prefix="newllm-board-") as top:
        try:
            code = serve(options.runs, Path(top), options.port)
        except ValueError as error:
            sys.exit(str(error))
    sys.exit(code)


if __name__ == "__main__":
    main()
