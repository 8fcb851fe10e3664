"""Checks of the contracts of `Layer` and `Cell`, to call on layers and cells of your own.

    from newllm.models.contract import check_layer
    check_layer(MyLayer(input_dim=8))

Shapes: B batch, T time (tokens), D width.
"""

import copy
from collections.abc import Iterable
from itertools import product

import torch
from torch import Tensor

from newllm.models.cell import Cell
from newllm.models.layer import Layer, State, check_shapes, real_tokens
from newllm.models.recurrence.fused import Fused
from newllm.models.recurrence.reference import (
    MASK_BLOCK,
    Chunk,
    DropoutMasks,
    Recurrence,
    Reference,
)
from newllm.models.recurrent import Recurrent

NUM_TOKENS = 8
STEP = 1e-8  # of finite differences; a larger one would cross kinks of ReLU
# By row: no padding; inside and at the end; at the end; at the beginning; only padding.
PADS = ("........", "..XX..X.", "....XXXX", "XX......", "XXXXXXXX")
# At the first token, twice in a row; at padding and a token; at padding; nowhere; at padding.
RESETS = ("X..XX...", "..X..X..", "......X.", "........", ".X......")


def check_layer(layer: Layer) -> None:
    """Check that a layer keeps the contract of `Layer`, on a copy in float64.

    Raises:
        AssertionError: it breaks the contract; the message says where.
        ValueError: it returns another shape.
    """
    layer = copy.deepcopy(layer).double().eval()
    _check_dropout(layer)
    _check_state(layer)
    if not layer.sees_the_future:
        _check_causality(layer)
        _check_steps(layer)
        _check_chunks(layer)
    _check_padding_and_resets(layer)


def check_gradients(layer: Layer, num_directions: int = 3) -> None:
    """Check the gradients of a layer against finite differences, on a copy in float64.

    Along random directions, in which the input and all weights change together, the derivative of
    a weighted sum of the outputs is compared with the central difference quotient. A layer with
    jumps, such as one that rounds and passes gradients through, does not agree.

    Raises:
        AssertionError: they do not agree.
    """
    layer = copy.deepcopy(layer).double().eval()
    generator = torch.Generator().manual_seed(5)
    x_BTD = _inputs(layer, 2).requires_grad_()
    parts = [x_BTD, *(weight for weight in layer.parameters() if weight.requires_grad)]
    weight_BTD = torch.randn(layer(x_BTD)[0].shape, generator=generator).to(x_BTD)

    def weighted_sum() -> Tensor:
        return (layer(x_BTD)[0] * weight_BTD).sum()

    @torch.no_grad()
    def shifted_sum(directions: list[Tensor], size: float) -> Tensor:
        for part, direction in zip(parts, directions, strict=True):
            part += size * direction
        found = weighted_sum()
        for part, direction in zip(parts, directions, strict=True):
            part -= size * direction
        return found

    grads = torch.autograd.grad(weighted_sum(), parts, allow_unused=True, materialize_grads=True)
    for _ in range(num_directions):
        directions = [torch.randn(part.shape, generator=generator).to(part) for part in parts]
        slope = sum((grad * along).sum() for grad, along in zip(grads, directions, strict=True))
        rise = shifted_sum(directions, STEP) - shifted_sum(directions, -STEP)
        promise = "gradients are those of finite differences"
        _assert_close(layer, promise, slope, rise / (2 * STEP), atol=1e-6, rtol=1e-3)


