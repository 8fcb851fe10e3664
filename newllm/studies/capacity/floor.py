"""The least loss that a context of b bits permits, from the losses of windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate


def floor(bits: float, window_losses: Sequence[float], entropy_rate: float) -> float:
    """The least expected loss of any model that reads a token and a context of b bits.

    Let X be a stationary process, and C the context before X_1 is read: a function of the past with
    at most 2^b values. The predictions of X_2 ... X_{n+1} are functions of C, X_1 and the symbols
    between, so that the sum of their losses is at least

        H(X_2 ... X_{n+1} | X_1, C) = H(X_2 ... X_{n+1} | X_1) - I(C; X_2 ... X_{n+1} | X_1)
                                   >= H(X_2 ... X_{n+1} | X_1) - b
                                    = h_1 + ... + h_n - b,

    where h_k = H(X_{k+1} | X_1 ... X_k) is the loss of the best window of k symbols. Hence the mean
    loss is at least (h_1 + ... + h_n - b) / n for every n, and at least the entropy rate h.

    A row of scored symbols keeps this bound for every n that divides their number, since it is made
    of blocks of n. A row whose first token has no past, as with `unscored=1`, keeps it for every n:
    cut it into a remainder of r < n symbols, whose context is a constant, and blocks of n. The
    remainder loses at least h_1 + ... + h_r, and since h_k decreases, that is at least r times the
    bound. With more unscored symbols, the context of the remainder may hold b bits as well: for an
    n that does not divide the number T of scored symbols, the bound is proven only for rows without
    end, and for others up to b (n - r) / (n T).

    The floor meets h where b reaches the sum of all h_k - h. This is I(past; X_2 X_3 ... | X_1),
    the information that the past holds about the future beyond the token that is read: the excess
    entropy (Crutchfield and Feldman 2003, "Regularities unseen, randomness observed"), or
    predictive information (Bialek, Nemenman and Tishby 2001), without the part h_0 - h that the
    token itself shows. A model may need more: the floor lets every block have a context of its own,
    and what a context holds for one block need not be what it needs for the next.

    Args:
        bits: b.
        window_losses: h_1, h_2, ... in nats.
        entropy_rate: h in nats, or a lower bound.

    Returns:
        Nats per symbol.
    """
    sums = enumerate(accumulate(window_losses), start=1)
    return max(entropy_rate, *((total - bits * math.log(2)) / n for n, total in sums))


def smallest_context(loss: float, window_losses: Sequence[float]) -> float:
    """The fewest bits for which the floor lies at or below a loss in nats; the inverse of `floor`.

    For the entropy rate, that is I(past; X_2 X_3 ... | X_1).
    """
    return sum(max(0.0, window_loss - loss) for window_loss in window_losses) / math.log(2)
