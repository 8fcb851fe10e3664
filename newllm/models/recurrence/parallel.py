"""Any cell over time without a loop over time: all tokens at once, until nothing changes.

An iteration takes one step of the cell at every token, each from the last estimate of the state
before it (Jacobi's method). After k iterations the first k states are exact, and the error of the
others has passed k Jacobians: it shrinks as exp(k times the largest Lyapunov exponent).

Newton's method would add a linear recurrence with these Jacobians (DEER, Lim et al. 2024, arXiv
2309.12252). With their diagonals alone, this costs little (quasi-DEER, Gonzalez et al. 2024, arXiv
2407.19115). There the diagonals are exact; here they are estimated by one product with random signs
(Hutchinson 1989), for any cell, and limited to +- 1.

Shapes: T time (tokens), B batch, N = T * B rows, E input, H output; a state is [T, B, ...], after
every token, or [T - 1, B, ...], before every token but the first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from newllm.config.faults import raise_faults, too_small
from newllm.models.cell import Cell
from newllm.models.layer import State
from newllm.models.recurrence.all_steps import AllSteps
from newllm.models.recurrence.reference import Chunk, roll

SETTLED = 4  # times the rounding error of the largest number: a smaller change counts as none


class Parallel:
    """Carries any cell over time by taking all steps of a chunk at once, several times.

    It pays for long sequences in few rows and a cell that forgets. Gradients are carried back in
    the same way. The plain loop takes a cell whose state has whole numbers, such as a clock.

    Args:
        num_iterations: for the states, and as many for the gradients. None means until they no
            longer change, after T at the latest, which gives what the plain loop gives; a number
            below T may give less.
        newton: whether an iteration uses the diagonals of the Jacobians. It then costs about three
            times as much, and fewer are needed.

    Raises:
        ValueError: `num_iterations` is below 1.
    """

    def __init__(self, num_iterations: int | None = None, newton: bool = False) -> None:
        if num_iterations is not None:
            raise_faults(too_small("recurrence", 1, num_iterations=num_iterations))
        self.num_iterations = num_iterations
        self.newton = newton

    def __call__(self, cell: Cell, chunk: Chunk) -> tuple[Tensor, State]:
        """Read a chunk; its `found` are the states after all tokens."""
        # The error of a clock does not shrink: it has one token more right after each iteration.
        has_clock = not all(part.is_floating_point() for part in chunk.state)
        if has_clock or chunk.inputs_BTE.shape[1] == 1 or torch.compiler.is_exporting():
            return roll(cell, chunk)
        if self.newton and torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return self(cell, _copied(chunk))
        steps, found = AllSteps(cell, chunk), chunk.found
        states = tuple(found) if found and torch.is_grad_enabled() else _last(self._states(steps))
        if found is not None and not torch.is_grad_enabled():
            found.extend(states)
        before = _before(states)
        outputs_TBH, after = steps.take(before)
        if torch.is_grad_enabled():
            outputs_TBH, *after = _Adjoint.apply(self, before, outputs_TBH, *after)
        return outputs_TBH.transpose(0, 1).contiguous(), tuple(part[-1] for part in after)

    def estimates(self, cell: Cell, chunk: Chunk) -> Iterator[State]:
        """The states after all tokens, as first guessed and after each iteration."""
        return self._states(AllSteps(cell, chunk))

    def _states(self, steps: AllSteps) -> Iterator[State]:

        def improved(states: State) -> State:
            before = _before(states)
            with torch.set_grad_enabled(self.newton):
                _, after = steps.take(before)
            if not self.newton:
                return after
            return _corrected(states, after, _diagonals(before, after))

        yield from self._iterate(improved, steps.first_guess())

    def gradients(self, before: State, results: State, grads: State) -> State:
        """Gradients of outputs and states, completed by what reaches a state from the next ones.

        Args:
            before: the states before the tokens, constants from which a step was taken.
            results: the outputs and the states after the tokens.
            grads: the gradients of these as far as they do not come from states.
        """
        of_outputs, *direct = grads
        backwards = _flipped(_diagonals(before, results[1:])) if self.newton else ()

        def improved(adjoints: State) -> State:
            carried = _pulled_back(before, results, (of_outputs, *adjoints))
            after = tuple(
                torch.cat((own[:-1] + back, own[-1:]))
                for own, back in zip(direct, carried, strict=True)
            )
            if not self.newton:
                return after
            return _flipped(_corrected(_flipped(adjoints), _flipped(after), backwards))

        return (of_outputs, *_last(self._iterate(improved, tuple(direct))))

    def _iterate(self, improved: Callable[[State], State], states: State) -> Iterator[State]:
        """An estimate, improved as often as asked for, or until it stays as it is."""
        yield states
        num_steps = len(states[0])
        for _ in range(min(self.num_iterations or num_steps, num_steps)):
            last, states = states, tuple(part.detach() for part in improved(states))
            yield states
            if self.num_iterations is None and _is_settled(last, states):
                return


class _Adjoint(torch.autograd.Function):
    """Passes the results of `AllSteps.take` on, and completes their gradients."""

    @staticmethod
    def forward(
        ctx: Any, parallel: Parallel, before: State, *results: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.parallel, ctx.before, ctx.results = parallel, before, results
        return tuple(result.view_as(result) for result in results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return None, None, *ctx.parallel.gradients(ctx.before, ctx.results, grads)


def _last(estimates: Iterator[State]) -> State:
    return deque(estimates, maxlen=1)[0]


def _copied(chunk: Chunk) -> Chunk:
    """A chunk of inference mode, whose tensors can have no gradients, as one of ordinary tensors.

    Dropout masks stay: in inference mode, there are none.
    """
    inputs_BTE, pad_BT, reset_BT = (
        None if tensor is None else tensor.clone()
        for tensor in (chunk.inputs_BTE, chunk.pad_BT, chunk.reset_BT)
    )
    assert inputs_BTE is not None
    state = tuple(part.clone() for part in chunk.state)
    return chunk._replace(inputs_BTE=inputs_BTE, state=state, pad_BT=pad_BT, reset_BT=reset_BT)


def _before(states: State) -> State:
    """The states before all tokens but the first, as constants to differentiate by."""
    return tuple(part[:-1].detach().requires_grad_() for part in states)


def _pulled_back(before: State, results: State, grads: State) -> State:
    """Gradients of the states before the tokens from those of results."""
    learned = [index for index, result in enumerate(results) if result.requires_grad]
    return torch.autograd.grad(
        [results[index] for index in learned],
        before,
        [grads[index] for index in learned],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )


def _diagonals(before: State, after: State) -> State:
    """Estimated diagonals of d after_t / d before_t.

    The sign of a number times its row of the Jacobian times all signs is its diagonal element and
    noise of mean zero.
    """
    generator = torch.Generator(after[0].device).manual_seed(0)  # leaves torch's own alone
    signs = tuple(
        torch.randint(2, part.shape, generator=generator, device=part.device).to(part) * 2 - 1
        for part in after
    )
    products = _pulled_back(before, after, signs)
    return tuple(
        (product * sign[1:]).clamp_(-1, 1) for product, sign in zip(products, signs, strict=True)
    )


def _corrected(old: State, new: State, diagonals: State) -> State:
    """A Newton step: each change is carried on to the later steps by the diagonals."""
    return tuple(
        was + _carried(to.detach() - was, diagonal)
        for was, to, diagonal in zip(old, new, diagonals, strict=True)
    )


def _flipped(state: State) -> State:
    return tuple(part.flip(0) for part in state)


def _carried(changes: Tensor, factors: Tensor) -> Tensor:
    """Totals with total_t = change_t + factor_t * total_{t-1}, by log2 T sums over all steps."""
    factors = torch.cat((torch.zeros_like(factors[:1]), factors))
    distance = 1
    while distance < len(changes):
        further = torch.addcmul(changes[distance:], factors[distance:], changes[:-distance])
        changes = torch.cat((changes[:distance], further))
        factors = torch.cat((factors[:distance], factors[distance:] * factors[:-distance]))
        distance *= 2
    return changes


def _is_settled(last: State, states: State) -> bool:
    """Whether no state has changed by more than rounding."""

    def is_same(one: Tensor, other: Tensor) -> Tensor:
        # Relative to the largest of all, since products round by its size. A number that is many
        # orders of magnitude smaller and decays slowly may then stop short of its last digits.
        # What is not finite does not change any more, either.
        largest = SETTLED * torch.finfo(one.dtype).eps * other.abs().amax()
        change = (one - other).abs().amax()
        return (change <= largest) | ~change.isfinite()

    return bool(torch.stack([*map(is_same, last, states)]).all())