def check_cell(cell: Cell, recurrences: Iterable[Recurrence] = ()) -> None:
    """Check that a cell keeps the contract of `Cell`, on a copy in float64.

    Args:
        cell: the cell.
        recurrences: recurrences to compare with the plain loop, besides `Fused` without compiling.

    Raises:
        AssertionError: the cell or a recurrence breaks it; the message says where.
        ValueError: the cell returns another shape.
    """
    cell = copy.deepcopy(cell).double()
    check_layer(Recurrent(cell.input_dim, lambda input_dim: cell, Fused(compile=False)))
    cell.train()
    compared: list[Recurrence] = [Fused(compile=False), *recurrences]
    for recurrence, num_steps in product(compared, (1, NUM_TOKENS, MASK_BLOCK + 3)):
        promise = f"{type(recurrence).__name__} gives what the plain loop gives, and its gradients"
        generator = torch.Generator().manual_seed(2)
        pad_BT, reset_BT = (torch.rand(3, num_steps, generator=generator) < 0.3 for _ in range(2))
        for flags in product((None, pad_BT), (None, reset_BT)):
            found, expected = (
                _results(cell, carry, num_steps, *flags) for carry in (recurrence, Reference())
            )
            _assert_close(cell, promise, found, expected)


def _inputs(layer: Layer | Cell, batch_size: int, num_tokens: int = NUM_TOKENS) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = batch_size, num_tokens, layer.input_dim
    return torch.randn(shape, generator=generator, dtype=torch.double)


def _flags(rows: Iterable[str]) -> Tensor:
    return torch.tensor([[mark == "X" for mark in row] for row in rows])


def _assert_close(
    layer: Layer | Cell,
    promise: str,
    found: object,
    expected: object,
    atol: float = 1e-9,
    rtol: float = 1e-7,
) -> None:
    name = f"{type(layer).__name__} ({layer.description})"
    torch.testing.assert_close(
        found, expected, atol=atol, rtol=rtol, msg=lambda text: f"{name}: {promise}. {text}"
    )


def _check_dropout(layer: Layer) -> None:
    x_BTD = _inputs(layer, 3)
    _assert_close(layer, "nothing is drawn in evaluation", layer(x_BTD), layer(x_BTD))
    layer.train()
    outputs = []
    for _ in range(2):
        torch.manual_seed(0)
        outputs.append(layer(x_BTD)[0])
    layer.eval()
    _assert_close(layer, "dropout follows torch's seed", *outputs)


def _check_state(layer: Layer) -> None:
    """The state keeps its form, and is as large as `state_bytes` says."""
    x_BTD = _inputs(layer, 3, NUM_TOKENS + 1)
    initial = layer.initial_state(3)
    for num_tokens in (1, NUM_TOKENS + 1):
        y_BTD, state = layer(x_BTD[:, :num_tokens])
        check_shapes(type(layer).__name__, y_BTD, (3, num_tokens, layer.output_dim), state)
        types = [part.dtype for part in state]
        _assert_close(layer, "the state keeps its number of tensors", len(state), len(initial))
        assert types == [part.dtype for part in initial], f"the types of the state become {types}"
        num_bytes = sum(part[:1].nbytes for part in state)
        promise = f"state_bytes({num_tokens}) are those of the state"
        _assert_close(layer, promise, layer.state_bytes(num_tokens), num_bytes)
    if not layer.sees_the_future:
        _assert_close(layer, "no state means the initial one", layer(x_BTD, initial), layer(x_BTD))


def _check_causality(layer: Layer) -> None:
    x_BTD = _inputs(layer, 2).requires_grad_()
    y_BTD, _ = layer(x_BTD)
    for t in range(NUM_TOKENS - 1):
        (grad_BTD,) = torch.autograd.grad(y_BTD[:, t].sum(), x_BTD, retain_graph=True)
        later_BTD = grad_BTD[:, t + 1 :]
        promise = f"no later token changes output {t}"
        _assert_close(layer, promise, later_BTD, torch.zeros_like(later_BTD))


def _check_steps(layer: Layer) -> None:
    x_BTD = _inputs(layer, 2)
    state, outputs = layer.initial_state(2), []
    for x_BD in x_BTD.unbind(1):
        y_BD, state = layer.step(x_BD, state)
        outputs.append(y_BD)
    found = torch.stack(outputs, 1), state
    _assert_close(layer, "steps give what the whole gives", found, layer(x_BTD))


