"""The weights of a cell as the kernels read them. Names of shapes as in the package."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from newllm.models.cell import ContextCell
from newllm.models.fnn import ResidualFNN
from newllm.models.gating import LSTMGating
from newllm.models.multihead import MultiHeadCell, PerHead
from newllm.models.parts import PerPart

TYPES = (torch.float32, torch.bfloat16)  # of weights and of products
ROWS = 16  # of a program; products of fewer take as long
EXACT = "tf32x3"  # three products, of the upper and the lower half of both factors
SCRATCH = 12 * 1024  # bytes, besides the weights, that compiling for an H100 has shown
NARROW, FEW_WARPS, MANY_WARPS = 64, 4, 8  # up to this width, a step has little work to share


def padded(width: int, least: int = 16) -> int:
    """The columns that a kernel has for a width: a power of two."""
    return max(least, 1 << (width - 1).bit_length())


def gates_of(gating: nn.Module) -> list[list[nn.Linear]]:
    """The Linears of a gating, one for each head: delta; forget and input gates if it has any."""
    heads = [*gating.heads] if isinstance(gating, PerHead) else [gating]
    is_gated = isinstance(heads[0], LSTMGating)
    names = ("delta", "forget_gate", "input_gate") if is_gated else ("delta",)
    return [[cast(nn.Linear, getattr(head, name)) for head in heads] for name in names]


def bytes_needed(cell: ContextCell, dtype: torch.dtype) -> int:
    """Bytes of shared memory that a program takes, about: all matrices and some activations."""
    num_heads = cell.num_heads if isinstance(cell, MultiHeadCell) else 1
    k, h = padded(cell.context_dim // num_heads), padded(cell.hidden_dim)
    c, num_gates = padded(num_heads, 1) * k, len(gates_of(cell.gating))
    num_weights = (1 + num_gates) * c * h + (cell.num_layers - 1) * h * h
    if isinstance(cell, MultiHeadCell):
        num_weights += num_gates * c * k
    num_copies = 2 if dtype == torch.float32 and precision() == EXACT else 1
    return num_weights * dtype.itemsize * num_copies + SCRATCH


def precision() -> str:
    """How products of float32 are computed, as torch is told to."""
    return EXACT if torch.get_float32_matmul_precision() == "highest" else "tf32"


class Weights:
    """A copy of a cell's weights: scales and shifts in float32, all others in the type of products.

    Args:
        cell: a cell of built-in parts.
        dtype: of the products of activations and weights.
    """

    def __init__(self, cell: ContextCell, dtype: torch.dtype) -> None:
        self.context_dim, self.hidden_dim = cell.context_dim, cell.hidden_dim
        self._input, self._embedding_dim = cell.input, cell.input_dim
        self._dtype = dtype
        self.input_HC = self._input.weight[:, self._embedding_dim :].to(dtype).contiguous()
        layers = [cast(nn.Linear, layer) for layer in cell.fnn.layers]
        self.layers_DHH = _stacked((layer.weight for layer in layers), self.input_HC)
        self.biases_DH = _stacked((layer.bias for layer in layers), self.input_HC)
        gates, h = gates_of(cell.gating), cell.hidden_dim
        self.num_heads, self.head_dim = len(gates[0]), cell.context_dim // len(gates[0])
        weights = [torch.stack([linear.weight for linear in heads]) for heads in gates]
        self.gates_GCH = _stacked(
            (w_NKI[..., :h].flatten(0, 1) for w_NKI in weights), self.input_HC
        )
        self.carries_GNKK = _stacked((w_NKI[..., h:] for w_NKI in weights), self.input_HC)
        biases = (torch.cat([linear.bias for linear in heads]) for heads in gates)
        self.gate_biases_GC = _stacked(biases, self.input_HC)
        self.is_residual = isinstance(cell.fnn, ResidualFNN)
        norms: Sequence[nn.LayerNorm] = ()
        if isinstance(cell.fnn, ResidualFNN):
            norms = [*cast(list[nn.LayerNorm], cell.fnn.norms), cell.fnn.final_norm]
        self.scales_LH, self.shifts_LH, self.fnn_epsilon = self._norms(norms, self.hidden_dim)
        kind = cell.normalization
        parts = kind.parts if isinstance(kind, PerPart) else [kind]
        norms = [part for part in parts if isinstance(part, nn.LayerNorm)]
        self.is_normalized = len(norms) > 0
        self.scales_NK, self.shifts_NK, self.epsilon = self._norms(norms, self.head_dim)
        self.clip = cell.context_clip

    def _norms(self, norms: Sequence[nn.LayerNorm], width: int) -> tuple[Tensor, Tensor, float]:
        """Scales, shifts and the epsilon of LayerNorms."""
        ones = self.input_HC.new_ones(width, dtype=torch.float32)
        scales = _stacked((ones if n.weight is None else n.weight for n in norms), ones)
        shifts = _stacked((0 * ones if n.bias is None else n.bias for n in norms), ones)
        return scales, shifts, norms[0].eps if norms else 0.0

    def projected(self, inputs_BTE: Tensor) -> Tensor:
        """What the inputs add to the first Linear [T, B, H], its bias included."""
        weight_HE = self._input.weight[:, : self._embedding_dim].to(self._dtype)
        inputs_TBE = inputs_BTE.to(self._dtype).transpose(0, 1)
        return F.linear(inputs_TBE, weight_HE, self._input.bias.to(self._dtype)).contiguous()

    @property
    def settings(self) -> dict[str, object]:
        """The arguments that both kernels are compiled for."""
        heads, width_k = padded(self.num_heads, 1), padded(self.head_dim)
        width = max(heads * width_k, padded(self.hidden_dim))
        return {
            "D": len(self.layers_DHH),
            "G": len(self.gates_GCH),
            "RESIDUAL": self.is_residual,
            "NORMALIZED": self.is_normalized,
            "CLIPPED": self.clip is not None,
            "PRECISION": precision(),
            "HEADS": heads,
            "CARRIES": self.carries_GNKK.numel() > 0,
            "ROWS": ROWS,
            "WIDTH_K": width_k,
            "WIDTH_H": padded(self.hidden_dim),
            "num_warps": FEW_WARPS if width <= NARROW else MANY_WARPS,
            "num_stages": 1,  # more would load steps ahead into memory that the weights need
        }

    @property
    def numbers(self) -> tuple[float, float, float]:
        """The epsilon of the FNN's LayerNorms, that of the context's, and the clamp."""
        return self.fnn_epsilon, self.epsilon, self.clip or 0.0


def _stacked(tensors: Iterable[Tensor], like: Tensor) -> Tensor:
    """Tensors in one, of a type; no tensors make an empty one."""
    found = [tensor.detach().to(like.dtype) for tensor in tensors]
    return torch.stack(found) if found else like.new_empty(0)
