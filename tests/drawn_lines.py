"""Command lines drawn at random: groups, keys, sweeps, deletions, additions, flags, odd values."""

import random
from pathlib import Path

from newllm.config.build import conf_directory

GROUPS = {
    path.name: sorted(file.stem for file in path.iterdir())
    for path in sorted(conf_directory().iterdir())
    if path.is_dir()
}
KEYS = (
    *("seed", "name", "threads", "plan", "jobs", "test", "overwrite", "trusted_packages"),
    *("countermeasures", "parts", "left_out", "budget", "schedule", "callbacks", "logger"),
    *("budget.parameters", "budget.widths", "budget.widths.hidden_dim", "budget.step"),
    *("data.corpus", "data.seed", "data.path", "data.too_long", "data.batch_size"),
    *("data.train_sentences", "data.vocabulary_size", "data.max_length", "data.order_seed"),
    *("model._target_", "model.hidden_dim", "model.context_dim", "model.num_layers"),
    *("model.dropout", "model.num_heads", "model.context_clip", "model.vocabulary_size"),
    *("model.gating", "model.initialization", "model.recurrence", "gating", "gating._target_"),
    *("recipe", "recipe.max_epochs", "recipe.batch_size", "recipe.dropout", "recipe.fnn"),
    *("recipe.gradient_clip", "recipe.initialization.std", "recipe.output_classes"),
    *("optimizer._target_", "optimizer.lr", "optimizer.betas", "optimizer.weight_decay"),
    *("optimizer.fused", "optimizer.eps", "schedule.interval", "schedule.scheduler.pct_start"),
    *("trainer.max_epochs", "trainer.max_steps", "trainer.accelerator", "trainer.devices"),
    *("trainer.strategy", "trainer.precision", "trainer.limit_val_batches", "trainer.callbacks"),
    *("callbacks.context", "callbacks.context._target_", "callbacks.steps.small"),
    *("callbacks.early_stopping", "callbacks.early_stopping.patience", "logger.tensorboard"),
    *("countermeasures.early_stopping.patience", "countermeasures.early_stopping.min_delta"),
    *("hydra.run.dir", "hydra.sweep.dir", "hydra.sweeper.params", "hydra.mode", "hydra.nope"),
    *("hydra/launcher", "hydra/sweeper", "hydra.sweeper.params.seed", "hydra.job.chdir"),
    *(
        "learning_rate",
        "epochs",
        "recipe.learning_rat",
        "modle",
        "model.hiden_dim",
        "a.b.c",
        "漢字",
    ),
)
VALUES = (
    *("1", "0", "-1", "2.5", "1e-3", "1e400", "inf", "-inf", "nan", "9223372036854775808", "1e30"),
    *("true", "false", "null", "", "abc", "漢字", "'a b'", '"q"', "[]", "{}", "[1,2]", "{a: 1}"),
    *("[[0,1.0]]", "[[0,nan]]", "[null]", "{a: {b: [1]}}", "{_target_: os.system}", "???"),
    *("${seed}", "${nope}", "${oc.env:NOSUCH}", "${model}", "${oc.env:HOME}", "\\${evil}", "${"),
    *("torch.optim.SGD", "torch.nn.Linear", "newllm.models.recurrent.LSTMModel", "os.system"),
    *("cpu", "gpu", "tpu", "16-mixed", "ddp", "error", "drop", "MULTIRUN", "basic", "none"),
    *("1,2", "0.1,0.2,x", "range(1,4)", "range(3,1)", "range(1,2,0)", "interval(0,1)", "choice()"),
    *("choice(1,2)", "glob(*)", "glob(t0*)", "glob(nope*)", "shuffle(1,2)", "tag(a,1,2)"),
    *("sort(3,1,2)", "int(2.5)", "str(1)", "bool(x)", "range(0,1000000000)", "(", "a=b", "a:b"),
    *("[1", "'", "../..", "/proc/nope", "x" * 300, "字" * 100, "\t", "a/b", "~", "+", "--"),
)
FLAGS = ("-m", "--multirun", "-r", "--nope", "--config-dir", "--config-name=nope", "-p", "--run")
LONGEST = 5  # words of a line


def draw_line(rng: random.Random) -> list[str]:
    """The words of one command line, most of them wrong."""
    words = [_draw_word(rng) for _ in range(rng.randint(1, LONGEST))]
    if rng.random() < 0.3:
        words.insert(rng.choice((0, len(words))), "-m")
    if rng.random() < 0.1:
        words.insert(rng.randint(0, len(words)), rng.choice(FLAGS))
    return words


def _draw_word(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.3:
        group = rng.choice(sorted(GROUPS))
        options = rng.sample(GROUPS[group], k=min(len(GROUPS[group]), rng.randint(1, 3)))
        form = rng.choice(("{0}={1}", "{0}={1}", "{0}=[{1}]", "+{0}={1}", "~{0}", "{0}@x={1}"))
        return form.format(group, ",".join(options) if rng.random() < 0.3 else options[0])
    key, value = rng.choice(KEYS), rng.choice(VALUES)
    if kind < 0.4:
        return rng.choice((f"~{key}", f"~{key}={value}"))
    if kind < 0.5:
        return f"{rng.choice(('+', '++'))}{key}={value}"
    if kind < 0.53:
        return rng.choice((key, value, f"={value}", f"{key}==", f"{key}.={value}", f".{key}=1"))
    return f"{key}={value}"


def is_written_in(folder: Path) -> bool:
    """Whether anything was left in a folder."""
    return any(folder.iterdir())