def _check_chunks(layer: Layer) -> None:
    x_BTD, pad_BT, reset_BT = _inputs(layer, len(PADS)), _flags(PADS), _flags(RESETS)
    probe_BTD = x_BTD[:, :1]
    for pad, reset in product((None, pad_BT), (None, reset_BT)):
        y_BTD, state = layer(x_BTD, None, pad, reset)
        real_BT = real_tokens(x_BTD, pad)
        for sizes in ([1] * NUM_TOKENS, [3, 4, 1], [2, 6]):
            own: State | None = None
            outputs = []
            for tokens in torch.arange(NUM_TOKENS).split(sizes):
                flags = (None if each is None else each[:, tokens] for each in (pad, reset))
                chunk_BTD, own = layer(x_BTD[:, tokens], own, *flags)
                outputs.append(chunk_BTD)
            # The state may hold anything for padding, so its effect is compared.
            found = torch.cat(outputs, 1)[real_BT], layer(probe_BTD, own)[0]
            expected = y_BTD[real_BT], layer(probe_BTD, state)[0]
            promise = f"chunks of {sizes} tokens give what the whole gives"
            _assert_close(layer, promise, found, expected)


def _check_padding_and_resets(layer: Layer) -> None:
    """Each row gives what its real tokens since the last reset give alone; so does its state."""
    for rows in ([0, 2], [*range(len(PADS))]):
        x_BTD, pad_BT = _inputs(layer, len(rows)), _flags(PADS)[rows]
        nowhere_BT = torch.zeros_like(pad_BT)
        for reset_BT in (None, _flags(RESETS)[rows]):
            y_BTD, state = layer(x_BTD, None, pad_BT, reset_BT)
            segment_BT = (nowhere_BT if reset_BT is None else reset_BT).cumsum(1)
            for row, segment_T in enumerate(segment_BT):
                x_1TD = x_BTD[row : row + 1]
                for segment in range(int(segment_T[-1]) + 1):
                    alone_T = (segment_T == segment) & ~pad_BT[row]
                    if alone_T.any():
                        expected_1TD, _ = layer(x_1TD[:, alone_T])
                        promise = "padding and tokens before a reset change no output"
                        _assert_close(layer, promise, y_BTD[row, alone_T], expected_1TD[0])
                if not layer.sees_the_future:
                    probe_1TD = x_1TD[:, :1]
                    found, _ = layer(probe_1TD, tuple(part[row : row + 1] for part in state))
                    expected, _ = layer(torch.cat((x_1TD[:, alone_T], probe_1TD), dim=1))
                    promise = "padding leaves the state as it was, and a reset forgets"
                    _assert_close(layer, promise, found[:, -1], expected[:, -1])


def _results(
    cell: Cell, carry: Recurrence, num_steps: int, pad_BT: Tensor | None, reset_BT: Tensor | None
) -> list[Tensor]:
    """Outputs and state, and the gradients of a loss with a random weight for each number."""
    inputs_BTE = _inputs(cell, 3, num_steps).requires_grad_()
    start = tuple(part.clone() for part in cell.initial_state(3))
    floats = [part for part in start if part.is_floating_point()]
    generator = torch.Generator().manual_seed(3)
    for part in floats:
        part.detach_().normal_(generator=generator).requires_grad_()
    torch.manual_seed(4)
    masks = DropoutMasks.draw(cell, inputs_BTE)
    y_BTH, state = carry(cell, Chunk(inputs_BTE, start, masks, pad_BT, reset_BT))
    if pad_BT is not None:
        y_BTH = y_BTH.masked_fill(pad_BT[:, :, None], 0)
    results = [y_BTH, *(part for part in state if part.is_floating_point())]
    weights = [torch.randn(part.shape, generator=generator).to(part) for part in results]
    learned = [inputs_BTE, *floats, *cell.parameters()]
    grads = torch.autograd.grad(
        results, learned, weights, allow_unused=True, materialize_grads=True
    )
    return [part.detach() for part in (*results, *grads)]
