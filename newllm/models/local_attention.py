"""Causal attention to the last tokens only, or also to every n-th token before them.

Shapes: B batch, T time (tokens), D width, N attention heads, K width of a head, W window, R queries
of a group, G groups of R queries in a chunk, S tokens that the queries of a group may see, M tokens
kept beyond the window.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from newllm.config.faults import raise_faults, too_small
from newllm.models.attention import Attention, Cache
from newllm.models.layer import State, surely, zeros
from newllm.models.packing import Packing, first_true, take
from newllm.models.positions import rotary_angles

FEWEST_QUERIES = 32  # of a group; smaller products would take longer


class LocalAttention(Attention):
    """Blocks of attention, as in `Attention`, in which each token sees the last W tokens.

        y_i = sum_j softmax_j(q_i . k_j / sqrt(K)) v_j,  j = i - W + 1 ... i

    This is sliding-window attention (Beltagy et al. 2020, arXiv 2004.05150). The state has a fixed
    size: int64 [B], the number of tokens read, and the keys and values [B, N, W - 1, K] of each
    block, the last one at the end.

    Args:
        input_dim: D.
        num_heads: as in `Attention`.
        num_layers: blocks. A token depends on the last num_layers * (W - 1) + 1 tokens.
        feedforward_dim: F.
        window: W, the tokens that each token sees, itself included.
        dropout: as in `Attention`.
        norm_first: as in `Attention`.
        positions: as in `Attention`.

    Raises:
        ValueError: a setting is impossible.
    """

    name = "local_attention"

    def __init__(
        self,
        input_dim: int,
        num_heads: int | None,
        num_layers: int,
        feedforward_dim: int,
        window: int,
        dropout: float = 0.0,
        norm_first: bool = False,
        positions: str = "none",
    ) -> None:
        raise_faults(too_small("model", 1, window=window))
        super().__init__(
            input_dim, num_heads, num_layers, feedforward_dim, dropout, norm_first, positions
        )
        self.window = window
        self.stride: int | None = None

    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        pad_BT: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Read a chunk."""
        num_read_B, *caches = self.initial_state(x_BTD.shape[0]) if state is None else state
        packing = Packing.of(x_BTD, pad_BT, reset_BT)
        num_kept = caches[0].shape[2] - (self.window - 1)
        view = LocalView.of(packing, num_read_B, num_kept, self.window, self.stride)
        if self.positions == "rotary":
            position_BT = packing.position_BT(num_read_B)
            width = self.input_dim // self.num_heads
            view.rotation = rotary_angles(position_BT, width, x_BTD.dtype)
        y_BTD, after = self.through_blocks(packing.pack(x_BTD), view, caches)
        num_read_B = packing.num_real_B - packing.origin_B(num_read_B)
        return packing.unpack(y_BTD), (num_read_B, *after)

    def initial_state(self, batch_size: int) -> State:
        """No token read, and caches of zeros, which no token sees."""
        shape = batch_size, self.num_heads, self.window - 1, self.input_dim // self.num_heads
        num_read_B = zeros(self, batch_size).long()
        return (num_read_B, *(zeros(self, *shape) for _ in range(2 * len(self.blocks))))

    def state_bytes(self, num_tokens: int) -> int:
        """Bytes of one sequence's state."""
        num_kept = 0 if self.stride is None else num_tokens // self.stride
        keys_and_values = 2 * len(self.blocks) * self.input_dim * (self.window - 1 + num_kept)
        return 8 + keys_and_values * self.final_norm.weight.element_size()

    def num_visible(self, num_tokens: int) -> int:
        """Tokens that the last of `num_tokens` tokens sees."""
        beyond = max(0, num_tokens - self.window)
        return num_tokens - beyond + (0 if self.stride is None else beyond // self.stride)

    def flops_per_token(self, num_tokens: int) -> int:
        """As in `Attention`, with the tokens that are seen."""
        return super().flops_per_token(self.num_visible(num_tokens))

    @property
    def description(self) -> str:
        """As in `Attention`, then the window."""
        return f"{super().description.replace('transformer', self.name)} window{self.window}"


class SparseAttention(LocalAttention):
    """`LocalAttention` that also sees every n-th token since the start of the row.

        y_i = sum_j softmax_j(q_i . k_j / sqrt(K)) v_j,  i - W < j <= i,  or  j = n, 2 n, ... < i

    where tokens are numbered from 1. This is the fixed pattern of Child et al. (2019, arXiv
    1904.10509) with one token kept of each block of n, except that the local part slides: there, a
    token sees those of its own block. The strided pattern of that paper would keep all tokens. The
    state is that of `LocalAttention`, with the kept tokens behind the last ones, [B, N, W - 1 + M,
    K]. It grows by one of n tokens.

    Args:
        stride: n.

    The other arguments are those of `LocalAttention`.
    """

    name = "sparse_attention"

    def __init__(
        self,
        input_dim: int,
        num_heads: int | None,
        num_layers: int,
        feedforward_dim: int,
        window: int,
        stride: int,
        dropout: float = 0.0,
        norm_first: bool = False,
        positions: str = "none",
    ) -> None:
        raise_faults(too_small("model", 1, stride=stride))
        sizes = num_layers, feedforward_dim, window
        super().__init__(input_dim, num_heads, *sizes, dropout, norm_first, positions)
        self.stride = stride

    @property
    def description(self) -> str:
        """As in `LocalAttention`, then the stride."""
        return f"{super().description} stride{self.stride}"


@dataclass
class LocalView:
    """The window of each query, in a packed chunk, and the tokens kept beyond it.

    Attributes:
        mask: bool [B * G, 1, R, S], true where seen.
        recent: index of the tokens that the cache keeps as the last [B, W - 1], among those that it
            had and those of the chunk.
        seen_BM: indices in the chunk of the tokens that its own later queries see beyond their
            window.
        kept_BM: index of the tokens that the cache keeps for ever, among those that it had and
            those of the chunk.
        num_queries: R.
        rotation: as in `View`.
    """

    mask: Tensor
    recent: Tensor
    seen_BM: Tensor
    kept_BM: Tensor
    num_queries: int
    rotation: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(
        cls, packing: Packing, num_read_B: Tensor, num_kept: int, window: int, stride: int | None
    ) -> "LocalView":
        """The view of a chunk, after `num_read_B` tokens, `num_kept` of them in the cache."""
        num_tokens = packing.segment_BT.shape[1]
        num_queries = min(num_tokens, max(window, FEWEST_QUERIES))
        query_GR, near_GS = _groups(num_tokens, window, num_queries, num_read_B.device)
        segment_BGR = _segment_at(query_GR, packing, num_read_B)[..., None]
        is_near_GRS = (near_GS[:, None, :] <= query_GR[:, :, None]) & (
            near_GS[:, None, :] > query_GR[:, :, None] - window
        )
        is_near = is_near_GRS & (
            segment_BGR == _segment_at(near_GS, packing, num_read_B)[:, :, None]
        )
        seen_BM, far_BM, segment_BM = _far(packing, num_read_B, num_kept, stride)
        is_far = (segment_BGR == segment_BM[:, None, None]) & (
            far_BM[:, None, None] <= (query_GR - window)[..., None]
        )
        recent_W = torch.arange(window - 1, device=num_read_B.device)
        return cls(
            torch.cat((is_near, is_far), dim=3).flatten(0, 1)[:, None],
            packing.num_real_B[:, None] + recent_W,
            seen_BM,
            _kept(packing, num_read_B, num_kept, stride),
            num_queries,
        )

    def attend(
        self,
        query_BNTK: Tensor,
        key_BNTK: Tensor,
        value_BNTK: Tensor,
        past: Cache | None,
        dropout: float,
    ) -> tuple[Tensor, Cache]:
        """As in `View`."""
        assert past is not None
        num_tokens, num_queries = query_BNTK.shape[2], self.num_queries
        query = _padded(query_BNTK, num_queries).unflatten(2, (-1, num_queries)).transpose(1, 2)
        key, value = (
            self._visible(before, own)
            for before, own in zip(past, (key_BNTK, value_BNTK), strict=True)
        )
        attended = F.scaled_dot_product_attention(
            query.flatten(0, 1), key, value, self.mask, dropout
        )
        attended_BNTK = attended.unflatten(0, query.shape[:2]).transpose(1, 2).flatten(2, 3)
        cache = self._cached(past[0], key_BNTK), self._cached(past[1], value_BNTK)
        return attended_BNTK[:, :, :num_tokens], cache

    def _visible(self, past: Tensor, own: Tensor) -> Tensor:
        """Keys or values that each group of queries may see [B * G, N, S, K]."""
        near, far = past.split((self.recent.shape[1], past.shape[2] - self.recent.shape[1]), dim=2)
        near = torch.cat((near, _padded(own, self.num_queries)), dim=2)
        # All tokens of the window of the first query to the last query, for each group.
        near = near.unfold(2, self.recent.shape[1] + self.num_queries, self.num_queries)
        near_BGNSK = near.permute(0, 2, 1, 4, 3)
        far = torch.cat((far, _take(own, self.seen_BM)), dim=2)
        far_BGNSK = far[:, None].expand(-1, near_BGNSK.shape[1], -1, -1, -1)
        return torch.cat((near_BGNSK, far_BGNSK), dim=3).flatten(0, 1)

    def _cached(self, past: Tensor, own: Tensor) -> Tensor:
        near, far = past.split((self.recent.shape[1], past.shape[2] - self.recent.shape[1]), dim=2)
        near = _take(torch.cat((near, own), dim=2), self.recent)
        return torch.cat((near, _take(torch.cat((far, own), dim=2), self.kept_BM)), dim=2)


def _groups(
    num_tokens: int, window: int, num_queries: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Indices of the queries [G, R] and of the tokens near them [G, S], negative in the cache."""
    start_G = torch.arange(0, num_tokens, num_queries, device=device)[:, None]
    query_GR = start_G + torch.arange(num_queries, device=device)
    return query_GR, start_G + torch.arange(1 - window, num_queries, device=device)


def _segment_at(index_GS: Tensor, packing: Packing, num_read_B: Tensor) -> Tensor:
    """The segments [B, G, S] of tokens at indices in a chunk; -1 where there is none."""
    last = packing.segment_BT.shape[1] - 1
    of_chunk = packing.segment_BT[:, index_GS.clamp(0, last)]
    # The cache was read before any reset.
    of_cache = torch.where(index_GS >= -num_read_B[:, None, None], 0, -1)
    return torch.where(index_GS < 0, of_cache, of_chunk)


def _far(
    packing: Packing, num_read_B: Tensor, num_kept: int, stride: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens of a chunk its later queries see beyond their window.

    Returns:
        Indices of these tokens [B, M]. Indices and segments of the tokens kept before the chunk and
        of these [B, num_kept + M], with segment -1 where there is none.
    """
    if stride is None:
        nothing_B0 = packing.segment_BT[:, :0]
        return nothing_B0, nothing_B0, nothing_B0
    number_M = torch.arange(1, num_kept + 1, device=num_read_B.device)
    before_BM = number_M * stride - 1 - num_read_B[:, None]
    of_before = torch.where(before_BM < 0, 0, -1)
    is_kept_BT = packing.is_real_BT & ((packing.position_BT(num_read_B) + 1) % stride == 0)
    most = -(-is_kept_BT.shape[1] // stride)
    seen_BM = first_true(is_kept_BT, most)
    of_seen = torch.where(is_kept_BT, packing.segment_BT, -1).gather(1, seen_BM)
    return seen_BM, torch.cat((before_BM, seen_BM), dim=1), torch.cat((of_before, of_seen), dim=1)


def _kept(packing: Packing, num_read_B: Tensor, num_kept: int, stride: int | None) -> Tensor:
    """Index [B, M] of the tokens to keep, among those kept before and those of the chunk."""
    if stride is None:
        return packing.segment_BT[:, :0]
    number_M = torch.arange(1, num_kept + 1, device=num_read_B.device)
    is_kept_BT = packing.is_real_BT & ((packing.position_BT(num_read_B) + 1) % stride == 0)
    is_kept_BM = torch.cat((number_M * stride <= num_read_B[:, None], is_kept_BT), dim=1)
    segment_BM = F.pad(packing.segment_BT, (num_kept, 0))
    is_kept_BM = is_kept_BM & (segment_BM == packing.last_segment_B[:, None])
    num_tokens = packing.segment_BT.shape[1]
    most = is_kept_BM.sum(1).max()
    is_known = surely(most >= 0, worth_waiting=True)  # else a stream would keep all tokens
    return first_true(is_kept_BM, int(most) if is_known else num_kept + -(-num_tokens // stride))


def _padded(part_BNTK: Tensor, num_queries: int) -> Tensor:
    """Zeros at the end, so that the groups are full."""
    return F.pad(part_BNTK, (0, 0, 0, -part_BNTK.shape[2] % num_queries))


def _take(part_BNTK: Tensor, index_BS: Tensor) -> Tensor:
    return take(part_BNTK.transpose(1, 2), index_BS).transpose(1, 2)
