"""What somebody meant by a key that does not exist."""

from __future__ import annotations

import difflib

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from newllm.config.origins import descend, leaves, origin, raw

# What other programs call it, and what it is called here.
SYNONYMS = {
    "learning_rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "wd": "optimizer.weight_decay",
    "beta": "optimizer.betas",
    "epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "n_epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "num_steps": "trainer.max_steps",
    "device": "trainer.accelerator",
    "dtype": "trainer.precision",
    "batch": "data.batch_size",
    "batchsize": "data.batch_size",
    "dropout_rate": "model.dropout",
    "hidden_size": "model.hidden_dim",
    "hidden": "model.hidden_dim",
    "width": "model.hidden_dim",
    "d_model": "model.embedding_dim",
    "embedding_size": "model.embedding_dim",
    "emb_dim": "model.embedding_dim",
    "context_size": "model.context_dim",
    "state_size": "model.context_dim",
    "layers": "model.num_layers",
    "n_layers": "model.num_layers",
    "depth": "model.num_layers",
    "heads": "model.num_heads",
    "n_heads": "model.num_heads",
    "vocab_size": "data.vocabulary_size",
    "sequence_length": "data.max_length",
    "max_len": "data.max_length",
    "file": "data.path",
    "grad_clip": "recipe.gradient_clip",
    "clip": "recipe.gradient_clip",
    "gradient_clip_val": "recipe.gradient_clip",
    "warmup": "schedule.scheduler.pct_start",
    "early_stopping": "countermeasures.early_stopping.patience",
    "random_seed": "seed",
    "num_threads": "threads",
    "dry_run": "plan",
    "output_dir": "hydra.run.dir",
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
    neighbours = [str(name) for name in holder or () if not str(name).startswith("_")]
    if not parent:
        neighbours += GlobalHydra.instance().config_loader().list_groups("")
    synonyms = {word: name for word, name in SYNONYMS.items() if _exists(content, name)}
    if leaf in synonyms:
        return origin(content, synonyms[leaf])
    if close := difflib.get_close_matches(leaf, neighbours, n=1):
        return f"{parent}.{close[0]}".lstrip(".")
    everywhere = {
        name.rpartition(".")[2]: name for name, _ in leaves(content) if "._" not in name
    } | synonyms
    if close := difflib.get_close_matches(leaf, everywhere, n=1, cutoff=NEAR):
        return origin(content, everywhere[close[0]])
    return None


def _exists(content: object, name: str) -> bool:
    parent, _, leaf = name.rpartition(".")
    holder = descend(content, parent) if parent else content
    return name.startswith("hydra.") or (isinstance(holder, dict) and leaf in holder)
