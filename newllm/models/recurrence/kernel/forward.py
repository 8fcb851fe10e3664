"""The way forward. Names of shapes as in the package."""

import triton
import triton.language as tl

from newllm.models.recurrence.kernel.parts import (
    PAD,
    RESET,
    load,
    matrices,
    matrix,
    product,
    rectified,
    standardized,
    store,
    vectors,
)


@triton.jit(do_not_specialize=["T", "B"])  # else sentences of some lengths compile it again
def forward(
    projected_TBH, context_BC, flags_TB, masks_NTBH,
    input_HC, layers_DHH, biases_DH, scales_LH, shifts_LH,
    heads_GCH, head_biases_GC, scale_1C, shift_1C,
    outputs_TBH, contexts_TBC, hiddens_LTBH, parts_GTBC,
    T, B, C, H, fnn_epsilon, epsilon, clip,
    D: tl.constexpr, G: tl.constexpr,
    RESIDUAL: tl.constexpr, NORMALIZED: tl.constexpr, CLIPPED: tl.constexpr,
    DROPS: tl.constexpr, KEEPS: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, WIDTH_C: tl.constexpr, WIDTH_H: tl.constexpr,
):  # fmt: skip
    """Write outputs and contexts of all steps and, if it KEEPS them, what `backward` reads."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    c, h = tl.arange(0, WIDTH_C)[None, :], tl.arange(0, WIDTH_H)[None, :]
    c_down, h_down = tl.arange(0, WIDTH_C)[:, None], tl.arange(0, WIDTH_H)[:, None]
    input_CH = matrix(input_HC, H, C, h, c_down)
    layers = matrices(layers_DHH, D, H, H, h, h_down)
    heads = matrices(heads_GCH, G, C, H, c, h_down)
    biases, head_biases = vectors(biases_DH, D, H, h), vectors(head_biases_GC, G, C, c)
    if RESIDUAL:
        scales, shifts = vectors(scales_LH, D + 1, H, h), vectors(shifts_LH, D + 1, H, h)
    if NORMALIZED:
        scale, shift = vectors(scale_1C, 1, C, c)[0], vectors(shift_1C, 1, C, c)[0]

    context = load(context_BC, 0, rows, B, c, C)
    for t in range(T):
        flags = tl.load(flags_TB + t * B + rows, mask=rows < B, other=0)
        context = tl.where((flags & RESET) != 0, 0.0, context)

        hidden = load(projected_TBH, t, rows, B, h, H) + product(context, input_CH, PRECISION)
        if RESIDUAL:
            for d in tl.static_range(D):
                if KEEPS:
                    store(hiddens_LTBH, hidden, d * T + t, rows, B, h, H)
                standard, _ = standardized(hidden, h, H, fnn_epsilon)
                read = rectified(standard * scales[d] + shifts[d])
                if DROPS:
                    read *= load(masks_NTBH, d * T + t, rows, B, h, H)
                hidden += product(read, layers[d], PRECISION) + biases[d]
            if KEEPS:
                store(hiddens_LTBH, hidden, D * T + t, rows, B, h, H)
            standard, _ = standardized(hidden, h, H, fnn_epsilon)
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

        delta = product(output, heads[0], PRECISION) + head_biases[0]
        if G == 3:
            forget_gate = tl.sigmoid(product(output, heads[1], PRECISION) + head_biases[1])
            input_gate = tl.sigmoid(product(output, heads[2], PRECISION) + head_biases[2])
            after = forget_gate * context + input_gate * delta
        else:
            after = context + delta
        if KEEPS:
            store(parts_GTBC, delta, t, rows, B, c, C)
            if G == 3:
                store(parts_GTBC, forget_gate, T + t, rows, B, c, C)
                store(parts_GTBC, input_gate, 2 * T + t, rows, B, c, C)

        if NORMALIZED:
            standard, _ = standardized(after, c, C, epsilon)
            after = standard * scale + shift
        if CLIPPED:
            after = tl.where(after > clip, clip, tl.where(after < -clip, -clip, after))
        context = tl.where((flags & PAD) != 0, context, after)
        store(contexts_TBC, context, t, rows, B, c, C)
