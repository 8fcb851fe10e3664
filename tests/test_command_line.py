"""Every fault of a command line: one line each, all at once, exit code 1, nothing written."""

import importlib
from pathlib import Path

import pytest
from conftest import Command, faults_of

from newllm.config.build import ConfigFault
from newllm.config.command_line import asks_hydra, check_shown
from newllm.config.composing import conf_directory
from newllm.config.sweeper import FORMS
from newllm.train import main

MODEL_KEYS = (
    "layers, vocabulary_size, embedding_dim, context_dim, hidden_dim, num_layers, positions, "
    "max_length, dropout, embedding_dropout, output_dropout, fnn, context_clip, gating, "
    "normalization, recurrence, recompute, initialization"
)
MODELS = ", ".join(sorted(path.stem for path in (conf_directory() / "model").iterdir()))
REMOVED = "experiment=modern recipe.fnn=plain"
FAULTY = {
    "model=transformer gating=lstm": ["gating=lstm: is not used with the other choices; remove it"],
    "model.hiden_dim=3": ["model.hiden_dim: unknown key; did you mean model.hidden_dim?"],
    "model=gatd": [f"model=gatd: no such option; options: {MODELS}"],
    "trainer.max_epochs=abc seed=abc": [
        "trainer.max_epochs=abc: must be a whole number, like the default 50",
        "seed=abc: must be a whole number, like the default 1",
    ],
    "model=gatd model.hiden_dim=3 seed=1.5": [
        f"model=gatd: no such option; options: {MODELS}",
        "model.hiden_dim: unknown key; did you mean model.hidden_dim?",
        "seed=1.5: must be a whole number, like the default 1",
    ],
    "countermeasure=null": [
        "countermeasure=null: no such option; options: context_clipping, cosine_annealing, "
        "data_augmentation, early_stopping, none, quality_data, weight_decay"
    ],
    "countermeasure=data_augmentation data=tiny30": [
        "countermeasure=data_augmentation requires data=augmented124, but data=tiny30 is set; "
        "remove one of the two"
    ],
    "countermeasure=[data_augmentation,quality_data]": [
        "countermeasure=[data_augmentation,quality_data]: data_augmentation wants "
        "data=augmented124 and quality_data wants data=quality500; keep one of them"
    ],
    "countermeasure=[none,weight_decay]": [
        "countermeasure=[none,weight_decay]: none excludes all others; remove it or the others"
    ],
    "countermeasure=[weight_decay,weight_decay]": [
        "countermeasure=[weight_decay,weight_decay]: lists an option twice"
    ],
    "model=[gated,lstm]": ["model=[gated,lstm]: takes one option, not a list"],
    "sweep=recall data.curiculum=10": [
        "data.curiculum: unknown key; did you mean data.curriculum?"
    ],
    "sweep=recall data.curriculum=x": [
        "data.curriculum=x: must be a whole number, like the default 2500"
    ],
    "sweep=state_tracking only=s3_* data.groop=s5": [
        "data.groop: unknown key; did you mean data.group?"
    ],
    "model=transformer countermeasure=context_clipping": [
        "model.context_clip (from countermeasure=context_clipping): Attention takes no context_clip"
    ],
    "model=lstm recipe.fnn=residual": [
        "recipe.fnn=residual: is not used with the other choices; remove it"
    ],
    "+foo=1": ["+foo: unknown key; remove it"],
    "foo": ["foo: not an override; write KEY=VALUE, quoting special characters"],
    "trainer.max_epochs=true": [
        "trainer.max_epochs=true: must be a whole number, like the default 50"
    ],
    "plan=1": ["plan=1: must be true or false, like the default false"],
    "recipe.gradient_clip=1.0": [
        "recipe.gradient_clip=1.0: must be a list, like the default [[0,0.5],[10,1.0],[30,2.0]]"
    ],
    "+callbacks.x._target_=os.system": [
        "callbacks.x._target_=os.system: does not come from newllm, torch, torchmetrics, "
        "lightning; if you trust it: trusted_packages=[PACKAGE]"
    ],
    "callbacks.early_stopping.patience=3": [
        "callbacks.early_stopping.patience: is set by countermeasures.early_stopping.patience; "
        "set that instead"
    ],
    "model.hidden_dim=null seed=null": [
        "seed=null: must be a whole number, like the default 1",
        "model.hidden_dim=null: must be a whole number",
    ],
    "recipe=modern recipe.initialization=null": [
        "recipe.initialization=null: must be a mapping, like the default "
        "{_target_,_partial_,embedding_std,output_gain}"
    ],
    "budget.step=8": [
        "budget.step=8: has no effect without budget.parameters or budget.state_bytes; "
        "set one or remove it"
    ],
    "budget.parameters=100000 +budget.state_widths.context_dim=1": [
        "budget.state_widths.context_dim=1: has no effect without budget.state_bytes; "
        "set one or remove it",
    ],
    "callbacks=none +callbacks.steps.small=3": [
        "callbacks.steps.small=3: has no effect, since callbacks has no steps; remove it"
    ],
    "+callbacks.mine=${nope}": ["callbacks.mine=${nope}: Interpolation key 'nope' not found"],
    "only=a*": ["only=a*: is used by sweeps only; add -m or remove it"],
    "-m seed=1,2 jobs=2 seeds_at_once=2 overwrite=true hydra/launcher=basic": [
        f"{line}: is used by hydra/launcher=local only; remove it"
        for line in ("jobs=2", "seeds_at_once=2")
    ],
    "hydra.run.dir=null": [
        "Error merging override hydra.run.dir=null: field 'hydra.run.dir' is not Optional"
    ],
    "--nope seed=1 -p sead=3": [
        f"{word}: unknown flag; known flags: -m, --config-dir, --config-name, --help and --cfg"
        for word in ("--nope", "-p")
    ]
    + ["sead: unknown key; did you mean seed?"],
    "callbacks={}": ["callbacks={}: no such option; options: default, none"],
    "~budget": ["~budget: cannot be removed; set it instead"],
    "~recipe": ["~recipe: cannot be removed; choose one of its options"],
    "data.seed=abc model.context_clip=true": [
        "model.context_clip=True: must be a number",
        "data.seed=abc: must be a whole number",
    ],
    "-m model=gatd,lstm seed=1,x": [
        f"model=gatd: no such option; options: {MODELS}",
        "seed=x: must be a whole number, like the default 1",
    ],
    "--config-dir nowhere": ["--config-dir nowhere: no such folder"],
    "--config-dir": ["argument --config-dir/-cd: expected one argument"],
    # A key is told by the name that was meant, wherever it stands.
    "recipe.learning_rat=1": ["recipe.learning_rat: unknown key; did you mean optimizer.lr?"],
    "epochs=3": ["epochs: unknown key; did you mean recipe.max_epochs?"],
    "trainer=smoke epochs=3": ["epochs: unknown key; did you mean trainer.max_epochs?"],
    "modle=lstm": ["modle: unknown key; did you mean model?"],
    "modl.hiden_dim=3": ["modl.hiden_dim: unknown key; did you mean model.hidden_dim?"],
    "+seed=3": ["+seed=3: already exists; remove the +"],
    # Leaving out what is needed, or what would let a default in.
    "~data.too_long": ["~data.too_long: cannot be removed; set it instead"],
    "~model._target_": ["~model._target_: cannot be removed; set it instead"],
    "~model.vocabulary_size": ["~model.vocabulary_size: cannot be removed; set it instead"],
    "~optimizer._target_": ["~optimizer._target_: cannot be removed; set it instead"],
    "~callbacks.curves=foo": ["~callbacks.curves=foo: write ~callbacks.curves to remove it"],
    "gating.bias=1": [
        "gating.bias: unknown key; gating holds no keys; write +gating.bias=VALUE for an argument "
        "of its class"
    ],
    "~model.nope": ["model.nope: unknown key; model has " + MODEL_KEYS],
    "optimizer._target_=torch.optim.SGD": [
        "optimizer.betas: SGD takes no betas; remove it: '~optimizer.betas'"
    ],
    "schedule._target_=newllm.training.module.Schedule": [
        "schedule._target_: unknown key; schedule holds no keys"
    ],
    # Numbers that no library checks.
    "optimizer.lr=inf": ["optimizer.lr=inf: must be finite"],
    "optimizer.lr=0": ["optimizer.lr=0: must be above 0"],
    "countermeasures.early_stopping.patience=-5": [
        "countermeasures.early_stopping.patience=-5: must be at least 0"
    ],
    "countermeasures.early_stopping.min_delta=nan": [
        "countermeasures.early_stopping.min_delta=nan: must be finite"
    ],
    "recipe.gradient_clip=[[0,nan]]": ["recipe.gradient_clip=[[0,nan]]: must be finite"],
    "trainer.devices=9223372036854775808": [
        "trainer.devices=9223372036854775808: must be at most 9223372036854775807"
    ],
    "data.train_sentences=9223372036854775808": [
        "data.train_sentences=9223372036854775808: must be at most 9223372036854775807"
    ],
    **{
        f"{sign}trainer.{key}={value}": [
            f"trainer.{key}={value}: must be a whole number from {smallest}"
        ]
        for sign, key, value, smallest in (
            ("", "max_epochs", "-1", 1),
            ("", "max_steps", "-2", -1),
            ("+", "accumulate_grad_batches", "abc", 1),
            ("+", "accumulate_grad_batches", "0", 1),
            ("+", "check_val_every_n_epoch", "true", 1),
            ("+", "check_val_every_n_epoch", "1.5", 1),
        )
    },
    "trusted_packages=[3]": ["trusted_packages=[3]: must be a list of names"],
    "trainer.max_steps=null": ["trainer.max_steps=null: must be a whole number from -1"],
    "data=parity countermeasure=data_augmentation": [
        "countermeasure=data_augmentation requires data=augmented124, but other data are set; "
        "remove one of the two"
    ],
    # Values that cannot be told.
    "+callbacks.a=${callbacks}": [
        "callbacks={progress,throughput,steps,curves,samples,context,early_stopping,a}: "
        "Interpolation to parent node detected"
    ],
    "callbacks.context._target_=???": ["callbacks.context._target_=???: has no value; set it"],
    "seed=${seed}": ["seed=${seed}: Recursive interpolation detected"],
    **{
        f"{key}=${{oc.env:NOSUCH}}": [
            f"{key}{told}: KeyError raised while resolving interpolation: "
            "\"Environment variable 'NOSUCH' not found\""
        ]
        for key, told in (
            ("name", "=${oc.env:NOSUCH}"),
            ("recipe.max_epochs", "=${oc.env:NOSUCH}"),
            ("hydra.run.dir", ""),
            ("hydra.mode", ""),
        )
    },
    # Sweeps over nothing.
    "-m seed=range(3,1)": ["seed=range(3,1): has no value"],
    "sweep=series,claims": [
        "sweep=series,claims: takes one value; sweeps are over keys of the experiment"
    ],
    "name=[a]": ["name=[a]: must be a word"],
    "-m data.seed=glob(*)": ["data.seed=glob(*): has no value"],
    "-m hydra.sweeper.params=3": [
        "hydra.sweeper.params=3: must be a mapping of keys to values, as in {seed: '1,2'}"
    ],
    "-m +hydra.sweeper.params={sead:'1,2'}": [
        "hydra.sweeper.params: sead: unknown key; did you mean seed?"
    ],
    **{
        f"-m ++hydra.sweeper.{part}={value}": [
            f"hydra.sweeper.{part}={shown}: must be {FORMS[part]}"
        ]
        for part, value, shown in (
            ("variants", "5", "5"),
            ("then", "5", "5"),
            ("then", "{a:5}", "{a}"),
            ("trials", "5", "5"),
            ("trials", "{number:0,seed:1,space:{}}", "{number,seed,space}"),
            ("trials", "{number:1}", "{number}"),
            ("trials", "{space:{seed:{low:1,high:2}}}", "{space}"),
        )
    },
    "-m +hydra.sweeper.variants={a:[modl]} +hydra.sweeper.then.b={seed:'1,'}": [
        f"hydra.sweeper.{line}: not an override; write KEY=VALUE, quoting special characters"
        for line in ("variants.a: modl", "then.b: seed=1,")
    ],
    "-m +hydra.sweeper.variants={a:5}": [
        "hydra.sweeper.variants.a: must be a list of overrides, such as [model=lstm]"
    ],
    # A run that would pass for a variant of a study and is made otherwise.
    f"study=ladder {REMOVED} model.hidden_dim=8 variant=remove_residual": [
        f"variant=remove_residual: sweep=ladder defines it as {REMOVED}; remove study= and variant="
    ],
    "study=ladder model=gru variant=modern": [
        "variant=modern: is an experiment; use experiment=modern instead"
    ],
    "study=ladder model=gru variant=mine": ["variant=mine: sweep=ladder has no such variant"],
    **{
        line: [f"{marks}: must be study=STUDY, the lines of a variant, variant=VARIANT"]
        for line, marks in (
            ("model=gru variant=phase1_baseline", "variant=phase1_baseline"),
            (f"{REMOVED} study=ladder", "study=ladder"),
            (f"model.num_layers=2 study=ladder {REMOVED} variant=x", "study=ladder variant=x"),
        )
    },
    "hydra.run.dir=/proc/nope": [
        "hydra.run.dir=/proc/nope: cannot be written (No such file or directory); "
        "choose another folder"
    ],
    f"hydra.run.dir={'x' * 256}": [
        f"hydra.run.dir={'x' * 57}...: a name of more than 255 bytes; choose a shorter one"
    ],
    # What was chosen by name stays a fault, what an experiment says for its own model does not.
    "experiment=modern model=lstm model.context_dim=3": [
        "model.context_dim: LSTM takes no context_dim"
    ],
    "experiment=phase5_context_clipping_exp1 model=lstm": [
        "model.context_clip (from countermeasure=context_clipping): LSTM takes no context_clip"
    ],
}


