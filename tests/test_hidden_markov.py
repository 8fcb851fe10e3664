"""Hidden-Markov sources: their exact losses, by enumeration and by formula.

Shape suffixes: S states, K symbols, N states after a symbol.
"""

import itertools
import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY_CONTEXT, Compose
from omegaconf import OmegaConf
from scipy.stats import chisquare

from newllm.config.build import ConfigFault, instantiate
from newllm.data.source import source_faults
from newllm.data.sources.grammar import END, Grammar
from newllm.data.sources.hidden_markov import ProcessSource, drawn_machine
from newllm.data.sources.processes import Copier, Machine
from newllm.training.experiment import build_experiment

CONF = Path(__file__).parents[1] / "conf" / "data"
NAMES = ("hidden_markov", "delayed_copy", "grammar")
SETTINGS = {"lengths": [8, 8], "evaluation_lengths": [], "evaluation_rows": 50}
EVEN = [[[0.5, 0.0], [0.0, 0.5]], [[0.0, 0.0], [1.0, 0.0]]]  # ones come in even numbers


def source(name: str, **changes: Any) -> Any:
    """A source as configured in `conf/data`, with changes."""
    return instantiate(OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), {"seed": 1}, changes))


def entropy(probabilities: Any) -> float:
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def word_probability(joint_SKN: np.ndarray, start_S: np.ndarray, word: tuple[int, ...]) -> float:
    """The sum over all paths of hidden states."""
    states = range(len(joint_SKN))
    return sum(
        start_S[path[0]]
        * math.prod(joint_SKN[s, x, n] for s, x, n in zip(path, word, path[1:], strict=False))
        for path in itertools.product(states, repeat=len(word) + 1)
    )


def block_entropy(joint_SKN: np.ndarray, start_S: np.ndarray, length: int) -> float:
    words = itertools.product(range(joint_SKN.shape[1]), repeat=length)
    return entropy(word_probability(joint_SKN, start_S, word) for word in words)


@pytest.mark.parametrize("seed", [1, 2])
def test_windows_are_those_of_all_words(seed: int) -> None:
    joint_SKN = drawn_machine(3, 2, 0.5, False, seed)
    machine = Machine(joint_SKN)
    start_S = machine.stationary_S
    assert start_S @ joint_SKN.sum(1) == pytest.approx(start_S)
    blocks = [block_entropy(joint_SKN, start_S, length) for length in range(6)]
    assert machine.windows.losses[:4] == pytest.approx(np.diff(blocks)[1:])


def test_the_lower_bound_knows_the_first_state() -> None:
    joint_SKN = drawn_machine(3, 2, 0.5, False, 1)
    machine = Machine(joint_SKN)
    known = [
        sum(
            p * block_entropy(joint_SKN, state_S, length)
            for p, state_S in zip(machine.stationary_S, np.eye(3), strict=True)
        )
        for length in range(5)
    ]
    bounds = itertools.islice(
        machine._conditional_entropies(np.eye(3), machine.stationary_S), len(known) - 1
    )
    assert list(bounds) == pytest.approx(np.diff(known))
    losses, entropy_rate = machine.windows
    assert max(np.diff(known)) <= entropy_rate <= losses[-1]
    assert all(np.diff(losses) <= 1e-12)


def test_the_even_process_has_the_published_entropies() -> None:
    """Crutchfield and Feldman 2003: an entropy rate of 2/3 bit, a Markov order without end."""
    losses, entropy_rate = source("hidden_markov", machine=EVEN).process.windows
    assert entropy_rate == pytest.approx(2 / 3 * math.log(2))
    assert losses[0] == pytest.approx(math.log(2) / 3 + 2 / 3 * entropy([0.25, 0.75]))
    assert losses[-1] > entropy_rate


def test_a_unifilar_machine_shows_its_state() -> None:
    """The state follows from a state and the symbols after it, so that the bracket is tight."""
    joint_SKN = drawn_machine(4, 3, 0.5, True, 1)
    assert ((joint_SKN > 0).sum(2) <= 1).all()
    machine = Machine(joint_SKN)
    of_state = [entropy(p_K) for p_K in joint_SKN.sum(2)]
    assert machine.windows.entropy_rate == pytest.approx(machine.stationary_S @ of_state)


