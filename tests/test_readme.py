"""The commands of the README and of the pages beside it, run at a tiny size."""

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, TINY_CONTEXT, Command
from torch import nn

from newllm.models.contract import check_cell, check_layer

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", *(f"docs/{name}.md" for name in ("export", "extending", "tasks", "text")))
README = "".join((ROOT / name).read_text() for name in PAGES)
COMMANDS = [
    line.partition(" # ")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
TRAIN = [
    line.removeprefix(".venv/bin/python -m newllm.train ")
    for line in COMMANDS
    if line.startswith(".venv/bin/python -m newllm.train ")
]
SMALL = [
    *("trainer=smoke", "logger=none", "callbacks=none", "threads=1"),
    *("data.validation_sentences=16", "data.test_sentences=16"),
]


def test_the_readme_has_commands_of_every_kind() -> None:
    assert len(TRAIN) >= 6
    assert all(word in README for word in ("make train", "make test", "make compare"))


def test_make_knows_every_target_of_the_readme() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in {match for line in COMMANDS for match in re.findall(r"^make ([\w-]+)", line)}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


EXAMINE = [line for line in TRAIN if "sweep=examination" in line]
TRAIN = [line for line in TRAIN if line not in EXAMINE]


@pytest.mark.parametrize("line", [line for line in TRAIN if "my_conf" not in line])
def test_train_commands_run(command: Command, tmp_path: Path, line: str) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join(f"line {i} of a text" for i in range(50)))
    (tmp_path / "books").mkdir()
    for number in range(12):
        (tmp_path / "books" / f"{number}.txt").write_text(f"A book.\n\nNumber {number}. " * 20)
    pair = json.dumps({"prompt": "ask", "response": "told"})
    (tmp_path / "pairs.jsonl").write_text(f"{pair}\n" * 20)
    line = re.sub(r"max_steps=\d+", "max_steps=2", line)
    if line.startswith("-m"):
        line = line.replace("seed=1,2,3", "seed=1")
        small = [*SMALL, "model.embedding_dim=8"]  # the only size that all models have
    elif "budget" in line:
        small = SMALL
    elif "recipe=task" in line:
        small = ["logger=none", "callbacks=none", "threads=1"]
        if "data=stdlib" in line:
            few = ["data.validation_sentences=2", "data.test_sentences=2"]
            small += [*TINY_CONTEXT, "trainer.limit_train_batches=2", *few]
        else:
            small.append("data.evaluation_rows=2")
    else:
        small = [*SMALL, *(f"model.{size}" for size in TINY)]
    if "sweep=" in line:
        line += " seed=1"
        small = ["recipe.max_epochs=1", *(word for word in small if "trainer" not in word)]
    line = line.replace("data=quality12500", "data=tiny30").replace("stdlib_source", "stdlib_docs")
    done = command("newllm.train", *shlex.split(line), *small)
    assert done.returncode == 0, done.stderr


def write_examples(folder: Path) -> None:
    """The files of a user's own that the README shows."""
    for name, content in re.findall(r"```(?:yaml|python)\n# (my_\S+)\n(.*?)```", README, re.DOTALL):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("chosen", "small", "description"),
    [
        ("gating=coupled", [f"model.{size}" for size in TINY], "coupled layernorm C8"),
        ("model=memory", ["model.embedding_dim=8", "model.hidden_dim=4"], "deltamemory H4"),
        (
            "model=hybrid",
            [f"model.{size}" for size in TINY],
            "gated layernorm C8 H8 L2 E8 residual",
        ),
        ("model=mean", ["model.embedding_dim=8"], "decayingmean H8"),
    ],
)
def test_a_variant_of_the_user_runs(
    command: Command, tmp_path: Path, chosen: str, small: list[str], description: str
) -> None:
    write_examples(tmp_path)
    (line,) = [line for line in TRAIN if chosen in line and "my_conf" in line]
    done = command("newllm.train", *shlex.split(line), *SMALL, *small)
    assert done.returncode == 0, done.stderr
    assert description in done.stdout


@pytest.mark.parametrize("line", EXAMINE)
def test_a_model_is_examined(command: Command, tmp_path: Path, line: str) -> None:
    write_examples(tmp_path)
    small = [
        *("examination.size=quick", "only=quick_parity", "trainer.max_steps=2", "threads=1"),
        *("budget.parameters=3000", "data.evaluation_rows=2", "data.evaluation_lengths=[8]"),
    ]
    done = command("newllm.train", *shlex.split(line), *small)
    assert done.returncode == 0, done.stderr
    assert "does not learn to track parity" in done.stdout
    (card,) = (tmp_path / "outputs" / "cards").iterdir()
    page = (card / "index.html").read_text()
    assert all(word in page for word in ("parity, 8 symbols", "Transformer", "LSTM"))


def test_data_of_the_user_run(command: Command, tmp_path: Path) -> None:
    write_examples(tmp_path)
    (line,) = [line for line in TRAIN if "[my_task]" in line]
    line = line.replace("max_steps=2000", "max_steps=4")
    small = [f"model.{size}" for size in TINY]
    done = command("newllm.train", *shlex.split(line), "logger=none", "callbacks=none", *small)
    assert done.returncode == 0, done.stderr
    assert "twice_as_long, at the best epoch: loss" in done.stdout
    (run,) = (path.parent for path in tmp_path.rglob("result.json"))
    looked = command("newllm.evaluate", str(run), "--trust", "my_task")
    assert looked.returncode == 0, looked.stderr
    assert "twice_as_long" in looked.stdout


@pytest.mark.parametrize(
    ("module", "name", "check"),
    [("my_cell", "DeltaMemory(8, 4)", check_cell), ("my_layer", "DecayingMean(8)", check_layer)],
)
def test_parts_of_the_readme_keep_their_contract(
    module: str, name: str, check: Callable[[nn.Module], None]
) -> None:
    (code,) = re.findall(rf"```python\n# {module}.py\n(.*?)```", README, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code, scope)
    check(eval(name, scope))


def test_help_names_every_group(command: Command) -> None:
    done = command("newllm.train", "--help")
    assert done.returncode == 0
    for group in ("model", "gating", "countermeasure", "recipe", "experiment", "data"):
        assert re.search(rf"^\s*{group}: ", done.stdout, re.MULTILINE), group


def test_make_help_lists_targets() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("setup", "train", "test", "lint", "data", "compare", "tensorboard", "clean"):
        assert target in done.stdout