@pytest.mark.parametrize("line", FAULTY)
def test_faults_are_one_line_each(line: str) -> None:
    assert faults_of(line.split()) == FAULTY[line]


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "newllm.runs.directory.subprocess.Popen",
        "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler",
        "torch.hub.load",
        "lightning.pytorch.callbacks.lambda_function.Callable",
    ],
)
def test_targets_that_could_execute_anything_are_refused(target: str) -> None:
    (fault,) = faults_of([f"+callbacks.x._target_={target}"])
    assert fault.startswith(
        (f"callbacks.x._target_={target}: no", f"callbacks.x._target_={target}: is not")
    )


def test_positional_arguments_do_not_pass_unseen() -> None:
    (fault,) = faults_of(["+callbacks.curves._args_=[1]"])
    assert fault == "callbacks.curves._args_: is not used here; remove it"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "experiment=none",
        "countermeasures.early_stopping.patience=3",
        "data.seed=3 model.context_clip=5",
        "experiment=modern",
        "model=gated gating=none",
        "model=gated gating=lstm",
        "recipe=modern countermeasure=weight_decay",
        "countermeasure=[cosine_annealing,weight_decay]",
        "countermeasure=none optimizer.lr=1",
        "data.seed=3 data.vocabulary_size=100",
        "-m seed=1,2 model=context,lstm",
        "model=lstm -m seed=1,2",
        "-m seed=range(1,4)",
        "-m experiment=glob(phase3_*) seed=1,2",
        "sweep=series only=phase1*,lstm seed=1,2",
        "sweep=recall data.curriculum=10 data.evaluation_rows=2",
        "recipe.gradient_clip=[]",
        "name=2026",
        "recipe.output_classes=null data.train_sentences=null",
        "recipe=modern schedule=null callbacks.samples=null",
        "+trainer.val_check_interval=null",
        "recipe=modern budget.parameters=1000 budget.widths={hidden_dim:1} budget.step=2",
        "~callbacks.samples",
        "optimizer._target_=torch.optim.SGD ~optimizer.betas",
        "-m hydra.sweeper.params=null seed=1",
        "experiment=modern model=transformer",
        "-m experiment=modern model=gated,lstm,transformer",
        "experiment=phase1_baseline model=lstm",
        "budget.parameters=1000000 budget.widths={hidden_dim:1}",
        "name='漢字'",
        "experiment=phase3_gating_wide_long trainer=smoke",
        f"hydra.run.dir=x study=ladder {REMOVED} variant=remove_residual model.hidden_dim=8",
        "study=not_there model=gru variant=mine",
    ],
)
def test_good_command_lines_have_no_faults(line: str) -> None:
    assert faults_of(line.split()) == []


