"""Synthetic tasks: the same answers from the symbols alone, by other means.

Shape suffixes: B rows of a batch, T time.
"""

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_CONTEXT, Command, Compose, faults_of
from omegaconf import OmegaConf
from scipy.stats import chisquare

from newllm.config.build import ConfigFault, instantiate
from newllm.data.batch import IGNORE
from newllm.data.source import source_faults
from newllm.data.tasks.automata import Automaton, Group, drawn_automaton, multiplication
from newllm.data.tasks.copying import Copy, Reverse, SelectiveCopy
from newllm.data.tasks.dyck import Dyck
from newllm.data.tasks.lookup import Induction, Passkey
from newllm.data.tasks.modular_arithmetic import BracketedArithmetic, ModularArithmetic
from newllm.data.tasks.recall import GAP_POWER, Recall
from newllm.data.tasks.task import FIRST_TOKEN, NOT_SCORED, Task
from newllm.runs.directory import RunConflict, has_ended
from newllm.runs.identity import variant_hash
from newllm.training.experiment import build_experiment
from newllm.training.run import train

CONF = Path(__file__).parents[1] / "conf" / "data"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml") if ".tasks." in path.read_text())

pytestmark = pytest.mark.filterwarnings("ignore:.*logging interval.*")


def task(name: str, **changes: Any) -> Any:
    """A task as configured in `conf/data`, with changes."""
    return instantiate(OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), {"seed": 1}, changes))


# Solvers: the answers of a row by position, from its symbols.

Answers = dict[int, int]
Solver = Callable[[Sequence[int]], Answers]


def solve_parity(symbols: Sequence[int]) -> Answers:
    return {t: sum(symbols[: t + 1]) % 2 for t in range(len(symbols))}


def solve_cycle(symbols: Sequence[int]) -> Answers:
    ups, downs = ([symbol == step for symbol in symbols] for step in (1, 2))
    return {t: (sum(ups[: t + 1]) - sum(downs[: t + 1])) % 5 for t in range(len(symbols))}


def last(solve: Solver) -> Solver:
    """Only the answer in the last position."""
    return lambda symbols: {len(symbols) - 1: solve(symbols)[len(symbols) - 1]}


def permutations(group: str) -> list[tuple[int, ...]]:
    """The elements of s3, a5 or s5; the even ones have an even number of cycles of even length."""
    return [
        element
        for element in itertools.permutations(range(int(group[1])))
        if group[0] == "s" or sum(len(cycle) % 2 == 0 for cycle in cycles(element)) % 2 == 0
    ]


def cycles(permutation: tuple[int, ...]) -> set[frozenset[int]]:
    found = set()
    for start in permutation:
        cycle, at = [start], permutation[start]
        while at != start:
            cycle, at = [*cycle, at], permutation[at]
        found.add(frozenset(cycle))
    return found


def solve_group(group: str) -> Solver:
    """Moves a deck of cards by one permutation after another."""
    if group == "z60":
        return lambda symbols: {t: sum(symbols[: t + 1]) % 60 for t in range(len(symbols))}
    elements = permutations(group)

    def solve(symbols: Sequence[int]) -> Answers:
        answers, product = {}, list(range(len(elements[0])))
        for t, symbol in enumerate(symbols):
            product = [product[place] for place in elements[symbol]]
            answers[t] = elements.index(tuple(product))
        return answers

    return solve


TABLE = ((1, 2), (2, 0), (0, 2))


def solve_table(symbols: Sequence[int]) -> Answers:
    state, answers = 0, {}
    for t, symbol in enumerate(symbols):
        state = TABLE[state][symbol]
        answers[t] = state
    return answers


def written(symbols: Sequence[int], modulus: int) -> str:
    """An expression as Python reads it."""
    signs = dict(enumerate("+-*()", modulus))
    return "".join(signs.get(symbol, str(symbol)) for symbol in symbols)


def solve_arithmetic(modulus: int) -> Solver:
    def solve(symbols: Sequence[int]) -> Answers:
        ends = range(0, len(symbols), 2)
        return {t: eval(written(symbols[: t + 1], modulus)) % modulus for t in ends}

    return solve


