"""Positions: counted against brute force, learned tables and their end, rotation.

Shapes: B batch, T time (tokens), E embedding, N heads, D size of a head.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import context_model, transformer

from newllm.models.language_model import LanguageModel
from newllm.models.positions import LearnedPositions, rotary_angles, rotate, token_positions

V = 9


@given(
    start=st.integers(0, 5),
    steps=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12),
)
def test_positions_equal_counting(start: int, steps: list[tuple[bool, bool]]) -> None:
    position, expected = start, []
    for is_real, is_reset in steps:
        position = 0 if is_reset else position
        expected.append(position)
        position += is_real
    real_BT = torch.tensor([[is_real for is_real, _ in steps]])
    reset_BT = torch.tensor([[is_reset for _, is_reset in steps]])
    position_BT, next_B = token_positions(real_BT, torch.tensor([start]), reset_BT)
    assert position_BT.tolist() == [expected]
    assert next_B.tolist() == [position]


@pytest.mark.parametrize(
    "model",
    [context_model(V, positions="learned", max_length=3), transformer(V, max_length=3)],
)
def test_learned_positions_end_in_one_line(model: LanguageModel) -> None:
    full = torch.tensor([[2, 4, 5, 0], [2, 4, 5, 0]])
    _, state = model(full)
    reset = torch.tensor([[True], [True]])
    model(full[:, :1], state, reset)
    message = "model.max_length=3: is too short for 4 tokens; raise it or set model.positions=none"
    with pytest.raises(ValueError, match=message):
        model(full[:, :1], state)
    with pytest.raises(ValueError, match=message):
        model(torch.tensor([[2, 4, 5, 3]]))


def test_learned_positions_look_up_their_row() -> None:
    layer = LearnedPositions(3, max_length=4)
    x_BTD, pad_BT = torch.zeros(1, 3, 3), torch.tensor([[False, True, False]])
    found, (next_B,) = layer(x_BTD, (torch.tensor([2]),), pad_BT)
    assert torch.equal(found[0, [0, 2]], layer.table.weight[[2, 3]])
    assert next_B.tolist() == [4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_angles_of_half_precision_tell_far_positions_apart(dtype: torch.dtype) -> None:
    position_BT = torch.arange(100_000, 100_004)[None]
    found = torch.cat(rotary_angles(position_BT, 8, dtype))
    expected = torch.cat(rotary_angles(position_BT, 8, torch.double))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=2e-2, rtol=0)


def test_rotation_shows_distances_only() -> None:
    query, key = torch.randn(2, 1, 1, 1, 6).double()

    def score(query_position: int, key_position: int) -> torch.Tensor:
        rotated_query, rotated_key = (
            rotate(vector, rotary_angles(torch.tensor([[position]]), 6, torch.double))
            for vector, position in ((query, query_position), (key, key_position))
        )
        return (rotated_query * rotated_key).sum()

    torch.testing.assert_close(score(3, 1), score(40, 38), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(score(0, 0), (query * key).sum())
    assert not torch.isclose(score(3, 1), score(3, 2))
