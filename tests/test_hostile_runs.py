"""Run directories from strangers, and damaged ones: they end in one line, and nothing happens."""

import gzip
import json
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import markdown
import pytest
import torch
from hostile import CELL, Damage, copy_of, good_run, nothing_done, write_config
from hostile import LAYER as PART
from omegaconf import OmegaConf

from newllm.data.reading import LONGEST_LINE
from newllm.data.sources.text import TextSource
from newllm.reporting.document import quoted
from newllm.runs.directory import has_ended, load_run, read_result
from newllm.runs.files import FIELDS
from newllm.runs.gathering import gather, read_run
from newllm.training.evaluation import load_source

CONFIG, RESULT, TOKENIZER = "config.yaml", "result.json", "tokenizer.json"
TEXT = f"{TextSource.__module__}.{TextSource.__name__}"
BEST = "checkpoints/best.ckpt"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good run, loaded once so that all that is imported late is there."""
    folder = good_run(tmp_path_factory.mktemp("good") / "run")
    load_everything(folder)
    return folder


def load_everything(folder: Path) -> None:
    """All that tools read of a run that somebody names."""
    load_source(load_run(folder))
    read_run(folder)


def refused(call: Callable[[], Any], top: Path) -> str:
    """The one line in which a call ends, having done nothing."""
    with nothing_done(top), pytest.raises(ValueError, match=r".") as fault:
        call()
    line = str(fault.value)
    assert "\n" not in line
    assert len(line) < LONGEST_LINE + 300, "what others wrote is cut"
    assert line.isprintable()
    return line


# ------------------------------------------------------------------------------------------------
# Targets: what could be called, at every place of a model that is built.

PLACES: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "normalization": lambda model, node: model | {"normalization": node},
    "initialization": lambda model, node: model | {"initialization": node},
    "layer": lambda model, node: model | {"layers": [node]},
    "cell": lambda model, node: model | {"layers": [model["layers"][0] | {"cell": node}]},
    "recurrence": lambda model, node: model | {"recurrence": node},
    "size": lambda model, node: model | {"hidden_dim": node},
    "model": lambda model, node: node,
    "inside of a part": lambda model, node: model | {
        "gating": {"_target_": "newllm.models.gating.Additive", "_partial_": True, "x": [node]}
    },
}  # fmt: skip

TARGETS: dict[Any, dict[str, Any]] = {
    "os.system": {"command": "touch pwned"},
    "posix.mkdir": {"path": "pwned"},
    "builtins.eval": {"source": "1"},
    "builtins.open": {"file": "pwned", "mode": "w"},
    "subprocess.Popen": {"args": ["touch", "pwned"]},
    "shutil.rmtree": {"path": "."},
    "numpy.load": {"file": "x.npy", "allow_pickle": True},
    "hydra.utils.instantiate": {"config": {}},
    "canary.run": {},
    "torch.os.system": {"command": "touch pwned"},
    "torch.os.mkdir": {"path": "pwned"},
    "torch.load": {"f": "evil.pt", "weights_only": False},
    "torch.hub.load": {"repo_or_dir": ".", "model": "x", "source": "local"},
    "torch.jit.load": {"f": "x"},
    "torch.save": {"obj": 1, "f": "pwned"},
    "torch.package.PackageImporter": {"file_or_buffer": "x"},
    "torch.utils.cpp_extension.load_inline": {"name": "x", "cpp_sources": ""},
    "torch.distributed.run.main": {"args": []},
    "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler": {},
    "torch.multiprocessing.spawn": {"fn": None},
    "torch.nn.Module.load_state_dict": {"state_dict": {}},
    "torch.nn.modules.module.torch.os.system": {"command": "touch pwned"},
    "torch.nn.Upsample": {"scale_factor": 1e9},
    "torch.nn.ConstantPad1d": {"padding": 10**11, "value": 0},
    "torch.nn.TransformerEncoder": {"num_layers": 10**9},
    "torch.nn.DataParallel": {},
    "torch.nn.LayerNorm.__init__": {"normalized_shape": 4},
    "torchmetrics.text.BERTScore": {"model_name_or_path": "."},
    "lightning.pytorch.Trainer": {"default_root_dir": "pwned"},
    "lightning.pytorch.trainer.call._call_and_handle_interrupt": {"trainer": None},
    "lightning.pytorch.callbacks.ModelCheckpoint": {"dirpath": "pwned"},
    "lightning.pytorch.callbacks.ModelCheckpoint._link_checkpoint": {"linkpath": "victim"},
    "lightning.pytorch.callbacks.LambdaCallback": {},
    "lightning.pytorch.loggers.CSVLogger": {"save_dir": "."},
    "lightning.pytorch.loggers.WandbLogger": {},
    "lightning.pytorch.LightningModule.load_from_checkpoint": {"checkpoint_path": "x"},
    "newllm.runs.writing.write_text": {"path": "pwned", "text": ""},
    "newllm.runs.directory.subprocess.Popen": {"args": ["touch", "pwned"]},
    "newllm.runs.directory.move_aside": {"path": ".", "top": "."},
    "newllm.train.main": {},
    "newllm.data.sources.corpora.Corpus.write": {"directory": "pwned"},
    "newllm.data.sources.sentences.SentenceSource.load_from_checkpoint": {"checkpoint_path": "x"},
    "newllm.models.language_model.torch.load": {"f": "evil.pt"},
    "newllm.models.language_model.checkpoint": {"function": None},
    "newllm.models.recurrence.native.compiled.run": {},
    "newllm.__main__.x": {},
    " torch.nn.LayerNorm": {},
    "torch.nn..LayerNorm": {},
    "torch/nn/LayerNorm": {},
    "torch.nn.LayerNorm()": {},
    "\N{FULLWIDTH LATIN SMALL LETTER T}orch.nn.LayerNorm": {},
    "torch.nn.LayerNorm\x1b[2J": {},
    "x" * 100_000: {},
    "torch": {},
    "": {},
    "???": {},
    5: {},
    None: {},
    ("torch.nn.LayerNorm",): {},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target)[:60])
def test_no_target_of_a_stranger_is_called(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Any, place: str
) -> None:
    folder = copy_of(good, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "canary.py").write_text("def run(): pass\n")
    (tmp_path / "victim").write_text("precious")
    torch.save(Evil(), tmp_path / "evil.pt")
    node = {"_target_": list(target) if isinstance(target, tuple) else target} | TARGETS[target]
    config = json.loads((folder / CONFIG).read_text())
    for is_partial in (False, True):
        whole = node | ({"_partial_": True} if is_partial else {})
        write_config(folder, config | {"model": PLACES[place](config["model"], whole)})
        refused(lambda: load_run(folder), tmp_path)
        if place == "model":
            write_config(folder, config | {"data": whole})
            run = load_run(folder)
            refused(lambda run=run: load_source(run), tmp_path)


class Evil:
    """Pickled, it makes a folder as soon as it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


