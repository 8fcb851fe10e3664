"""A callback that writes how much of an optimizer's state a process keeps."""

import json
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor


class ShardSizes(Callback):
    """Writes `sizes.json`: the numbers of the optimizer's state that are kept here, and of all."""

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        states = [
            value
            for state in trainer.optimizers[0].state.values()
            for value in state.values()
            if value.dim()
        ]
        here = [value.to_local() if isinstance(value, DTensor) else value for value in states]
        sizes = [sum(value.numel() for value in values) for values in (here, states)]
        Path(trainer.default_root_dir, "sizes.json").write_text(json.dumps(sizes))
