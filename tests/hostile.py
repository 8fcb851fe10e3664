"""What the tests of hostile run directories share: a good one, and a watch on what is done."""

import codecs
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from small_models import context_model

from newllm.data.sources.sentences import SentenceSource

Damage = Callable[[Path], None]

CELL = {"_target_": "newllm.models.cell.ContextCell", "_partial_": True}
LAYER = {"_target_": "newllm.models.recurrent.Recurrent", "_partial_": True, "cell": CELL}
SIZES: dict[str, Any] = {"embedding_dim": 4, "context_dim": 4, "hidden_dim": 4, "num_layers": 1}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# What Python tells of its own accord, by the beginnings of the names (PEP 578).
DEEDS = (
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork"),
    *("os.kill", "os.putenv", "os.unsetenv", "subprocess.", "socket.", "shutil.", "tempfile."),
    *("ctypes.", "pickle.find_class", "urllib.", "webbrowser.", "pty.", "sqlite3.", "marshal.load"),
    *("code.__new__", "cpython.run", "builtins.input", "builtins.breakpoint"),
)


class Watch:
    """Notes deeds of this process while `on`: a hook can be added, but never taken away."""

    def __init__(self) -> None:
        self.on = False
        self.deeds: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            is_deed = bool((arguments[2] or 0) & WRITES)
        elif event == "import":
            # A module that is imported comes with a file; a builtin one is none of a stranger's.
            is_deed = arguments[0] not in sys.modules
        else:
            is_deed = event.startswith(DEEDS)
        if is_deed:
            self.deeds.append(f"{event} {arguments}")


WATCH = Watch()
codecs.lookup("cp437")  # Python's own archives load it late


@contextmanager
def nothing_done(top: Path) -> Iterator[None]:
    """Fail if something is written, removed, imported, started or sent, below `top` or anywhere."""
    before = listing(top)
    WATCH.deeds.clear()
    WATCH.on = True
    try:
        yield
    finally:
        WATCH.on = False
    assert not WATCH.deeds, WATCH.deeds
    assert listing(top) == before


def listing(top: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and time: what is written in C++ is told to nobody."""
    return {
        str(path): ((found := path.lstat()).st_size, found.st_mtime_ns) for path in top.rglob("*")
    }


def good_run(folder: Path) -> Path:
    """A small run directory that can be loaded, evaluated and compared."""
    data = SentenceSource("tiny30", order_seed=1, directory=None)
    data.setup()
    with torch.random.fork_rng():
        torch.manual_seed(1)  # by chance, no unit of so few may be on: then all logits are equal
        model = context_model(data.tokenizer.size, **SIZES)
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"model": model.state_dict()}, folder / "checkpoints" / "best.ckpt")
    (folder / "tokenizer.json").write_text(data.tokenizer.to_json(), encoding="utf-8")
    write_config(folder, config_of(data.tokenizer.size))
    result = {
        "status": "done", "experiment": None, "name": "mine", "seed": 1, "corpus": "tiny30",
        "parameters": 100, "threads": 1, "references": {"unigram": 4.0, "bigram": 3.0},
        "best_val_loss": 3.5, "best_val_loss_batch_mean": 3.5, "best_epoch": 1, "seconds": 1.0,
        "data_sha256": data.digest, "config_hash": "0123456789abcdef", "error": None,
        "spikes": {"val_by_step": [], "val_by_epoch": [], "train_by_step": []},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "metrics.csv").write_text("epoch,step,train/loss,val/loss\n1,2,4.0,3.5\n")
    (folder / "validation_steps.csv").write_text("step,val/loss,unk,eos,other\n0,4,1,1,2\n")
    return folder


def config_of(vocabulary_size: int) -> dict[str, Any]:
    """Its configuration."""
    model = {"_target_": "newllm.models.language_model.LanguageModel", "layers": [LAYER],
             "vocabulary_size": vocabulary_size}  # fmt: skip
    target = "newllm.data.sources.sentences.SentenceSource"
    data = {"_target_": target, "corpus": "tiny30", "order_seed": 1}
    recurrence = {"_target_": "newllm.models.recurrence.fused.Fused"}
    return {"model": model | SIZES | {"recurrence": recurrence}, "data": data, "seed": 1}


def write_config(folder: Path, config: Any) -> None:
    """As JSON, which is YAML too."""
    (folder / "config.yaml").write_text(json.dumps(config))


def copy_of(run: Path, folder: Path) -> Path:
    """A copy to be damaged."""
    shutil.copytree(run, folder)
    return folder