@pytest.mark.parametrize(("kinds", "delay"), [(2, 2), (4, 3), (8, 1)])
def test_a_delayed_copy_needs_the_symbols_that_wait(kinds: int, delay: int) -> None:
    copied = source("delayed_copy", kinds=kinds, delay=delay, noise=0.1)
    entropy_rate = entropy([0.9 + 0.1 / kinds, *[0.1 / kinds] * (kinds - 1)])
    losses = [math.log(kinds)] * (delay - 1) + [entropy_rate]
    assert copied.process.windows.losses == pytest.approx(losses)
    assert copied.process.windows.entropy_rate == pytest.approx(entropy_rate)
    information = (delay - 1) * (math.log(kinds) - entropy_rate) / math.log(2)
    assert copied.information(64) == pytest.approx(information)
    assert copied.entropy_floor == pytest.approx(
        entropy_rate + (delay - 1) * (math.log(kinds) - entropy_rate) / 64
    )
    assert copied.reference_losses("test") == {
        "guess": math.log(kinds),
        **{f"window_{k}": pytest.approx(loss) for k, loss in enumerate(losses, start=1)},
        "entropy_rate": pytest.approx(entropy_rate),
    }


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("delayed_copy", {"kinds": 8, "delay": 2}, "2.62 bits at least; 3.00 follow its states"),
        ("hidden_markov", {"machine": EVEN}, "0.66 bits at least; 1.00 follow its states"),
        ("grammar", {}, "0.94 bits at least; 4.75 follow its states"),
        ("hidden_markov", {"unifilar": False}, "bits at least; no finite number is known"),
    ],
)
def test_the_card_tells_the_context_that_a_model_needs(
    name: str, changes: dict[str, Any], told: str
) -> None:
    noise = {"noise": 0.05} if name == "delayed_copy" else {}
    assert source(name, **changes, **noise).card()["context"].endswith(told)


def copying_machine(kinds: int, delay: int, noise: float) -> Machine:
    """A delayed copy as a machine: a state is the last `delay` symbols, the oldest first."""
    states = list(itertools.product(range(kinds), repeat=delay))
    joint_SKN = np.zeros((len(states), kinds, len(states)))
    for s, state in enumerate(states):
        for symbol in range(kinds):
            following = states.index((*state[1:], symbol))
            joint_SKN[s, symbol, following] = noise / kinds + (1 - noise) * (symbol == state[0])
    return Machine(joint_SKN)


@pytest.mark.parametrize(("kinds", "delay"), [(3, 1), (2, 3), (3, 2)])
def test_a_copier_is_a_machine_of_all_last_symbols(kinds: int, delay: int) -> None:
    copier, machine = Copier(kinds, delay, 0.2), copying_machine(kinds, delay, 0.2)
    assert copier.windows.losses == pytest.approx(machine.windows.losses)
    assert copier.windows.entropy_rate == pytest.approx(machine.windows.entropy_rate)
    symbols = copier.draw(np.random.default_rng(1), 50, 9)
    assert copier.losses(symbols) == pytest.approx(machine.losses(symbols))
    counts = Counter(map(tuple, copier.draw(np.random.default_rng(1), 20_000, 4).tolist()))
    words = np.array(list(itertools.product(range(kinds), repeat=4)))
    expected = 20_000 * np.exp(-machine.losses(words).sum(1))
    assert chisquare([counts[tuple(word)] for word in words.tolist()], expected).pvalue > 0.001


def test_losses_are_those_of_all_paths() -> None:
    joint_SKN = drawn_machine(3, 3, 0.5, False, 4)
    machine = Machine(joint_SKN)
    words = np.array(list(itertools.product(range(3), repeat=4)))
    logs = -machine.losses(words).sum(1)
    found = [word_probability(joint_SKN, machine.stationary_S, tuple(word)) for word in words]
    assert np.exp(logs) == pytest.approx(found)
    assert sum(found) == pytest.approx(1)


def test_sentences_have_the_losses_of_their_grammar() -> None:
    endless = source("grammar", unscored=2)
    rules = OmegaConf.to_container(OmegaConf.load(CONF / "grammar.yaml").rules)
    grammar, rng = Grammar(rules, "sentence"), random.Random(1)
    drawn = [grammar.sample(rng) for _ in range(30)]
    words = [END, *(word for sentence in drawn for word in [*sentence, END])]
    # What precedes an end says nothing of what follows it.
    symbols_BT = np.array([[endless.words.index(word) for word in words]])
    expected = [log for sentence in drawn for log in grammar.token_log_probabilities(sentence)]
    assert endless.process.losses(symbols_BT)[0, 1:] == pytest.approx([-log for log in expected])
    assert endless.process.windows.entropy_rate == pytest.approx(grammar.entropy_per_token())
    assert END in endless.words


def test_words_are_drawn_with_their_probabilities() -> None:
    joint_SKN = drawn_machine(3, 2, 1.0, False, 1)
    machine = Machine(joint_SKN)
    drawn = machine.draw(np.random.default_rng(1), 20_000, 7)[:, 3:]
    counts = Counter(map(tuple, drawn.tolist()))
    words = list(itertools.product(range(2), repeat=4))
    expected = [20_000 * word_probability(joint_SKN, machine.stationary_S, word) for word in words]
    assert chisquare([counts[word] for word in words], expected).pvalue > 0.001


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_scatters_around_its_expectation(name: str) -> None:
    drawn = source(name, evaluation_rows=1000)
    assert list(source_faults(drawn)) == []
    for split in ("validation", "test"):
        assert drawn.oracle_loss(split) == pytest.approx(drawn.entropy_floor, abs=0.02)
    batch = drawn.train.batch(0, 3)
    assert (batch.tokens_BT[:, 1:] == batch.targets_BT[:, :-1]).all()
    assert batch.scored_BT.all()


