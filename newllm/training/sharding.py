"""Sharded data parallelism: `trainer.strategy=fsdp`.

As with `ddp`, each process takes its rows of every batch. But it keeps only its part of the
optimizer's state and of the averaged gradients, and updates only its part of the weights (torch's
`fully_shard`; ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054). From one update to the next the
weights are whole in every process, so that what only the first process does with the model, such
as sampling, waits for no other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map


class Sharded(DDPStrategy):
    """Lightning's strategy for processes that share the work of the optimizer.

    The model of the module is sharded while it is fitted; before and after, it is the one that the
    module was built with. Checkpoints hold whole tensors, as those of one process do, and take all
    processes to make.
    """

    _plain: nn.Module | None = None

    def configure_ddp(self) -> None:
        """Shard a copy of the model, in place of wrapping it in DDP."""
        module = self._module
        device = self.root_device.type
        sharded = copy.deepcopy(module.model)
        fully_shard(
            sharded,
            mesh=init_device_mesh(device, (self.world_size,)),
            reshard_after_forward=False,
        )
        sharded.score = _without_views(sharded.score)
        register_fsdp_forward_method(sharded, "score")
        self._plain, module.model = module.model.cpu(), sharded

    def setup_optimizers(self, trainer: Trainer) -> None:
        """Make the optimizer, which is for the shards."""
        super().setup_optimizers(trainer)
        if self._plain is not None:
            make_whole(self._module.model)

    def optimizer_step(self, optimizer: Optimizer, *args: Any, **settings: Any) -> Any:
        """Update the shards, then make the weights whole."""
        result = super().optimizer_step(optimizer, *args, **settings)
        make_whole(self._module.model)
        return result

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return whole_state_dict(self._module)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Tensor]:
        state: dict[str, Tensor] = tree_map(_whole, super().optimizer_state(optimizer))
        return state

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give each process its part of the state of a checkpoint."""
        states = []
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            parts = {
                index: {name: _part(value, weights[index]) for name, value in state.items()}
                for index, state in saved["state"].items()
            }
            states.append({**saved, "state": parts})
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})

    def teardown(self) -> None:
        if self._plain is not None:
            self._module.model, self._plain = self._plain, None
        super().teardown()

    @property
    def _module(self) -> Any:
        assert self.lightning_module is not None
        return self.lightning_module


def _without_views(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method whose results may be changed in place, which torch warns of if they are views."""

    def own(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) and value._is_view() else value

    return lambda *arguments, **settings: tree_map(own, method(*arguments, **settings))


def is_sharded(trainer: Trainer) -> bool:
    """Whether all processes are needed to make a checkpoint."""
    return isinstance(trainer.strategy, Sharded)


def make_whole(module: nn.Module) -> None:
    """Collect the weights of a sharded model from all processes."""
    assert isinstance(module, FSDPModule)
    module.reshard()  # frees those from before an update
    module.unshard()


def whole_state_dict(module: nn.Module) -> dict[str, Any]:
    """The state of a module as whole tensors; of a sharded one, in all processes at once."""
    state = {name: _whole(value) for name, value in module.state_dict().items()}
    for part in module.modules():
        if isinstance(part, FSDPModule):
            make_whole(part)  # `state_dict` has left the shards alone
    return state


def any_process(trainer: Trainer, module: LightningModule, condition: bool) -> bool:
    """Whether a condition holds in any process of a sharded run; else, in this one."""
    if not is_sharded(trainer):
        return condition
    found = torch.tensor(float(condition), device=module.device)
    torch.distributed.all_reduce(found)
    return bool(found)


def _whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _part(value: Any, weight: Tensor) -> Any:
    """A process's part of a tensor of the optimizer's state, as of the weight that it is for."""
    if not isinstance(weight, DTensor) or getattr(value, "shape", None) != weight.shape:
        return value
    value = value.to(weight.device)
    # Every process has read the same checkpoint.
    return distribute_tensor(value, weight.device_mesh, weight.placements, src_data_rank=None)
