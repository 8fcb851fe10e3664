"""The product that all time goes into: a panel of weights times a step of activations."""

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from newllm.models.recurrence.native.call import PANEL, VECTOR_BYTES


def compiler(**options: Any) -> Any:
    """A decorator for functions that only compiled functions call.

    With numpy's rules a division by zero is no exception, whose checks would cost the vector code.
    Nothing of Python calls these functions, so the ways in for it need not be compiled.
    """
    return njit(  # type: ignore[call-overload]  # numba's own types lack two of the options
        error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, **options
    )


compiled = compiler()


def _register_tile() -> tuple[int, int]:
    """Accumulators that fit beside the operands, and bytes of a vector register."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 16, 64
    return (8, 32) if features.get("avx2") else (16, 16)


def tile(num_vectors: int, vector_bytes: int, most_rows: int = PANEL) -> tuple[int, Any]:
    """The inner product kernel, and how many rows it takes, `most_rows` at most.

    y[r, v] += sum over k of w[k, r] * x[k, v], with all of y in registers: w[k, r] is found at
    k * w_depth_stride + r * w_row_stride, a row of x is `x_stride` elements, and v runs over
    `num_vectors` vectors.
    """
    accumulators, register_bytes = _register_tile()
    registers = max(1, vector_bytes // register_bytes) * num_vectors
    num_rows = min(most_rows, max(1, accumulators // registers))

    @intrinsic
    def accumulate(
        typing_context: Any,
        y: Any, y_start: Any, y_stride: Any,
        w: Any, w_start: Any, w_row_stride: Any, w_depth_stride: Any,
        x: Any, x_start: Any, x_stride: Any, depth: Any,
    ) -> Any:  # fmt: skip
        size = types.intp
        signature = types.void(y, size, size, w, size, size, size, x, size, size, size)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            element = context.get_value_type(signature.args[0].dtype)
            lanes = vector_bytes // (signature.args[0].dtype.bitwidth // 8)
            vector = ir.VectorType(element, lanes)
            word = ir.IntType(64)
            number = "f32" if isinstance(element, ir.FloatType) else "f64"
            fma = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{lanes}{number}"
            )
            _, y_start, y_stride, _, w_start, w_row_stride, w_depth_stride = arguments[:7]
            _, x_start, x_stride, depth = arguments[7:]
            y, w, x = (
                context.make_array(signature.args[i])(context, builder, arguments[i]).data
                for i in (0, 3, 7)
            )

            def at(pointer: Any, index: Any, offset: int = 0) -> Any:
                index = builder.add(index, ir.Constant(word, offset))
                return builder.bitcast(builder.gep(pointer, [index]), vector.as_pointer())

            places = [
                at(y, builder.add(y_start, builder.mul(y_stride, ir.Constant(word, r))), v * lanes)
                for r in range(num_rows)
                for v in range(num_vectors)
            ]
            alignment = element.get_abi_size(context.target_data)
            starts = [builder.load(place, align=alignment) for place in places]
            before, loop = builder.block, builder.append_basic_block("depth")
            builder.branch(loop)
            builder.position_at_end(loop)
            phis = [builder.phi(word) for _ in range(3)] + [builder.phi(vector) for _ in places]
            k, w_index, x_index, *sums = phis
            zero, one = ir.Constant(word, 0), ir.Constant(word, 1)
            for phi, start in zip(phis, [zero, w_start, x_start, *starts], strict=True):
                phi.add_incoming(start, before)
            columns = [
                builder.load(at(x, x_index, v * lanes), align=alignment) for v in range(num_vectors)
            ]
            undefined = ir.Constant(vector, ir.Undefined)
            everywhere = ir.Constant(ir.VectorType(ir.IntType(32), lanes), None)
            results = []
            for r in range(num_rows):
                offset = builder.mul(w_row_stride, ir.Constant(word, r))
                place = builder.gep(w, [builder.add(w_index, offset)])
                first = builder.insert_element(
                    undefined, builder.load(place), ir.Constant(ir.IntType(32), 0)
                )
                weight = builder.shuffle_vector(first, undefined, everywhere)
                for v, column in enumerate(columns):
                    sum_so_far = sums[r * num_vectors + v]
                    results.append(builder.call(fma, [weight, column, sum_so_far]))
            steps = [
                builder.add(k, one),
                builder.add(w_index, w_depth_stride),
                builder.add(x_index, x_stride),
            ]
            for phi, value in zip(phis, [*steps, *results], strict=True):
                phi.add_incoming(value, loop)
            after = builder.append_basic_block("done")
            builder.cbranch(builder.icmp_signed("<", steps[0], depth), loop, after)
            builder.position_at_end(after)
            for place, result in zip(places, results, strict=True):
                builder.store(result, place, align=alignment)
            return context.get_dummy_value()

        return signature, generate

    return num_rows, accumulate


WIDE_ROWS, _accumulate_wide = tile(2, VECTOR_BYTES)
TALL_ROWS, _accumulate_tall = tile(1, VECTOR_BYTES)
HALF_ROWS, _accumulate_half = tile(1, VECTOR_BYTES // 2)
QUARTER_ROWS, _accumulate_quarter = tile(1, VECTOR_BYTES // 4)


@compiled
def multiply(y, row, w, start, x, depth, width):
    """Add the product of a panel of w with x to 16 rows of y, in at least `width` columns."""
    lanes = VECTOR_BYTES // y.itemsize
    quarter = lanes // 4
    y_stride, x_stride = y.shape[1], x.shape[1]
    column, end = 0, -(-width // quarter) * quarter
    while column + 2 * lanes <= end:
        for r in range(0, PANEL, WIDE_ROWS):
            at = (row + r) * y_stride + column
            _accumulate_wide(y, at, y_stride, w, start + r, 1, PANEL, x, column, x_stride, depth)
        column += 2 * lanes
    if column + lanes <= end:
        for r in range(0, PANEL, TALL_ROWS):
            at = (row + r) * y_stride + column
            _accumulate_tall(y, at, y_stride, w, start + r, 1, PANEL, x, column, x_stride, depth)
        column += lanes
    if column + 2 * quarter <= end:
        for r in range(0, PANEL, HALF_ROWS):
            at = (row + r) * y_stride + column
            _accumulate_half(y, at, y_stride, w, start + r, 1, PANEL, x, column, x_stride, depth)
        column += 2 * quarter
    if column < end:
        for r in range(0, PANEL, QUARTER_ROWS):
            at = (row + r) * y_stride + column
            _accumulate_quarter(y, at, y_stride, w, start + r, 1, PANEL, x, column, x_stride, depth)
