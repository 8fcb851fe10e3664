"""The delta rule over time, in chunks: matrix products instead of a loop over the tokens.

Shapes: B batch, T time (tokens), N heads, J writes of a token, K width of keys and values, G groups
of tokens, Q tokens of a group, R = Q * J writes of a group; a memory is [value, key].
"""

import torch
from torch import Tensor
from torch.nn import functional as F

MOST_WRITES = 64  # of a group; the products within a group grow with its square


def delta_rule(
    query_BNTK: Tensor,
    key_BNTJK: Tensor,
    value_BNTJK: Tensor,
    beta_BNTJ: Tensor,
    memory_BNKK: Tensor,
    segment_BT: Tensor,
) -> tuple[Tensor, Tensor]:
    """Write S <- S - beta (S k - v) k^T for each of the J writes of a token, then read S q.

    Within a group, the r-th write changes S by u_r k_r^T, where

        u_r = beta_r (v_r - S_0 k_r - sum_{i < r} (k_r . k_i) u_i)

    and S_0 is the memory before the group. This triangular system is solved for all groups at once
    (the WY representation; Yang et al. 2024, arXiv 2406.06484); a loop carries S_0 over the groups.

    Args:
        query_BNTK: q.
        key_BNTJK: k.
        value_BNTJK: v.
        beta_BNTJ: beta; 0 writes nothing.
        memory_BNKK: S before the first token.
        segment_BT: number of resets up to each token; never falls. A token of another segment than
            the one before it starts from S = 0.

    Returns:
        The reads [B, N, T, K], and S after the last token.
    """
    num_tokens, num_writes = key_BNTJK.shape[2:4]
    size = min(num_tokens, max(1, MOST_WRITES // num_writes))
    missing = -num_tokens % size

    def grouped(tensor_BNT: Tensor, dims: int) -> Tensor:
        """[B, N, G, Q, ...], padded with zeros, where `dims` dimensions follow T."""
        return F.pad(tensor_BNT, (0, 0) * dims + (0, missing)).unflatten(2, (-1, size))

    query_BNGQK = grouped(query_BNTK, 1)
    key_BNGRK, value_BNGRK = (grouped(each, 2).flatten(3, 4) for each in (key_BNTJK, value_BNTJK))
    beta_BNGR1 = grouped(beta_BNTJ, 1).flatten(3, 4)[..., None]
    last_B1 = segment_BT[:, -1:]
    segment_BT = torch.cat((segment_BT, last_B1.expand(-1, missing)), dim=1)
    segment_B1GQ = segment_BT.unflatten(1, (-1, size))[:, None]
    segment_B1GR = segment_B1GQ.repeat_interleave(num_writes, dim=3)
    end_B1G = segment_B1GQ[..., -1]
    start_B1G = F.pad(end_B1G[..., :-1], (1, 0))

    time_Q = torch.arange(size, device=query_BNTK.device)
    of_token_R = time_Q.repeat_interleave(num_writes)
    same_RR = segment_B1GR[..., :, None] == segment_B1GR[..., None, :]
    same_QR = segment_B1GQ[..., :, None] == segment_B1GR[..., None, :]
    scaled_BNGRK = beta_BNGR1 * key_BNGRK
    products_RR = (scaled_BNGRK @ key_BNGRK.mT * same_RR).tril(-1)
    sees_start_R1 = (segment_B1GR == start_B1G[..., None])[..., None]
    right = torch.cat((beta_BNGR1 * value_BNGRK, scaled_BNGRK * sees_start_R1), dim=-1)
    from_values_BNGRK, from_memory_BNGRK = _solved(products_RR, right).chunk(2, dim=-1)
    weights_QR = query_BNGQK @ key_BNGRK.mT * (same_QR & (of_token_R <= time_Q[:, None]))
    query_BNGQK = query_BNGQK * (segment_B1GQ == start_B1G[..., None])[..., None]
    key_BNGRK = key_BNGRK * (segment_B1GR == end_B1G[..., None])[..., None]
    stays_B1G11 = (start_B1G == end_B1G)[..., None, None]

    reads = []
    for group in range(query_BNGQK.shape[2]):
        change_BNRK = from_values_BNGRK[:, :, group]
        change_BNRK = change_BNRK - from_memory_BNGRK[:, :, group] @ memory_BNKK.mT
        read_BNQK = query_BNGQK[:, :, group] @ memory_BNKK.mT
        reads.append(read_BNQK + weights_QR[:, :, group] @ change_BNRK)
        memory_BNKK = memory_BNKK * stays_B1G11[:, :, group]
        memory_BNKK = memory_BNKK + change_BNRK.mT @ key_BNGRK[:, :, group]
    return torch.cat(reads, dim=2)[:, :, :num_tokens], memory_BNKK


def _solved(below_RR: Tensor, right: Tensor) -> Tensor:
    """The solution of (I + below) x = right, where `below` is zero on and above its diagonal."""
    if not torch.compiler.is_exporting():
        return torch.linalg.solve_triangular(below_RR, right, upper=False, unitriangular=True)
    rows = [right[..., :1, :]]  # ONNX has no solver, and one token has few writes
    for number in range(1, right.shape[-2]):
        known = below_RR[..., number : number + 1, :number] @ torch.cat(rows, dim=-2)
        rows.append(right[..., number : number + 1, :] - known)
    return torch.cat(rows, dim=-2)
