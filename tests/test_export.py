"""Exports: the ONNX step of every model, the folders, the command, and a client without torch."""

import copy
import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import Command
from hostile import config_of, good_run, write_config
from small_models import rnn_model, transformer
from test_models import MODELS, PADDED, build
from torch import Tensor, nn

from newllm.data.encoded import EncodedSplit
from newllm.data.source import Source
from newllm.data.tokenizer import BOS, EOS
from newllm.exporting import onnx_folder
from newllm.exporting.folder import written_folder
from newllm.exporting.int8 import MOST_TARGETS, mean_loss, quantize, validation_batches
from newllm.exporting.onnx_folder import export_onnx
from newllm.exporting.onnx_step import OnnxStep, write_step
from newllm.exporting.parity import check_parity
from newllm.exporting.safetensors_folder import export_safetensors, load
from newllm.exporting.step import StateTensor, state_tensors
from newllm.models.language_model import LanguageModel
from newllm.models.layer import Layer, State, zeros
from newllm.models.sampling import Sampling, sample_sentences
from newllm.runs.directory import load_run
from newllm.statistics.predictions import target_losses
from newllm.training.evaluation import load_source

CLIENT = Path(__file__).parents[1] / "docs" / "export" / "generate.py"
# An export takes a second or two.
OFTEN = ("gated", "transformer", "lstm")
GROWING_AT_TIMES = ("hybrid_sparse", "transformer_of_contexts")


def step_of(model: LanguageModel, folder: Path) -> OnnxStep:
    file = folder / "model.onnx"
    write_step(model, state_tensors(model), file)
    return OnnxStep(file, state_tensors(model))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] * (name not in OFTEN))
        for name in MODELS
        if name not in GROWING_AT_TIMES
    ],
)
def test_the_step_of_every_model_is_that_of_pytorch(name: str, tmp_path: Path) -> None:
    model = build(name).float()
    step = step_of(model, tmp_path)
    check_parity(model, step, num_tokens=70)
    # Token by token, with padding, at another batch size: the logits of the whole.
    state, found = step.initial_state(len(PADDED)), []
    for token_B in PADDED.unbind(1):
        logits_BV, state = step(token_B.numpy(), state)
        found.append(torch.from_numpy(logits_BV))
    real_BT = PADDED != 0
    expected_BTV, expected_state = model(PADDED)
    torch.testing.assert_close(
        torch.stack(found, 1)[real_BT], expected_BTV[real_BT], rtol=1e-4, atol=1e-4
    )
    assert [part.shape for part in state] == [tuple(part.shape) for part in expected_state]


def test_names_and_shapes_of_the_state() -> None:
    model = transformer(9, positions="learned", num_layers=1)
    float_cache = {"dtype": "float32", "shape": ("batch", 2, "tokens", 4), "initial": 0}
    assert state_tensors(model) == [
        StateTensor("state.positions.0", "int64", ("batch",), 0),
        StateTensor("state.layers.0.0", "bool", ("batch", "tokens"), 0),
        StateTensor("state.layers.0.1", **float_cache),  # type: ignore[arg-type]
        StateTensor("state.layers.0.2", **float_cache),  # type: ignore[arg-type]
    ]
    (hidden, cell) = state_tensors(rnn_model(9))
    assert (hidden.name, hidden.next_name) == ("state.layers.0.0", "next_state.layers.0.0")
    assert (cell.shape, cell.initial) == (("batch", 2, 8), 0.0)


class Countdown(Layer):
    """A state that starts at other numbers than zeros."""

    def __init__(self, input_dim: int) -> None:
        super().__init__(input_dim, input_dim)
        self.scale = nn.Parameter(torch.ones(()))

    def initial_state(self, batch_size: int) -> State:
        return (torch.arange(3.0).expand(batch_size, 3),)

    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        pad_BT: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        (count_B3,) = self.initial_state(len(x_BTD)) if state is None else state
        return x_BTD + self.scale * count_B3.sum(1)[:, None, None], (0.5 * count_B3,)


class Window(Countdown):
    """A state that is longer than the number of tokens."""

    def initial_state(self, batch_size: int) -> State:
        return (zeros(self, batch_size, 1),)

    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        pad_BT: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        (seen_BS,) = self.initial_state(len(x_BTD)) if state is None else state
        return x_BTD, (torch.cat((seen_BS, x_BTD[:, :, 0]), 1),)


