"""Attention with an optional key-value cache, and the transformer block, shared by `GPT` and `ViT`.

No bias and no affine normalization, so everything learned is in the masks. Blocks are pre-norm; branches are scaled by
``(2 * blocks) ** -0.5``, as GPT-2 scales the last layer of a branch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyValues:
    """Keys and values of one attention layer for up to ``context`` tokens.

    Without gradients only: the tensors are written in place.
    """

    def __init__(self, context: int) -> None:
        self.context = context
        self.length = 0
        self._held: Tensor | None = None  # [2, B, heads, context, head_width]

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends those of new tokens, ``[B, heads, T, head_width]``, and returns those of all tokens."""
        batch, heads, tokens, head_width = k.shape
        if self._held is None:
            self._held = k.new_empty(2, batch, heads, self.context, head_width)
        end = self.length + tokens
        self._held[0, :, :, self.length : end] = k
        self._held[1, :, :, self.length : end] = v
        self.length = end
        return self._held[0, :, :, :end], self._held[1, :, :, :end]


class Attention(nn.Module):
    """Multi-head attention, ``[B, T, width]`` to ``[B, T, width]``.

    Queries, keys and values are rows of one layer. The rows of a head are contiguous, so a shard can hold whole heads.

    Args:
        width: features of a token, a multiple of ``head_width``.
        head_width: features of a head, ``n_K`` below.
        causal: whether a token attends only to itself and earlier tokens.
        qk_scaling: scale the query and key weights by ``n_K ** 0.25`` each (Otsuka et al., arXiv 2511.04217, sections
            3.1 and 4.3, for better tickets in GPT-2). This multiplies the logits by ``sqrt(n_K)`` and cancels the usual
            ``1 / sqrt(n_K)``, so it is implemented as a logit scale of 1.

    Raises:
        ValueError: a width that is not a multiple of ``head_width``.
    """

    def __init__(self, width: int, head_width: int, causal: bool, qk_scaling: bool) -> None:
        super().__init__()
        if head_width < 1 or width < 1 or width % head_width:
            raise ValueError(f"width={width}: expected a positive multiple of head_width={head_width}")
        self.head_width = head_width
        self.causal = causal
        self.logit_scale = 1.0 if qk_scaling else head_width**-0.5
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cache: KeyValues | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (-1, 3, self.head_width)).permute(3, 0, 2, 1, 4)
        seen = 0
        if cache is not None:
            seen = cache.length
            k, v = cache.append(k, v)
        tokens, mask = x.shape[1], None
        if self.causal and seen and tokens > 1:
            mask = torch.ones(tokens, seen + tokens, dtype=torch.bool, device=x.device).tril(seen)
        whole = self.causal and not seen  # a single new token attends to all cached ones
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=whole, scale=self.logit_scale)
        return self.out(y.transpose(1, 2).flatten(2))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016): in training, drops a branch of an example with probability ``p``.

    Branches that are kept are divided by ``1 - p``.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return branch
        kept = branch.new_empty(len(branch), *[1] * (branch.dim() - 1)).bernoulli_(1 - self.p)
        return branch * (kept / (1 - self.p))


class Block(nn.Module):
    """Attention and an MLP with ReLU, each a residual branch times ``branch_scale``."""

    def __init__(
        self, width: int, head_width: int, branch_scale: float, causal: bool, qk_scaling: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.branch_scale = branch_scale
        self.drop_path = DropPath(drop_path)
        self.attention_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width, head_width, causal, qk_scaling)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width, elementwise_affine=False),
            nn.Linear(width, 4 * width, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(self, x: Tensor, cache: KeyValues | None = None) -> Tensor:
        x = x + self.branch_scale * self.drop_path(self.attention(self.attention_norm(x), cache))
        return x + self.branch_scale * self.drop_path(self.mlp(x))


def blocks(
    depth: int, width: int, head_width: int, causal: bool, qk_scaling: bool, drop_path: float = 0.0
) -> nn.ModuleList:
    """``depth`` blocks, at least 1. ``drop_path`` is the last one's; it rises from 0 in the first, in equal steps."""
    if depth < 1:
        raise ValueError(f"depth={depth}: expected at least 1")
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path={drop_path}: expected a probability in [0, 1)")
    scale = (2 * depth) ** -0.5
    rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
    return nn.ModuleList(Block(width, head_width, scale, causal, qk_scaling, rate) for rate in rates)
