"""Cells made of the built-in parts alone, whose equations other code may repeat."""

from torch import nn

from newllm.models.cell import Cell, ContextCell
from newllm.models.fnn import PlainFNN, ResidualFNN
from newllm.models.gating import Additive, LSTMGating

KNOWN = (
    *(ContextCell, PlainFNN, ResidualFNN, Additive, LSTMGating),
    *(nn.Linear, nn.LayerNorm, nn.ModuleList, nn.Identity),
)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_built_in(cell: Cell) -> bool:
    """Whether a cell is a `ContextCell` of built-in parts, without hooks or parametrizations."""
    return (
        type(cell) is ContextCell
        and type(cell.fnn) in (PlainFNN, ResidualFNN)
        and type(cell.gating) in (Additive, LSTMGating)
        and type(cell.normalization) in (nn.Identity, nn.LayerNorm)
        and all(type(linear) is nn.Linear for linear in (cell.input, *cell.fnn.layers))
        and {type(part) for part in cell.modules()} <= {*KNOWN}
        and all(_is_plain(part) for part in cell.modules())
    )


def _is_plain(part: nn.Module) -> bool:
    """No hooks, and no other weights than its own kind has."""
    names = {name for name, _ in part.named_parameters(recurse=False)}
    wanted = {"weight", "bias"} if isinstance(part, nn.Linear) else names & {"weight", "bias"}
    return names == wanted and not any(getattr(part, hooks) for hooks in HOOKS)