def test_the_first_symbols_may_be_unscored() -> None:
    drawn = source("hidden_markov", machine=EVEN, unscored=5, lengths=[3, 3], evaluation_rows=4000)
    batch = drawn.train.batch(0, 0)
    assert batch.tokens_BT.shape[1] == drawn.max_length == 7
    assert batch.scored_BT.sum(1).unique().tolist() == [3]
    assert batch.scored_BT[:, 4:].all()
    losses = drawn.process.windows.losses
    assert drawn.entropy_floor == pytest.approx(sum(losses[4:7]) / 3)
    assert drawn.oracle_loss("test") == pytest.approx(drawn.entropy_floor, abs=0.02)


def test_a_run_knows_its_floor(compose_config: Compose, tmp_path: Path) -> None:
    short = ("data.lengths=[8,8]", "data.evaluation_rows=8", "callbacks=none", "logger=none")
    steps = ("recipe=task", "countermeasure=none", "trainer.max_steps=2", "recurrence=reference")
    config = compose_config(
        "data=delayed_copy", "recurrence=reference", *steps, *short, *TINY_CONTEXT
    )
    experiment = build_experiment(config, tmp_path)
    assert isinstance(experiment.source, ProcessSource)
    assert {"guess", "window_1", "window_2", "oracle"} <= experiment.references.means.keys()
    experiment.trainer.fit(experiment.module, datamodule=experiment.data)
    assert experiment.trainer.global_step == 2


ALL = "must be at least 0 and add up to 1"


@pytest.mark.parametrize(
    ("name", "chosen", "fault"),
    [
        ("hidden_markov", "data.machine=[1]", "data.machine: must be a list with, for each state"),
        ("hidden_markov", "data.machine=[[[1.0]]]", "of at least two symbols"),
        ("hidden_markov", "data.machine=[[[1.0],[1.0]]]", ALL),
        ("hidden_markov", "data.machine=[[[1.5],[-0.5]]]", ALL),
        (
            "hidden_markov",
            "data.machine=[[[1,0],[0,0]],[[0,1],[0,0]]]",
            "has more than one stationary distribution",
        ),
        ("hidden_markov", "data.num_symbols=1", "data.num_symbols=1: must be at least 2"),
        ("hidden_markov", "data.num_states=0", "data.num_states=0: must be at least 1"),
        ("hidden_markov", "data.concentration=0", "data.concentration=0: must be above 0"),
        ("hidden_markov", "data.machine_seed=-1", "data.machine_seed=-1: must be at least 0"),
        (
            "hidden_markov",
            "data.machine=[[[0.5,0],[0,0.5]],[[0,0],[1,0]]] data.num_states=2",
            "data.num_states=2: is not used with data.machine",
        ),
        (
            "hidden_markov",
            "data.machine=[[[0.5,0],[0,0.5]],[[0,0],[1,0]]] data.unifilar=true",
            "data.unifilar=True: is not used with data.machine",
        ),
        ("grammar", "data.start=text", "data.rules: grammar: the start uses <text>, which has no"),
        ("grammar", "data.rules={sentence:['<sentence>']}", "must not contain itself: <sentence>"),
        ("grammar", "+data.rules.more=5", "data.rules: "),
        ("grammar", "data.rules=5", "data.rules: "),
        ("delayed_copy", "data.kinds=1", "data.kinds=1: must be at least 2"),
        ("delayed_copy", "data.delay=0", "data.delay=0: must be at least 1"),
        ("delayed_copy", "data.unscored=0", "data.unscored=0: must be at least 1"),
        ("delayed_copy", "data.noise=0", "data.noise=0: must be above 0 and at most 1"),
        ("delayed_copy", "data.noise=2", "data.noise=2: must be above 0 and at most 1"),
    ],
)
def test_an_impossible_setting_is_told_in_one_line(
    compose_config: Compose, tmp_path: Path, name: str, chosen: str, fault: str
) -> None:
    steps = ("recipe=task", "countermeasure=none", "trainer.max_steps=2", "logger=none")
    config = compose_config(
        f"data={name}", *steps, "callbacks=none", *TINY_CONTEXT, *chosen.split()
    )
    with pytest.raises(ConfigFault, match=re.escape(fault)) as error:
        build_experiment(config, tmp_path)
    assert len(str(error.value).splitlines()) == 1