@pytest.mark.parametrize("line", ["-sc install=bash", "--cfg job", "--help", "seed=abc --info=all"])
def test_questions_are_left_to_hydra(line: str) -> None:
    assert asks_hydra(line.split())
    assert not asks_hydra(["seed=1"])


@pytest.mark.parametrize(
    "line",
    [
        *("model.hidden_dim=0", "recipe.dropout=2", "data.batch_size=0", "trainer.precision=16"),
        *("trainer.devices=0", "model.hiden_dim=1", "seed=x"),
        *("gating=lstm model=gru", "name=[a]", "sweep=series,claims"),
    ],
)
def test_classes_are_not_imported_for_a_fault_that_shows_without_them(
    monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    def no_classes(*_: object) -> list[str]:
        raise AssertionError("classes were imported")

    monkeypatch.setattr("newllm.config.overrides.class_faults", no_classes)
    assert len(faults_of(line.split())) == 1


def test_a_shown_configuration_has_its_faults_in_a_line_too() -> None:
    check_shown(["--cfg", "job", "--resolve", "-p", "data", "seed=2"])
    with pytest.raises(ConfigFault, match=r"^sead: unknown key; did you mean seed\?\nseed=x: "):
        check_shown(["--cfg", "job", "sead=1", "seed=x"])
    with pytest.raises(ConfigFault, match=r"^argument --cfg/-c: invalid choice: 'jobs' .*'all'\)$"):
        check_shown(["--cfg", "jobs"])


def test_faults_of_a_variant_in_a_folder_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "gating").mkdir()
    (tmp_path / "gating" / "mine.yaml").write_text(
        "_target_: newllm.models.gating.Additive\n_partial_: true\n"
    )
    given = ["--config-dir", str(tmp_path)]
    assert faults_of([*given, "gating=mine"]) == []
    assert faults_of([*given, "gating=yours"]) == [
        "gating=yours: no such option; options: lstm, mine, none"
    ]


