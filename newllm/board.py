"""TensorBoard on any runs, under names that say what they differ in.

`python -m newllm.board [RUN ...]` starts it. TensorBoard calls a run by its path, and cuts it; so
it is given a folder of links with short names, which is kept up to date while it runs.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from newllm.arguments import Arguments
from newllm.config.naming import LONGEST, choices
from newllm.runs import read_result

PINNED = ("val/loss", "train/loss")  # charts that stand above all others
# Of more runs the tabs Text, Images and Custom Scalars show none before some are ticked.
MANY = 40
EVERY = 10.0  # seconds, to look for new runs


def runs_with_events(paths: Iterable[Path]) -> list[Path]:
    """The folders in or below some paths that TensorBoard can show.

    Raises:
        ValueError: a path holds none.
    """
    folders: list[Path] = []
    for path in paths:
        if not (found := sorted({file.parent for file in path.rglob("events.out.tfevents.*")})):
            raise ValueError(f"{path}: holds no TensorBoard events; logger=tensorboard writes them")
        folders += found
    return list(dict.fromkeys(folders))


def short_names(folders: Iterable[Path]) -> dict[Path, str]:
    """Each run's choices that not all share, then its own folder, such as `lr=0.1/seed=2`.

    What has the most values comes first. Means over seeds are called like their runs.
    """
    found = {folder: _result(folder) for folder in folders}
    chosen = {
        folder: choices(result.get("overrides") or ()) for folder, result in found.items() if result
    }
    values = {
        key: {own.get(key) for own in chosen.values()} for own in chosen.values() for key in own
    }
    differing = sorted(
        (key for key in values if len(values[key]) > 1), key=lambda key: -len(values[key])
    )
    variants: dict[str, str] = {}  # by the folder that holds a variant's seeds
    names: dict[Path, str] = {}
    for folder, own in chosen.items():
        words = [_word(key, own[key], differing) for key in differing if key in own]
        resolved = str(found[folder].get("name") or folder.parent.name)
        variant = (",".join(words) or resolved).replace("/", ".")[:LONGEST]
        variants[folder.parent.name] = variant
        names[folder] = _unused(f"{variant}/{folder.name}", names)
    for folder in found.keys() - chosen.keys():
        known = variants.get(folder.name)
        name = f"_mean/{known}" if known else f"{folder.parent.name}/{folder.name}"
        names[folder] = _unused(name, names)
    return names


def _unused(name: str, names: Mapping[Path, str]) -> str:
    taken = set(names.values())
    while name in taken:
        name += "+"
    return name


def _result(folder: Path) -> dict[str, Any]:
    """What the result of a run says; nothing for what is no run, such as a mean over seeds."""
    try:
        return read_result(folder)
    except ValueError:
        return {}


def _word(key: str, value: str, keys: Iterable[str]) -> str:
    """A choice in few letters: the last part of its key is enough where no other ends like it."""
    last = key.rpartition(".")[2]
    alike = [other for other in keys if other.rpartition(".")[2] == last]
    if key in ("name", "experiment"):
        return value
    return f"{last if len(alike) == 1 else key}={value}"


def link(names: Mapping[Path, str], top: Path) -> None:
    """Make a link to each run below `top`."""
    for folder, name in names.items():
        place = top / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(folder.resolve(), target_is_directory=True)


def address(port: int) -> str:
    """Where TensorBoard shows the losses first."""
    cards = [{"plugin": "scalars", "tag": tag} for tag in PINNED]
    pins = urllib.parse.quote(json.dumps(cards, separators=(",", ":")), safe="")
    return f"http://localhost:{port}/?pinnedCards={pins}#timeseries"


def serve(paths: Iterable[Path], top: Path, port: int) -> int:
    """Run TensorBoard on links in `top` until it ends; returns its exit code."""
    paths, names = list(paths), short_names(runs_with_events(paths))
    link(names, top)
    print(f"{len(names)} runs, losses first: {address(port)}", flush=True)
    if len(names) > MANY:
        print(
            f"more than {MANY} runs: in the tabs Text, Images and Custom Scalars tick some, "
            "or all by TOGGLE ALL RUNS below their list",
            flush=True,
        )
    command = ("tensorboard.main", "--logdir", str(top), "--port", str(port))
    process = subprocess.Popen([sys.executable, "-m", *command])
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(EVERY)
            new = {
                folder: name
                for folder, name in short_names(runs_with_events(paths)).items()
                if folder not in names and name not in names.values()
            }
            link(new, top)
            names |= new
    except KeyboardInterrupt:
        return process.wait()
    finally:
        process.terminate()


def main() -> None:
    """The command line."""
    parser = Arguments(
        prog="python -m newllm.board",
        description="Look at runs in TensorBoard, under names that say what they differ in.",
    )
    default = Path("outputs")
    help = f"run directories or folders of them ({default})"
    parser.add_argument("runs", nargs="*", type=Path, default=[default], help=help)
    parser.add_argument("--port", type=int, default=6006, help="of the page (6006)")
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