class Counting(Countdown):
    """Python reads a value of the state, which no export can follow."""

    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        pad_BT: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        (count_B3,) = self.initial_state(len(x_BTD)) if state is None else state
        if float(count_B3.sum()) > 1:
            x_BTD = x_BTD + 1
        return x_BTD, (0.5 * count_B3,)


def test_a_state_may_start_anywhere(tmp_path: Path) -> None:
    model = LanguageModel(9, 4, [Countdown]).eval()
    step = step_of(model, tmp_path)
    assert step.tensors[0].initial == [0.0, 1.0, 2.0]
    check_parity(model, step, num_tokens=5)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            Window,
            "state.layers.0.0 has shapes [1, 1], [1, 2], [1, 3] after 0, 1 and 2 tokens; a size "
            "must stay as it is, or grow from 0 by one with each token",
        ),
        (Counting, "torch cannot trace its step: Could not guard on data-dependent expression"),
    ],
)
def test_a_layer_that_cannot_be_exported_is_a_line(
    layer: type[Layer], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as fault:  # noqa: PT011 -- the message is compared
        step_of(LanguageModel(9, 4, [layer]).eval(), tmp_path)
    assert str(fault.value).startswith(message)
    assert len(str(fault.value).splitlines()) == 1


def test_a_model_that_sees_the_future_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it sees future tokens, which a step of one"):
        write_step(transformer(9, leaky=True), [], tmp_path / "model.onnx")


@pytest.mark.parametrize("name", GROWING_AT_TIMES)
def test_a_state_that_grows_with_some_tokens_is_refused(name: str, tmp_path: Path) -> None:
    model = build(name)
    with pytest.raises(ValueError) as fault:  # noqa: PT011 -- the message is compared
        write_step(model, [], tmp_path / "model.onnx")
    assert str(fault.value) == (
        f"the state of {model.layers[-1].description} grows with some tokens and not with others, "
        "which no exported step does"
    )


def perturbed(model: LanguageModel, name: str) -> LanguageModel:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter(name).add_(1e-3)
    return other


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return good_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    """Its ONNX folder."""
    folder = run.with_name("exported")
    (parity,) = export_onnx(load_run(run), folder, is_int8=False)
    assert parity.startswith("parity over 3 x 1,000 tokens: logits differ by at most ")
    return folder


def test_the_loss_of_a_step_is_that_of_the_run(run: Path, exported: Path) -> None:
    loaded = load_run(run)
    source = load_source(loaded)
    step = OnnxStep(exported / "model.onnx", state_tensors(loaded.model))
    loss, num_targets = mean_loss(step, validation_batches(source))
    split = source.encoded("validation")
    assert split is not None
    assert num_targets == split.num_targets
    assert loss == pytest.approx(target_losses(loaded.model, split).mean(), abs=1e-5)


@pytest.mark.parametrize(
    ("weight", "name"),
    [("output.bias", "logits"), ("layers.0.cell.gating.delta.bias", "next_state.layers.0.0")],
)
def test_a_step_of_other_weights_is_found_out(
    run: Path, exported: Path, weight: str, name: str
) -> None:
    model = load_run(run).model
    step = OnnxStep(exported / "model.onnx", state_tensors(model))
    with pytest.raises(ValueError, match=rf"^{name} differs from the PyTorch model at token 1 by "):
        check_parity(perturbed(model, weight), step, num_tokens=3)


def test_a_model_without_finite_numbers_is_no_parity(run: Path, exported: Path) -> None:
    model = load_run(run).model
    step = OnnxStep(exported / "model.onnx", state_tensors(model))
    with torch.no_grad():
        model.get_parameter("output.bias").fill_(torch.nan)
    with pytest.raises(ValueError, match=r"^its logits or states are not finite at any token: "):
        check_parity(model, step, num_tokens=3)


def test_int8_is_measured_on_the_beginning_of_a_long_document() -> None:
    class Documents(Source):
        def encoded(self, split: str) -> EncodedSplit:
            return EncodedSplit(np.full(2 * MOST_TARGETS, 7), np.array([2 * MOST_TARGETS - 9, 9]))

    (batch,) = validation_batches(Documents())
    assert int(batch.scored_BT.sum()) == MOST_TARGETS


def test_int8_rounds_all_matrices(run: Path, exported: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.onnx"
    quantize(exported / "model.onnx", small)
    weights = onnx.load(small).graph.initializer
    types = {weight.data_type for weight in weights if len(weight.dims) == 2}
    assert types == {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}  # products and embedding
    tensors = state_tensors(load_run(run).model)
    token_B = torch.tensor([BOS, EOS, 7]).numpy()
    expected_BV, found_BV = (
        step(token_B, step.initial_state(3))[0]
        for step in (OnnxStep(exported / "model.onnx", tensors), OnnxStep(small, tensors))
    )
    assert 0 < abs(found_BV - expected_BV).max() < 0.1 * abs(expected_BV).max()


def test_the_command_writes_what_a_client_needs(
    command: Command, run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "exported"
    line = (str(run), "--output", str(folder))
    done = command("newllm.export", *line, "--int8")
    assert done.returncode == 0, done.stderr
    parity, int8, place = done.stdout.splitlines()
    assert parity.startswith("parity over 3 x 1,000 tokens: logits differ by at most ")
    assert int8.startswith("int8: ")
    assert place == f"exported: {folder}"
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.json", "model.onnx", "tokenizer.json",
    ]  # fmt: skip

    description = json.loads((folder / "model.json").read_text())
    assert (description["weights"], description["max_tokens"]) == ("int8", None)
    assert description["never_drawn"] == [0, 1, 2]
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    inputs = {one.name: one.shape for one in session.get_inputs()}
    assert inputs == {"token": ["batch"], "state.layers.0.0": ["batch", 4]}
    assert inputs.keys() == {"token", *(part["name"] for part in description["state"])}
    outputs = [one.name for one in session.get_outputs()]
    assert outputs == ["logits", *(part["next_name"] for part in description["state"])]

    again = command("newllm.export", *line)
    told = f"{folder}: already exists; choose another --output or remove it\n"
    assert (again.returncode, again.stdout, again.stderr) == (1, "", told)


def without_torch(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The client in a Python that has no torch and no newllm."""
    block = "import sys; sys.modules.update(torch=None, newllm=None); "
    start = (
        "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-c", block + start, str(CLIENT), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_client_without_torch_draws_what_the_model_draws(
    run: Path, exported: Path, tmp_path: Path
) -> None:
    loaded = load_run(run)
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    word = tokenizer.decode([7])
    done = without_torch([str(exported), "--prompt", word, "--temperature=0", "--max-tokens=9"])
    assert (done.returncode, done.stderr) == (0, "")
    greedy = Sampling(temperature=0)
    (expected,) = sample_sentences(loaded.model, tokenizer, 1, word, 9, greedy)
    assert done.stdout == f"{expected}\n"
    unknown = without_torch([str(exported), "--prompt=zebra"])
    assert (unknown.returncode, unknown.stderr) == (
        1,
        "the prompt contains unknown words: ['zebra']\n",
    )
    longer = without_torch([str(exported), f"--prompt={word}", "--max-tokens=1"])
    assert longer.stderr == "the prompt has 2 tokens; the maximum is 1\n"
    bare = shutil.copytree(exported, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    assert without_torch([str(bare)]).stderr == (
        f"{bare}: has no tokenizer; the run was not trained on text\n"
    )
    for wrong in (run, tmp_path / "nowhere"):
        told = f"{wrong}: is not what newllm.export --format onnx wrote\n"
        assert without_torch([str(wrong)]).stderr == told
    hot = without_torch([str(exported), "--temperature=nan"])
    assert (hot.returncode, hot.stderr) == (
        1,
        "--temperature nan: must be finite, and at least 0\n",
    )
    one, again, other = (
        without_torch([str(exported), f"--seed={seed}"]).stdout for seed in (1, 1, 2)
    )
    assert one == again != other


def test_safetensors_load_as_the_model_of_the_run(
    command: Command, run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "weights"
    line = (str(run), "--format", "safetensors", "--output", str(folder))
    done = command("newllm.export", *line)
    assert done.returncode == 0, done.stderr
    model, tokenizer = load(folder)
    loaded = load_run(run)
    assert loaded.tokenizer is not None
    assert tokenizer is not None
    assert tokenizer.to_json() == loaded.tokenizer.to_json()
    assert not model.training
    torch.testing.assert_close(model.state_dict(), loaded.model.state_dict(), rtol=0, atol=0)
    tokens = torch.tensor([tokenizer.encode_prompt(tokenizer.decode([5, 6]))])
    torch.testing.assert_close(model(tokens), loaded.model(tokens), rtol=0, atol=0)


def test_broken_weights_are_a_line(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    list(export_safetensors(load_run(run), folder))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-4])
    with pytest.raises(ValueError, match=r"weights: model\.safetensors cannot be loaded; "):
        load(folder)
    (folder / "model.safetensors").write_bytes(weights)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["hidden_dim"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"it does not fit model\.safetensors") as fault:
        load(folder)
    assert len(str(fault.value).splitlines()) == 1
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"weights: config\.json cannot be read; No such file"):
        load(folder)


def test_nothing_is_left_of_a_step_that_differs(
    run: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_old(model: LanguageModel, tensors: object, file: Path) -> None:
        shutil.copy(exported / "model.onnx", file)

    loaded = load_run(run)
    changed = dataclasses.replace(loaded, model=perturbed(loaded.model, "output.bias"))
    monkeypatch.setattr(onnx_folder, "write_step", write_old)
    with pytest.raises(ValueError, match=r"run: cannot be exported; logits differs from "):
        list(export_onnx(changed, tmp_path / "exported", is_int8=False))
    assert not list(tmp_path.iterdir())


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    killed = tmp_path / ".mine.partial"
    killed.mkdir()
    (killed / "old").touch()
    with written_folder(tmp_path / "mine") as partial:
        (partial / "new").touch()
        assert not (tmp_path / "mine").exists()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["new"]

    def fails(error: BaseException) -> None:
        with written_folder(tmp_path / "other") as partial:
            (partial / "half").touch()
            raise error

    with pytest.raises(KeyboardInterrupt):
        fails(KeyboardInterrupt())
    with pytest.raises(ValueError, match=r"other: cannot be written; No space left on device"):
        fails(OSError(28, "No space left on device"))
    with (
        pytest.raises(ValueError, match="mine: already exists; choose another --output"),
        written_folder(tmp_path / "mine"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nowhere", "nowhere: no such run directory"),
        (". --format tflite", "argument --format: invalid choice: 'tflite'"),
        (". --format safetensors --int8", "--int8 needs --format onnx; see --help"),
        (". --output here/there", "here: no such folder; make it first"),
        (".", ".: is not a run directory with a checkpoint; config.yaml is missing"),
    ],
)
def test_faults_are_a_line(command: Command, line: str, message: str) -> None:
    done = command("newllm.export", *line.split())
    assert (done.returncode, done.stdout) == (1, "")
    (told,) = done.stderr.splitlines()
    assert told.startswith(message)


def test_missing_packages_are_named_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import importlib.util as found, sys\n"
        "find = found.find_spec\n"
        "found.find_spec = lambda name: None if name.startswith('onnx') else find(name)\n"
        "import newllm.export\n"
        f"sys.argv = ['newllm.export', {str(tmp_path)!r}]\n"
        "try:\n    newllm.export.main()\n"
        "finally:\n    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "--format onnx: needs onnx, onnxscript, onnxruntime; pip install 'newllm[export]' installs "
        "all formats\n",
    )


def test_a_leaky_run_is_refused_in_a_line(command: Command, run: Path, tmp_path: Path) -> None:
    leaky = good_run(tmp_path / "leaky")
    target = "newllm.models.attention.Attention"
    sizes = {"embedding_dim": 4, "num_heads": 1, "num_layers": 1, "feedforward_dim": 4}
    tokenizer = load_run(run).tokenizer
    assert tokenizer is not None
    model = transformer(tokenizer.size, **sizes, leaky=True, positions="none")
    torch.save({"model": model.state_dict()}, leaky / "checkpoints" / "best.ckpt")
    config = config_of(tokenizer.size)
    kept = {key: config["model"][key] for key in ("_target_", "vocabulary_size")}
    layers = [{"_target_": target, "_partial_": True}]
    write_config(leaky, config | {"model": kept | sizes | {"layers": layers, "leaky": True}})
    done = command("newllm.export", str(leaky))
    told = "cannot be exported; it sees future tokens, which a step of one token does not read"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{leaky}: {told}\n")
    assert not list(leaky.glob("*export*"))