def test_the_smoke_trainer_goes_with_a_source_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("_target_: copy_task.Copy\nmax_length: 12\n")
    given = ["--config-dir", str(tmp_path), "data=mine", "trusted_packages=[copy_task]"]
    chosen = ["countermeasure=none", "trainer=smoke"]
    assert faults_of([*given, *chosen]) == []
    assert faults_of([*given, *chosen, "+data.nope=1"]) == ["data.nope: Copy takes no nope"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trainer.max_epochs=abc seed=abc", "trainer.max_epochs=abc"),
        ("seed=1,2", "seed=1,2: several values need a sweep; add -m"),
        ("jobs=2", "jobs=2: is used by sweeps only; add -m or remove it"),
        ("seeds_at_once=2", "seeds_at_once=2: is used by sweeps only; add -m or remove it"),
        (
            "-m seed=1,2 seeds_at_once=0",
            "seeds_at_once=0: must be a whole number from 1 to 1024",
        ),
        (
            "-m seed=1,2 seeds_at_once=2 trainer.devices=2",
            "seeds_at_once=2: takes one device, but trainer.devices=2; remove one of the two",
        ),
        (
            "recipe.max_epochs=3 trainer.max_epochs=2",
            "recipe.max_epochs=3: is not used with the other choices; remove it",
        ),
        ("trainer=smoke recipe.max_epochs=3", "recipe.max_epochs=3: is not used"),
        (
            "model=lstm recipe.fnn=residual",
            "recipe.fnn=residual: is not used",
        ),
        ("-m experiment=glob(phase7_*)", "experiment=glob(phase7_*): matches no option"),
        ("model=transformer model.num_heads=3", "model.num_heads=3"),
        ("recipe=modern countermeasure=weight_decay model.dropout=2", "model.dropout=2"),
        ("data=text", "data=text: needs data.path=FILE"),
        ("data=text data.path=empty.txt", "empty.txt"),
        ("data=text data.path=binary.txt", "binary.txt"),
        ("data=text data.path=one.txt", "one.txt"),
        ("data=text data.path=missing.txt", "missing.txt"),
        ("recipe.fnn=odd recipe.gradient_clip=[[1,1]]", "recipe.fnn=odd"),
        ("optimizer.lr=-1.0", "optimizer.lr=-1.0: must be above 0"),
        ("recipe.batch_size=0", "recipe.batch_size=0: must be at least 1"),
        ("data.batch_size=0", "data.batch_size=0: must be at least 1"),
        ("recipe.dropout=1.5", "recipe.dropout=1.5: must be"),
        ("trainer.accelerator=nope", "trainer.accelerator=nope: "),
        ("recipe=modern schedule.scheduler.anneal_strategy=x", "schedule: anneal_strategy must be"),
        (
            "model=transformer model.num_heads=3 budget.parameters=9000 "
            "budget.widths={embedding_dim:1} budget.step=4",
            "multiples of budget.step=4",
        ),
        ("trainer.precision=17", "17"),
        ("seed=-1 threads=abc", "seed=-1: must be a whole number from 0"),
        ("trainer.devices=0", "trainer.devices=0: must be a whole number from 1"),
        ("trainer.strategy=ddp", "trainer.strategy"),
        ("optimizer.betas=[0.9]", "optimizer: list index out of range"),
        ("hydra.run.dir=one.txt", "hydra.run.dir=one.txt: is a file, not a folder"),
        ("data.too_long=foo data.batching=zz", "data.batching=zz"),
        ("trainer.max_epochs=-3", "max_epochs"),
        ("trainer.max_epochs=0", "trainer.max_epochs=0: must be a whole number from 1"),
        ("+trainer.limit_val_batches=1", "use data.validation_sentences=N"),
        ("+trainer.overfit_batches=1", "use data.train_sentences=N"),
        ("+trainer.accumulate_grad_batches=99", "an epoch has 25 batches; lower it"),
        ("trainer.max_steps=1", "before its first validation after 25"),
        ("recipe=modern schedule.scheduler.pct_start=2", "pct_start"),
        ("hydra.run.dir=taken", "taken: already contains a run"),
        ("model.vocabulary_size=100", "data.vocabulary_size=100"),
    ],
)
def test_a_faulty_run_ends_with_lines_and_code_1(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    message: str,
) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    (tmp_path / "one.txt").write_text("a single sentence\n")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "result.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["newllm.train", *line.split()])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[0]
    num_faults = (
        2 if any(part in line for part in ("=abc", "gradient_clip", "=zz", "budget.step=4")) else 1
    )
    assert len(lines) == num_faults, lines
    assert not [path for path in tmp_path.rglob("outputs/*/*/*") if path.is_file()]


@pytest.mark.parametrize(
    "module", ["benchmark", "data.__main__", "evaluate", "export", "generate", "report"]
)
def test_the_other_tools_tell_a_fault_in_a_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: str
) -> None:
    monkeypatch.setattr("sys.argv", ["tool", "run", "--nope=1"])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"newllm.{module}").main()
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "--nope=1" in line


def test_the_command_line_itself_ends_so(command: Command) -> None:
    done = command("newllm.train", "trainer.max_epochs=abc", "seed=abc")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 2
    assert done.stdout == ""
