"""What somebody meant by a key that does not exist."""

from __future__ import annotations

import difflib

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from newllm.config.origins import descend, leaves, origin, raw

# What a key is called here, and what other programs call it.
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
NEAR = 0.75  # how alike a word must be to one elsewhere; among its neighbours less is enough


def suggest(config: DictConfig, key: str) -> str | None:
    """A key of the configuration that is probably meant: a neighbour, or one of that name.

    Returns:
        The key at which its value is set; None if nothing is like it.
    """
    parent, _, leaf = key.rpartition(".")
    content = raw(config)
    holder = descend(content, parent) if parent else content
    meant = suggest(config, parent) if parent and holder is None else None
    if meant and isinstance(descend(content, meant), dict):
        nearer = f"{meant}.{leaf}"  # of `modl.hidden_dim` and `modl.hiden_dim`
        return nearer if _exists(content, nearer) else suggest(config, nearer)
    neighbours = [str(name) for name in holder or () if not str(name).startswith("_")]
    if not parent:
        neighbours += GlobalHydra.instance().config_loader().list_groups("")
    called = {
        word: name
        for name, words in OTHER_NAMES.items()
        for word in words.split()
        if name.startswith("hydra.") or _exists(content, name)
    }
    if leaf in called:
        return origin(content, called[leaf])
    if close := difflib.get_close_matches(leaf, neighbours, n=1):
        return f"{parent}.{close[0]}".lstrip(".")
    everywhere = {name.rpartition(".")[2]: name for name, _ in leaves(content) if "._" not in name}
    everywhere |= called
    if close := difflib.get_close_matches(leaf, everywhere, n=1, cutoff=NEAR):
        return origin(content, everywhere[close[0]])
    return None


def _exists(content: object, name: str) -> bool:
    parent, _, leaf = name.rpartition(".")
    holder = descend(content, parent) if parent else content
    return isinstance(holder, dict) and leaf in holder
