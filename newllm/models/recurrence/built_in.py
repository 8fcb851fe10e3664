"""Cells made of the built-in parts alone, whose equations other code may repeat."""

from collections.abc import Sequence

from torch import nn

from newllm.models.cell import Cell, ContextCell
from newllm.models.fnn import PlainFNN, ResidualFNN
from newllm.models.gating import Additive, LSTMGating
from newllm.models.multihead import MultiHeadCell, PerHead
from newllm.models.parts import PerPart

KNOWN = (
    *(ContextCell, PlainFNN, ResidualFNN, Additive, LSTMGating),
    *(MultiHeadCell, PerHead, PerPart),
    *(nn.Linear, nn.LayerNorm, nn.ModuleList, nn.Identity),
)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_built_in(cell: Cell) -> bool:
    """Whether a cell is a `ContextCell` of built-in parts, without hooks or parametrizations."""
    return type(cell) is ContextCell and _is_known(cell, [cell.gating], [cell.normalization])


def is_built_in_multihead(cell: Cell) -> bool:
    """The same of a `MultiHeadCell`."""
    return (
        type(cell) is MultiHeadCell
        and type(cell.gating) is PerHead
        and type(cell.normalization) is PerPart
        and _is_known(cell, [*cell.gating.heads], [*cell.normalization.parts])
    )


def _is_known(
    cell: ContextCell, gatings: Sequence[nn.Module], normalizations: Sequence[nn.Module]
) -> bool:
    return (
        type(cell.fnn) in (PlainFNN, ResidualFNN)
        and {type(gating) for gating in gatings} in ({Additive}, {LSTMGating})
        and {type(normalization) for normalization in normalizations}
        in ({nn.Identity}, {nn.LayerNorm})
        and all(type(linear) is nn.Linear for linear in (cell.input, *cell.fnn.layers))
        and {type(part) for part in cell.modules()} <= {*KNOWN}
        and all(_is_plain(part) for part in cell.modules())
    )


def _is_plain(part: nn.Module) -> bool:
    """No hooks, and no other weights than its own kind has."""
    names = {name for name, _ in part.named_parameters(recurse=False)}
    wanted = {"weight", "bias"} if isinstance(part, nn.Linear) else names & {"weight", "bias"}
    return names == wanted and not any(getattr(part, hooks) for hooks in HOOKS)
