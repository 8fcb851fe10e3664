"""The minimal gated recurrent unit against its equations, written out."""

import torch

from newllm.models.mingru import MinGRULayer


def test_layer_is_the_equation_of_the_paper() -> None:
    torch.manual_seed(0)
    layer = MinGRULayer(3).double()
    inputs_BTH = torch.randn(2, 4, 3, dtype=torch.double)
    state_BH = torch.randn(2, 3, dtype=torch.double)
    real_BT1 = torch.ones(2, 4, 1, dtype=torch.double)
    real_BT1[0, 2] = 0
    reset_BT1 = torch.zeros(2, 4, 1, dtype=torch.double)
    reset_BT1[1, 1] = 1
    states_BTH, final_BH = layer(inputs_BTH, state_BH, real_BT1, reset_BT1)
    for row in range(2):
        state = state_BH[row]
        for t in range(4):
            if reset_BT1[row, t]:
                state = torch.zeros_like(state)
            if real_BT1[row, t]:
                x = inputs_BTH[row, t]
                z = 1 / (1 + torch.exp(-(layer.gate.weight @ x + layer.gate.bias)))
                candidate = layer.candidate.weight @ x + layer.candidate.bias
                state = (1 - z) * state + z * candidate
            torch.testing.assert_close(states_BTH[row, t], state)
        torch.testing.assert_close(final_BH[row], state)
