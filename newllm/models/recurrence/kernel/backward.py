"""The way back. Names of shapes as in the package."""

import triton
import triton.language as tl

from newllm.models.recurrence.kernel.parts import (
    PAD,
    RESET,
    carries,
    columns_of,
    load,
    matrices,
    matrix,
    product,
    product_by_head,
    standardized,
    store,
    through_norm,
    vectors,
)


@triton.jit(do_not_specialize=["T", "B"])  # else sentences of some lengths compile it again
def backward(
    outputs_grad_TBH, after_grad_BC, context_BC, contexts_TBC, hiddens_LTBH, parts_GTBC,
    flags_TB, masks_NTBH,
    input_HC, layers_DHH, scales_LH, shifts_LH, gates_GCH, carries_GNKK, scales_NK, shifts_NK,
    grads_TBC,
    T, B, C, K, H, fnn_epsilon, epsilon, clip,
    D: tl.constexpr, G: tl.constexpr,
    RESIDUAL: tl.constexpr, NORMALIZED: tl.constexpr, CLIPPED: tl.constexpr,
    DROPS: tl.constexpr, PRECISION: tl.constexpr,
    HEADS: tl.constexpr, CARRIES: tl.constexpr,
    ROWS: tl.constexpr, WIDTH_K: tl.constexpr, WIDTH_H: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the context after each step, which all later steps add to."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    c, h = columns_of(HEADS, WIDTH_K, K, C), tl.arange(0, WIDTH_H)
    c_down, h_down = c[:, None], h[:, None]
    c, h = c[None, :], h[None, :]
    own_HC = matrix(input_HC, H, C, h_down, c)
    layers = matrices(layers_DHH, D, H, H, h_down, h)
    gates = matrices(gates_GCH, G, C, H, c_down, h)
    if CARRIES:
        k = tl.arange(0, WIDTH_K)
        carried = carries(carries_GNKK, G, HEADS, C // K, K, k[None, :, None], k[None, None, :])
    if RESIDUAL:
        scales, shifts = vectors(scales_LH, D + 1, H, h), vectors(shifts_LH, D + 1, H, h)
    if NORMALIZED:
        scale, shift = vectors(scales_NK, 1, C, c)[0], vectors(shifts_NK, 1, C, c)[0]

    grad = load(after_grad_BC, 0, rows, B, c, C)
    for step in range(T):
        t = T - 1 - step
        store(grads_TBC, grad, t, rows, B, c, C)
        flags = tl.load(flags_TB + t * B + rows, mask=rows < B, other=0)
        is_pad, is_reset = (flags & PAD) != 0, (flags & RESET) != 0
        context = load(context_BC, 0, rows, B, c, C)
        if t > 0:
            context = load(contexts_TBC, t - 1, rows, B, c, C)
        context = tl.where(is_reset, 0.0, context)
        kept = tl.where(is_pad, grad, 0.0)
        grad = tl.where(is_pad, 0.0, grad)

        delta = load(parts_GTBC, t, rows, B, c, C)
        after = context + delta
        if G == 3:
            forget_gate = load(parts_GTBC, T + t, rows, B, c, C)
            input_gate = load(parts_GTBC, 2 * T + t, rows, B, c, C)
            after = forget_gate * context + input_gate * delta
        if NORMALIZED:
            standard, inverse = standardized(after, c, C, epsilon, HEADS, K)
            after = standard * scale + shift
        if CLIPPED:
            grad = tl.where((after > clip) | (after < -clip), 0.0, grad)
        if NORMALIZED:
            grad = through_norm(grad, standard, inverse, scale, c, C, HEADS, K)

        of_output = load(outputs_grad_TBH, t, rows, B, h, H)
        of_delta = grad
        if G == 3:
            of_delta = grad * input_gate
            of_forget = grad * context * forget_gate * (1 - forget_gate)
            of_input = grad * delta * input_gate * (1 - input_gate)
            of_output += product(of_forget, gates[1], PRECISION)
            of_output += product(of_input, gates[2], PRECISION)
            grad *= forget_gate
            if CARRIES:
                grad += product_by_head(of_forget, carried[1], PRECISION)
                grad += product_by_head(of_input, carried[2], PRECISION)
        of_output += product(of_delta, gates[0], PRECISION)
        if CARRIES:
            grad += product_by_head(of_delta, carried[0], PRECISION)

        of_hidden = of_output
        if RESIDUAL:
            hidden = load(hiddens_LTBH, D * T + t, rows, B, h, H)
            standard_h, inverse_h = standardized(hidden, h, H, fnn_epsilon, 1, H)
            of_hidden = through_norm(of_hidden, standard_h, inverse_h, scales[D], h, H, 1, H)
            for d in tl.static_range(D - 1, -1, -1):
                of_read = product(of_hidden, layers[d], PRECISION)
                if DROPS:
                    of_read *= load(masks_NTBH, d * T + t, rows, B, h, H)
                hidden = load(hiddens_LTBH, d * T + t, rows, B, h, H)
                standard_h, inverse_h = standardized(hidden, h, H, fnn_epsilon, 1, H)
                is_on = standard_h * scales[d] + shifts[d] > 0
                of_read = tl.where(is_on, of_read, 0.0)
                of_hidden += through_norm(of_read, standard_h, inverse_h, scales[d], h, H, 1, H)
        else:
            for d in tl.static_range(D, -1, -1):
                if DROPS:
                    of_hidden *= load(masks_NTBH, d * T + t, rows, B, h, H)
                is_on = load(hiddens_LTBH, d * T + t, rows, B, h, H) > 0
                of_hidden = tl.where(is_on, of_hidden, 0.0)
                if d > 0:
                    of_hidden = product(of_hidden, layers[d - 1], PRECISION)

        grad += product(of_hidden, own_HC, PRECISION)
        grad = tl.where(is_reset, 0.0, grad + kept)
