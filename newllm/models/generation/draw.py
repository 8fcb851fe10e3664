"""The distribution of `Sampling`, and a draw from it.

What limits the distribution keeps the likeliest tokens, those whose weight reaches some least one.
A least weight is found by bisection over the bits of floats, which are ordered as the floats are:
at most 31 passes of vector code and nothing to sort.
"""

import numpy as np
from numba import carray, njit

from newllm.data.tokenizer import BOS, EOS, PAD
from newllm.models.generation.step import read, summed
from newllm.models.recurrence.native.arrays import array_at, exponential, line, pointer, row_of
from newllm.models.recurrence.native.tile import compiled, compiler

ONE = int(np.array(1, np.float32).view(np.int32))  # the bits of the largest weight
LARGEST = np.finfo(np.float32).max
SCANNED = 64  # weights whose sum is taken before it is known whether the drawn one is among them


@compiled
def penalize(logits, seen, penalty):
    """Make choices that occurred less likely."""
    for n in range(logits.size):
        lowered = logits[n] / penalty if logits[n] > 0 else logits[n] * penalty
        lowered = min(max(lowered, -LARGEST), LARGEST)
        logits[n] = lowered if seen[n] != 0 else logits[n]


@summed
def are_finite(logits):
    zero = np.float32(0)  # times infinity is no number
    for n in range(logits.size):
        zero += logits[n] * np.float32(0)
    return zero == np.float32(0)


@compiler(fastmath={"reassoc", "nsz", "nnan"})
def largest(logits):
    found = logits[0]
    for n in range(logits.size):
        found = max(found, logits[n])
    return found


@compiled
def likeliest(logits):
    """The first of the largest logits."""
    highest = largest(logits)
    for n in range(logits.size):
        if logits[n] == highest:
            return n
    return 0


@compiled
def exponentiate(weights, temperature):
    """Logits to weights in proportion to the probabilities, in place; the largest is 1."""
    highest = largest(weights)
    for n in range(weights.size):
        exponent = (weights[n] - highest) / temperature
        power = exponential(exponent)
        weights[n] = power if exponent > np.float32(-87) else np.float32(0)


@summed
def count_from(bits, least):
    """How many weights are at least the one with these bits."""
    count = np.int32(0)
    for n in range(bits.size):
        count += np.int32(1) if bits[n] >= least else np.int32(0)
    return count


@summed
def sum_from(weights, bits, least):
    """The sum of the weights that are at least the one with these bits."""
    total = np.float64(0)
    for n in range(bits.size):
        total += np.float64(weights[n]) if bits[n] >= least else np.float64(0)
    return total


@compiled
def least_of_top_k(bits, top_k):
    """Bits of the largest weight that at least `top_k` weights reach."""
    low, high = np.int32(0), np.int32(ONE + 1)
    while high - low > 1:
        middle = np.int32((low + high) // 2)
        if count_from(bits, middle) >= top_k:
            low = middle
        else:
            high = middle
    return low


@compiled
def least_of_top_p(weights, bits, top_p):
    """Bits of the largest weight such that those that reach it have this probability together."""
    wanted = top_p * sum_from(weights, bits, np.int32(0))
    low, high = np.int32(0), np.int32(ONE + 1)
    while high - low > 1:
        middle = np.int32((low + high) // 2)
        if sum_from(weights, bits, middle) >= wanted:
            low = middle
        else:
            high = middle
    return low


@compiled
def keep_from(weights, bits, least):
    for n in range(bits.size):
        weights[n] = weights[n] if bits[n] >= least else np.float32(0)


@compiled
def limit(call, weights, bits):
    """Set the weights of what may not be drawn to zero."""
    if 0 < call.top_k < weights.size:
        keep_from(weights, bits, least_of_top_k(bits, call.top_k))
    if call.top_p < 1:
        keep_from(weights, bits, least_of_top_p(weights, bits, call.top_p))
    if call.min_p > 0:
        least = np.float32(call.min_p)
        for n in range(weights.size):
            weights[n] = weights[n] if weights[n] >= least else np.float32(0)


@summed
def total_of(weights):
    total = np.float64(0)
    for n in range(weights.size):
        total += np.float64(weights[n])
    return total


@compiled
def at_uniform(weights, uniform):
    """The first index at which the sum of weights exceeds a share of the sum of all."""
    left, found = uniform * total_of(weights), 0
    for first in range(0, weights.size, SCANNED):
        part = line(weights, first, min(SCANNED, weights.size - first))
        total = total_of(part)
        if total > 0:
            if left < total:
                for n in range(part.size):
                    if part[n] > 0:
                        found = first + n  # also the last one, if rounding leaves something over
                        left -= np.float64(part[n])
                        if left < 0:
                            return found
                return found
            found = first + part.size - 1
        left -= total
    while weights[found] <= 0:  # rounding left something over at the very end
        found -= 1
    return found


@compiled
def choose(call, row, logits, uniform):
    """The choice of a row, or -1 if its logits are not finite."""
    values = row_of(logits, row, 0, call.num_choices)
    if not are_finite(values):
        return -1
    if call.repetition_penalty != 1:
        seen = array_at(call.seen, call.num_rows, call.num_choices, np.uint8)
        occurred = row_of(seen, row, 0, call.num_choices)
        penalize(values, occurred, np.float32(call.repetition_penalty))
    if call.temperature == 0:
        return likeliest(values)
    exponentiate(values, np.float32(call.temperature))
    address = call.logits + 4 * row * call.logits_stride
    limit(call, values, carray(pointer(address), call.num_choices, np.int32))
    return at_uniform(values, uniform)


@njit(error_model="numpy", inline="always")
def draw_tokens(call):
    """Draw tokens until all are drawn, all rows have ended, or logits are not finite.

    Row b reads `unread[b]` first. A row that has ended draws and reads `<PAD>`.
    """
    num_rows, num_choices = call.num_rows, call.num_choices
    unread = carray(pointer(call.unread), num_rows, np.int64)
    is_done = carray(pointer(call.is_done), num_rows, np.uint8)
    choices = carray(pointer(call.choices), num_choices, np.int64)
    seen = array_at(call.seen, num_rows, num_choices, np.uint8)
    uniforms = array_at(call.uniforms, call.num_tokens, num_rows, np.float64)
    drawn = array_at(call.drawn, call.num_tokens, num_rows, np.int64)
    num_drawn = carray(pointer(call.num_drawn), 1, np.int64)
    is_finite = carray(pointer(call.is_finite), 1, np.int64)
    for t in range(call.num_tokens):
        logits = read(call, unread)
        num_going_on = 0
        for row in range(num_rows):
            if is_done[row] != 0:
                drawn[t, row] = PAD
                unread[row] = PAD
                continue
            choice = choose(call, row, logits, uniforms[t, row])
            if choice < 0:
                is_finite[0] = 0
                return
            token = choices[choice]
            drawn[t, row] = token
            unread[row] = token
            if token == EOS:
                unread[row] = BOS if call.is_endless else PAD
                is_done[row] = 0 if call.is_endless else 1
            num_going_on += 1 - is_done[row]
            seen[row, choice] = seen[row, choice] if token == EOS else 1
        num_drawn[0] = t + 1
        if num_going_on == 0:
            return
