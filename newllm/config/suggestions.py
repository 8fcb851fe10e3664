"""Suggestions for a key that does not exist."""

from __future__ import annotations

import difflib

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from newllm.config.origins import leaves, origin, raw

# Names of other programs for the keys of this one.
OTHER_NAMES = {
    "optimizer.lr": "learning_rate lr",
    "optimizer.weight_decay": "wd",
    "optimizer.betas": "beta",
    "trainer.max_epochs": "epochs num_epochs n_epochs",
    "trainer.max_steps": "steps num_steps",
    "trainer.accelerator": "device",
    "trainer.precision": "dtype",
    "data.batch_size": "batch batchsize",
    "data.vocabulary_size": "vocab_size",
    "data.max_length": "sequence_length max_len",
    "data.path": "file",
    "model.dropout": "dropout_rate",
    "model.hidden_dim": "hidden_size hidden width",
    "model.embedding_dim": "d_model embedding_size emb_dim",
    "model.context_dim": "context_size state_size",
    "model.num_layers": "layers n_layers depth",
    "model.num_heads": "heads n_heads",
    "recipe.gradient_clip": "grad_clip clip gradient_clip_val",
    "schedule.scheduler.pct_start": "warmup",
    "countermeasures.early_stopping.patience": "early_stopping",
    "seed": "random_seed",
    "threads": "num_threads",
    "plan": "dry_run",
    "hydra.run.dir": "output_dir",
}
NEAR = 0.75  # how alike two words must be


def suggest(config: DictConfig, key: str) -> str | None:
    """The key that is probably meant: the one at which its value is set; None if none is close."""
    content, leaf = raw(config), key.rpartition(".")[2]
    keys = dict.fromkeys(GlobalHydra.instance().config_loader().list_groups(""))
    for name, _ in leaves(content):
        parts = name.split(".")
        keys |= dict.fromkeys(".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    keys = {name: None for name in keys if "._" not in name}
    called = {
        word: name
        for name, words in OTHER_NAMES.items()
        for word in words.split()
        if name.startswith("hydra.") or name in keys
    }
    if leaf in called:
        return origin(content, called[leaf])
    if close := difflib.get_close_matches(key, keys, n=1, cutoff=NEAR):
        return close[0]
    called |= {name.rpartition(".")[2]: name for name in keys}
    close = difflib.get_close_matches(leaf, called, n=1, cutoff=NEAR)
    return origin(content, called[close[0]]) if close else None
