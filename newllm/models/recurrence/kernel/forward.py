"""The way forward. Names of shapes as in the package."""

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
    rectified,
    standardized,
    store,
    vectors,
)


@triton.jit(do_not_specialize=["T", "B"])  # else sentences of some lengths compile it again
def forward(
    projected_TBH, context_BC, flags_TB, masks_NTBH,
    input_HC, layers_DHH, biases_DH, scales_LH, shifts_LH,
    gates_GCH, carries_GNKK, gate_biases_GC, scales_NK, shifts_NK,
    outputs_TBH, contexts_TBC, hiddens_LTBH, parts_GTBC,
    T, B, C, K, H, fnn_epsilon, epsilon, clip,
    D: tl.constexpr, G: tl.constexpr,
    RESIDUAL: tl.constexpr, NORMALIZED: tl.constexpr, CLIPPED: tl.constexpr,
    DROPS: tl.constexpr, KEEPS: tl.constexpr, PRECISION: tl.constexpr,
    HEADS: tl.constexpr, CARRIES: tl.constexpr,
    ROWS: tl.constexpr, WIDTH_K: tl.constexpr, WIDTH_H: tl.constexpr,
):  # fmt: skip
    """Write outputs and contexts of all steps and, if it KEEPS them, what `backward` reads."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    c, h = columns_of(HEADS, WIDTH_K, K, C), tl.arange(0, WIDTH_H)
    c_down, h_down = c[:, None], h[:, None]
    c, h = c[None, :], h[None, :]
    input_CH = matrix(input_HC, H, C, h, c_down)
    layers = matrices(layers_DHH, D, H, H, h, h_down)
    gates = matrices(gates_GCH, G, C, H, c, h_down)
    if CARRIES:
        k = tl.arange(0, WIDTH_K)
        carried = carries(carries_GNKK, G, HEADS, C // K, K, k[None, None, :], k[None, :, None])
    biases, gate_biases = vectors(biases_DH, D, H, h), vectors(gate_biases_GC, G, C, c)
    if RESIDUAL:
        scales, shifts = vectors(scales_LH, D + 1, H, h), vectors(shifts_LH, D + 1, H, h)
    if NORMALIZED:
        scale, shift = vectors(scales_NK, 1, C, c)[0], vectors(shifts_NK, 1, C, c)[0]

    context = load(context_BC, 0, rows, B, c, C)
    for t in range(T):
        flags = tl.load(flags_TB + t * B + rows, mask=rows < B, other=0)
        context = tl.where((flags & RESET) != 0, 0.0, context)

        hidden = load(projected_TBH, t, rows, B, h, H) + product(context, input_CH, PRECISION)
        if RESIDUAL:
            for d in tl.static_range(D):
                if KEEPS:
                    store(hiddens_LTBH, hidden, d * T + t, rows, B, h, H)
                standard, _ = standardized(hidden, h, H, fnn_epsilon, 1, H)
                read = rectified(standard * scales[d] + shifts[d])
                if DROPS:
                    read *= load(masks_NTBH, d * T + t, rows, B, h, H)
                hidden += product(read, layers[d], PRECISION) + biases[d]
            if KEEPS:
                store(hiddens_LTBH, hidden, D * T + t, rows, B, h, H)
            standard, _ = standardized(hidden, h, H, fnn_epsilon, 1, H)
            output = standard * scales[D] + shifts[D]
        else:
            for d in tl.static_range(D + 1):
                if d > 0:
                    hidden = product(hidden, layers[d - 1], PRECISION) + biases[d - 1]
                hidden = rectified(hidden)
                if DROPS:
                    hidden *= load(masks_NTBH, d * T + t, rows, B, h, H)
                if KEEPS:
                    store(hiddens_LTBH, hidden, d * T + t, rows, B, h, H)
            output = hidden
        store(outputs_TBH, output, t, rows, B, h, H)

        delta = product(output, gates[0], PRECISION) + gate_biases[0]
        if CARRIES:
            delta += product_by_head(context, carried[0], PRECISION)
        if G == 3:
            forget_gate = product(output, gates[1], PRECISION) + gate_biases[1]
            input_gate = product(output, gates[2], PRECISION) + gate_biases[2]
            if CARRIES:
                forget_gate += product_by_head(context, carried[1], PRECISION)
                input_gate += product_by_head(context, carried[2], PRECISION)
            forget_gate, input_gate = tl.sigmoid(forget_gate), tl.sigmoid(input_gate)
            after = forget_gate * context + input_gate * delta
        else:
            after = context + delta
        if KEEPS:
            store(parts_GTBC, delta, t, rows, B, c, C)
            if G == 3:
                store(parts_GTBC, forget_gate, T + t, rows, B, c, C)
                store(parts_GTBC, input_gate, 2 * T + t, rows, B, c, C)

        if NORMALIZED:
            standard, _ = standardized(after, c, C, epsilon, HEADS, K)
            after = standard * scale + shift
        if CLIPPED:
            after = tl.where(after > clip, clip, tl.where(after < -clip, -clip, after))
        context = tl.where((flags & PAD) != 0, context, after)
        store(contexts_TBC, context, t, rows, B, c, C)