def solve_brackets(modulus: int) -> Solver:
    def solve(symbols: Sequence[int]) -> Answers:
        assert symbols[-1] == modulus + 5
        return {len(symbols) - 1: eval(written(symbols[:-1], modulus)) % modulus}

    return solve


def solve_dyck(kinds: int, depth: int) -> Solver:
    def solve(symbols: Sequence[int]) -> Answers:
        answers, stack = {}, []
        for t, symbol in enumerate(symbols):
            if symbol < kinds:
                stack.append(symbol)
            else:
                answers[t - 1] = stack.pop()
                assert answers[t - 1] == symbol - kinds
            assert len(stack) <= depth
        return answers

    return solve


def after_blanks(blank: int, items_of: Callable[[list[int]], list[int]]) -> Solver:
    """The items of what stands before the blanks, one for each blank."""

    def solve(symbols: Sequence[int]) -> Answers:
        first = list(symbols).index(blank)
        assert set(symbols[first:]) == {blank}
        items = items_of(list(symbols[:first]))
        assert len(items) == len(symbols) - first
        return dict(enumerate(items, first))

    return solve


def key_after_mark(symbols: list[int]) -> list[int]:
    digits = [symbol for symbol in symbols if symbol < 10]
    start = symbols.index(10) + 1
    assert symbols[start : start + len(digits)] == digits
    return digits


def solve_induction(symbols: Sequence[int]) -> Answers:
    special = symbols[-1]
    assert symbols.count(special) == 2
    return {len(symbols) - 1: symbols[symbols.index(special) + 1]}


def solve_recall(num_keys: int) -> Solver:
    def solve(symbols: Sequence[int]) -> Answers:
        values: dict[int, int] = {}
        answers: Answers = {}
        for t, symbol in enumerate(symbols):
            if symbol >= num_keys:
                continue
            if symbol in values:
                answers[t] = values.pop(symbol)  # no key is asked twice
            else:
                assert not answers  # all pairs come before all queries
                values[symbol] = symbols[t + 1] - num_keys
        assert not values
        return answers

    return solve


SOLVED: list[tuple[str, dict[str, Any], Solver]] = [
    ("parity", {}, solve_parity),
    ("parity", {"scored": "last"}, last(solve_parity)),
    ("cycle_navigation", {}, solve_cycle),
    ("cycle_navigation", {"scored": "last"}, last(solve_cycle)),
    *(("group", {"group": group}, solve_group(group)) for group in ("z60", "s3", "a5", "s5")),
    ("regular", {"transitions": TABLE}, solve_table),
    ("modular_arithmetic", {}, solve_arithmetic(5)),
    ("modular_arithmetic", {"modulus": 7, "scored": "last"}, last(solve_arithmetic(7))),
    ("bracketed_arithmetic", {}, solve_brackets(5)),
    ("bracketed_arithmetic", {"modulus": 3}, solve_brackets(3)),
    ("dyck", {}, solve_dyck(2, 8)),
    ("dyck", {"kinds": 3, "depth": 2}, solve_dyck(3, 2)),
    ("copy", {}, after_blanks(16, list)),
    ("reverse", {"kinds": 3}, after_blanks(3, lambda items: items[::-1])),
    ("selective_copy", {}, after_blanks(15, lambda row: [item for item in row if item < 14])),
    ("passkey", {}, after_blanks(11, key_after_mark)),
    ("passkey", {"digits": 2, "kinds": 1}, after_blanks(11, key_after_mark)),
    ("induction", {}, solve_induction),
    ("recall", {}, solve_recall(4096)),
    ("recall", {"vocabulary": 512}, solve_recall(256)),
    ("recall", {"positions_per_pair": 4}, solve_recall(4096)),
]


def test_every_task_is_solved() -> None:
    assert {name for name, _, _ in SOLVED} == set(NAMES)


