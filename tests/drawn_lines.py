"""Command lines drawn at random: groups, keys, sweeps, deletions, additions, flags, odd values."""

import random

from newllm.config.composing import conf_directory

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
    *("torch.optim.SGD", "torch.nn.Linear", "newllm.models.torch_rnn.LSTM", "os.system"),
    *("cpu", "gpu", "tpu", "16-mixed", "ddp", "error", "drop", "MULTIRUN", "basic", "none"),
    *("1,2", "0.1,0.2,x", "range(1,4)", "range(3,1)", "range(1,2,0)", "interval(0,1)", "choice()"),
    *("choice(1,2)", "glob(*)", "glob(t0*)", "glob(nope*)", "shuffle(1,2)", "tag(a,1,2)"),
    *("sort(3,1,2)", "int(2.5)", "str(1)", "bool(x)", "range(0,1000000000)", "(", "a=b", "a:b"),
    *("[1", "'", "../..", "/proc/nope", "x" * 300, "字" * 100, "\t", "a/b", "~", "+", "--"),
)
LIKELY_GROUPS = (
    "model",
    "data",
    "recipe",
    "countermeasure",
    "experiment",
    "gating",
    "normalization",
)
LIKELY = {
    "seed": ("0", "1", "1,2"),
    "model.hidden_dim": ("8", "16", "8,16", "7"),
    "model.embedding_dim": ("8", "9"),
    "model.context_dim": ("8",),
    "model.num_layers": ("1", "2"),
    "optimizer.lr": ("1e-3", "0.1", "1", "0"),
    "optimizer._target_": ("torch.optim.SGD", "torch.optim.RMSprop"),
    "~optimizer.betas": ("",),
    "~callbacks.curves": ("",),
    "schedule": ("null",),
    "trainer.max_epochs": ("1", "2", "0"),
    "recipe.max_epochs": ("1", "2"),
    "recipe.dropout": ("0", "0.5", "1"),
    "recipe.batch_size": ("1", "64", "0"),
    "recipe.gradient_clip": ("[]", "[[0,1.0]]", "[[1,1]]"),
    "budget.parameters": ("50000", "1", "null"),
    "budget.widths": ("{hidden_dim: 1}", "{embedding_dim: 1}"),
    "trainer.limit_train_batches": ("1", "0.5", "0", "2.0"),
    "trainer.precision": ("bf16-mixed", "32"),
    "callbacks.steps.every_n_steps": ("1", "0"),
    "logger": ("none", "tensorboard"),
    "data.train_sentences": ("1", "5", "null"),
    "data.max_length": ("4", "1"),
}
FLAGS = ("-m", "--multirun", "-r", "--nope", "--config-dir", "--config-name=nope", "-p", "--run")
LONGEST = 5  # words of a line


def draw_line(rng: random.Random) -> list[str]:
    """The words of a command line: in two of three anything, else what could be meant."""
    draw = _draw_word if rng.random() < 0.67 else _draw_likely_word
    words = [draw(rng) for _ in range(rng.randint(1, LONGEST))]
    if rng.random() < 0.3:
        words.insert(rng.choice((0, len(words))), "-m")
    if draw is _draw_word and rng.random() < 0.1:
        words.insert(rng.randint(0, len(words)), rng.choice(FLAGS))
    return words


def _draw_likely_word(rng: random.Random) -> str:
    if rng.random() < 0.5:
        group = rng.choice(LIKELY_GROUPS)
        return f"{group}={rng.choice(GROUPS[group])}"
    key, values = rng.choice(sorted(LIKELY.items()))
    return f"{key}={rng.choice(values)}".removesuffix("=")


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