# ------------------------------------------------------------------------------------------------
# config.yaml: other ways to smuggle something in, sizes, and what is no configuration.


def model_with(text: str, above: str = "") -> Damage:
    """A line of YAML added to the model in the place of another, and others above it."""

    def damage(folder: Path) -> None:
        model = json.loads((folder / CONFIG).read_text())["model"]
        del model["recurrence"]
        lines = [f"  {key}: {json.dumps(value)}" for key, value in model.items()]
        content = "\n".join([above, "model:", *lines, f"  {text}"])
        (folder / CONFIG).write_text(f"{content}\n")

    return damage


def sized(**sizes: Any) -> Damage:
    """Sizes of the model that its checkpoint has not."""

    def damage(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        write_config(folder, config | {"model": config["model"] | sizes})

    return damage


def written(name: str, content: str | bytes) -> Damage:
    """A file with that content."""

    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


EVIL = "evil: {_target_: torch.load, weights_only: false, f: evil.pt}"
LAUGHS = "\n".join(
    ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))]
)
LAYER = "{_target_: torch.nn.LayerNorm, _partial_: true"

CONFIGS: dict[str, Damage] = {
    "interpolation": model_with("normalization: ${evil}", EVIL),
    "escaped": model_with("normalization: '\\${evil}'", EVIL),
    "escaped twice": model_with("normalization: '\\\\\\${evil}'", EVIL),
    "by its code": model_with('normalization: "\\x24{evil}"', EVIL),
    "in parts": model_with("normalization: ${${which}}", f"{EVIL}\nwhich: evil"),
    "environment": model_with("fnn: ${oc.env:HOME}"),
    "decoded": model_with("fnn: ${oc.decode:'[1]'}"),
    "created": model_with("normalization: ${oc.create:{a:b}}"),
    "resolver of hydra": model_with("fnn: ${hydra:runtime.cwd}"),
    "in a key": model_with("${evil}: 1", EVIL),
    "in a comment of a block": model_with("fnn: |\n    ${oc.env:HOME}"),
    "endless interpolation": model_with("fnn: " + "${" * 2000 + "a" + "}" * 2000),
    "alias": model_with("normalization: *evil", "evil: &evil {_target_: os.system}"),
    "merged": model_with("<<: *evil", "evil: &evil {_target_: os.system}"),
    "billion laughs": model_with("fnn: *a39", LAUGHS),
    "itself": model_with("fnn: &a [*a]"),
    "python tag": model_with("fnn: !!python/object/apply:os.mkdir [pwned]"),
    "python path": model_with("fnn: !!python/object/apply:pathlib.PosixPath [pwned]"),
    "binary tag": model_with("fnn: !!binary aGVsbG8="),
    "two documents": model_with("fnn: plain\n---\nmodel: {}"),
    "key twice": model_with("num_layers: 3"),
    "_args_": model_with("_args_: [1]"),
    "_recursive_": model_with("_recursive_: false"),
    "_convert_": model_with("_convert_: none"),
    "_partial_ word": model_with("_partial_: 'yes'"),
    "_partial_ number": model_with("_partial_: 1"),
    "_partial_ model": model_with("_partial_: true"),
    "_target_ twice": model_with("_target_: os.system"),
    "argument of a number": model_with("5: 6"),
    "argument null": model_with("null: 6"),
    "unknown argument": model_with("sizes: 6"),
    "argument of a megabyte": model_with(f"{'x' * 200_000}: 6"),
    "fnn of a megabyte": model_with(f"fnn: {'x' * 200_000}"),
    "colours": model_with('fnn: "\\e[31mred\\e[0m"'),
    "surrogate": model_with('fnn: "\\ud800"'),
    "layer of nothing": model_with("normalization: {_target_: torch.nn.LayerNorm}"),
    "layer of too much": model_with(f"normalization: {LAYER}, eps: x}}"),
    "layer of another shape": model_with("normalization: {_target_: torch.nn.BatchNorm1d, "
                                         "_partial_: true}"),
    "layer elsewhere": model_with(f"normalization: {LAYER}, device: nowhere}}"),
    "layer without memory": model_with(f"normalization: {LAYER}, device: meta}}"),
    "layer, not partial": model_with("normalization: {_target_: torch.nn.Linear, in_features: 4, "
                                     "out_features: 4}"),
    "two outputs": model_with("normalization: {_target_: torch.nn.GLU, _partial_: true}"),
    "huge layer aside": model_with("initialization: {_target_: torch.nn.Linear, in_features: "
                                   "1000000, out_features: 1000000}"),
    "huge table aside": model_with("initialization: {_target_: newllm.models.positions."
                                   "RotaryPositions, head_dim: 100000000000}"),
    "gating of a word": model_with("gating: lstm"),
    "gating of a list": model_with("gating: [1, 2]"),
    "recurrence of a word": model_with("recurrence: fused"),
    "recurrence of a layer": model_with("recurrence: {_target_: torch.nn.Identity}"),
    "recurrence of a number": model_with("recurrence: {_target_: "
                                          "newllm.models.recurrence.fused.Fused, "
                                          "native: 7}"),
    "no layers": sized(layers=None),
    "layers of a word": sized(layers="fused"),
    "layers of a number": sized(layers=5),
    "layers of nothing": sized(layers=[]),
    "a layer of a word": sized(layers=["x"]),
    "a layer that is a model": sized(
        layers=[{"_target_": "newllm.models.language_model.LanguageModel", "_partial_": True}]
    ),
    "a layer that is a cell": sized(layers=[CELL]),
    "a cell that is a layer": sized(layers=[PART | {"cell": PART}]),
    "many layers": sized(layers=[PART] * 10_000),
    "abstract": model_with("gating: {_target_: newllm.models.gating.Gating, _partial_: true}"),
    "a cell alone": written(CONFIG, "model: {_target_: newllm.models.fnn.PlainFNN, "
                                    "hidden_dim: 4, num_layers: 2}"),
    "a budget": written(CONFIG, "model: {_target_: newllm.models.sizes.Budget}"),
    **{f"{key}={value}"[:40]: sized(**{key: value}) for key in
       ("vocabulary_size", "embedding_dim", "context_dim", "hidden_dim", "num_layers")
       for value in (10**9, 10**30, -1, 5, "x", 4.0, True, None, [4], {"a": 4})},
    "positions": sized(positions="learned", max_length=10**9),
    "clip": sized(context_clip=float("nan")),
    "dropout": sized(dropout=float("inf")),
    "deep flow": written(CONFIG, "model: " + "{a: " * 3000 + "1" + "}" * 3000),
    "deep list": written(CONFIG, "model: " + "[" * 3000),
    "deep blocks": written(CONFIG, "model:\n" + "".join(f"{' ' * i}a:\n" for i in range(1, 600))),
    "wide": written(CONFIG, "model: {" + ", ".join(f"a{i}: {i}" for i in range(20_000)) + "}"),
    "long": written(CONFIG, f"model: {{a: {'x' * 10**6}}}"),
    "zero bytes": written(CONFIG, b"model: {a: \0}"),
    "utf-16": written(CONFIG, "model: {a: 1}".encode("utf-16")),
    "latin-1": written(CONFIG, "model: {a: é}".encode("latin-1")),
    "garbage": written(CONFIG, bytes(range(256))),
    "a list": written(CONFIG, "[model]"),
    "a word": written(CONFIG, "model"),
    "a number": written(CONFIG, "5"),
    "open": written(CONFIG, "a: ["),
    "model of a word": written(CONFIG, "model: x"),
    "model of a list": written(CONFIG, "model: [1]"),
    "model of nothing": written(CONFIG, "model: {}"),
    "mangled parts": written(CONFIG, "model: {_target_: torch.nn.Identity}\nrecipe: [1]"),
    "digits": written(CONFIG, f"model: {{a: {'9' * 10_000}}}"),
    "base 60": written(CONFIG, f"model: {{a: {'1:' * 5000}1}}"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_a_hostile_configuration(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    folder = copy_of(good, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    torch.save(Evil(), tmp_path / "evil.pt")
    CONFIGS[case](folder)
    refused(lambda: load_run(folder), tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"directory": "elsewhere"},
        {"max_length": 64},
        {"batch_size": 1},
    ],
    ids=str,
)
def test_data_of_a_stranger_writes_nothing(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    folder = with_data(good, tmp_path, change)
    monkeypatch.chdir(tmp_path)
    with nothing_done(tmp_path):
        load_source(load_run(folder))


@pytest.mark.parametrize(
    "change",
    [
        {"_target_": TEXT},
        {"_target_": TEXT, "path": "/dev/zero"},
        {"_target_": TEXT, "path": "pipe"},
        {"_target_": TEXT, "path": "."},
        {"_target_": TEXT, "path": "nowhere"},
        {"_target_": TEXT, "path": "x" * 5000},
        {"_target_": TEXT, "path": "zero\0"},
        {"corpus": ["tiny30"]},
        {"corpus": "tiny30", "seed": 5},
        {"corpus": "tiny30", "max_length": 10**30, "train_sentences": 10**9},
        {"batch_size": "x"},
        {"order_seed": None},
        {"_partial_": True},
        {"unknown": 1},
    ],
    ids=lambda change: str(change)[:40],
)
def test_hostile_data(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    folder = with_data(good, tmp_path, change)
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    refused(lambda: load_source(load_run(folder)), tmp_path)


def with_data(good: Path, top: Path, change: dict[str, Any]) -> Path:
    folder = copy_of(good, top / "run")
    config = json.loads((folder / CONFIG).read_text())
    given = {"order_seed": 1} if "_target_" in change else config["data"]
    write_config(folder, config | {"data": given | change})
    return folder


# ------------------------------------------------------------------------------------------------
# Files that are none, or not what they should be.


def replaced_by(make: Callable[[Path], Any]) -> Callable[[str], Damage]:
    """Something else in the place of a file."""

    def named(name: str) -> Damage:
        def damage(folder: Path) -> None:
            (folder / name).unlink()
            make(folder / name)

        return damage

    return named


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


KINDS: dict[str, Callable[[Path], Any]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to a long name": lambda path: path.symlink_to("x" * 300),
    "a terabyte": sparse,
    "nothing": Path.touch,
    "random bytes": lambda path: path.write_bytes(random.Random(0).randbytes(5000)),
    "text": lambda path: path.write_text("some words, and\nsome more\n"),
}


@pytest.mark.parametrize("name", [CONFIG, RESULT, TOKENIZER, BEST])
@pytest.mark.parametrize("kind", [*KINDS, "missing", "half of it"])
def test_a_file_that_is_none(good: Path, tmp_path: Path, name: str, kind: str) -> None:
    folder = copy_of(good, tmp_path / "run")
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if kind == "half of it":
        (folder / name).write_bytes(content[: len(content) // 2])
    elif kind in KINDS:
        KINDS[kind](folder / name)
    assert name in refused(lambda: load_run(folder), tmp_path)


@pytest.mark.parametrize("name", ["metrics.csv", "validation_steps.csv"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "nothing"])
def test_a_table_that_is_none(good: Path, tmp_path: Path, name: str, kind: str) -> None:
    folder = copy_of(good, tmp_path / "run")
    (folder / name).unlink()
    KINDS[kind](folder / name)
    assert name in refused(lambda: read_run(folder), tmp_path)
    (run,) = gather([tmp_path])
    assert run.status == "broken"
    assert name in run.result["error"]


@pytest.mark.parametrize(
    "table",
    [
        "epoch,step\n1,x\n",
        "epoch,step\n1,2,3,4\n",
        "epoch\n1\n",
        "step,epoch\n1\n",
        "epoch,step\n,\n",
        "epoch,step\n1,\0\n",
        f"epoch,step\n1,{'9' * 200_000}\n",
        f"{'x,' * 200_000}\n",
        '"epoch,step\n1,2\n',
        "1,2\n3,4\n",
        "epoch,step\n1,0x1F\n",
        "epoch,step\n一,二三\n",
    ],
    ids=lambda table: repr(table[:20]),
)
def test_a_hostile_table(good: Path, tmp_path: Path, table: str) -> None:
    folder = copy_of(good, tmp_path / "run")
    (folder / "metrics.csv").write_text(table)
    with nothing_done(tmp_path):
        (run,) = gather([tmp_path])
    assert run.status == "broken" or run.epochs == []
    assert "\n" not in (run.result["error"] or "")


def test_the_lock_of_a_stranger(good: Path, tmp_path: Path) -> None:
    """A pipe in its place would wait for ever."""
    folder = copy_of(good, tmp_path / "run")
    (folder / RESULT).write_text('{"status": "running"}')
    os.mkfifo(folder / ".lock")
    with nothing_done(tmp_path):
        assert read_result(folder)["status"] == "interrupted"


# ------------------------------------------------------------------------------------------------
# result.json

RESULTS = {
    **{f"{name} of another type": json.dumps({"status": "done", name: {"a": ["b"]}})
       for name in FIELDS},
    **{f"{name}=[{{}}]": json.dumps({"status": "done", name: [{}]})
       for name in FIELDS},
    "NaN": '{"status": "done", "best_val_loss": NaN}',
    "infinite": '{"status": "done", "seconds": -Infinity}',
    "too large a number": '{"status": "done", "seconds": 1e999}',
    "too large a whole number": f'{{"status": "done", "parameters": {10**400}}}',
    "endless digits": f'{{"status": "done", "parameters": {"9" * 10_000}}}',
    "true for a number": '{"status": "done", "seconds": true}',
    "deep": '{"status": "done", "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "rather deep": '{"status": "done", "x": ' + "[" * 900 + "]" * 900 + "}",
    "no status": "{}",
    "status of a stranger": '{"status": "splendid"}',
    "status null": '{"status": null}',
    "a list": "[1]",
    "a word": '"done"',
    "cut": '{"status": "done"',
    "not JSON": "{'status': 'done'}",
    "byte order": "\ufeff{}",
    "references of markup": '{"status": "done", "references": {"<script>": 1}}',
    "spikes of words": '{"status": "done", "spikes": {"val_by_step": [{"ratio": "x"}]}}',
}  # fmt: skip
HARMLESS = ("rather deep",)


@pytest.mark.parametrize("case", RESULTS)
def test_a_hostile_result(good: Path, tmp_path: Path, case: str) -> None:
    folder = copy_of(good, tmp_path / "run")
    (folder / RESULT).write_text(RESULTS[case])
    if case not in HARMLESS:
        for read in (load_run, read_result, read_run):
            assert RESULT in refused(lambda read=read: read(folder), tmp_path)
    (run,) = gather([tmp_path])
    assert run.status == "broken"
    if case not in HARMLESS:
        config = OmegaConf.load(good / CONFIG)
        refused(lambda: has_ended(folder, config), tmp_path)  # type: ignore[arg-type]


def test_strings_of_a_stranger_do_nothing_to_a_terminal(good: Path, tmp_path: Path) -> None:
    folder = copy_of(good, tmp_path / "run")
    result = json.loads((folder / RESULT).read_text())
    evil = "\x1b]0;title\x07\x1b[2J\u202egnp\ud800 plain"
    (folder / RESULT).write_text(json.dumps(result | {"name": evil, "own": {evil: 1.0}}))
    run = load_run(folder)
    for text in (run.result["name"], *run.result["own"]):
        assert text.isprintable()
        assert text.endswith(" plain")


def test_strings_of_a_stranger_are_no_markup() -> None:
    evil = "<script>x</script> | [a](javascript:x) ![b](x) `c`"
    page = markdown.markdown(f"- {quoted(evil)}")
    assert "<script" not in page
    assert "<a" not in page
    assert "<img" not in page
    assert "<code" not in page


# ------------------------------------------------------------------------------------------------
# Checkpoints


def saved(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """The checkpoint with other weights in it."""

    def damage(folder: Path) -> None:
        weights = torch.load(folder / BEST, weights_only=True)["model"]
        torch.save(change(weights), folder / BEST)

    return damage


def weight(make: Callable[[torch.Tensor], Any]) -> Damage:
    """One of the weights replaced."""
    return saved(lambda w: {"model": w | {"output.weight": make(w["output.weight"])}})


def rezipped(compression: int, change: Callable[[str, bytes], bytes] = lambda _, x: x) -> Damage:
    """The archive written again."""

    def damage(folder: Path) -> None:
        with zipfile.ZipFile(folder / BEST) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(folder / BEST, "w", compression) as archive:
            for name, content in entries.items():
                archive.writestr(name, change(name, content))

    return damage


def pickled(content: Any) -> bytes:
    return pickle.dumps(content)


def named(end: str, content: bytes) -> Callable[[str, bytes], bytes]:
    return lambda name, old: content if name.endswith(end) else old


CHECKPOINTS: dict[str, Damage] = {
    "code": lambda folder: torch.save(Evil(), folder / BEST),
    "code among weights": saved(lambda w: {"model": w | {"x": Evil()}}),
    "code beside weights": saved(lambda w: {"model": w, "x": Evil()}),
    "code as a key": saved(lambda w: {"model": w, Evil(): 1}),
    "code in the old format": lambda folder: torch.save(
        Evil(), folder / BEST, _use_new_zipfile_serialization=False),
    "weights in the old format": lambda folder: torch.save(
        torch.load(folder / BEST), folder / BEST, _use_new_zipfile_serialization=False),
    "a pickle": written(BEST, pickled(Evil())),
    "a pickle in the archive": rezipped(zipfile.ZIP_STORED, named("data.pkl", pickled(Evil()))),
    "a function": saved(lambda w: {"model": w | {"x": print}}),
    "a module": lambda folder: torch.save(torch.nn.Linear(1, 1), folder / BEST),
    "compressed": rezipped(zipfile.ZIP_DEFLATED),
    "a bomb": rezipped(zipfile.ZIP_DEFLATED, named("data.pkl", bytes(10**7))),
    "cut storage": rezipped(zipfile.ZIP_STORED, lambda name, x: x[:8] if "/data/" in name else x),
    "no storage": rezipped(zipfile.ZIP_STORED, lambda name, x: b"" if "/data/" in name else x),
    "an empty archive": lambda folder: zipfile.ZipFile(folder / BEST, "w").close(),
    "not a mapping": saved(lambda w: [w]),
    "no model": saved(lambda w: {"weights": w}),
    "a model of a list": saved(lambda w: {"model": [*w.values()]}),
    "names of numbers": saved(lambda w: {"model": dict(enumerate(w.values()))}),
    "one missing": saved(lambda w: {"model": {k: w[k] for k in [*w][1:]}}),
    "one too many": saved(lambda w: {"model": w | {"more": torch.zeros(1)}}),
    "nothing": saved(lambda w: {"model": {}}),
    "another shape": weight(lambda x: x[:, :2].clone()),
    "a scalar": weight(lambda x: torch.tensor(1.0)),
    "huge without memory": weight(lambda x: torch.zeros(1).expand(10**6, 10**6)),
    "a view of one number": weight(lambda x: torch.zeros(1).expand(x.shape)),
    "on no device": weight(lambda x: torch.empty(10**6, 10**6, device="meta")),
    "NaN": weight(lambda x: x * float("nan")),
    "infinite": weight(lambda x: x / 0),
    "sparse": weight(lambda x: x.to_sparse()),
    "huge and sparse": weight(lambda x: torch.sparse_coo_tensor(
        torch.zeros(2, 1, dtype=torch.long), [1.0], (10**6, 10**6), check_invariants=False)),
    "complex": weight(lambda x: x.to(torch.complex64)),
    "a list of numbers": weight(lambda x: x.tolist()),
    "a word": weight(lambda x: "weights"),
    "None": weight(lambda x: None),
    "larger than any float": saved(
        lambda w: {"model": {name: torch.full_like(x, 3e38) for name, x in w.items()}}),
}  # fmt: skip


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_hostile_checkpoint(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    folder = copy_of(good, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    CHECKPOINTS[case](folder)
    assert "best.ckpt" in refused(lambda: load_run(folder), tmp_path).replace("logits", "best.ckpt")


@pytest.mark.parametrize(
    "change",
    [
        saved(lambda w: {"model": {name: tensor.double() for name, tensor in w.items()}}),
        saved(lambda w: {"model": {name: tensor.bfloat16() for name, tensor in w.items()}}),
        saved(lambda w: {"model": OrderedDict(reversed(w.items())), "epoch": 3}),
        saved(lambda w: {"model": {k: torch.nn.Parameter(x) for k, x in w.items()}}),
    ],
    ids=["float64", "bfloat16", "another order", "parameters"],
)
def test_a_harmless_checkpoint(good: Path, tmp_path: Path, change: Damage) -> None:
    folder = copy_of(good, tmp_path / "run")
    change(folder)
    with nothing_done(tmp_path):
        load_run(folder)


# ------------------------------------------------------------------------------------------------
# tokenizer.json


def tokenizer(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / TOKENIZER).read_text())
        (folder / TOKENIZER).write_text(json.dumps(change(content)))

    return damage


def vocabulary(change: Callable[[dict[str, Any]], Any]) -> Damage:
    return tokenizer(lambda t: t | {"model": t["model"] | {"vocab": change(t["model"]["vocab"])}})


TOKENIZERS: dict[str, Damage] = {
    "padding": tokenizer(lambda t: t | {"padding": {
        "strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": " <PAD>"}}),
    "truncation": tokenizer(lambda t: t | {"truncation": {"max_length": 0}}),
    "a pattern": tokenizer(lambda t: t | {"pre_tokenizer": {
        "type": "Split", "pattern": {"Regex": "(a*)*b"}, "behavior": "Isolated", "invert": False}}),
    "a sequence": tokenizer(lambda t: t | {"normalizer": {"type": "Sequence", "normalizers": []}}),
    "precompiled": tokenizer(lambda t: t | {"normalizer": {
        "type": "Precompiled", "precompiled_charsmap": "AAAA"}}),
    "a template": tokenizer(lambda t: t | {"post_processor": {"type": "TemplateProcessing"}}),
    "another model": tokenizer(lambda t: t | {"model": t["model"] | {"type": "Unigram"}}),
    "no model": tokenizer(lambda t: t | {"model": None}),
    "a model of a word": tokenizer(lambda t: t | {"model": "WordLevel"}),
    "other specials": tokenizer(lambda t: t | {"added_tokens": t["added_tokens"][::-1]}),
    "no specials": tokenizer(lambda t: t | {"added_tokens": []}),
    "specials of a word": tokenizer(lambda t: t | {"added_tokens": "x"}),
    "special numbers": tokenizer(lambda t: t | {"added_tokens": [1, 2, 3, 4]}),
    "a word too many": vocabulary(lambda v: v | {"another": len(v)}),
    "a huge number": vocabulary(lambda v: v | {"another": 2**32 - 1}),
    "a negative number": vocabulary(lambda v: v | {"another": -1}),
    "a number twice": vocabulary(lambda v: v | {"another": 7}),
    "a number of a word": vocabulary(lambda v: v | {"another": "x"}),
    "a number of a list": vocabulary(lambda v: v | {"another": [1]}),
    "a vocabulary of a list": vocabulary(lambda v: [*v.items()]),
    "no vocabulary": vocabulary(lambda v: {}),
    "a list": tokenizer(lambda t: [t]),
    "NaN": written(TOKENIZER, '{"model": NaN}'),
    "deep": written(TOKENIZER, "[" * 100_000),
}  # fmt: skip


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_hostile_tokenizer(good: Path, tmp_path: Path, case: str) -> None:
    folder = copy_of(good, tmp_path / "run")
    TOKENIZERS[case](folder)
    assert TOKENIZER in refused(lambda: load_run(folder), tmp_path)


# ------------------------------------------------------------------------------------------------
# Packed runs, and damage by chance


@pytest.mark.parametrize("case", ["cut", "flipped", "bomb", "a number", "mangled", "no result"])
def test_a_hostile_pack(tmp_path: Path, case: str) -> None:
    entry = {"place": "x", "result": {"status": "failed"}, "epochs": {"epoch": ["x"]}, "looks": {}}
    contents: dict[str, bytes] = {
        "cut": gzip.compress(b"[]" * 1000)[:-9],
        "flipped": bytes([*gzip.compress(b"[]" * 1000)[:12], 255, 255, 255, 0, 0, 0]),
        "bomb": gzip.compress(bytes(1 << 28), 1),
        "a number": gzip.compress(b"5"),
        "mangled": gzip.compress(json.dumps([entry]).encode()),
        "no result": gzip.compress(json.dumps([entry | {"result": 5}]).encode()),
    }
    path = tmp_path / "runs.json.gz"
    path.write_bytes(contents[case])
    assert "is not a file of packed runs" in refused(lambda: gather([path]), tmp_path)


def test_what_training_left_is_taken() -> None:
    """The committed runs are of every model and many versions."""
    packed = Path(__file__).parents[1] / "docs" / "data"
    runs = gather(sorted(packed.glob("*.json.gz")))
    assert {run.status for run in runs} == {"done"}


def mutated(content: bytes, draw: random.Random) -> bytes:
    """A file cut, with bytes or words changed, or with a part of it twice."""
    start, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    words = [b"null", b"[]", b"{}", b"-1", b"1e999", b"true", b'"x"', b"${a}", b"\xff", b"\n", b"*"]
    match draw.randrange(5):
        case 0:
            return content[:start]
        case 1:
            flipped = bytearray(content)
            for _ in range(draw.randrange(1, 5)):
                flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            return bytes(flipped)
        case 2:
            values = content.split(b": ")
            values[draw.randrange(len(values))] = draw.choice(words)
            return b": ".join(values)
        case 3:
            return content[:start] + draw.choice(words) + content[start:]
        case _:
            return content[:end] + content[start:]


@pytest.mark.parametrize("seed", range(200))
def test_a_run_damaged_by_chance_loads_or_is_refused(good: Path, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    folder = copy_of(good, tmp_path / "run")
    files = [CONFIG, RESULT, TOKENIZER, BEST, "metrics.csv", "validation_steps.csv"]
    name = draw.choice(files)
    (folder / name).write_bytes(mutated((folder / name).read_bytes(), draw))
    calls: list[Callable[[], Any]] = [
        lambda: load_everything(folder),
        lambda: gather([tmp_path]),
        lambda: has_ended(folder, OmegaConf.load(good / CONFIG)),  # type: ignore[arg-type]
    ]
    for call in calls:
        line = ""
        with nothing_done(tmp_path):
            try:
                call()
            except ValueError as error:
                line = str(error)
        assert line.isprintable()
        assert len(line) < 2 * LONGEST_LINE + 300