@pytest.mark.parametrize(
    ("name", "changes", "solve"),
    SOLVED,
    ids=["-".join([name, *map(str, changes)]) for name, changes, _ in SOLVED],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_answers_and_scored_positions(
    name: str, changes: dict[str, Any], solve: Solver, seed: int
) -> None:
    drawn = task(name, **changes, seed=seed)
    least, most = drawn.least_length, 64
    for length in {least, least + 1, least + 2, 9, 16, 31, most}:
        batch = drawn.batch((9, length), 20, length)
        assert batch.tokens_BT.shape == (20, drawn.num_positions(length))
        for tokens_T, targets_T in zip(batch.tokens_BT, batch.targets_BT, strict=True):
            expected = torch.full_like(targets_T, IGNORE)
            for position, answer in solve((tokens_T - FIRST_TOKEN).tolist()).items():
                expected[position] = answer + FIRST_TOKEN
            assert targets_T.tolist() == expected.tolist()


# Batches.


@pytest.mark.parametrize("name", NAMES)
def test_batches_are_valid_and_fit(name: str) -> None:
    drawn = task(name)
    assert list(source_faults(drawn)) == []
    for number in range(20):
        batch = drawn.train.batch(0, number)
        assert batch.tokens_BT.dtype == batch.targets_BT.dtype == torch.int64
        assert int(batch.tokens_BT.min()) >= FIRST_TOKEN
        assert int(batch.tokens_BT.max()) < drawn.vocabulary_size
        answers = batch.targets_BT[batch.scored_BT] - FIRST_TOKEN
        assert len(answers) > 0
        assert int(answers.min()) >= 0
        assert int(answers.max()) < drawn.num_answers
        fewer = len(batch.tokens_BT) - 1  # a batch of a single row may have more tokens
        assert fewer * batch.tokens_BT.shape[1] <= 2048
        assert 1 <= len(batch.tokens_BT) <= 1024
    longest = max(drawn.longest, *OmegaConf.load(CONF / f"{name}.yaml").evaluation_lengths)
    assert drawn.max_length == drawn.num_positions(longest)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_depends_on_its_number_alone(name: str) -> None:
    backwards, forwards = task(name), task(name)
    first = {number: forwards.train.batch(0, number) for number in (0, 1, 2)}
    for number in (2, 1, 0):
        batch = backwards.train.batch(0, number)
        assert torch.equal(batch.tokens_BT, first[number].tokens_BT)
        assert torch.equal(batch.targets_BT, first[number].targets_BT)
    other = task(name, seed=2).train.batch(0, 0)
    assert other.tokens_BT.tolist() != first[0].tokens_BT.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_no_two_splits_and_batches_share_a_row(name: str) -> None:
    """At a length at which the chance of equal rows is negligible."""
    length = 64
    drawn = task(name, lengths=[length, length], evaluation_lengths=[length], evaluation_rows=100)
    batches = [drawn.train.batch(0, number) for number in range(3)]
    for split in drawn.evaluation.values():
        batches += list(split)
    rows = [tuple(row) for batch in batches for row in batch.tokens_BT.tolist()]
    assert set(drawn.evaluation) == {"validation", "test", f"length_{length}"}
    assert len(set(rows)) == len(rows)


def test_evaluation_splits_have_their_rows_and_lengths() -> None:
    drawn = task("parity", evaluation_lengths=[64, 2048], evaluation_rows=40)
    lengths = {"validation": 40, "test": 40, "length_64": 64, "length_2048": 2048}
    assert lengths.keys() == drawn.evaluation.keys()
    for name, length in lengths.items():
        split = drawn.evaluation[name]
        batches = list(split)
        assert {batch.tokens_BT.shape[1] for batch in batches} == {length}
        assert all(batch.tokens_BT.numel() <= 32_768 for batch in batches)
        found = torch.cat([batch.row_B for batch in batches])
        assert found.tolist() == list(range(40))
        assert split.while_training == (name == "validation")
        again = split.batch(3, len(split) - 1)
        assert torch.equal(again.tokens_BT, batches[-1].tokens_BT)
    assert len(drawn.evaluation["length_2048"]) == 3  # of 16, 16 and 8 rows


def lengths_of(drawn: Task, numbers: range) -> list[int]:
    return [drawn.train.batch(0, number).tokens_BT.shape[1] for number in numbers]


def test_a_curriculum_grows_from_the_shortest_to_the_longest() -> None:
    drawn = task("parity", lengths=[4, 64], curriculum=200, batch_tokens=64)
    found = lengths_of(drawn, range(600))
    longest_so_far = [round(4 * 16 ** min(1, (number + 1) / 200)) for number in range(600)]
    assert found[0] == 4
    assert all(4 <= length <= most for length, most in zip(found, longest_so_far, strict=True))
    share = np.mean([a == b for a, b in zip(found[200:], longest_so_far[200:], strict=True)])
    assert share == pytest.approx(0.7, abs=0.07)
    assert 64 not in found[:190]


def test_without_a_curriculum_all_lengths_are_equally_likely() -> None:
    found = Counter(lengths_of(task("parity", lengths=[3, 10], batch_tokens=10), range(2000)))
    assert sorted(found) == list(range(3, 11))
    assert chisquare(list(found.values())).pvalue > 0.001


# Distributions. Seeds are fixed, so that a test passes always or never.


def assert_uniform(values: np.ndarray, num_kinds: int) -> None:
    counts = np.bincount(np.ravel(values), minlength=num_kinds)
    assert len(counts) == num_kinds
    assert chisquare(counts).pvalue > 0.001, counts


def rows(drawn: Task, number: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    drawn_rows = drawn.draw(np.random.default_rng(5), number, length)
    return drawn_rows.symbols_BT, drawn_rows.answers_BT


@pytest.mark.parametrize(
    ("name", "changes", "num_kinds"),
    [("parity", {}, 2), ("cycle_navigation", {}, 3), ("group", {"group": "a5"}, 60)],
)
def test_automata_read_uniform_symbols(name: str, changes: dict[str, Any], num_kinds: int) -> None:
    symbols_BT, answers_BT = rows(task(name, **changes), 500, 20)
    assert_uniform(symbols_BT, num_kinds)
    for t in (0, 19):
        assert_uniform(symbols_BT[:, t], num_kinds)
    if name != "cycle_navigation":  # whose first places are near the start
        assert_uniform(answers_BT[:, -1], num_kinds)


def test_arithmetic_is_uniform() -> None:
    symbols_BT, _ = rows(task("modular_arithmetic"), 500, 21)
    assert_uniform(symbols_BT[:, ::2], 5)
    assert_uniform(symbols_BT[:, 1::2] - 5, 3)
    symbols_BT, _ = rows(task("bracketed_arithmetic"), 2000, 9)
    for kinds, offset in ((5, 0), (3, 5)):
        chosen = symbols_BT[:, 1:-1]
        chosen = chosen[(chosen >= offset) & (chosen < offset + kinds)]
        if offset:  # a minus may also be a sign: `-` after a bracket or an operation
            chosen = [
                symbol
                for row in symbols_BT.tolist()
                for before, symbol in itertools.pairwise(row)
                if 5 <= symbol < 8 and (before < 5 or before == 9)
            ]
        assert_uniform(np.array(chosen) - offset, kinds)


def test_the_share_of_the_left_expression_is_uniform() -> None:
    symbols_BT, _ = rows(task("bracketed_arithmetic"), 3000, 6)
    # `(x+-y)` or `(-x+y)`: one symbol or two of three on the left
    assert_uniform((symbols_BT[:, 1] == 6).astype(int), 2)


def test_copies_and_places_are_uniform() -> None:
    symbols_BT, _ = rows(task("copy"), 500, 20)
    assert_uniform(symbols_BT[:, :20], 16)
    symbols_BT, answers_BT = rows(task("selective_copy", num_items=4), 2000, 12)
    assert_uniform(np.nonzero(symbols_BT[:, :12] < 14)[1], 12)
    assert_uniform(answers_BT[:, 12:], 14)


def test_dyck_opens_and_closes_equally_often() -> None:
    symbols_BT, _ = rows(task("dyck", kinds=3, depth=4), 2000, 30)
    opens_BT = symbols_BT < 3
    assert_uniform(symbols_BT[opens_BT], 3)
    depth_BT = np.cumsum(np.where(opens_BT, 1, -1), axis=1)
    is_free_BT = (depth_BT[:, :-1] > 0) & (depth_BT[:, :-1] < 4)
    assert_uniform(opens_BT[:, 1:][is_free_BT].astype(int), 2)


def test_lookups_are_uniform() -> None:
    symbols_BT, answers_BT = rows(task("induction"), 4000, 12)
    assert_uniform((symbols_BT == 16).argmax(1), 10)
    assert_uniform(answers_BT[:, -1], 16)
    drawn = task("passkey")
    symbols_BT, answers_BT = rows(drawn, 4000, 25)
    place_B = (symbols_BT == 10).argmax(1)
    assert_uniform(place_B, 20)
    assert_uniform(answers_BT[:, 25:], 10)
    assert_uniform(symbols_BT[symbols_BT >= 12] - 12, 16)
    slice_B = drawn.draw(np.random.default_rng(5), 4000, 25).slice_B
    assert slice_B.tolist() == (place_B // 5).tolist()  # quarters of the 20 places


def test_recall_draws_keys_values_and_places() -> None:
    num_pairs = 2
    drawn = task("recall", vocabulary=16, lengths=[1, 4], evaluation_lengths=[])
    symbols_BT, answers_BT = rows(drawn, 8000, num_pairs)
    assert_uniform(symbols_BT[:, : 2 * num_pairs : 2], 8)
    assert_uniform(symbols_BT[:, 1 : 2 * num_pairs : 2] - 8, 8)
    is_query_BT = answers_BT != NOT_SCORED
    assert (is_query_BT.sum(1) == num_pairs).all()
    places = np.nonzero(is_query_BT)[1] - 2 * num_pairs
    assert (places % 2 == 0).all()
    gaps = np.arange(1, (symbols_BT.shape[1] - 2 * num_pairs) // 2 + 1)
    # Two places without replacement: p_i + sum over the others of p_j p_i / (1 - p_j).
    p = gaps ** (GAP_POWER - 1) / (gaps ** (GAP_POWER - 1)).sum()
    odds = p / (1 - p)
    expected = 8000 * p * (1 + odds.sum() - odds)
    counts = np.bincount(places // 2, minlength=len(gaps))
    # Two places of a row exclude each other, which makes the statistic smaller, never larger.
    assert chisquare(counts, expected).pvalue > 0.001
    first_query_B = symbols_BT[np.arange(8000), is_query_BT.argmax(1)]
    assert_uniform((first_query_B == symbols_BT[:, 0]).astype(int), 2)


def test_recall_has_the_published_numbers_of_positions() -> None:
    drawn = task("recall")
    published = {4: 64, 8: 128, 16: 256, 32: 256, 64: 256, 128: 512, 256: 1024}
    assert {pairs: drawn.num_positions(pairs) for pairs in published} == published
    assert drawn.vocabulary_size - FIRST_TOKEN - 1 == 8192
    dense = task("recall", positions_per_pair=4)
    assert [dense.num_positions(pairs) for pairs in published] == [4 * pairs for pairs in published]


# Groups and automata.


@pytest.mark.parametrize(("group", "order"), [("z60", 60), ("s3", 6), ("a5", 60), ("s5", 120)])
def test_the_tables_are_groups(group: str, order: int) -> None:
    table = np.array(multiplication(group))
    elements = np.arange(order)
    assert table.shape == (order, order)
    assert (table[0] == elements).all()
    assert (table[:, 0] == elements).all()
    assert (np.sort(table, axis=1) == elements).all()
    assert (np.sort(table, axis=0) == elements[:, None]).all()
    assert (table[table, :] == table[:, table]).all()  # (a b) c = a (b c)
    assert (table == table.T).all() == (group == "z60")


def test_drawn_automata_are_connected_and_differ() -> None:
    for num_states, num_symbols in ((2, 1), (7, 1), (8, 3), (12, 2)):
        found = [drawn_automaton(num_states, num_symbols, seed) for seed in range(5)]
        assert len({table.tobytes() for table in found}) > (1 if num_states > 2 else 0)
        for table in found:
            for start in range(num_states):
                reached, waiting = {start}, [start]
                while waiting:
                    new = set(table[waiting.pop()].tolist()) - reached
                    reached |= new
                    waiting += new
                assert len(reached) == num_states
    again = drawn_automaton(8, 3, 1)
    assert (again == drawn_automaton(8, 3, 1)).all()


# Information: the pasts that must be told apart, found among all rows.


def pasts(symbols_BT: np.ndarray, answers_BT: np.ndarray, t: int) -> list[dict[Any, int]]:
    """What each different past of `t` symbols makes of what follows: an answer to each."""
    answers_of: dict[tuple[int, ...], dict[Any, int]] = {}
    for symbols, answers in zip(symbols_BT.tolist(), answers_BT.tolist(), strict=True):
        known = answers_of.setdefault(tuple(symbols[:t]), {})
        for end in range(t, len(symbols)):
            if answers[end] != NOT_SCORED:
                known[tuple(symbols[t : end + 1])] = answers[end]
    different = {frozenset(known.items()) for known in answers_of.values()}
    return [dict(known) for known in different]


def differ(a: dict[Any, int], b: dict[Any, int]) -> bool:
    return any(b.get(rest, answer) != answer for rest, answer in a.items())


def bounds_of_states(known: list[dict[Any, int]]) -> tuple[int, int]:
    """Pasts that all differ, and groups of pasts that do not: no fewer and no more states."""
    known = sorted(known, key=len, reverse=True)
    apart: list[dict[Any, int]] = []
    groups: list[list[dict[Any, int]]] = []
    for past in known:
        if all(differ(past, other) for other in apart):
            apart.append(past)
        for group in groups:
            if not any(differ(past, other) for other in group):
                group.append(past)
                break
        else:
            groups.append([past])
    return len(apart), len(groups)


def states_needed(drawn: Task, length: int, num_rows: int) -> tuple[int, int]:
    """Bounds of the number of states at the position that needs most."""
    symbols_BT, answers_BT = rows(drawn, num_rows, length)
    both_BT = np.unique(np.concatenate([symbols_BT, answers_BT], axis=1), axis=0)
    symbols_BT, answers_BT = np.split(both_BT, 2, axis=1)
    bounds = [
        bounds_of_states(pasts(symbols_BT, answers_BT, t)) for t in range(symbols_BT.shape[1])
    ]
    return max(low for low, _ in bounds), max(high for _, high in bounds)


SMALL: dict[str, Any] = {"lengths": [1, 6]}


@pytest.mark.parametrize(
    ("drawn", "lengths"),
    [
        (Group("s3", **SMALL), (1, 2, 3)),
        (Automaton("ring", [[1], [2], [0]], **SMALL), (1, 4)),  # its state is known beforehand
        (Automaton("last", [[0, 1], [0, 1]], **SMALL), (1, 4)),  # and so needs no memory
        (Automaton("table", TABLE, **SMALL), (1, 2, 3, 5)),
        (Automaton("table", TABLE, scored="last", **SMALL), (1, 2, 3, 5)),
        (ModularArithmetic(2, **SMALL), (5, 6, 7)),
        (ModularArithmetic(3, scored="last", **SMALL), (5,)),
        (Copy(2, **SMALL), (1, 2, 4)),
        (Reverse(3, **SMALL), (1, 3)),
        (SelectiveCopy(2, 2, **SMALL), (1, 2, 5)),
        (Induction(3, lengths=[3, 6]), (3, 4, 5)),
        (Passkey(1, 1, lengths=[2, 6]), (2, 4)),
        (Dyck(2, 2, lengths=[2, 8]), (5, 6, 7)),
        (Dyck(1, 3, lengths=[2, 8]), (5, 8)),
        (Dyck(3, 8, lengths=[2, 8]), (5, 6)),
        (Dyck(2, 8, lengths=[2, 8]), (7,)),
        (Recall(4, lengths=[1, 2]), (1, 2)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_information_is_that_of_the_fewest_states(drawn: Task, lengths: tuple[int, ...]) -> None:
    for length in lengths:
        low, high = states_needed(drawn, length, 10_000)
        assert low == high
        assert 2 ** drawn.information(length) == pytest.approx(low)


@pytest.mark.parametrize("length", [1, 2, 5, 6, 7])
def test_information_of_brackets_is_an_upper_bound(length: int) -> None:
    drawn = BracketedArithmetic(2, **SMALL)
    low, high = states_needed(drawn, length, 20_000)
    assert low <= high <= 2 ** drawn.information(length) + 1e-9


def test_guessing_has_the_reference_loss() -> None:
    for name in NAMES:
        drawn = task(name)
        assert drawn.reference_losses("test") == {"guess": math.log(drawn.num_answers)}


# Runs.

RUN = ("recipe=task", "countermeasure=none", "trainer.max_steps=2", "logger=none")
SHORT = ("data.evaluation_rows=4", "data.batch_tokens=64", "data.lengths=[8,12]")
TINY_TRANSFORMER = (
    "model=transformer",
    "model.embedding_dim=8",
    "model.num_heads=2",
    "model.num_layers=1",
    "model.feedforward_dim=8",
)


@pytest.mark.parametrize("model", [TINY_CONTEXT, TINY_TRANSFORMER], ids=["context", "transformer"])
@pytest.mark.parametrize("name", NAMES)
def test_every_task_trains(
    compose_config: Compose, tmp_path: Path, name: str, model: tuple[str, ...]
) -> None:
    """Learned positions are as many as the longest row has."""
    lengths = "data.evaluation_lengths=[16]"
    config = compose_config(f"data={name}", *RUN, *SHORT, lengths, "callbacks=none", *model)
    experiment = build_experiment(config, tmp_path)
    if model == TINY_TRANSFORMER:
        assert experiment.config.model.max_length == experiment.source.max_length
    experiment.trainer.fit(experiment.module, datamodule=experiment.data)
    assert experiment.trainer.global_step == 2
    experiment.trainer.test(experiment.module, datamodule=experiment.data, verbose=False)
    found = experiment.trainer.callback_metrics
    for metric in ("loss", "accuracy", "accuracy_sequence"):
        for split in ("test", "best/length_16"):
            assert math.isfinite(found[f"{split}/{metric}"])
    assert "length_16" not in experiment.data.validation_names


def test_runs_of_a_task_with_other_seeds_are_one_variant(compose_config: Compose) -> None:
    chosen = [(), ("seed=2",), ("seed=2", "data.seed=1"), ("data.kinds=4",)]
    first, second, chosen_rows, other = (
        variant_hash(compose_config("data=copy", *RUN, *lines)) for lines in chosen
    )
    assert first == second
    assert len({first, chosen_rows, other}) == 3


def test_a_run_of_a_task(command: Command, tmp_path: Path) -> None:
    chosen = ("data=parity", "data.evaluation_lengths=[50]", *RUN, *SHORT, *TINY_CONTEXT)
    done = command("newllm.train", *chosen, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["spikes"] is None  # batches of different lengths
    assert result["references"] == {"guess": pytest.approx(math.log(2), abs=1e-3)}
    assert set(result["evaluation"]["length_50"]) == {"loss", "accuracy", "accuracy_sequence"}
    refused = command("newllm.generate", "run")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1), refused.stderr
    again = command("newllm.train", "run=run")
    assert (again.returncode, again.stderr) == (0, "")
    assert "run: is done" in again.stdout


def test_a_sweep_of_a_task_is_not_done_again(compose_config: Compose, tmp_path: Path) -> None:
    """The positions of the longest row, filled in when the data was built, change no run."""
    chosen = ("data=parity", *RUN, *SHORT, *TINY_TRANSFORMER, "callbacks=none")
    config = compose_config(*chosen, "data.evaluation_lengths=[16]")
    train(config, tmp_path / "run", [], goes_on=True)
    assert has_ended(tmp_path / "run", config)
    for change in ("data.evaluation_lengths=[17]", "data.max_length=99"):
        with pytest.raises(RunConflict, match="another configuration"):
            has_ended(tmp_path / "run", compose_config(*chosen, change))


def test_the_data_decides_the_positions_of_a_model(compose_config: Compose, tmp_path: Path) -> None:
    config = compose_config("data=parity", *RUN, *SHORT, *TINY_TRANSFORMER, "model.max_length=99")
    with pytest.raises(ConfigFault, match=r"^model\.max_length=99: follows from the data"):
        build_experiment(config, tmp_path)


@pytest.mark.parametrize(
    ("name", "chosen", "fault"),
    [
        ("parity", "data.lengths=[9,3]", "data.lengths=[9, 3]: must be [SHORTEST,LONGEST], from 1"),
        ("parity", "data.lengths=[]", "data.lengths=[]: must be [SHORTEST,LONGEST], from 1"),
        ("parity", "data.lengths=[a,3]", "data.lengths=['a', 3]: must be"),
        ("parity", "data.evaluation_lengths=[0]", "data.evaluation_lengths=[0]: must be whole"),
        ("parity", "data.batch_tokens=0", "data.batch_tokens=0: must be at least 1"),
        ("parity", "data.max_rows=0", "data.max_rows=0: must be at least 1"),
        ("parity", "data.evaluation_rows=0", "data.evaluation_rows=0: must be at least 1"),
        ("parity", "data.curriculum=-1", "data.curriculum=-1: must be at least 0"),
        ("parity", "data.seed=-1", "data.seed=-1: must be at least 0"),
        ("parity", "data.max_length=99", "data.max_length=99: a row of length 2048 has 2048"),
        ("parity", "data.scored=first", "data.scored=first: no such option; options: every, last"),
        ("copy", "data.kinds=1", "data.kinds=1: must be at least 2"),
        ("selective_copy", "data.num_items=0", "data.num_items=0: must be at least 1"),
        ("dyck", "data.depth=0", "data.depth=0: must be at least 1"),
        ("dyck", "data.lengths=[1,9]", "data.lengths=[1, 9]: must be [SHORTEST,LONGEST], from 2"),
        ("induction", "data.kinds=1", "data.kinds=1: must be at least 2"),
        ("induction", "data.evaluation_lengths=[2]", "must be whole numbers from 3"),
        ("passkey", "data.digits=0", "data.digits=0: must be at least 1"),
        (
            "passkey",
            "data.digits=16",
            "data.lengths=[16, 256]: must be [SHORTEST,LONGEST], from 17",
        ),
        ("recall", "data.vocabulary=7", "data.vocabulary=7: must be even, from 4"),
        ("recall", "data.positions_per_pair=3", "data.positions_per_pair=3: must be at least 4"),
        ("recall", "data.vocabulary=200", "data.vocabulary=200: has 100 keys for 256 pairs"),
        ("modular_arithmetic", "data.modulus=1", "data.modulus=1: must be at least 2"),
        (
            "modular_arithmetic",
            "data.scored=a",
            "data.scored=a: no such option; options: every",
        ),
        ("bracketed_arithmetic", "data.modulus=1", "data.modulus=1: must be at least 2"),
        ("group", "data.group=s9", "data.group=s9: no such option; options: z60, s3, a5, s5"),
        ("regular", "data.num_states=1", "data.num_states=1: must be at least 2"),
        ("regular", "data.num_symbols=0", "data.num_symbols=0: must be at least 1"),
        ("regular", "data.automaton_seed=-1", "data.automaton_seed=-1: must be at least 0"),
        ("regular", "data.start=8", "data.start=8: must be from 0 to 7"),
        ("regular", "data.transitions=[0,1]", "data.transitions: must be a list with a list"),
        ("regular", "data.transitions=[[0],[2]]", "next states must be from 0 to 1"),
        (
            "regular",
            "data.transitions=[[0,1],[1,0]] data.automaton_seed=2",
            "data.automaton_seed=2: is not used with data.transitions",
        ),
        ("regular", "data.num_states=300", "data.num_states=300: too many for data.num_symbols=3"),
    ],
)
def test_an_impossible_setting_is_told_in_one_line(
    compose_config: Compose, tmp_path: Path, name: str, chosen: str, fault: str
) -> None:
    config = compose_config(f"data={name}", *RUN, "callbacks=none", *TINY_CONTEXT, *chosen.split())
    with pytest.raises(ConfigFault, match=re.escape(fault)) as error:
        build_experiment(config, tmp_path)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("chosen", "fault"),
    [
        ("+data.kinds=2", "data.kinds: Parity takes no kinds"),
        ("+data.num_symbols=2", "data.num_symbols: Parity takes no num_symbols"),
        (
            "+data.curiculum=2",
            "data.curiculum: Parity takes no curiculum; did you mean curriculum?",
        ),
        ("data.max_rows=many", "data.max_rows=many: must be a whole number"),
    ],
)
def test_keys_that_a_task_does_not_take(chosen: str, fault: str) -> None:
    """Those of the classes that it is derived from are known, and checked."""
    (line,) = faults_of(["data=parity", *RUN, chosen])
    assert line.startswith(fault)
