"""A run that goes on from a checkpoint equals the uninterrupted one, bit for bit."""

from itertools import product
from pathlib import Path

import pytest
import torch
from conftest import Compose
from lightning.pytorch import Callback, Trainer

from newllm.training.experiment import Experiment, build_experiment

# 24 sentences in batches of 5: five steps an epoch, 15 in all.
RUN = (
    *("data=tiny30", "data.batch_size=5", "trainer.max_epochs=3"),
    *("logger=none", "callbacks=none", "model.embedding_dim=8"),
)
SIZES = {
    "context": ("model.context_dim=8", "model.hidden_dim=8", "model.num_layers=2"),
    "transformer": ("model.num_heads=2", "model.feedforward_dim=8", "model.num_layers=2"),
    "lstm": ("model.hidden_dim=8", "model.num_layers=2"),
}
MODELS = {
    "context": "context",
    "gated": "context",
    "transformer": "transformer",
    "lstm": "lstm",
    "gru": "lstm",
    "elman": "lstm",
    "mingru": "lstm",
}
RECIPES = {
    "original": ("recipe=original", "countermeasure=none"),
    "modern": ("recipe=modern", "countermeasure=none"),
}
SCHEDULES = {
    "constant": ("schedule=null",),
    "one cycle by steps": (
        "schedule={_target_:newllm.training.module.Schedule,interval:step,scheduler:{"
        "_target_:torch.optim.lr_scheduler.OneCycleLR,_partial_:true,max_lr:0.01}}",
    ),
    "cosine by epochs": ("countermeasure=cosine_annealing",),
}
AVERAGED = "+callbacks.average={_target_:lightning.pytorch.callbacks.EMAWeightAveraging}"
OPTIONS = {
    "bfloat16": ("trainer.precision=bf16-mixed",),
    "accumulated": ("+trainer.accumulate_grad_batches=2", "trainer.max_epochs=4"),
    "validated often": ("+trainer.val_check_interval=2",),
    "validated across epochs": (
        "+trainer.val_check_interval=4",
        "+trainer.check_val_every_n_epoch=null",
    ),
    "validated seldom": ("+trainer.check_val_every_n_epoch=2",),
    "averaged": (AVERAGED,),
    "stopped early": ("countermeasure=early_stopping", "countermeasures.early_stopping.patience=1"),
    "one batch an epoch": ("data.batch_size=30", "trainer.max_epochs=11"),
    "bucketed": ("recipe.batching=bucketed",),
    "limited": ("trainer.limit_train_batches=3", "trainer.max_epochs=5"),
    "by tokens": ("max_tokens=400",),
    "plain loop": ("recurrence=reference",),
    "recomputed": ("model.recompute=true",),
}
# 20 short documents in two rows: five steps an epoch, with the state carried from step to step.
STREAM = (
    *("data=text", "data.path=text.txt", "data.feed=stream", "data.tbptt_steps=12"),
    *("data.batch_size=2", "data.validation_fraction=0.2", "recipe.output_classes=null"),
)
# Before these steps, from 0: after the first one, within an epoch, its last, its first.
MOMENTS = (1, 7, 9, 10)

# The models with both recipes, and the options with each: what is asked of every commit.
CASES = [
    *((f"{model}, {recipe}", (*_sized, *RECIPES[recipe]))
      for (model, recipe) in product(MODELS, RECIPES)
      for _sized in [(f"model={model}", *SIZES[MODELS[model]])]),
    *((f"gated, modern, {name}", ("model=gated", *SIZES["context"], *RECIPES["modern"], *chosen))
      for name, chosen in (SCHEDULES | OPTIONS).items()),
    *((f"{model}, stream, {state}", (f"model={model}", *SIZES[MODELS[model]], *RECIPES["modern"],
                                     *STREAM, f"data.start_state={state}", *more))
      for model, state, more in [
          ("gated", "kept", ("model.recompute=true",)), ("gated", "drawn", ()),
          ("lstm", "kept", ()), ("transformer", "zero", ("model.positions=rotary",)),
      ]),
]  # fmt: skip
# All of it with all of it: minutes.
ALL_CASES = [
    (", ".join(names), (f"model={names[0]}", *SIZES[MODELS[names[0]]], *RECIPES[names[1]],
                        *SCHEDULES[names[2]], *OPTIONS.get(names[3], ())))
    for names in product(MODELS, RECIPES, SCHEDULES, ["", "bfloat16", "accumulated", "averaged"])
]  # fmt: skip


class SaveBefore(Callback):
    """Save a checkpoint before some steps, as the recorder does when its time has come."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved: dict[int, Path] = {}

    def on_train_batch_start(
        self, trainer: Trainer, module: object, batch: object, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step in MOMENTS and batch_idx % trainer.accumulate_grad_batches == 0:
            self.saved[step] = self.folder / f"{step}.ckpt"
            trainer.save_checkpoint(self.saved[step])


def fit(config: object, folder: Path, seed: int, checkpoint: Path | None = None) -> Experiment:
    torch.manual_seed(seed)
    folder.mkdir()
    experiment = build_experiment(config, folder)  # type: ignore[arg-type]
    if checkpoint is None:
        experiment.trainer.callbacks.append(SaveBefore(folder))  # type: ignore[attr-defined]
    experiment.trainer.fit(
        experiment.module, datamodule=experiment.data, ckpt_path=checkpoint, weights_only=True
    )
    return experiment


@pytest.mark.filterwarnings("ignore:.*logging interval.*", "ignore:.*lr_scheduler.step.*")
@pytest.mark.parametrize(
    "chosen",
    [
        *(pytest.param(chosen, id=name) for name, chosen in CASES),
        *(pytest.param(chosen, id=f"all: {n}", marks=pytest.mark.long) for n, chosen in ALL_CASES),
    ],
)
def test_resumed_equals_uninterrupted(
    compose_config: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chosen: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("".join(f"to be {n} or not\n" for n in range(28)))
    config = compose_config(*RUN, *chosen)
    whole = fit(config, tmp_path / "whole", seed=3)
    (saver,) = whole.callbacks(SaveBefore)
    assert len(saver.saved) >= 3
    best = torch.load(tmp_path / "whole" / "checkpoints" / "best.ckpt", weights_only=True)
    for step, checkpoint in saver.saved.items():
        folder = tmp_path / str(step)
        resumed = fit(config, folder, seed=99, checkpoint=checkpoint)
        assert resumed.trainer.global_step == whole.trainer.global_step
        assert resumed.history.steps == whole.history.steps, step
        assert resumed.history.epochs == whole.history.epochs, step
        for name, weights in whole.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[name], weights), (step, name)
        # A best that came before the checkpoint was written along with it.
        if (folder / "checkpoints" / "best.ckpt").exists():
            again = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
            assert again["val_loss"] == best["val_loss"]
            for name, weights in best["model"].items():
                assert torch.equal(again["model"][name], weights), (step, name)
