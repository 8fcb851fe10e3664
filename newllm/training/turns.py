"""Threads of one process that take turns, so that their work can be done together.

One thread goes on until it waits for the others or ends. Since all others stand still meanwhile,
each has what belongs to the process to itself: the random number generators, the default type of
tensors, and the output.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from newllm.training.random_states import set_torch_states, swap_numpy_generator, torch_states

_here = threading.local()


class Stopped(BaseException):
    """A thread ends since the process was asked to; not KeyboardInterrupt.

    Lightning's response to that is only possible in the main thread.
    """


class Member:
    """A thread of `Turns`.

    Attributes:
        request: what it waits for; None while it goes on.
        numbers: the states of torch's random number generators while it waits.
        seconds_of_others: how long others had their turn since it started.
    """

    def __init__(self, turns: Turns, work: Callable[[], None], log: int | None) -> None:
        self.turns = turns
        self.request: Any = None
        self.has_ended = False
        self.seconds_of_others = 0.0
        self._answer: list[Any] = []  # at most one
        self._work, self._log = work, log
        self._save()
        self._numpy = np.random.MT19937()  # swapped as a whole: copying its state takes long
        np.random.RandomState(self._numpy).set_state(np.random.get_state())
        self._turn = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def can_go_on(self) -> bool:
        """Whether it neither has ended nor waits for an answer."""
        return not self.has_ended and (self.request is None or bool(self._answer))

    def ask(self, request: Any) -> Any:
        """Wait until all threads wait or have ended; returns the answer to the request."""
        self.request = request
        following = self.turns.after(self)
        if following is not None and following is not self:
            self._hand_on(following)
        if not self._answer:
            self.numbers = torch_states()
            self.turns.answer_like(self)
            set_torch_states(self.numbers)
        self.request = None
        return self._answer.pop()

    def give(self, answer: Any) -> None:
        """Answer its request."""
        self._answer.append(answer)

    @contextmanager
    def own_numbers(self) -> Iterator[None]:
        """Within this context of a thread that answers, torch draws the numbers of this one."""
        others = torch_states()
        set_torch_states(self.numbers)
        try:
            yield
        finally:
            self.numbers = torch_states()
            set_torch_states(others)

    def start(self) -> None:
        """Start the thread, which waits for its turn."""
        self._thread.start()

    def go_on(self) -> None:
        """Give it its turn; the thread that calls this must not touch anything after that."""
        self._turn.release()

    def join(self) -> None:
        """Wait until it has ended."""
        self._thread.join()

    def _hand_on(self, following: Member) -> None:
        self._save()
        _flush()
        started = time.perf_counter()
        following.go_on()
        self._take_turn()
        self.seconds_of_others += time.perf_counter() - started

    def _save(self) -> None:
        self.numbers, self._python = torch_states(), random.getstate()
        self._default_dtype = torch.get_default_dtype()  # which precision=64-true sets for a while

    def _take_turn(self) -> None:
        self._turn.acquire()
        set_torch_states(self.numbers)
        random.setstate(self._python)
        swap_numpy_generator(self._numpy)
        torch.set_default_dtype(self._default_dtype)
        if self._log is not None:
            for stream in (1, 2):
                os.dup2(self._log, stream)

    def _run(self) -> None:
        _here.member = self
        self._take_turn()
        try:
            self._work()
        finally:
            _flush()
            self.has_ended = True
            if (following := self.turns.after(self)) is not None:
                following.go_on()


class Turns:
    """Threads that take turns.

    Args:
        answer: answers requests of the same `kind` by `Member.give`.
    """

    def __init__(self, answer: Callable[[Sequence[Member]], None]) -> None:
        self.members: list[Member] = []
        self.is_asked_to_stop = False
        self._answer = answer

    def add(self, work: Callable[[], None], log: int | None = None) -> None:
        """Add a thread.

        Args:
            work: what it does; exceptions end this thread alone.
            log: where the output of the process goes while it does so; None changes nothing.
        """
        self.members.append(Member(self, work, log))

    def run(self) -> None:
        """Run all threads to their ends."""
        before = swap_numpy_generator(np.random.MT19937())
        for member in self.members:
            member.start()
        if self.members:
            self.members[0].go_on()
        for member in self.members:
            member.join()
        swap_numpy_generator(before)

    @property
    def unfinished(self) -> list[Member]:
        """The threads that have not ended."""
        return [member for member in self.members if not member.has_ended]

    def after(self, member: Member) -> Member | None:
        """Who follows a thread: another that can go on, else one that waits; None at the end."""
        place = 1 + self.members.index(member)
        order = [*self.members[place:], *self.members[:place]]  # so that none waits for ever
        able = (each for each in order if each.can_go_on)
        return next(able, next((each for each in order if not each.has_ended), None))

    def answer_like(self, member: Member) -> None:
        """Answer this thread and all that wait for the same kind of answer."""
        kind = member.request.kind
        waiting = [each for each in self.unfinished if not each.can_go_on]
        alike = [each for each in waiting if each.request.kind == kind]
        started = time.perf_counter()
        self._answer(alike)
        seconds = time.perf_counter() - started
        member.seconds_of_others += seconds
        for each in alike:  # so all of them share the time equally
            each.seconds_of_others -= seconds / len(alike)


def current_member() -> Member | None:
    """The member that this thread is; None if it is of no `Turns`."""
    return getattr(_here, "member", None)


def own_seconds() -> float:
    """`time.perf_counter`, which stands still while other threads of `Turns` have their turn.

    The time of an answer is shared equally by those that get it.
    """
    member = current_member()
    return time.perf_counter() - (0.0 if member is None else member.seconds_of_others)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
